"""Kernels with score terms in the interpreter's worker, against the dense oracle."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from patterncc.codegen.score_reference import dense_attention
from patterncc.codegen.score_values import ScoreValues
from patterncc.dsl.score_terms import ScoreTerms, load_terms
from tests.codegen.attention import Errors, allowed_pairs, errors
from tests.codegen.interpreter import Call, Prepared, prepared


@dataclass(frozen=True)
class ScoreCall:
    """An attention call with score terms; tables are drawn, of the given shapes."""

    call: Call
    score: str = "score"
    sink: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def terms(self) -> ScoreTerms:
        return load_terms(self.score, self.sink)

    def values(self) -> ScoreValues:
        generator = torch.Generator().manual_seed(7)
        return ScoreValues(
            self.numbers,
            {name: torch.randn(shape, generator=generator) for name, shape in self.shapes.items()},
        )


def oracle(
    case: ScoreCall, it: Prepared, tensors: tuple[torch.Tensor, ...], values: ScoreValues
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and lse in float64."""
    query, key, value = tensors
    mask = allowed_pairs(it.pattern, query, key, it.scope, case.call.tables)
    return dense_attention(
        query,
        key,
        value,
        mask,
        case.call.scale,
        case.terms,
        env=it.scope,
        numbers=values.numbers,
        tables=values.tables,
    )


def attend_with_terms(case: ScoreCall) -> Errors:
    """The kernel's errors against float64; memory past the keys and of the outputs is poisoned."""
    from patterncc.codegen.gpu.forward import Forward

    it = prepared(case.call)
    tensors = (it.query, it.key, it.value)
    values = case.values()
    with tempfile.TemporaryDirectory() as folder:
        forward = Forward(it.lower, config=case.call.config, folder=Path(folder), terms=case.terms)
        got = forward(
            *tensors, env=it.env, scale=case.call.scale, tables=it.tables, score_values=values
        )
    return errors(got, oracle(case, it, tensors, values))
