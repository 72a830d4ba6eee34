"""Entries of tables that are one and the same in a whole tile, as those of a clamped relative bias
are in all tiles but those near the diagonal.

An entry that is chosen by the distance, by a function that only rises or only falls, is the same in
the tile if it is at the tile's two corners, those of the least and of the greatest distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from patterncc.codegen.gpu.mask_source import scalar_name
from patterncc.codegen.gpu.scalar_source import ExpressionWriter, Text
from patterncc.dsl.build import add, substitute
from patterncc.dsl.mask import (
    Const,
    FloorDiv,
    IntExpr,
    K,
    Max,
    Min,
    Param,
    Product,
    Q,
    Sum,
    Var,
    variables,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.dsl.mask import Expr
    from patterncc.dsl.score.nodes import Lookup

_DISTANCE = Var("distance")
_Trend: TypeAlias = Literal[-1, 0, 1]

EDGES = (
    "nearest = tl.cast(q_offset, tl.int64) + row_first - k_first - (BLOCK_K - 1)",
    "furthest = tl.cast(q_offset, tl.int64) + row_first - k_first + (BLOCK_Q - 1)",
)
"""The least and the greatest distance of a tile, of rows from `row_first` and keys from `k_first`.
"""


def by_distance(index: IntExpr) -> IntExpr | None:
    """The index as a function of the distance, which is called `q` in it; None if it is none."""
    moved = substitute(index, {Q: add(K, _DISTANCE)})
    return None if "k" in variables(moved) else substitute(moved, {_DISTANCE: Q})


@dataclass(frozen=True, slots=True)
class CornerTexts:
    """An entry at the corners of a tile.

    Attributes:
        lines: What to run before.
        same: Whether both choose the same entry.
        indexes: The texts of its indexes at the first corner, scalars all.
    """

    lines: tuple[str, ...]
    same: str
    indexes: tuple[str, ...]


def corner_texts(lookup: Lookup, prefix: str) -> CornerTexts | None:
    """The texts for an entry; None if what chooses it is no such function of the distance.

    Args:
        lookup: The entry, in a kernel whose `q` and `k` are positions of the call.
        prefix: What the names of the lines begin with.
    """
    lines: list[str] = []
    tests: list[str] = []
    indexes: list[str] = []
    for axis, index in enumerate(lookup.indexes):
        if variables(index).isdisjoint({"q", "k"}):
            indexes.append(_writer("").integer(index).text)
            continue
        function = by_distance(index)
        if function is None or _trend(function) is None:
            return None
        names = []
        for corner in ("nearest", "furthest"):
            names.append(f"{prefix}_{corner}_{axis}")
            lines.append(f"{names[-1]} = {_writer(corner).integer(function).text}")
        tests.append(f"({names[0]} == {names[1]})")
        indexes.append(names[0])
    return CornerTexts(tuple(lines), " & ".join(tests), tuple(indexes)) if tests else None


def _writer(corner: str) -> ExpressionWriter:
    """Writes scalars in 64 bits, with a corner's distance for `q`."""

    def leaf(expr: Expr) -> Text | None:
        if expr == Q:
            return Text(corner, 64)
        if isinstance(expr, (Var, Param)):
            return Text(f"tl.cast({scalar_name(expr)}, tl.int64)", 64)
        return None

    return ExpressionWriter(leaf, least_bits=64)


def _trend(expr: IntExpr) -> _Trend | None:
    """1 if it never falls as `q` rises, -1 if it never rises, 0 if it does not read it; None if
    that cannot be told."""
    if "q" not in variables(expr):
        return 0
    match expr:
        case Var():
            return 1
        case Sum(parts) | Min(parts) | Max(parts):
            return _common(_trend(part) for part in parts)
        case Product((Const(factor), inner)):
            trend = _trend(inner)
            return trend if trend is None or factor > 0 else -trend
        case FloorDiv(value, divisor) if "q" not in variables(divisor):
            return _trend(value)
    return None


def _common(trends: Iterator[_Trend | None]) -> _Trend | None:
    found: set[_Trend | None] = {trend for trend in trends if trend != 0}
    return found.pop() if len(found) == 1 else None
