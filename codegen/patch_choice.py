"""The patches in which a mask on a raster visits the fewest pairs, by counting.

A patch of `th x tw` rows sees the keys of a window around it, mostly `(window + th - 1) x (window +
tw - 1)`, and visits the patches of keys that hold some. That is counted along each axis, at
reference numbers; what is visited in all is the product over the axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np

from patterncc.codegen.ir import Patches, box
from patterncc.codegen.patches import Axis, forward_axes
from patterncc.codegen.raster import Raster, rasters
from patterncc.codegen.schedule import evaluate
from patterncc.dsl.mask import Const, FloorDiv, Predicate, walk

LEAST_FULL = 0.15  # of the visited patches: fewer are not worth a loop of their own
LEAST_USED = 0.7  # of the elements of a tile: the rest would be computed in vain everywhere


@dataclass(frozen=True, slots=True)
class PatchChoice:
    """How a mask is best cut into patches.

    Attributes:
        raster: How a raster sees it.
        patches: The tiles.
        fills: Whether enough patches are full to tell them apart.
        visited: Tiles visited by the whole raster, as counted.
    """

    raster: Raster
    patches: Patches
    fills: bool
    visited: int


def best_patches(
    body: Predicate, block_q: int, block_k: int, env: Mapping[str, Any]
) -> PatchChoice | None:
    """The patches with the least counted work; None for a mask that is about no raster.

    Args:
        body: The mask.
        block_q: Rows of a query tile.
        block_k: Keys of a key tile.
        env: The reference numbers, tables among them.
    """
    found = (_best(raster, block_q, block_k, env) for raster in rasters(body))
    return min(found, key=lambda each: each.visited, default=None)


def _best(raster: Raster, block_q: int, block_k: int, env: Mapping[str, Any]) -> PatchChoice:
    area = prod(raster.sizes)
    sizes = (-(-int(env["kv_len"]) // area), *raster.sizes)
    extents = [
        _extents(mask, size, max(block_q, block_k))
        for mask, size in zip(raster.axes, sizes, strict=True)
    ]
    counts = [
        _counts(axis, number, sizes[number], extents[number], env)
        for number, axis in enumerate(forward_axes(raster))
    ]

    def pairs(query: tuple[int, ...], key: tuple[int, ...], *, full: bool) -> int:
        each = zip(counts, query, key, strict=True)
        return prod(count[along_q, along_k][full] for count, along_q, along_k in each)

    shapes = [_shapes(block, extents) for block in (block_q, block_k)]
    # Of equal counts the patch that is longest along the innermost axes, whose loads lie together.
    query, key = min(
        product(*shapes),
        key=lambda each: (pairs(*each, full=False), *(-e for e in (*each[1], *each[0])[::-1])),
    )
    visited = pairs(query, key, full=False)
    fills = (
        not raster.others
        and prod(key) == block_k
        and pairs(query, key, full=True) >= LEAST_FULL * visited
    )
    return PatchChoice(raster, Patches(raster.sizes, query, key), fills, visited)


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


def _shapes(block: int, extents: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The patches with nearly as many places as a tile has elements, or with the most that there
    are."""
    fitting = [shape for shape in product(*extents) if prod(shape) <= block]
    most = max(map(prod, fitting))
    return [shape for shape in fitting if prod(shape) >= LEAST_USED * most]


def _counts(
    axis: Axis, number: int, size: int, extents: Sequence[int], env: Mapping[str, Any]
) -> dict[tuple[int, int], tuple[int, int]]:
    """Pairs of a query tile and a key tile along one axis, by their extents: visited and full."""
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for query in extents:
        first = np.arange(0, size, query, dtype=np.int64)
        last = np.minimum(first + query, size) - 1
        scope = {**env, box("q", "first", number).name: first, box("q", "last", number).name: last}
        least, most, whole = (evaluate(end, scope) for end in (axis.least, axis.most, axis.whole))
        some, every = axis.seen.some, axis.seen.every
        low, high, inner, outer = (
            np.broadcast_to(np.asarray(evaluate(end, scope), np.int64), first.shape)
            for end in (some.lo, some.hi, every.lo, every.hi)
        )
        low, high = np.maximum(low, least), np.minimum(high, most)
        inner, outer = np.maximum(inner, least), np.minimum(outer, whole)
        for key in extents:
            touched = np.where(low <= high, high // key - low // key + 1, 0)
            filled = np.maximum((outer + 1) // key + -inner // key, 0)
            found[query, key] = int(touched.sum()), int(filled.sum())
    return found
