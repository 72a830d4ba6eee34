"""Score terms on the CPU: what the executor's matrix products call for the logits of a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patterncc.codegen.cpu.scores import Places
from patterncc.codegen.elementwise import discrete
from patterncc.codegen.score_elementwise import RealEvaluator
from patterncc.codegen.score_values import Rows, ScoreValues
from patterncc.dsl.mask import IntExpr, Predicate
from patterncc.dsl.score import SCORE, Real, reads_score
from patterncc.dsl.score_check import table_ranks
from patterncc.dsl.score_terms import ScoreTerms


@dataclass(frozen=True, slots=True)
class Logits:
    """The logits of a call: a `ScoreTerm` of the executor.

    Attributes:
        logit: What a score becomes.
        values: What that reads.
        rows: The rows of the call.
        parameters: The tables that get a gradient, in the order of `names`.
        names: Of those.
    """

    logit: Real
    values: ScoreValues
    rows: Rows
    parameters: tuple[Tensor, ...]
    names: tuple[str, ...]

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        """The logits of scaled scores `[outer, heads, rows, keys]`."""
        rows = self.rows
        sizes = {"q_len": rows.q_len, "kv_len": rows.kv_len}
        sizes |= {"heads": rows.heads, "kv_heads": rows.kv_heads}
        scope: dict[str, Any] = {"layer": 0, **rows.env, **sizes}
        scope |= {"head": places.head, "batch": places.batch}
        scope["kv_head"] = places.head // (rows.heads // rows.kv_heads)

        def found(expr: IntExpr | Predicate) -> Tensor:
            return discrete(expr, places.q, places.k, scope)

        tables = {**self.values.tables, **dict(zip(self.names, self.parameters, strict=True))}
        evaluate = RealEvaluator(scores, found, self.values.numbers, tables, scores)
        logits = evaluate(self.logit).broadcast_to(scores.shape)
        if reads_score(self.logit):
            return logits
        # The executor asks for a derivative by the scores: this one is 0.
        return torch.where(torch.ones((), dtype=torch.bool), logits, scores)


def logits_of(
    terms: ScoreTerms,
    values: ScoreValues,
    rows: Rows,
    dtype: torch.dtype,
    wanted: Mapping[str, object] | None = None,
) -> Logits | None:
    """The executor's term; None where the logit is the score.

    Args:
        terms: Of the call.
        values: What they read.
        rows: The rows of the call.
        dtype: What the executor computes in.
        wanted: The tables that get a gradient, by name.
    """
    if terms.logit == SCORE:
        return None
    tables = {name: values.tables[name].detach().to(dtype) for name in table_ranks([terms.logit])}
    names = tuple(name for name in tables if wanted is not None and name in wanted)
    for name in names:
        tables[name] = tables[name].clone().requires_grad_()
    parameters = tuple(tables[name] for name in names)
    return Logits(terms.logit, ScoreValues(values.numbers, tables), rows, parameters, names)
