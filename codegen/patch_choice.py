"""The patches in which a mask on a raster visits the fewest pairs, by counting.

A patch of `th x tw` rows sees the keys of a window around it, mostly `(window + th - 1) x (window +
tw - 1)`, and visits the patches of keys that hold some. That is counted along each axis, at
reference numbers; what is visited in all is the product over the axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.codegen.ir import Patches, box
from patterncc.codegen.lower import specialise
from patterncc.codegen.monotone import Side
from patterncc.codegen.patch_grid import grid_before
from patterncc.codegen.patches import axis_of
from patterncc.codegen.raster import Raster, rasters
from patterncc.codegen.schedule import evaluate
from patterncc.dsl.loader import load
from patterncc.dsl.mask import Const, Cover, FloorDiv, IntExpr, Mod, Predicate, walk
from patterncc.dsl.pattern import Pattern

LEAST_FULL = 0.15  # of the visited patches: fewer are not worth a loop of their own
LEAST_USED = 0.7  # of the elements of a tile: the rest would be computed in vain everywhere


@dataclass(frozen=True, slots=True)
class PatchChoice:
    """How a mask is best cut into patches.

    Attributes:
        raster: How a raster sees it.
        patches: The tiles.
        fills: Whether enough patches are full to tell them apart.
    """

    raster: Raster
    patches: Patches
    fills: bool


def is_about_a_raster(pattern: Pattern, sizes: Mapping[str, int]) -> bool:
    """Is there a raster that a pattern may be about, so that patches are a way to compute it?

    Args:
        pattern: The pattern.
        sizes: Sizes by which it divides.

    Raises:
        UnsupportedError: A cover in it cannot be written out.
    """
    if not any(isinstance(node, (FloorDiv, Mod, Cover)) for node in walk(pattern.body)):
        return False
    return bool(rasters(specialise(pattern.body, sizes)))


def with_numbers_of_call(
    pattern: Pattern, sizes: Mapping[str, int], numbers: Mapping[str, int]
) -> Pattern:
    """A pattern about a raster with the run-time numbers of a call as their defaults, which its
    tiles are then counted with; others as they are.

    How far a window on an image reaches decides which patches suit it, and its height is such a
    number as well, so that no one number can stand for all of them. The kernels of all defaults are
    the same where the same patches suit them.

    Arguments and errors as of `is_about_a_raster`; `numbers` by name.
    """
    if not numbers or not is_about_a_raster(pattern, sizes):
        return pattern
    return load(pattern.structure, file=None, name=None, **numbers)


def patch_choices(
    body: Predicate, block_q: int, block_k: int, env: Mapping[str, Any]
) -> Iterator[PatchChoice]:
    """For each raster that a mask may be about the patches with the least counted work, in tiles of
    powers of two.

    Args:
        body: The mask.
        block_q: Rows of a query tile.
        block_k: Keys of a key tile.
        env: The reference numbers, tables among them.
    """
    for raster in rasters(body):
        yield _best(raster, block_q, block_k, env)


def no_patches(block_q: int, block_k: int, *, within: bool) -> str:
    """Why tiles of a shape cannot be patches of any raster, in words; "" where they can.

    Args:
        block_q: Rows of a query tile.
        block_k: Keys of a key tile.
        within: Whether the rows of the calls end within the keys. Rows before the first key, or
            after the last one, would be in patches of other positions.
    """
    if not within:
        return "a raster is cut into patches for rows that end within the keys"
    if any(block & (block - 1) for block in (block_q, block_k)):
        return f"tiles of {block_q} x {block_k} are no patches: their sizes are no powers of two"
    return ""


def _best(raster: Raster, block_q: int, block_k: int, env: Mapping[str, Any]) -> PatchChoice:
    area = prod(raster.sizes)
    # No longer along the outermost axis than along others: an image as wide as high, a short film.
    outermost = min(-(-int(env["kv_len"]) // area), max(raster.sizes))
    sizes = (outermost, *raster.sizes)
    env = {**env, "q_len": outermost * area, "kv_len": outermost * area}
    forward = _least(raster, sizes, "q", (block_q, block_k), env)
    transposed = _least(raster, sizes, "k", (block_k, block_q), env)
    patches = Patches(
        raster.sizes,
        forward.held,
        forward.passing,
        transposed.held,
        transposed.passing,
        _grid(raster, "q", forward.held),
        _grid(raster, "k", transposed.held),
    )
    fills = not raster.others and forward.full >= LEAST_FULL * forward.visited
    return PatchChoice(raster, patches, fills)


def _grid(raster: Raster, side: Side, held: Sequence[int]) -> tuple[IntExpr, ...]:
    """How far before the edge the grid of held patches begins, as in `Patches`."""
    before = [
        grid_before(mask, side, extent) for mask, extent in zip(raster.axes, held, strict=True)
    ]
    return () if all(each == Const(0) for each in before) else tuple(before)


@dataclass(frozen=True, slots=True)
class _Shapes:
    """The best patches of one direction, and the tiles they visit and fill."""

    held: tuple[int, ...]
    passing: tuple[int, ...]
    visited: int
    full: int


def _least(
    raster: Raster,
    sizes: tuple[int, ...],
    side: Side,
    blocks: tuple[int, int],
    env: Mapping[str, Any],
) -> _Shapes:
    """The patches that visit the fewest tiles, for held tiles of a side.

    Args:
        raster: The mask.
        sizes: Places along each axis, of the reference call.
        side: Of the held tiles.
        blocks: Elements of a held tile, and of a passing one.
        env: The reference numbers.
    """
    block, passing_block = blocks
    masks = enumerate(raster.axes)
    held = _held_shapes(block, [_extents(mask, sizes[axis], block) for axis, mask in masks])
    passing = _passing_shapes(passing_block, sizes)
    visited = np.ones((len(held), len(passing)), np.int64)
    full = np.ones_like(visited)
    for axis in range(len(sizes)):
        along = sorted({shape[axis] for shape in held})
        others = sorted({shape[axis] for shape in passing})
        counts = _counts(raster, axis, side, sizes[axis], (along, others), env)
        rows = np.searchsorted(along, [shape[axis] for shape in held])[:, None]
        columns = np.searchsorted(others, [shape[axis] for shape in passing])[None, :]
        visited, full = (
            total * each[rows, columns] for total, each in zip((visited, full), counts, strict=True)
        )
    # Of equal counts the last: shapes rise along the innermost axis, whose loads lie together.
    place = visited.size - 1 - int(np.argmin(visited[::-1, ::-1]))
    one, other = divmod(place, len(passing))
    return _Shapes(held[one], passing[other], int(visited[one, other]), int(full[one, other]))


def _extents(mask: Predicate, size: int, most: int) -> tuple[int, ...]:
    """Extents along an axis that may suit it: powers of two, what divides the axis, and multiples
    of what the mask divides its coordinates by."""
    found = {1 << power for power in range(most.bit_length())}
    found |= {extent for extent in range(1, most + 1) if size % extent == 0}
    for node in walk(mask):
        match node:
            case FloorDiv(_, Const(divisor)) if 1 < divisor <= most:
                found |= {divisor << power for power in range(most.bit_length())}
    return tuple(sorted(extent for extent in found if extent <= most and extent < 2 * size))


def _held_shapes(block: int, extents: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The patches with nearly as many places as a tile has elements, or with the most that there
    are; the longest along the innermost axis last."""
    fitting = [shape for shape in product(*extents) if prod(shape) <= block]
    most = max(map(prod, fitting))
    return _rising([shape for shape in fitting if prod(shape) >= LEAST_USED * most])


