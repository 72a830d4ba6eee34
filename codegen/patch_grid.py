"""Where the patches of a raster should lie: on the grid of a mask's own windows.

`(q - 3) // 7 == (k - 3) // 7` is about windows of seven places that begin at 3. A patch of seven
places that begins there sees one of them, where one that begins at a multiple of seven sees two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from patterncc.dsl.build import select
from patterncc.dsl.mask import (
    And,
    Branch,
    Const,
    Entry,
    FloorDiv,
    IntExpr,
    K,
    Member,
    Predicate,
    Q,
    Segment,
    Sum,
    Var,
    walk,
)

_OF_CALLS = frozenset({"layer"})
"""Coordinates that are one number for a whole call, as its run-time numbers are."""


def grid_before(mask: Predicate, side: Literal["q", "k"], extent: int) -> IntExpr:
    """How many places before the edge a grid of patches begins that has the limits of a mask's
    windows among its own: at least 0, less than the extent; 0 where the mask has no such windows.

    Args:
        mask: Of one axis.
        side: Of the patches.
        extent: Of the patches along the axis.
    """
    return _before(mask, Q if side == "q" else K, extent) or Const(0)


def _before(mask: Predicate, position: Var, extent: int) -> IntExpr | None:
    match mask:
        case Branch(condition, then, otherwise) if _is_of_call(condition):
            yes, no = _before(then, position, extent), _before(otherwise, position, extent)
            if yes is None and no is None:
                return None
            return select(condition, yes or Const(0), no or Const(0))
        case And(args):
            return next((b for arg in args if (b := _before(arg, position, extent))), None)
    found = sorted(_windows(mask, position, extent))
    return Const(found[-1][1]) if found else None


def _windows(mask: Predicate, position: Var, extent: int) -> Iterator[tuple[int, int]]:
    """Windows of a mask that fit an extent or that it fits: how wide they are, and the least that a
    grid of the extent begins before the edge with one of them."""
    for node in walk(mask):
        match node:
            case FloorDiv(value, Const(width)) if extent % width == 0 or width % extent == 0:
                shift = _shift(value, position)
                if shift is not None:
                    yield width, shift % min(width, extent)


def _shift(value: IntExpr, position: Var) -> int | None:
    """The constant that is added to a position; None of anything else."""
    if value == position:
        return 0
    match value:
        case Sum((Const(shift), other)) | Sum((other, Const(shift))) if other == position:
            return shift
    return None


def _is_of_call(condition: Predicate) -> bool:
    """Is a condition the same for all programs of a call, and known to the host?"""
    return all(
        not isinstance(node, (Entry, Member, Segment))
        and (not isinstance(node, Var) or node.name in _OF_CALLS)
        for node in walk(condition)
    )
