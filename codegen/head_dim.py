"""How a head dimension is cut into parts whose widths are powers of two, as Triton's tensors must be.

192 becomes 128 + 64 and 80 becomes 64 + 16: several matrix products and several accumulators instead of padding by
a third or more. A dimension that is no multiple of 16 is padded to the next one.
"""

from __future__ import annotations

from dataclasses import dataclass

from patterncc.dsl.errors import UnsupportedError

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


def parts(head_dim: int) -> tuple[Part, ...]:
    """The parts of a head dimension, widest first.

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
    for shift in range(total.bit_length() - 1, 3, -1):
        width = 1 << shift
        if total & width:
            found.append(Part(start, width, min(width, head_dim - start)))
            start += width
    return tuple(found)
