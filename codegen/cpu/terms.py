"""Score terms on the CPU: what the executor's matrix products call for the logits of a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patterncc.codegen.cpu.scores import Places, PullBack
from patterncc.codegen.elementwise import discrete
from patterncc.codegen.score.elementwise import RealEvaluator
from patterncc.codegen.score.values import Rows, ScoreValues, add_at
from patterncc.dsl.mask import IntExpr, Predicate
from patterncc.dsl.score.check import table_ranks
from patterncc.dsl.score.nodes import SCORE, Real
from patterncc.dsl.score.terms import ScoreTerms


@dataclass(frozen=True, slots=True)
class Logits:
    """The logits of a call: a `ScoreTerm` of the executor.

    Attributes:
        terms: What a score becomes; the sink is no part of it.
        values: What they read.
        rows: The rows of the call.
        parameters: The tables that get a gradient, in the order of `names`.
        names: Of those.
    """

    terms: ScoreTerms
    values: ScoreValues
    rows: Rows
    parameters: tuple[Tensor, ...]
    names: tuple[str, ...]

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        """The logits of scaled scores `[outer, heads, rows, keys]`."""
        return self._evaluator(scores, places)(self.terms.logit).expand(scores.shape)

    def with_pull_back(self, scores: Tensor, places: Places) -> tuple[Tensor, PullBack]:
        """The logits, and gradients by the symbolic derivatives."""
        evaluate = self._evaluator(scores, places)

        def pull_back(grad_logits: Tensor) -> tuple[Tensor, list[Tensor]]:
            def through(slope: Real) -> Tensor:
                # Hidden pairs have 0, whatever the derivative is where they are.
                return torch.where(grad_logits == 0, 0, grad_logits * evaluate(slope))

            sums = {
                name: torch.zeros_like(table)
                for name, table in zip(self.names, self.parameters, strict=True)
            }
            for entry, slope in self.terms.table_slopes():
                if entry.table in sums:
                    add_at(sums[entry.table], *evaluate.places(entry), through(slope))
            return through(self.terms.slope), list(sums.values())

        return evaluate(self.terms.logit).expand(scores.shape), pull_back

    def _evaluator(self, scores: Tensor, places: Places) -> RealEvaluator:
        rows = self.rows
        sizes = {"q_len": rows.q_len, "kv_len": rows.kv_len}
        sizes |= {"heads": rows.heads, "kv_heads": rows.kv_heads}
        scope: dict[str, Any] = {"layer": 0, **rows.env, **sizes}
        scope |= {"head": places.head, "batch": places.batch}
        scope["kv_head"] = places.head // (rows.heads // rows.kv_heads)

        def found(expr: IntExpr | Predicate) -> Tensor:
            return discrete(expr, places.q, places.k, scope)

        return RealEvaluator(scores, found, self.values.numbers, self.values.tables, scores)


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
    tables = {
        name: values.tables[name].detach().to(dtype).contiguous()
        for name in table_ranks([terms.logit])
    }
    names = tuple(name for name in tables if wanted is not None and name in wanted)
    parameters = tuple(tables[name] for name in names)
    return Logits(terms, ScoreValues(values.numbers, tables), rows, parameters, names)
