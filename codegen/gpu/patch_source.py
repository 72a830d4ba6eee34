"""Patches of a raster (`ir.Patches`) as Triton text: where a tile's elements are in the sequence.

A patch begins at a position that follows from its number by divisions of one scalar; how far its
elements are from there is the same in every patch, a vector that is computed once. So the rows (or
the keys) of a patch are that position and that vector, and whatever reads them, addresses as well
as masks, is what it is for consecutive ones. Positions are not negative, which programs with
patches take for granted, so that divisions may round as the device does.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Literal

from patterncc.codegen.ir import box

if TYPE_CHECKING:
    from patterncc.codegen.ir import Patches

    Side = Literal["q", "k"]

BLOCK = {"q": "BLOCK_Q", "k": "BLOCK_K"}


def patch_box(patches: Patches, side: Side, block: int) -> tuple[int, int] | None:
    """The box that a tensor descriptor loads a patch by, of a view `[.., groups, width, head_dim]`
    of the length; None where there is none: of three axes and more, whose views have more axes than
    a tensor map can, and of extents that are no powers of two."""
    extents = patches.extents(side)
    if len(extents) != 2 or prod(extents) != block or any(e & (e - 1) for e in extents):
        return None
    return extents[0], extents[1]


def elements_text(patches: Patches, side: Side, numbers: str = "") -> str:
    """How many positions each element of a patch is behind the first one.

    Args:
        patches: The patches.
        side: Of queries or of keys.
        numbers: The numbers of the elements, a vector; all of a tile if not given.
    """
    numbers = numbers or f"tl.arange(0, {BLOCK[side]})"
    extents = patches.extents(side)
    terms = []
    for axis, step in enumerate(_steps(patches)):
        along = _along(numbers, extents, axis)
        if along:
            terms.append(along if step == 1 else f"{along} * {step}")
    return " + ".join(terms)


def _along(numbers: str, extents: tuple[int, ...], axis: int) -> str:
    """The coordinate of elements along an axis, seen from the begin of the patch; empty where it is
    always 0. Of elements past the end of the patch the outermost one is past its end as well."""
    inner = prod(extents[axis + 1 :])
    text = numbers if inner == 1 else f"{numbers} // {inner}"
    if axis == 0:
        return f"({text})"
    if extents[axis] == 1:
        return ""
    return f"({text}) % {extents[axis]}" if inner > 1 else f"{text} % {extents[axis]}"


def _steps(patches: Patches) -> list[int]:
    """How many positions are between neighbouring places along each axis."""
    return [prod(patches.sizes[axis:]) for axis in range(len(patches.sizes) + 1)]


def inside_text(patches: Patches, side: Side, first: str, block: int, numbers: str = "") -> str:
    """Which elements of a tile are places of the patch and of the raster; empty where all are,
    whatever the patch.

    Args:
        patches: The patches.
        side: Of queries or of keys.
        first: The position of the patch's first element.
        block: Elements of a tile.
        numbers: As in `elements_text`.
    """
    numbers = numbers or f"tl.arange(0, {BLOCK[side]})"
    extents = patches.extents(side)
    tests = [f"({numbers} < {prod(extents)})"] if prod(extents) < block else []
    for axis, (step, size) in enumerate(zip(_steps(patches)[1:], patches.sizes, strict=True), 1):
        if size % extents[axis]:
            begin = f"{first} // {step} % {size}" if step > 1 else f"{first} % {size}"
            along = _along(numbers, extents, axis)
            tests.append(f"({begin} + {along} < {size})")
    return " & ".join(tests)


def first_text(patches: Patches, side: Side, number: str) -> str:
    """The position of the first element of a patch, by its number from band 0 on."""
    extents, counts = patches.extents(side), patches.counts(side)
    terms = []
    for axis, step in enumerate(_steps(patches)):
        along = _number_along(number, counts, axis)
        if along:
            terms.append(f"{along} * {step * extents[axis]}")
    return " + ".join(terms)


def _number_along(number: str, counts: tuple[int, ...], axis: int) -> str:
    """The number of a patch along an axis; empty where there is one."""
    inner = prod(counts[axis:])
    text = number if inner == 1 else f"{number} // {inner}"
    if axis == 0:
        return f"({text})"
    if counts[axis - 1] == 1:
        return ""
    return f"({text} % {counts[axis - 1]})"


def band_text(patches: Patches) -> str:
    """The position of the band that the call's first row is in."""
    band = patches.area * patches.query[0]
    return f"q_offset // {band} * {band}"


def _box_lines(patches: Patches, side: Side, first: str, least: str, last: str) -> Iterator[str]:
    """The box of a tile, from the position of its first element and the least and the last position
    of the call's rows or keys."""
    extents = patches.extents(side)
    for axis, step in enumerate(_steps(patches)):
        begin, end = box(side, "first", axis).name, box(side, "last", axis).name
        at = f"{first} // {step}" if step > 1 else first
        if axis == 0:
            yield f"{begin} = tl.maximum({at}, ({least}) // {step})"
            yield f"{end} = tl.minimum({at} + {extents[0] - 1}, ({last}) // {step})"
            continue
        size = patches.sizes[axis - 1]
        yield f"{begin} = {at} % {size}"
        yield f"{end} = tl.minimum({begin} + {extents[axis] - 1}, {size - 1})"


def row_patch_lines(patches: Patches, block: int) -> Iterator[str]:
    """The rows of the query tile `q_tile` of the call, which of them exist, and its box."""
    yield f"patch_first = {band_text(patches)} + {first_text(patches, 'q', 'q_tile')}"
    yield "row_first = patch_first - q_offset"
    yield f"rows = row_first + {elements_text(patches, 'q')}"
    inside = inside_text(patches, "q", "patch_first", block)
    yield f"row_exists = (rows >= 0) & (rows < q_len){' & ' * bool(inside)}{inside}"
    yield from _box_lines(patches, "q", "patch_first", "q_offset", "q_offset + q_len - 1")


def key_patch_lines(patches: Patches, block: int, numbers: str = "") -> Iterator[str]:
    """The keys of the tile `k_tile`, which of them exist, and its box; `numbers` as in
    `elements_text`."""
    yield f"k_first = {first_text(patches, 'k', 'k_tile')}"
    yield f"keys = k_first + {elements_text(patches, 'k', numbers)}"
    inside = inside_text(patches, "k", "k_first", block, numbers)
    yield f"key_exists = (keys < kv_len){' & ' * bool(inside)}{inside}"
    yield from _box_lines(patches, "k", "k_first", "0", "kv_len - 1")
