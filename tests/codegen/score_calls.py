"""Kernels with score terms in the interpreter's worker, against the dense oracle."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from patterncc.codegen.score.reference import dense_attention
from patterncc.codegen.score.values import ScoreValues
from patterncc.dsl.score.terms import ScoreTerms, load_terms
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


@dataclass(frozen=True)
class GradientErrors:
    """Largest differences from autograd through the oracle, as shares of the largest entry (or of
    1, where that is less); infinite where there is a NaN. `again`: do repeated calls give the same
    bits?"""

    query: float
    key: float
    value: float
    tables: Mapping[str, float]
    again: bool


def differentiate_terms(case: ScoreCall, wanted: tuple[str, ...] | None = None) -> GradientErrors:
    """The errors of the backward kernels; memory past all rows and that of results is poisoned.

    Args:
        case: The call.
        wanted: The tables whose gradients are asked for; all if not given.
    """
    from patterncc.codegen.gpu.backward import Backward
    from tests.codegen.gradients import grad_out_of

    it = prepared(case.call)
    values = case.values()
    names = tuple(values.tables) if wanted is None else wanted
    tensors = [t.detach().double().requires_grad_() for t in (it.query, it.key, it.value)]
    tables = {n: t.double().requires_grad_() for n, t in values.tables.items()}
    out, lse = oracle(case, it, tuple(tensors), ScoreValues(values.numbers, tables))
    like = it.query.new_empty((*it.query.shape[:3], it.value.shape[3]))
    grad_out = grad_out_of(like, expanded=False)
    grad_lse = torch.randn(lse.shape[0], lse.shape[2], lse.shape[1]).transpose(1, 2)
    live = lse > -math.inf
    total = (out * grad_out.double()).sum() + torch.where(live, lse * grad_lse, 0).sum()
    leaves = [*tensors, *(tables[name] for name in names)]
    expected = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        backward = Backward(
            it.lower, lower_rows=it.lower_rows, folder=Path(folder), terms=case.terms
        )
        for _ in range(2):
            sums = {name: torch.zeros(values.tables[name].shape) for name in names}
            found = backward(
                grad_out,
                grad_lse,
                it.query,
                it.key,
                it.value,
                out.detach().to(like.dtype),
                lse.detach().float(),
                env=it.env,
                scale=case.call.scale,
                tables=it.tables,
                score_values=values,
                table_gradients=sums,
            )
            results.append([*(one for one in found if one is not None), *sums.values()])
    shares = [_share(one, other) for one, other in zip(results[0], expected, strict=True)]
    again = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    query, key, value, *rest = shares
    return GradientErrors(query, key, value, dict(zip(names, rest, strict=True)), again)


def _share(got: torch.Tensor, wanted: torch.Tensor) -> float:
    difference = (got.double() - wanted).abs()
    if not difference.numel():
        return 0.0
    if not bool(difference.isfinite().all()):
        return math.inf
    return float(difference.max()) / max(1.0, float(wanted.abs().max()))
