"""Is a candidate's output right? Checked before its time counts: some rows against dense attention
in float64, and every row against the first output that was right on those.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from patterncc.autotune.job import Job
from patterncc.codegen import reference
from patterncc.codegen.judging import (
    LSE_TOLERANCE,
    OUTPUT_TOLERANCE,
    distance,
    mask_rows,
    sample,
)

_MOST_PAIRS = {"cpu": 1 << 24, "cuda": 1 << 28}  # of a row and a key, over all heads
_EDGE = 16  # rows at each end that are always among them


class Oracle:
    """Judges outputs of the forward phase for one call.

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

    def judge(self, out: Tensor, lse: Tensor) -> tuple[float, str]:
        """How far a result is off.

        Args:
            out: `[batch, heads, q_len, value_head_dim]`.
            lse: `[batch, heads, q_len]`.

        Returns:
            The largest error in units of what is allowed, and where it is wrong: "" where it is at
            most 1.
        """
        found = (out[:, :, self._rows], lse[:, :, self._rows])
        error, place = self._compare(found, self._wanted, "dense attention in float64")
        if place:
            return error, place
        if self._first is None:
            self._first = out.clone(), lse.clone()
            return error, ""
        # Each of the two may be off by what is allowed.
        other, place = self._compare((out, lse), self._first, "the first right output", 2.0)
        return max(error, other), place

    def _compare(
        self,
        found: tuple[Tensor, Tensor],
        wanted: tuple[Tensor, Tensor],
        whose: str,
        slack: float = 1.0,
    ) -> tuple[float, str]:
        worst = 0.0
        for name, one, other, allowed in zip(
            ("output", "lse"), found, wanted, self._allowed, strict=True
        ):
            error = distance(one, other)
            ratio = error / (slack * allowed)
            if ratio > 1:
                return ratio, (
                    f"its {name} is {error:.3g} from that of {whose}, "
                    f"{slack * allowed:.3g} is allowed"
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


def _mask(job: Job, tensors: Mapping[str, Tensor], head: int, batch: int, rows: Tensor) -> Tensor:
    """Rows of the mask of one head of the call, as from `mask_rows`."""
    env = job.head_env(head, batch)
    scalars = {name: number for name, number in env.items() if name not in job.tables}
    tables = {name: tensors[name] for name in job.tables}
    return mask_rows(job.pattern.body, rows, job.kv_len, job.q_offset, scalars, tables)
