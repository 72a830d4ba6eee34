"""Programs whose tiles are patches of a raster (`ir.Patches`).

A mask that is a product, `near(q_0, k_0) and near(q_1, k_1)`, is seen by a box of rows as a box of
keys: along each axis the interval that `monotone.seen` finds. Patches that meet that box are to be
visited, those within the box that all rows of the tile see are full. The first are a product of
intervals of patches, and so is what is left of them beside the second, cut along one axis after the
other: a few loops around a loop (`ir.Repeat`). A call that begins or ends within a place of the
outermost axis has patches with places that are not its; boxes are then taken around what exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.codegen.ir import Q_OFFSET, BlockProgram, Kind, Patches, Repeat, Sweep, box
from patterncc.codegen.monotone import Interval, Seen, Side, seen
from patterncc.codegen.raster import Raster
from patterncc.dsl.build import (
    add,
    all_of,
    compare,
    floordiv,
    maximum,
    minimum,
    multiply,
    select,
)
from patterncc.dsl.mask import TRUE, Const, IntExpr, Predicate, Var, parameters

Ints = npt.NDArray[np.int64]

ROWS_END_WITHIN_KEYS = all_of(
    compare("<=", Const(0), Q_OFFSET),
    compare("<=", add(Q_OFFSET, Var("q_len")), Var("kv_len")),
)


@dataclass(frozen=True, slots=True)
class Axis:
    """What boxes of one side see along one axis of the other side's coordinates.

    Attributes:
        least, most: The ends of these.
        whole: The last of them that, at every place of the inner axes, is a key of the call.
        whole_box: Do all keys of the box exist?
        seen: What the mask says.
    """

    least: IntExpr
    most: IntExpr
    whole: IntExpr
    whole_box: Predicate
    seen: Seen


def forward_axes(raster: Raster) -> tuple[Axis, ...]:
    """What boxes of rows see of the keys, along each axis."""
    area = Const(prod(raster.sizes))
    keys = Var("kv_len")
    axes = []
    for number, mask in enumerate(raster.axes):
        if number == 0:
            most = floordiv(add(keys, Const(-1)), area)
            whole = add(floordiv(keys, area), Const(-1))
        else:
            most = whole = Const(raster.sizes[number - 1] - 1)
        first, last = box("q", "first", number), box("q", "last", number)
        view = seen(mask, "q", first, last, Const(0), most)
        axes.append(Axis(Const(0), most, whole, TRUE, view))
    return tuple(axes)


def transposed_axes(raster: Raster, extents: Sequence[int]) -> tuple[Axis, ...]:
    """What boxes of keys see of the rows, along each axis; `extents` are those of their tiles."""
    area = Const(prod(raster.sizes))
    axes = []
    for number, mask in enumerate(raster.axes):
        if number == 0:
            least = floordiv(Q_OFFSET, area)
            most = floordiv(add(Q_OFFSET, Var("q_len"), Const(-1)), area)
        else:
            least, most = Const(0), Const(raster.sizes[number - 1] - 1)
        first, last = box("k", "first", number), box("k", "last", number)
        complete = compare("<=", add(first, Const(extents[number] - 1)), last)
        if number == 0:  # the last place may hold some keys
            keys = multiply(area, add(last, Const(1)))
            complete = all_of(complete, compare("<=", keys, Var("kv_len")))
        view = seen(mask, "k", first, last, least, most)
        axes.append(Axis(least, most, most, complete, view))
    return tuple(axes)


def patch_program(
    structure: str,
    body: Predicate,
    raster: Raster,
    patches: Patches,
    tile: tuple[int, int],
    *,
    fills: bool,
) -> BlockProgram:
    """The forward direction of a mask in patches, before all passes over the block IR. It takes for
    granted that rows end within the keys.

    Args:
        structure: Canonical text of the pattern.
        body: The mask.
        raster: How a raster sees it.
        patches: The tiles.
        tile: `block_q` and `block_k`.
        fills: Tell full patches from partial ones; else all are partial, of which one loop comes.
    """
    return BlockProgram(
        structure=structure,
        block_q=tile[0],
        block_k=tile[1],
        mask=body,
        forward=tuple(_sweeps(forward_axes(raster), patches, "k", fills and not raster.others)),
        transposed=None,
        assume=ROWS_END_WITHIN_KEYS,
        scalars=tuple(sorted(parameters(body))),
        ignored=raster.others,
        patches=patches,
    )


def transposed_patches(program: BlockProgram, raster: Raster) -> tuple[Sweep, ...]:
    """The sweeps of the transposed direction of a program in patches, before all passes."""
    assert program.patches is not None
    fills = any(sweep.kind == "full" for sweep in program.forward)
    axes = transposed_axes(raster, program.patches.key)
    return tuple(_sweeps(axes, program.patches, "q", fills))


def _sweeps(axes: tuple[Axis, ...], patches: Patches, side: Side, fills: bool) -> Iterator[Sweep]:
    """The loops over patches of one side: a product of intervals, cut along one axis after the
    other where full patches begin and end."""
    extents, counts = patches.extents(side), patches.counts(side)
    steps = [prod(counts[axis:]) for axis in range(len(axes))]
    phase: IntExpr = Const(0)
    if side == "q":  # from the band of the call's first row on
        band = floordiv(Q_OFFSET, Const(patches.area * extents[0]))
        phase = multiply(Const(-steps[0]), band)
    found = [
        _touched(axis.seen.some, axis, extent) for axis, extent in zip(axes, extents, strict=True)
    ]
    guard = all_of(*(compare("<=", axis.seen.some.lo, axis.seen.some.hi) for axis in axes))

    def sweep(kind: Kind, ranges: list[tuple[IntExpr, IntExpr]]) -> Sweep:
        *outer, (low, high) = ranges
        repeats = [Repeat(lo, hi, step) for (lo, hi), step in zip(outer, steps, strict=False)]
        return Sweep(kind, low, high, guard, phase=phase, repeats=tuple(repeats[::-1]))

    if not fills:
        yield sweep("partial", found)
        return
    within = []
    for (low, high), axis, extent in zip(found, axes, extents, strict=True):
        first, last = _filled(axis, extent, side)
        first = minimum(maximum(first, low), high)
        within.append((first, minimum(maximum(last, first), high)))
    for number in range(len(axes)):
        inside, outside = within[:number], found[number + 1 :]
        (low, high), (first, last) = found[number], within[number]
        yield sweep("partial", [*inside, (low, first), *outside])
        yield sweep("partial", [*inside, (last, high), *outside])
    yield sweep("full", within)


def _touched(interval: Interval, axis: Axis, extent: int) -> tuple[IntExpr, IntExpr]:
    """The patches that hold a coordinate of an interval, half open."""
    low, high = maximum(interval.lo, axis.least), minimum(interval.hi, axis.most)
    return floordiv(low, Const(extent)), add(floordiv(high, Const(extent)), Const(1))


def _filled(axis: Axis, extent: int, side: Side) -> tuple[IntExpr, IntExpr]:
    """The patches of which every pair is allowed, half open: all keys of a patch must exist, rows
    that do not exist do not matter."""
    size, interval = Const(extent), axis.seen.every
    if side == "k":
        low, high = maximum(interval.lo, axis.least), minimum(interval.hi, axis.whole)
        return _ceildiv(low, extent), floordiv(add(high, Const(1)), size)
    low, high = interval.lo, select(axis.whole_box, interval.hi, add(axis.least, Const(-1)))
    first = select(
        compare("<=", low, axis.least), floordiv(axis.least, size), _ceildiv(low, extent)
    )
    last = select(
        compare("<=", axis.most, high),
        add(floordiv(axis.most, size), Const(1)),
        floordiv(add(high, Const(1)), size),
    )
    return first, last


def _ceildiv(value: IntExpr, divisor: int) -> IntExpr:
    return floordiv(add(value, Const(divisor - 1)), Const(divisor))


# -------------------------------------------------------------------------------------- at a call


def tile_numbers(patches: Patches, side: Side, env: Mapping[str, Any]) -> Ints:
    """The numbers of all patches of a side, int64, with the first one's band counted from 0."""
    low, high = _bands(patches, side, env)
    return np.arange((high - low) * prod(patches.counts(side)), dtype=np.int64)


