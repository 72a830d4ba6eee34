"""Which kernels may spoil sums by numbers that are not finite, and what repairs them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from patterncc.codegen.gpu.isolation_source import SPOILED, grid_values, repair_grid
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launches import Buffer, Call, Launch, planned_launch


def spoiled_buffer(source: KernelSource, grid: tuple[int, int, int]) -> tuple[Buffer, ...]:
    """Where the programs of a kernel leave whether their sums are spoiled, if they can be."""
    return (Buffer("spoiled", (prod(grid),)),) if may_spoil(source) else ()


def may_spoil(source: KernelSource) -> bool:
    """Is there a kernel that repairs what this one may spoil?"""
    return SPOILED in source.parameters


def repair_launch(
    source: KernelSource, grid: tuple[int, int, int], call: Call, numbers: Mapping[str, int]
) -> Launch:
    """The launch that repairs what a kernel over `grid` has spoiled.

    Args:
        source: The kernel that repairs.
        grid: Of the one before it.
        call: The call.
        numbers: Values of parameters that the call does not have.
    """
    numbers = {**numbers, **grid_values(grid)}
    return planned_launch(source, repair_grid(grid), call, numbers=numbers)
