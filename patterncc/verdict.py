"""Is a result right? Attention's output against the dense oracle in float64, row by row.

Bounded in memory and time at every length; the sample is drawn from a seed, so a run repeats.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patterncc.call import Call
from patterncc.codegen import reference

MOST_PAIRS = 1 << 27  # pairs of (row, key) that are checked, over all heads
_EDGE = 32  # rows at each end that are always checked
_CHUNK = 1 << 22  # pairs of a mask that are evaluated at a time

# Largest error of an output, in units of the largest value, and of an lse. The first follow from
# the rounding of weights and results, half a unit in the last place each, with room for sums.
_OUTPUT_TOLERANCE = {
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}
_LSE_TOLERANCE = {
    torch.float16: 1e-3,
    torch.bfloat16: 1e-3,
    torch.float32: 5e-5,
    torch.float64: 1e-12,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a result is from the oracle's.

    Attributes:
        rows: Rows of each head.
        checked: Of those, how many were compared.
        error: Largest difference of an output; infinite if one is not a number and should be.
        tolerance: What it may be.
        lse_error: Largest difference of an lse.
        lse_tolerance: What it may be.
    """

    rows: int
    checked: int
    error: float
    tolerance: float
    lse_error: float
    lse_tolerance: float

    @property
    def right(self) -> bool:
        """Whether the result is right."""
        return self.error <= self.tolerance and self.lse_error <= self.lse_tolerance


def judge(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    layer: int = 0,
    scale: float | None = None,
    seed: int = 0,
    most_pairs: int = MOST_PAIRS,
) -> Verdict:
    """Compares a result with dense attention in float64.

    Args:
        call: The pattern and the sizes of the call.
        query: `[batch, heads, q_len, head_dim]`, as the kernel got it; so the others.
        key: `[batch, kv_heads, kv_len, head_dim]`.
        value: `[batch, kv_heads, kv_len, value_head_dim]`.
        out: The result, `[batch, heads, q_len, value_head_dim]`.
        lse: Its log-sum-exp, `[batch, heads, q_len]`.
        layer: Layer number.
        scale: Factor of the scores; `head_dim ** -0.5` if not given.
        seed: Of the sample.
        most_pairs: Most pairs of a row and a key to look at, over all heads.
    """
    batch, heads, q_len, head_dim = query.shape
    rows = sample(q_len, max(2 * _EDGE, most_pairs // max(1, batch * heads * call.kv_len)), seed)
    scale = head_dim**-0.5 if scale is None else scale
    error = lse_error = 0.0
    for index in range(batch):
        masks: list[Tensor] = []
        for head in range(heads if call.differs_by_head else 1):
            env = call.env(head, layer) | {"batch": index}
            masks.append(mask_rows(call, env, rows))
        part = slice(index, index + 1)
        wanted, wanted_lse = reference.dense_attention(
            query[part, :, rows.to(query.device)].cpu(),
            key[part].cpu(),
            value[part].cpu(),
            torch.stack(masks)[None],
            scale,
        )
        got = out[part, :, rows.to(out.device)].cpu().double()
        got_lse = lse[part, :, rows.to(lse.device)].cpu().double()
        error = max(error, _distance(got, wanted))
        lse_error = max(lse_error, _distance(got_lse, wanted_lse))
    largest = max(1.0, float(value.abs().max()))
    tolerance = _OUTPUT_TOLERANCE[query.dtype] * largest
    return Verdict(q_len, len(rows), error, tolerance, lse_error, _LSE_TOLERANCE[query.dtype])


def sample(rows: int, most: int, seed: int, edge: int = _EDGE) -> Tensor:
    """Rows to check, int64, rising: all, or `edge` at both ends and a random choice between."""
    if rows <= most:
        return torch.arange(rows)
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randperm(rows - 2 * edge, generator=generator)[: most - 2 * edge] + edge
    ends = [torch.arange(edge), torch.arange(rows - edge, rows)]
    return torch.cat([*ends, middle]).sort().values


def mask_rows(call: Call, env: dict[str, Any], rows: Tensor) -> Tensor:
    """Rows of the mask of one head, straight from the pattern: bool `[len(rows), kv_len]`."""
    result = torch.empty(len(rows), call.kv_len, dtype=torch.bool, device=rows.device)
    scalars = {name: value for name, value in env.items() if name not in call.tables}
    tables = {name: torch.from_numpy(table).to(rows.device) for name, table in call.tables.items()}
    k = torch.arange(call.kv_len, device=rows.device)[None, :]
    step = max(1, _CHUNK // call.kv_len)
    with rows.device:  # where the oracle then makes its constants
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            q = rows[part, None] + call.q_offset
            result[part] = reference.allowed(call.pattern.body, q, k, scalars, tables)
    return result


def _distance(got: Tensor, wanted: Tensor) -> float:
    """The largest difference: 0 between equal infinities, infinite from what is not a number."""
    if got.numel() == 0:
        return 0.0
    difference = torch.where(got == wanted, 0.0, (got - wanted).abs())
    worst = float(difference.max())
    return math.inf if math.isnan(worst) else worst
