"""What the placement of a call's tensors in memory allows: tensor descriptors, wide loads, or
neither.

Knows addresses, sizes and strides only. The rules are those of CUDA's tensor maps
(`cuTensorMapEncodeTiled`) and of 16-byte vector loads.
"""

from __future__ import annotations

from dataclasses import dataclass

LINE = 16
"""Bytes: what descriptors and vector loads ask addresses and strides to be multiples of."""

_LONGEST_STRIDE = 2**40  # bytes, of a tensor map


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a tensor `[batch, heads, length, head_dim]` lies.

    Attributes:
        name: What an error calls it.
        address: Of its first element.
        sizes: Of its four axes.
        strides: Of its four axes, in elements.
        itemsize: Bytes of an element.
    """

    name: str
    address: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int

    @property
    def steps(self) -> tuple[int, int, int]:
        """Strides of batch, head and row; 0 for an axis of one entry, whose stride says nothing."""
        batch, head, row = (
            stride if size > 1 else 0
            for size, stride in zip(self.sizes[:3], self.strides[:3], strict=True)
        )
        return batch, head, row

    @property
    def aligned(self) -> bool:
        """Do all rows start at multiples of 16 bytes?"""
        return self.address % LINE == 0 and all(
            step * self.itemsize % LINE == 0 for step in self.steps
        )

    def descriptor_obstacle(self, step: int = 1) -> str | None:
        """Why no tensor descriptor can describe it, in groups of `step` rows, or None."""
        if self.address % LINE:
            return f"the address of {self.name} is no multiple of {LINE} bytes"
        axes = ("batch", "head", "row")
        for axis, size, stride in zip(axes, self.sizes, self.steps, strict=False):
            length = stride * self.itemsize
            which = f"the {axis} stride of {self.name}, {length} bytes,"
            if length % LINE:
                return f"{which} is no multiple of {LINE}"
            reach = length * (step if axis == "row" else 1)
            if size > 1 and (length <= 0 or reach >= _LONGEST_STRIDE):
                return f"{which} is out of a descriptor's range"
        return None

    @property
    def descriptor_strides(self) -> list[int]:
        """The strides to describe it with: axes of one entry get any legal one."""
        row = -(-self.sizes[3] * self.itemsize // LINE) * LINE // self.itemsize
        return [*(step or row for step in self.steps), 1]

    def in_groups(self, step: int) -> tuple[list[int], list[int]]:
        """Sizes and strides of the view `[batch, heads, groups, step, head_dim]` whose last group
        may reach past the end: whoever loads from it must not."""
        batch, heads, length, head_dim = self.sizes
        *outer, row, column = self.descriptor_strides
        sizes = [batch, heads, -(-length // step), step, head_dim]
        return sizes, [*outer, step * row, row, column]
