"""What every check against the dense oracle shares: which rows it looks at, their mask straight
from the pattern, the gradients that they pass on, how far results are apart, and how far they may
be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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

# Largest error of a gradient, in units of its largest entry. Besides their own rounding, gradients
# have that of the output and of the weights, which are rounded for tensor cores.
GRADIENT_TOLERANCE = {
    torch.float16: 2.0**-8,
    torch.bfloat16: 2.0**-5,
    torch.float32: 2e-5,
    torch.float64: 1e-11,
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


def dense_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    attend: Callable[..., Tensor],
    tables: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """The gradients that some rows of one head give query, key, value and tables, by autograd.

    Args:
        query: `[rows, head_dim]`, of a wide type.
        key, value: `[kv_len, head_dim]`, `[kv_len, value_head_dim]`.
        grad_out: Gradient of the output, `[rows, value_head_dim]`.
        attend: Dense attention of the three, with axes for batch and head in front, and the tables.
        tables: Whatever else has a gradient.
    """
    with torch.enable_grad():
        leaves = [tensor.detach()[None, None].requires_grad_() for tensor in (query, key, value)]
        others = [table.detach().requires_grad_() for table in tables]
        out = attend(*leaves, *others)
        grads = torch.autograd.grad(out, [*leaves, *others], grad_out[None, None])
    return (*(grad[0, 0] for grad in grads[:3]), *grads[3:])


@dataclass(slots=True)
class GradientError:
    """The largest difference from a gradient that was seen so far, and its largest right entry."""

    difference: float = 0.0
    largest: float = 0.0

    def see(self, found: Tensor, wanted: Tensor) -> None:
        """Takes in a part of the gradient; `wanted` may broadcast."""
        if found.numel() == 0:
            return
        self.difference = max(self.difference, distance(found, wanted))
        self.largest = max(self.largest, float(wanted.abs().max()))

    @property
    def relative(self) -> float:
        """In units of the largest entry; infinite where something is not a number."""
        return self.difference / self.largest if self.largest > 0 else self.difference
