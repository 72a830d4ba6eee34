"""Patches of a raster (`ir.Patches`) as Triton text: where a tile's elements are in the sequence.

A held patch begins at a position that follows from its number by divisions of one scalar, a passing
one at the position that its sweep says. How far the elements are from there is the same in every
patch, a vector that is computed once. So the rows (or the keys) of a patch are that position and
that vector, and whatever reads them, addresses as well as masks, is what it is for consecutive
ones. Positions are not negative, which programs with patches take for granted, so that divisions
may round as the device does.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Literal

from patterncc.codegen.gpu.mask_source import scalar_name
from patterncc.codegen.gpu.scalar_source import ExpressionWriter, Text
from patterncc.codegen.ir import box
from patterncc.dsl.mask import Expr, Param, Var

if TYPE_CHECKING:
    from patterncc.codegen.ir import Patches

    Side = Literal["q", "k"]
    Extents = tuple[int, ...]

_NUMBERS = {"q": "tl.arange(0, BLOCK_Q)", "k": "tl.arange(0, BLOCK_K)"}


def patch_box(patches: Patches, side: Side) -> tuple[int, int] | None:
    """The box that a tensor descriptor loads a passing tile of queries or of keys by, of a view
    `[.., groups, width, head_dim]` of the length; None for a raster of more axes, whose view has
    more than a tensor map can, and for extents that are no powers of two."""
    extents = patches.passing(side)
    if len(extents) != 2 or any(extent & (extent - 1) for extent in extents):
        return None
    return extents[0], extents[1]


def elements_text(patches: Patches, extents: Extents, numbers: str) -> str:
    """How many positions each element of a patch is behind the first one.

    Args:
        patches: Their raster.
        extents: Of the patch.
        numbers: The numbers of the elements, a vector.
    """
    terms = []
    for axis, step in enumerate(patches.steps):
        along = _along(numbers, extents, axis)
        if along:
            terms.append(along if step == 1 else f"{along} * {step}")
    return " + ".join(terms)


def _along(numbers: str, extents: Extents, axis: int) -> str:
    """The coordinate of elements along an axis, seen from the begin of the patch; empty where it is
    always 0. Of elements past the end of the patch the outermost one is past its end as well."""
    inner = prod(extents[axis + 1 :])
    text = numbers if inner == 1 else f"{numbers} // {inner}"
    if axis == 0:
        return f"({text})"
    if extents[axis] == 1:
        return ""
    return f"({text}) % {extents[axis]}" if inner > 1 else f"{text} % {extents[axis]}"


def inside_text(
    patches: Patches, extents: Extents, first: str, block: int, numbers: str, *, held: bool
) -> str:
    """Which elements of a tile are places of the patch and of the raster; empty where all are,
    whatever the patch.

    Args:
        patches: The raster.
        extents: Of the patch.
        first: The position of its first element.
        block: Elements of a tile.
        numbers: The numbers of the elements, a vector.
        held: Does it begin at a multiple of its extents?
    """
    tests = [f"({numbers} < {prod(extents)})"] if prod(extents) < block else []
    for axis, size in enumerate(patches.sizes, 1):
        if extents[axis] > 1 and not (held and size % extents[axis] == 0):
            along = _along(numbers, extents, axis)
            tests.append(f"({_coordinate(patches, first, axis)} + {along} < {size})")
    return " & ".join(tests)


def _coordinate(patches: Patches, position: str, axis: int) -> str:
    """The coordinate of a position along an axis."""
    step = patches.steps[axis]
    text = position if step == 1 else f"{position} // {step}"
    return f"{text} % {patches.sizes[axis - 1]}" if axis else text


def _first_text(patches: Patches, side: Side, number: str) -> str:
    """The position of the first element of a held patch, by its number from band 0 on; of a grid
    that begins at the edge."""
    counts = [-(-size // e) for size, e in zip(patches.sizes, patches.held(side)[1:], strict=True)]
    terms = []
    for axis, (step, extent) in enumerate(zip(patches.steps, patches.held(side), strict=True)):
        inner = prod(counts[axis:])
        along = number if inner == 1 else f"{number} // {inner}"
        if axis:
            along = f"({along}) % {counts[axis - 1]}"
        if axis == 0 or counts[axis - 1] > 1:
            terms.append(f"({along}) * {step * extent}")
    return " + ".join(terms)


def _box_lines(patches: Patches, side: Side, first: str, least: str, last: str) -> Iterator[str]:
    """The box of a held tile, from the position of its first element and the least and the last
    position of the call's rows or keys."""
    for axis, extent in enumerate(patches.held(side)):
        begin, end = box(side, "first", axis).name, box(side, "last", axis).name
        at = _coordinate(patches, first, axis)
        if axis == 0:
            yield f"{begin} = tl.maximum({at}, ({least}) // {patches.area})"
            yield f"{end} = tl.minimum({at} + {extent - 1}, ({last}) // {patches.area})"
            continue
        yield f"{begin} = {at}"
        yield f"{end} = tl.minimum({begin} + {extent - 1}, {patches.sizes[axis - 1] - 1})"


