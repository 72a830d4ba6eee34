"""Programs whose tiles are patches of a raster (`ir.Patches`).

A mask that is a product, `near(q_0, k_0) and near(q_1, k_1)`, is seen by a box of rows as a box of
keys: along each axis the interval that `monotone.seen` finds. Patches that meet that box are to be
visited, those within the box that all rows of the tile see are full. The first are a product of
intervals, and so is what is left of them beside the second, cut along one axis after the other: a
few loops around a loop (`ir.Repeat`). A call that begins or ends within a place of the
outermost axis has patches with places that are not its; boxes are then taken around what exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.codegen.evaluation import evaluate
from patterncc.codegen.ir import Q_OFFSET, BlockProgram, Kind, Patches, Repeat, Sweep, box
from patterncc.codegen.monotone import Seen, Side, seen
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
    subtract,
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


def axis_of(raster: Raster, number: int, side: Side, extent: int) -> Axis:
    """What held boxes of a side see along an axis.

    Args:
        raster: The mask.
        number: Of the axis.
        side: Of the held tiles.
        extent: Their extent along the axis.
    """
    area, mask = Const(prod(raster.sizes)), raster.axes[number]
    first, last = box(side, "first", number), box(side, "last", number)
    least: IntExpr = Const(0)
    most: IntExpr = Const(0 if number == 0 else raster.sizes[number - 1] - 1)
    whole = most
    keys = Var("kv_len")
    if side == "q":
        if number == 0:
            most = floordiv(add(keys, Const(-1)), area)
            whole = add(floordiv(keys, area), Const(-1))
        return Axis(least, most, whole, TRUE, seen(mask, "q", first, last, least, most))
    whole_box = compare("<=", add(first, Const(extent - 1)), last)
    if number == 0:
        least = floordiv(Q_OFFSET, area)
        whole = most = floordiv(add(Q_OFFSET, Var("q_len"), Const(-1)), area)
        # The last place may hold some keys.
        end = multiply(area, add(last, Const(1)))
        whole_box = all_of(whole_box, compare("<=", end, keys))
    return Axis(least, most, whole, whole_box, seen(mask, "k", first, last, least, most))


def _axes(raster: Raster, side: Side, extents: Sequence[int]) -> tuple[Axis, ...]:
    return tuple(axis_of(raster, axis, side, extent) for axis, extent in enumerate(extents))


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
        fills: Tell full patches from partial ones, of which passing tiles of keys must have as many
            places as elements; else all are partial, of which one loop comes. Where the raster
            leaves terms out, none is full.
    """
    fills = fills and not raster.others
    return BlockProgram(
        structure=structure,
        block_q=tile[0],
        block_k=tile[1],
        mask=body,
        forward=tuple(_sweeps(_axes(raster, "q", patches.query), patches, "k", fills)),
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
    axes = _axes(raster, "k", program.patches.key)
    return tuple(_sweeps(axes, program.patches, "q", fills))


def _sweeps(axes: tuple[Axis, ...], patches: Patches, side: Side, fills: bool) -> Iterator[Sweep]:
    """The loops over passing patches of a side, which lie side by side from the first place on that
    is seen: a product of intervals, cut along one axis after the other where full patches begin and
    end."""
    extents = patches.passing(side)
    *around, step = (a * b for a, b in zip(extents, patches.steps, strict=True))
    spans = [_span(axis) for axis in axes]
    place = add(
        *(multiply(Const(by), low) for by, (low, _) in zip(patches.steps, spans, strict=True))
    )

    def sweep(kind: Kind, ranges: list[tuple[IntExpr, IntExpr]]) -> Sweep:
        *outer, (low, high) = ranges
        repeats = [Repeat(lo, hi, by) for (lo, hi), by in zip(outer, around, strict=True)]
        return Sweep(kind, low, high, TRUE, step, place, repeats=tuple(repeats[::-1]))

    found: list[tuple[IntExpr, IntExpr]] = [
        (Const(0), add(floordiv(subtract(high, low), Const(extent)), Const(1)))
        for (low, high), extent in zip(spans, extents, strict=True)
    ]
    if not fills:
        yield sweep("partial", found)
        return
    within = []
    for axis, extent, (_, count) in zip(axes, extents, found, strict=True):
        first, last = _filled(axis, extent, side, count)
        first = minimum(maximum(first, Const(0)), count)
        within.append((first, minimum(maximum(last, first), count)))
    for number in range(len(axes)):
        inside, outside = within[:number], found[number + 1 :]
        (low, high), (first, last) = found[number], within[number]
        yield sweep("partial", [*inside, (low, first), *outside])
        yield sweep("partial", [*inside, (last, high), *outside])
    yield sweep("full", within)


def _span(axis: Axis) -> tuple[IntExpr, IntExpr]:
    """The first and the last coordinate that is seen."""
    return maximum(axis.seen.some.lo, axis.least), minimum(axis.seen.some.hi, axis.most)


def _filled(axis: Axis, extent: int, side: Side, count: IntExpr) -> tuple[IntExpr, IntExpr]:
    """The patches, half open, counted from the first one that is seen, of which every pair is
    allowed: all keys of a patch must exist, rows that do not exist do not matter."""
    size, interval = Const(extent), axis.seen.every
    begin, _ = _span(axis)
    low = subtract(maximum(interval.lo, axis.least), begin)
    first = floordiv(add(low, Const(extent - 1)), size)
    if side == "k":
        high = minimum(interval.hi, axis.whole)
        return first, floordiv(add(subtract(high, begin), Const(1)), size)
    high = select(axis.whole_box, interval.hi, add(axis.least, Const(-1)))
    last = floordiv(add(subtract(high, begin), Const(1)), size)
    return first, select(compare("<=", axis.most, high), count, last)


# -------------------------------------------------------------------------------------- at a call


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where held patches of a side lie at a call.

    Attributes:
        before: How many places the grid begins before the edge along each axis.
        counts: Patches along each axis but the outermost.
        bands: Those along the outermost axis that hold rows or keys of the call, half open.
    """

    before: tuple[int, ...]
    counts: tuple[int, ...]
    bands: tuple[int, int]

    @property
    def size(self) -> int:
        """How many patches there are."""
        return (self.bands[1] - self.bands[0]) * prod(self.counts)


def _grid(patches: Patches, side: Side, env: Mapping[str, Any]) -> _Grid:
    before = tuple(int(evaluate(each, env)) for each in patches.before(side))
    counts = tuple(int(evaluate(each, env)) for each in patches.counts(side))
    start, stop = _positions(side, env)
    extent = patches.held(side)[0]
    bands = (0, 0)
    if stop > start:
        ends = (start // patches.area, (stop - 1) // patches.area)
        first, last = ((end + before[0]) // extent for end in ends)
        bands = first, last + 1
    return _Grid(before, counts, bands)


def tile_count(patches: Patches, side: Side, env: Mapping[str, Any]) -> int:
    """How many patches of a side are in a band that holds rows or keys of a call."""
    return _grid(patches, side, env).size


def _positions(side: Side, env: Mapping[str, Any]) -> tuple[int, int]:
    if side == "k":
        return 0, int(env["kv_len"])
    offset = int(env["q_offset"])
    return offset, offset + int(env["q_len"])


def _spans(patches: Patches, side: Side, env: Mapping[str, Any]) -> list[tuple[Ints, Ints]]:
    """Between which coordinates each held patch of a side lies along each axis, half open, within
    the raster; along the outermost axis, which has no end, from 0 on."""
    grid, extents = _grid(patches, side, env), patches.held(side)
    numbers = np.arange(grid.size, dtype=np.int64)
    spans: list[tuple[Ints, Ints]] = []
    for axis in range(len(extents) - 1, -1, -1):
        along = numbers % grid.counts[axis - 1] if axis else numbers + grid.bands[0]
        numbers = numbers // grid.counts[axis - 1] if axis else numbers
        begin = along * extents[axis] - grid.before[axis]
        end = begin + extents[axis]
        if axis:
            end = np.minimum(end, patches.sizes[axis - 1])
        spans.append((np.maximum(begin, 0), end))
    return spans[::-1]


def boxes(patches: Patches, side: Side, env: Mapping[str, Any]) -> dict[str, Ints]:
    """The boxes of all patches of a side at a call, int64 arrays by the names of `ir.box`."""
    start, stop = _positions(side, env)
    found: dict[str, Ints] = {}
    for axis, (first, end) in enumerate(_spans(patches, side, env)):
        last = end - 1
        if axis == 0:
            first = np.maximum(first, start // patches.area)
            last = np.minimum(last, (stop - 1) // patches.area)
        found[box(side, "first", axis).name] = first
        found[box(side, "last", axis).name] = last
    return found


def held_places(
    patches: Patches, side: Side, block: int, env: Mapping[str, Any]
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The positions of all elements of all held patches of a side at a call, and which exist.

    Args:
        patches: The patches.
        side: Queries or keys.
        block: Elements of a tile.
        env: The lengths, the offset and the numbers of the call.

    Returns:
        int64 and bool `[patches, elements]`.
    """
    spans = _spans(patches, side, env)
    return _places(patches, side, patches.held(side), spans, block, env)


def passing_places(
    patches: Patches, side: Side, block: int, first: Ints, env: Mapping[str, Any]
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The same of passing patches that begin at some positions, int64 `[patches]`."""
    spans = []
    for axis, (step, extent) in enumerate(zip(patches.steps, patches.passing(side), strict=True)):
        begin = first // step
        end = begin + extent
        if axis:
            size = patches.sizes[axis - 1]
            begin = begin % size
            end = np.minimum(begin + extent, size)
        spans.append((begin, end))
    return _places(patches, side, patches.passing(side), spans, block, env)


def _places(
    patches: Patches,
    side: Side,
    extents: tuple[int, ...],
    spans: Sequence[tuple[Ints, Ints]],
    block: int,
    env: Mapping[str, Any],
) -> tuple[Ints, npt.NDArray[np.bool_]]:
    start, stop = _positions(side, env)
    element = np.arange(block, dtype=np.int64)
    place = np.zeros((len(spans[0][0]), block), np.int64)
    exists = np.broadcast_to(element < prod(extents), place.shape)
    for axis in range(len(extents) - 1, -1, -1):
        along = element % extents[axis] if axis else element
        element = element // extents[axis]
        begin, end = spans[axis]
        place = place + (begin[:, None] + along) * patches.steps[axis]
        exists = exists & (begin[:, None] + along < end[:, None])
    return place, exists & (place >= start) & (place < stop)
