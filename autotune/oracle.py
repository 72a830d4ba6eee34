"""Is what a candidate computes right? Checked before its time counts: some rows against dense
attention in float64, and every row against the first result that was right on those.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from patterncc.autotune.job import Job
from patterncc.codegen import reference
from patterncc.codegen.judging import (
    GRADIENT_TOLERANCE,
    LSE_TOLERANCE,
    OUTPUT_TOLERANCE,
    GradientError,
    dense_gradients,
    distance,
    mask_rows,
    sample,
)

_MOST_PAIRS = {"cpu": 1 << 24, "cuda": 1 << 28}  # of a row and a key, over all heads
_EDGE = 16  # rows at each end that are always among them
_PAIRS_AT_ONCE = 1 << 24  # that autograd holds

_FLOAT64 = "dense attention in float64"
_FIRST = "the first right result"


class Run(Protocol):
    """A config made ready: each call runs it and returns what it computed."""

    def __call__(self, *, checked: bool = False) -> tuple[Tensor, ...]:
        """Runs it; with `checked` a run of gradients takes the gradient of the output that is 0
        but in the rows whose gradients are known."""
        ...


class Oracle(Protocol):
    """What judges the results of one phase of a call."""

    def judge(self, run: Run) -> tuple[float, str]:
        """Runs a candidate and says how far its results are off.

        Returns:
            The largest error in units of what is allowed, and where it is wrong: "" where it is at
            most 1.
        """
        ...


class ForwardOracle:
    """Judges outputs of the forward for one call: `out` `[batch, heads, q_len, value_head_dim]` and
    `lse` `[batch, heads, q_len]`.

    Args:
        job: The call.
        tensors: `query`, `key`, `value` and the tables, all on one device.
    """

    def __init__(self, job: Job, tensors: Mapping[str, Tensor]) -> None:
        query, value = tensors["query"], tensors["value"]
        self._rows = _sample(job, query.device)
        self._wanted = _wanted(job, tensors, self._rows)
        largest = max(1.0, float(value.abs().max()))
        self._allowed = OUTPUT_TOLERANCE[query.dtype] * largest, LSE_TOLERANCE[query.dtype]
        self._first: tuple[Tensor, Tensor] | None = None

    def judge(self, run: Run) -> tuple[float, str]:
        """As `Oracle.judge`."""
        out, lse = run()
        found = (out[:, :, self._rows], lse[:, :, self._rows])
        error, place = self._compare(found, self._wanted, _FLOAT64)
        if place:
            return error, place
        if self._first is None:
            self._first = out.clone(), lse.clone()
            return error, ""
        # Each of the two may be off by what is allowed.
        other, place = self._compare((out, lse), self._first, _FIRST, 2.0)
        return max(error, other), place

    def _compare(
        self,
        found: tuple[Tensor, Tensor],
        wanted: tuple[Tensor, Tensor],
        whose: str,
        slack: float = 1.0,
    ) -> tuple[float, str]:
        errors = (distance(one, other) for one, other in zip(found, wanted, strict=True))
        limits = tuple(slack * allowed for allowed in self._allowed)
        return _worst(("output", "lse"), errors, limits, whose)


class GradientOracle:
    """Judges gradients of one call, against autograd through dense attention in float64.

    Only some rows have a gradient of the output that is not 0 when they are compared with that, so
    the gradients of all keys can be known whole. With a gradient in all rows they are compared with
    the first right ones.

    Args:
        job: The call.
        tensors: `query`, `key`, `value`, `grad_out` and the tables, all on one device.
        names: Which gradients a candidate computes, in its order: `grad_query`, `grad_key`,
            `grad_value`.
    """

    def __init__(self, job: Job, tensors: Mapping[str, Tensor], names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._rows = _sample(job, tensors["query"].device)
        self._wanted = _wanted_gradients(job, tensors, self._rows)
        self._allowed = GRADIENT_TOLERANCE[tensors["query"].dtype]
        self._first: tuple[Tensor, ...] | None = None
        self.checked_grad_out = torch.zeros_like(tensors["grad_out"])
        """The gradient of the output of a checked run."""
        self.checked_grad_out[:, :, self._rows] = tensors["grad_out"][:, :, self._rows]

    def judge(self, run: Run) -> tuple[float, str]:
        """As `Oracle.judge`."""
        wanted = [self._wanted[name] for name in self._names]
        error, place = self._compare(run(checked=True), wanted, _FLOAT64)
        if place:
            return error, place
        found = run()
        if self._first is None:
            # Nothing but numbers: what is none would be wrong for every later candidate.
            error = max([error, *(0.0 if bool(x.isfinite().all()) else torch.inf for x in found)])
            if error > 1:
                return error, "its gradients are no numbers where dense ones are not known"
            self._first = tuple(gradient.clone() for gradient in found)
            return error, ""
        other, place = self._compare(found, self._first, _FIRST, 2.0)
        return max(error, other), place

    def _compare(
        self, found: Sequence[Tensor], wanted: Sequence[Tensor], whose: str, slack: float = 1.0
    ) -> tuple[float, str]:
        errors = []
        for one, other in zip(found, wanted, strict=True):
            error = GradientError()
            for index in range(len(one)):  # a copy in a wide type of one batch entry at a time
                error.see(one[index].to(other.dtype), other[index])
            errors.append(error.relative)
        limits = (slack * self._allowed,) * len(errors)
        return _worst(self._names, errors, limits, whose, " of its largest entry")


def _worst(
    names: Sequence[str],
    errors: Iterable[float],
    limits: Sequence[float],
    whose: str,
    unit: str = "",
) -> tuple[float, str]:
    """The largest error in units of its limit; with the first that is beyond its limit in words."""
    worst = 0.0
    for name, error, limit in zip(names, errors, limits, strict=True):
        ratio = error / limit
        if not ratio <= 1:
            return ratio, (
                f"its {name} is {error:.3g} from that of {whose}, {limit:.3g}{unit} is allowed"
            )
        worst = max(worst, ratio)
    return worst, ""


def _sample(job: Job, device: torch.device) -> Tensor:
    """Rows to check: all, or both ends and a random choice between."""
    width = max(1, job.batch * job.heads * job.kv_len)
    most = max(2 * _EDGE, _MOST_PAIRS[device.type] // width)
    return sample(job.q_len, most, job.seed, _EDGE).to(device)


def _wanted(job: Job, tensors: Mapping[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    """Dense attention in float64 on some rows, on the device of the call."""
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    outs, lses = [], []
    with query.device:  # where the reference then makes its tensors
        for index in range(job.batch):
            heads = range(job.heads if job.differs_by_head else 1)
            masks = torch.stack([_mask(job, tensors, head, index, rows) for head in heads])
            part = slice(index, index + 1)
            out, lse = reference.dense_attention(
                query[part, :, rows], key[part], value[part], masks[None], job.scale
            )
            outs.append(out)
            lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def _wanted_gradients(job: Job, tensors: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The gradients that some rows give query, key and value, in float64 on the device of the
    call; those of other rows' queries are 0."""
    names = ("query", "key", "value")
    found = {f"grad_{name}": torch.zeros_like(tensors[name], dtype=torch.float64) for name in names}
    step = max(1, _PAIRS_AT_ONCE // max(1, job.kv_len))
    for batch in range(job.batch):
        mask = None if job.differs_by_head else _mask(job, tensors, 0, batch, rows)
        for head in range(job.heads):
            kv_head = head // (job.heads // job.kv_heads)
            own = _mask(job, tensors, head, batch, rows) if mask is None else mask
            key, value = (tensors[name][batch, kv_head].double() for name in names[1:])
            for first in range(0, len(rows), step):
                part = slice(first, first + step)
                some = rows[part]
                query, key_sum, value_sum = dense_gradients(
                    tensors["query"][batch, head, some].double(),
                    key,
                    value,
                    tensors["grad_out"][batch, head, some].double(),
                    partial(_attend, mask=own[part], scale=job.scale),
                )
                found["grad_query"][batch, head, some] = query
                found["grad_key"][batch, kv_head] += key_sum
                found["grad_value"][batch, kv_head] += value_sum
    return found


def _attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor, scale: float) -> Tensor:
    """The output of dense attention, on the device of the query."""
    with query.device:
        return reference.dense_attention(query, key, value, mask, scale)[0]


def _mask(job: Job, tensors: Mapping[str, Tensor], head: int, batch: int, rows: Tensor) -> Tensor:
    """Rows of the mask of one head of the call, as from `mask_rows`."""
    env = job.head_env(head, batch)
    scalars = {name: number for name, number in env.items() if name not in job.tables}
    tables = {name: tensors[name] for name in job.tables}
    return mask_rows(job.pattern.body, rows, job.kv_len, job.q_offset, scalars, tables)
