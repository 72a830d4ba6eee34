"""How a head dimension is cut into parts whose widths are powers of two, as Triton's tensors must
be.

192 becomes 128 + 64 and 80 becomes 64 + 16: several matrix products and several accumulators
instead of padding by a third or more. A dimension that is no multiple of 16 is padded to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from patterncc.dsl.errors import UnsupportedError

if TYPE_CHECKING:
    from patterncc.codegen.problem import Problem

SMALLEST_PART = 16
LARGEST = 256


@dataclass(frozen=True, slots=True)
class Part:
    """Columns `[start, start + width)` of a head, of which the first `size` exist."""

    start: int
    width: int
    size: int

    @property
    def padded(self) -> bool:
        """Does it reach past the end of the head?"""
        return self.size < self.width


def query_key_value_parts(problem: Problem) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """The parts of query and key, and those of value and output.

    Raises:
        UnsupportedError: A head dimension is beyond what kernels hold.
    """
    widest = LARGEST
    if problem.dtype == "float32":
        # These products run without tensor cores, with whole operands in registers.
        widest = 32 if max(problem.head_dim, problem.value_head_dim) <= 128 else 64
    return parts(problem.head_dim, widest), parts(problem.value_head_dim, widest)


def parts(head_dim: int, widest: int = LARGEST) -> tuple[Part, ...]:
    """The parts of a head dimension, widest first.

    Args:
        head_dim: Columns of a head.
        widest: Most columns of a part, a power of two.

    Raises:
        UnsupportedError: It is not between 1 and 256.
    """
    if not 1 <= head_dim <= LARGEST:
        raise UnsupportedError(
            f"a head dimension of {head_dim} has no GPU kernel",
            f"use one between 1 and {LARGEST}, or run on the CPU",
        )
    total = -(-head_dim // SMALLEST_PART) * SMALLEST_PART
    found = []
    start = 0
    width = widest
    while start < total:
        if total - start >= width:
            found.append(Part(start, width, min(width, head_dim - start)))
            start += width
        else:
            width //= 2
    return tuple(found)
