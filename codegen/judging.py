"""What every check against the dense oracle shares: which rows it looks at, their mask straight
from the pattern, how far results are apart, and how far they may be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from patterncc.codegen import reference
from patterncc.dsl.mask import Predicate

_CHUNK = 1 << 22  # pairs of a mask that are evaluated at a time

# Largest error of an output, in units of the largest value, and of an lse. The first follow from
# the rounding of weights and results, half a unit in the last place each, with room for sums.
OUTPUT_TOLERANCE = {
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
    torch.float32: 1e-5,
    torch.float64: 1e-12,
}
LSE_TOLERANCE = {
    torch.float16: 1e-3,
    torch.bfloat16: 1e-3,
    torch.float32: 5e-5,
    torch.float64: 1e-12,
}


def sample(rows: int, most: int, seed: int, edge: int) -> Tensor:
    """Rows to check, int64, rising: all, or `edge` at both ends and a random choice between."""
    if rows <= most:
        return torch.arange(rows)
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randperm(rows - 2 * edge, generator=generator)[: most - 2 * edge] + edge
    ends = [torch.arange(edge), torch.arange(rows - edge, rows)]
    return torch.cat([*ends, middle]).sort().values


def mask_rows(
    body: Predicate,
    rows: Tensor,
    kv_len: int,
    q_offset: int,
    scalars: Mapping[str, int],
    tables: Mapping[str, Tensor],
) -> Tensor:
    """Rows of the mask of one head, straight from the pattern: bool `[len(rows), kv_len]`, where
    the rows are.

    Args:
        body: The pattern.
        rows: Numbers of rows of the call.
        kv_len: Keys.
        q_offset: Position of row 0.
        scalars: What it reads by name.
        tables: The tables that it reads, on the device of the rows.
    """
    result = torch.empty(len(rows), kv_len, dtype=torch.bool, device=rows.device)
    k = torch.arange(kv_len, device=rows.device)[None, :]
    step = max(1, _CHUNK // kv_len)
    with rows.device:  # where the oracle then makes its constants
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            q = rows[part, None] + q_offset
            result[part] = reference.allowed(body, q, k, scalars, tables)
    return result


def distance(found: Tensor, wanted: Tensor) -> float:
    """The largest difference: 0 between equal infinities, infinite from what is not a number."""
    if found.numel() == 0:
        return 0.0
    wide = torch.float64 if wanted.dtype == torch.float64 else torch.float32
    one, other = found.to(wide), wanted.to(wide)
    difference = torch.where(one == other, 0.0, (one - other).abs())
    worst = float(difference.max())
    return math.inf if math.isnan(worst) else worst