def tile_count(patches: Patches, side: Side, env: Mapping[str, Any]) -> int:
    """How many patches of a side are in a band that holds rows or keys of a call."""
    low, high = _bands(patches, side, env)
    return (high - low) * prod(patches.counts(side))


def _bands(patches: Patches, side: Side, env: Mapping[str, Any]) -> tuple[int, int]:
    """The bands of a call, half open."""
    start, stop = _positions(side, env)
    band = patches.area * patches.extents(side)[0]
    return (start // band, -(-stop // band)) if stop > start else (0, 0)


def _positions(side: Side, env: Mapping[str, Any]) -> tuple[int, int]:
    if side == "k":
        return 0, int(env["kv_len"])
    offset = int(env["q_offset"])
    return offset, offset + int(env["q_len"])


def boxes(patches: Patches, side: Side, env: Mapping[str, Any]) -> dict[str, Ints]:
    """The boxes of all patches of a side at a call, int64 arrays by the names of `ir.box`."""
    numbers = tile_numbers(patches, side, env)
    extents, counts = patches.extents(side), patches.counts(side)
    (start, stop), (band, _) = _positions(side, env), _bands(patches, side, env)
    found: dict[str, Ints] = {}
    for axis in range(len(extents) - 1, -1, -1):
        extent = extents[axis]
        if axis:
            first = numbers % counts[axis - 1] * extent
            last = np.minimum(first + extent, patches.sizes[axis - 1]) - 1
            numbers = numbers // counts[axis - 1]
        else:
            begin = (band + numbers) * extent
            first = np.maximum(begin, start // patches.area)
            last = np.minimum(begin + extent - 1, (stop - 1) // patches.area)
        found[box(side, "first", axis).name] = first
        found[box(side, "last", axis).name] = last
    return found


def positions(
    patches: Patches, side: Side, block: int, env: Mapping[str, Any]
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The positions of all elements of all patches of a side at a call, and which exist.

    Args:
        patches: The patches.
        side: Queries or keys.
        block: Elements of a tile.
        env: The lengths and the offset of the call.

    Returns:
        int64 and bool `[patches, elements]`.
    """
    numbers = tile_numbers(patches, side, env)[:, None]
    extents, counts = patches.extents(side), patches.counts(side)
    start, stop = _positions(side, env)
    element = np.arange(block, dtype=np.int64)[None, :]
    place: Any = np.zeros((1, 1), np.int64)
    exists: Any = element < prod(extents)
    step = 1
    for axis in range(len(extents) - 1, -1, -1):
        within = element % extents[axis]
        element = element // extents[axis]
        if axis:
            coordinate = numbers % counts[axis - 1] * extents[axis] + within
            numbers = numbers // counts[axis - 1]
            exists = exists & (coordinate < patches.sizes[axis - 1])
        else:
            coordinate = (numbers + _bands(patches, side, env)[0]) * extents[0] + within
        place = place + step * coordinate
        step *= patches.sizes[axis - 1] if axis else 1
    return place, exists & (place >= start) & (place < stop)
