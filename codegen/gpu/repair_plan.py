"""Which kernels may spoil sums by numbers that are not finite, and what repairs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from patterncc.codegen.gpu.isolation_source import (
    LET_NEXT_START,
    SPOILED,
    WAIT_FOR_LAST,
    grid_values,
    repair_grid,
)
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launches import Buffer, Call, Launch, planned_launch

_LONG = 512
"""Programs from where on a kernel takes longer than the host takes for the launches of a call: a
program takes 10 microseconds or more, and no device runs so many at a time."""


def spoiled_buffer(source: KernelSource, grid: tuple[int, int, int]) -> tuple[Buffer, ...]:
    """Where the programs of a kernel leave whether their sums are spoiled, if they can be."""
    return (Buffer("spoiled", (prod(grid),)),) if may_spoil(source) else ()


def may_spoil(source: KernelSource) -> bool:
    """Is there a kernel that repairs what this one may spoil?"""
    return SPOILED in source.parameters


def noting(source: KernelSource, call: Call) -> KernelSource:
    """A kernel of a call as it runs: if it notes what it spoils, the kernel that repairs may start
    before it has ended, where the device can do that."""
    if may_spoil(source) and _overlaps(call.target):
        return source.beginning_with(LET_NEXT_START)
    return source


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
    places = repair_grid(grid, source.config.num_warps)
    if _overlaps(call.target):
        source = source.beginning_with(WAIT_FOR_LAST, starts_early=True)
    planned = planned_launch(source, places, call, numbers=numbers)
    return replace(planned, follows_long=prod(grid) >= _LONG)


def _overlaps(target: str) -> bool:
    """Can programs of a kernel start before the kernel before it has ended?"""
    backend, _, capability = target.partition(":")
    return backend == "cuda" and int(capability) >= 90