def _cut_lines(patches: Patches, side: Side, number: str, least: str, last: str) -> Iterator[str]:
    """Where a held patch begins and how many places it has along each axis, and its box, on a grid
    that begins before the edge: coordinates first, since a position says nothing of what is before
    the edge. Arguments as of `_box_lines`, with the number of the patch from the first band on."""
    writer = ExpressionWriter(_scalar)
    counts = [writer.integer(count).operand() for count in patches.counts(side)]
    befores = [writer.integer(before).operand() for before in patches.before(side)]
    for axis, (extent, before) in enumerate(zip(patches.held(side), befores, strict=True)):
        begin, places = _cut_names(side, axis)
        inner = " * ".join(counts[axis:])
        along = f"{number} // ({inner})" if inner else number
        if axis:
            along = f"{along} % {counts[axis - 1]}"
        elif side == "q":
            along = f"{along} + ({least} // {patches.area} + {before}) // {extent}"
        yield f"{begin} = ({along}) * {extent} - {before}"
        stop = f"{begin} + {extent}"
        stop = f"tl.minimum({stop}, {patches.sizes[axis - 1]})" if axis else stop
        yield f"{places} = {stop} - tl.maximum({begin}, 0)"
        yield f"{begin} = tl.maximum({begin}, 0)"
        first, end = (box(side, which, axis).name for which in ("first", "last"))
        if axis:
            yield f"{first} = {begin}"
            yield f"{end} = {begin} + {places} - 1"
        else:
            yield f"{first} = tl.maximum({begin}, ({least}) // {patches.area})"
            yield f"{end} = tl.minimum({begin} + {places} - 1, ({last}) // {patches.area})"


def _cut_names(side: Side, axis: int) -> tuple[str, str]:
    """What is said of a cut patch along an axis: where it begins, and how many places it has."""
    return f"{side}_begin_{axis}", f"{side}_places_{axis}"


def _cut_first(patches: Patches, side: Side) -> str:
    """The position of the first place of a cut patch."""
    return " + ".join(
        _cut_names(side, axis)[0] + (f" * {step}" if step > 1 else "")
        for axis, step in enumerate(patches.steps)
    )


def _cut_inside(patches: Patches, side: Side, numbers: str) -> str:
    """Which elements of a tile are places of a cut patch."""
    tests = []
    for axis in range(len(patches.steps)):
        along = _along(numbers, patches.held(side), axis)
        tests.append(f"({along or 0} < {_cut_names(side, axis)[1]})")
    return " & ".join(tests)


def _scalar(leaf: Expr) -> Text | None:
    return Text(scalar_name(leaf), 32) if isinstance(leaf, (Var, Param)) else None


def row_patch_lines(patches: Patches, block: int) -> Iterator[str]:
    """The rows of the held tile `q_tile`, which of them exist, if any, and its box."""
    numbers = _NUMBERS["q"]
    if patches.query_before:
        yield from _cut_lines(patches, "q", "q_tile", "q_offset", "q_offset + q_len - 1")
        yield f"row_first = {_cut_first(patches, 'q')} - q_offset"
        yield f"rows = row_first + {elements_text(patches, patches.query, numbers)}"
        inside = _cut_inside(patches, "q", numbers)
        yield f"row_exists = (rows >= 0) & (rows < q_len) & {inside}"
        yield "has_work = tl.max(row_exists.to(tl.int32), 0) > 0"
        return
    band = patches.area * patches.query[0]
    first = _first_text(patches, "q", "q_tile")
    yield f"patch_first = q_offset // {band} * {band} + {first}"
    yield "row_first = patch_first - q_offset"
    yield f"rows = row_first + {elements_text(patches, patches.query, numbers)}"
    inside = inside_text(patches, patches.query, "patch_first", block, numbers, held=True)
    yield f"row_exists = (rows >= 0) & (rows < q_len){' & ' * bool(inside)}{inside}"
    yield "has_work = tl.max(row_exists.to(tl.int32), 0) > 0"
    yield from _box_lines(patches, "q", "patch_first", "q_offset", "q_offset + q_len - 1")


def key_patch_lines(
    patches: Patches, block: int, numbers: str = "tl.arange(0, BLOCK_K)"
) -> Iterator[str]:
    """The keys of the held tile `k_tile`, which of them exist, and its box; `numbers` are those of
    its elements."""
    if patches.key_before:
        yield from _cut_lines(patches, "k", "k_tile", "0", "kv_len - 1")
        yield f"k_first = {_cut_first(patches, 'k')}"
        yield f"keys = k_first + {elements_text(patches, patches.key, numbers)}"
        yield f"key_exists = (keys < kv_len) & {_cut_inside(patches, 'k', numbers)}"
        return
    yield f"k_first = {_first_text(patches, 'k', 'k_tile')}"
    yield f"keys = k_first + {elements_text(patches, patches.key, numbers)}"
    inside = inside_text(patches, patches.key, "k_first", block, numbers, held=True)
    yield f"key_exists = (keys < kv_len){' & ' * bool(inside)}{inside}"
    yield from _box_lines(patches, "k", "k_first", "0", "kv_len - 1")


def passing_elements(patches: Patches, side: Side) -> str:
    """How many positions each element of a passing tile is behind the first one."""
    return elements_text(patches, patches.passing(side), _NUMBERS[side])


def passing_inside(patches: Patches, side: Side, first: str, block: int) -> str:
    """Which elements of a passing tile, from the position `first` on, are places of the patch and
    of the raster; empty where all are."""
    return inside_text(patches, patches.passing(side), first, block, _NUMBERS[side], held=False)