def _passing_shapes(block: int, sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The patches of as many places as a tile has elements, of powers of two, which descriptors
    load, no longer than the raster where that can be."""
    powers = [1 << power for power in range(block.bit_length())]
    shapes = [shape for shape in product(powers, repeat=len(sizes)) if prod(shape) == block]
    fitting = [
        shape
        for shape in shapes
        if all(extent < 2 * size for extent, size in zip(shape, sizes, strict=True))
    ]
    return _rising(fitting or shapes)


def _rising(shapes: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return sorted(shapes, key=lambda shape: shape[::-1])


def _counts(
    raster: Raster,
    number: int,
    side: Side,
    size: int,
    extents: tuple[Sequence[int], Sequence[int]],
    env: Mapping[str, Any],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs of a held and a passing tile along one axis, visited and full: int64 `[extents of the
    held ones, of the passing ones]`."""
    visited = np.zeros((len(extents[0]), len(extents[1])), np.int64)
    full = np.zeros_like(visited)
    for row, held in enumerate(extents[0]):
        before = int(evaluate(grid_before(raster.axes[number], side, held), env))
        begin = np.arange(-before, size, held, dtype=np.int64)
        first, last = np.maximum(begin, 0), np.minimum(begin + held, size) - 1
        ends = {box(side, "first", number).name: first, box(side, "last", number).name: last}
        scope = {**env, **ends}
        axis = axis_of(raster, number, side, held)
        least, most, whole = (evaluate(end, scope) for end in (axis.least, axis.most, axis.whole))
        some, every = axis.seen.some, axis.seen.every
        low, high, inner, outer = (
            np.broadcast_to(np.asarray(evaluate(end, scope), np.int64), first.shape)
            for end in (some.lo, some.hi, every.lo, every.hi)
        )
        low, high = np.maximum(low, least), np.minimum(high, most)
        inner, outer = np.maximum(inner, least) - low, np.minimum(outer, whole) - low
        for column, passing in enumerate(extents[1]):
            touched = np.where(low <= high, (high - low) // passing + 1, 0)
            filled = np.maximum((outer + 1) // passing + -inner // passing, 0)
            visited[row, column], full[row, column] = touched.sum(), filled.sum()
    return visited, full
