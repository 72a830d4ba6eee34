"""Calls with numbers that are not finite at chosen places, in the interpreter's worker: what they
reach, against float64 and against the same call without them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from unittest.mock import patch

import torch

from patterncc.codegen.elementwise import discrete
from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.chunk_source import Progression
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.score.elementwise import RealEvaluator
from patterncc.codegen.score.values import ScoreValues
from patterncc.dsl.mask import IntExpr, Predicate
from tests.codegen.attention import allowed_pairs
from tests.codegen.gluon_launches import emulation
from tests.codegen.gradients import grad_out_of
from tests.codegen.interpreter import Prepared, prepared
from tests.codegen.score_calls import ScoreCall

Name: TypeAlias = Literal["query", "key", "value", "grad_out"]
NAMES: tuple[Name, ...] = ("query", "key", "value", "grad_out")


@dataclass(frozen=True)
class Plant:
    """A number planted in a tensor of a call.

    Attributes:
        name: The tensor, or a table of the score terms.
        head: Counted around; of a table its first index.
        row: Counted around; of a table its last index.
        column: Counted around; None plants a whole row.
        number: What is planted.
    """

    name: str
    head: int
    row: int
    column: int | None
    number: float

    def into(self, tensor: torch.Tensor) -> None:
        if tensor.ndim < 4:
            tensor.view(-1, tensor.shape[-1])[:, self.row % tensor.shape[-1]] = self.number
            return
        row = tensor[:, self.head % tensor.shape[1], self.row % tensor.shape[2]]
        if self.column is None:
            row[:] = self.number
        else:
            row[:, self.column % tensor.shape[3]] = self.number


@dataclass(frozen=True)
class Isolation:
    """A call, forward and backward, with planted numbers.

    Attributes:
        case: The call and its score terms.
        plants: What is planted.
        split: How key tiles are split, instead of by what is counted.
        emulated: Config of Gluon's forward kernel, which is run by `gluon_emulator`; the backward
            is interpreted, but in bfloat16, which the interpreter does not know: then there is
            none.
    """

    case: ScoreCall
    plants: tuple[Plant, ...]
    split: tuple[Progression, ...] | None = None
    emulated: KernelConfig | None = None


@dataclass(frozen=True)
class Reached:
    """What a run has shown.

    Attributes:
        complaints: Where it is not as it must be.
        wild, tame: How many rows see a number that is not finite, and how many do not.
    """

    complaints: tuple[str, ...]
    wild: int
    tame: int


@dataclass(frozen=True)
class _Inputs:
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    values: ScoreValues


@dataclass(frozen=True)
class _Results:
    out: torch.Tensor
    lse: torch.Tensor
    gradients: tuple[torch.Tensor, ...]


def isolate(isolation: Isolation) -> Reached:
    """Runs a call with what is planted and without it.

    - Rows that see nothing which is not finite, and keys all of whose rows are such, have the same
      bits in both.
    - All other results are NaN where float64 is, infinite or NaN where it is infinite, and finite
      and near elsewhere. In float64, too, pairs with a logit of minus infinity are as hidden ones.
    """
    case = isolation.case
    it = prepared(case.call)
    like = it.query.new_empty((*it.query.shape[:3], it.value.shape[3]))
    grad_out = grad_out_of(like, expanded=False)
    drawn = _Inputs((it.query, it.key, it.value, grad_out), case.values())
    wild = _planted(drawn, isolation.plants)
    # Minus infinity in a table is a way to hide a key: it is there in both.
    hiding = [p for p in isolation.plants if p.name not in NAMES and p.number == -math.inf]
    tame = _planted(drawn, hiding)
    clean, found = (_run(isolation, it, inputs) for inputs in (tame, wild))
    rows, keys = _touched(case, it, tame, wild)
    complaints = [
        f"{name}: {int(different.sum())} rows that see nothing wild differ"
        for name, one, other, touched in zip(
            ("out", "lse", "grad_query", "grad_key", "grad_value")[: 2 + len(found.gradients)],
            (found.out, found.lse[..., None], *found.gradients),
            (clean.out, clean.lse[..., None], *clean.gradients),
            (rows, rows, rows, keys, keys)[: 2 + len(found.gradients)],
            strict=True,
        )
        if bool((different := ((one != other).any(3) & ~touched)).any())
    ]
    complaints += _disagreements(case, it, wild, found)
    return Reached(tuple(complaints), int(rows.sum()), int((~rows).sum()))


def _planted(inputs: _Inputs, plants: Sequence[Plant]) -> _Inputs:
    query, key, value, grad_out = (tensor.clone() for tensor in inputs.tensors)
    tables = {name: table.clone() for name, table in inputs.values.tables.items()}
    named = {"query": query, "key": key, "value": value, "grad_out": grad_out, **tables}
    for plant in plants:
        plant.into(named[plant.name])
    return _Inputs((query, key, value, grad_out), ScoreValues(inputs.values.numbers, tables))


def _run(isolation: Isolation, it: Prepared, inputs: _Inputs) -> _Results:
    from patterncc.codegen.gpu.backward import Backward
    from patterncc.codegen.gpu.forward import Forward

    case, config = isolation.case, isolation.case.call.config
    query, key, value, grad_out = inputs.tensors
    scale = case.call.scale
    with tempfile.TemporaryDirectory() as folder:
        lower = it.lower_rows or it.lower
        own = isolation.emulated or config
        forward = Forward(lower, config=own, folder=Path(folder), terms=case.terms, isolates=True)
        with nullcontext() if isolation.emulated is None else emulation():
            out, lse = forward(
                query,
                key,
                value,
                env=it.env,
                scale=scale,
                tables=it.tables,
                score_values=inputs.values,
            )
        if case.call.dtype == "bfloat16":
            return _Results(out, lse, ())
        backward = Backward(
            it.lower,
            lower_rows=it.lower_rows,
            config=BackwardConfig(config, config),
            folder=Path(folder),
            terms=case.terms,
            isolates=True,
        )

        def differentiate() -> tuple[torch.Tensor | None, ...]:
            return backward(
                grad_out,
                None,
                query,
                key,
                value,
                out,
                lse,
                env=it.env,
                scale=scale,
                tables=it.tables,
                score_values=inputs.values,
            )

        if isolation.split is None:
            gradients = differentiate()
        else:
            place = "patterncc.codegen.gpu.key_tile_plan.split_tiles"
            with patch(place, return_value=isolation.split):
                gradients = differentiate()
    return _Results(out, lse, tuple(one for one in gradients if one is not None))


def _logits(case: ScoreCall, it: Prepared, inputs: _Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pairs the pattern allows, and the logits of all in float64."""
    query, key, *_ = inputs.tensors
    heads, group = query.shape[1], query.shape[1] // key.shape[1]
    mask = allowed_pairs(it.pattern, query, key, it.scope, case.call.tables)
    scores = query.double() @ key.double().repeat_interleave(group, 1).mT * case.call.scale
    lengths = {"q_len": query.shape[2], "kv_len": key.shape[2]}
    scope = {**it.scope, **lengths, "heads": heads, "kv_heads": key.shape[1], "batch": 0}
    q = torch.arange(scope["q_offset"], scope["q_offset"] + query.shape[2])[:, None]
    k = torch.arange(key.shape[2])[None, :]
    for head in range(heads):
        own = {**scope, "head": head, "kv_head": head // group}

        def looked_up(expr: IntExpr | Predicate, own: dict[str, int] = own) -> torch.Tensor:
            return discrete(expr, q, k, own)

        score = scores[0, head]
        values = inputs.values
        evaluate = RealEvaluator(score, looked_up, values.numbers, values.tables, score)
        scores[0, head] = evaluate(case.terms.logit).broadcast_to(score.shape).clone()
    return mask, scores


def _touched(
    case: ScoreCall, it: Prepared, tame: _Inputs, wild: _Inputs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which rows `[batch, heads, q_len]` see something that has been planted or hold it, and which
    keys `[batch, kv_heads, kv_len]` are seen by such rows."""
    query, key, value, grad_out = wild.tensors
    group = query.shape[1] // key.shape[1]
    (mask, before), (_, after) = (_logits(case, it, inputs) for inputs in (tame, wild))
    counted = mask & (after != -math.inf)
    of_values = ~value.isfinite().all(3).repeat_interleave(group, 1)[:, :, None]
    rows = (mask & (before != after) | counted & of_values).any(3)
    rows |= counted.any(3) & ~grad_out.isfinite().all(3)
    keys = (mask & rows[..., None]).any(2)
    return rows, keys.view(key.shape[0], key.shape[1], group, key.shape[2]).any(2)


def _disagreements(case: ScoreCall, it: Prepared, inputs: _Inputs, found: _Results) -> list[str]:
    """Where results are not what float64 makes of them: of the kernels' own output and lse in the
    backward."""
    query, key, value, grad_out = (tensor.double() for tensor in inputs.tensors)
    group = query.shape[1] // key.shape[1]
    mask, logits = _logits(case, it, inputs)
    logits = logits.masked_fill(~mask, -math.inf)
    keys, values = (one.repeat_interleave(group, 1) for one in (key, value))
    loose = 1e-4 if inputs.tensors[0].dtype == torch.float32 else 3e-2
    complaints = []
    if case.sink is None:
        lse = logits.logsumexp(3)
        counted = logits != -math.inf
        weights = torch.where(counted, (logits - lse[..., None]).exp(), 0)
        complaints += _compared("out", found.out, _products(weights, values, counted), loose)
        complaints += _compared("lse", found.lse, lse, loose, dead=True)
    if case.score != "score" or not found.gradients:
        return complaints
    dead = found.lse == -math.inf
    exponents = logits - found.lse.double().masked_fill(dead, math.inf)[..., None]
    counted = mask & (exponents != -math.inf)
    weights = torch.where(counted, exponents.exp(), 0)
    delta = (grad_out * found.out.double()).sum(3, keepdim=True)
    changes = torch.where(counted, weights * (grad_out @ values.mT - delta), 0)
    shape = (key.shape[0], key.shape[1], group, *key.shape[2:])
    wanted = (
        _products(changes, keys, counted) * case.call.scale,
        _products(changes.mT, query, counted.mT).view(shape).sum(2) * case.call.scale,
        _products(weights.mT, grad_out, counted.mT).view(*shape[:4], -1).sum(2),
    )
    for name, got, one in zip(
        ("grad_query", "grad_key", "grad_value"), found.gradients, wanted, strict=True
    ):
        complaints += _compared(name, got, one, loose)
    return complaints


def _products(factors: torch.Tensor, numbers: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """`factors @ numbers` over the pairs that count."""
    shares = factors[..., None] * numbers[:, :, None]
    return torch.where(counted[..., None], shares, 0).sum(3)


def _compared(
    name: str, got: torch.Tensor, wanted: torch.Tensor, loose: float, *, dead: bool = False
) -> list[str]:
    """Complaints about one result; `dead`: minus infinity is that of a row without keys."""
    got = got.double()
    infinite = wanted.isinf()
    if dead:
        empty = wanted == -math.inf
        if not torch.equal(got == -math.inf, empty):
            return [f"{name}: other rows are empty"]
        infinite = infinite & ~empty
        got, wanted = (torch.where(empty, 0, one) for one in (got, wanted))
    finite = wanted.isfinite()
    complaints = []
    if not bool(got[wanted.isnan()].isnan().all()):
        complaints.append(f"{name} is not NaN where float64 is")
    if not bool((got[infinite].isnan() | (got[infinite] == wanted[infinite])).all()):
        complaints.append(f"{name} is not infinite where float64 is")
    if not bool(got[finite].isfinite().all()):
        complaints.append(f"{name} is not finite where float64 is")
    elif finite.any() and float((got - wanted)[finite].abs().max()) > loose * max(
        1.0, float(wanted[finite].abs().max())
    ):
        complaints.append(f"{name} differs by {float((got - wanted)[finite].abs().max())}")
    return complaints
