"""Sets of tiles as plain data: conjunctions of linear constraints, free of the library that found
them.

`codegen.presburger` makes them, `codegen.bounds` turns them into loops.
"""

from __future__ import annotations

from dataclasses import dataclass

from patterncc.dsl.build import add, floordiv, multiply
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Const, IntExpr


class TooIntricateError(UnsupportedError):
    """Exact sets of tiles would take too long to find, or too many loops to visit."""


@dataclass(frozen=True, slots=True)
class Linear:
    """`tile * n + sum(factor * floor) + rest` in the tile counter `n`; `rest` is free of it."""

    tile: int
    floors: tuple[tuple[int, Floor], ...]
    rest: IntExpr

    def at(self, n: IntExpr) -> IntExpr:
        """Its value at a tile counter."""
        floors = (
            multiply(Const(factor), floordiv(floor.arg.at(n), Const(floor.divisor)))
            for factor, floor in self.floors
        )
        return add(multiply(Const(self.tile), n), *floors, self.rest)


@dataclass(frozen=True, slots=True)
class Floor:
    """`floor(arg / divisor)` of something that depends on the tile counter."""

    arg: Linear
    divisor: int


@dataclass(frozen=True, slots=True)
class Constraint:
    """`value == 0` or `value >= 0`."""

    value: Linear
    equality: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Tiles `stride * n + offset` for the counters `n` that meet every constraint.

    `span` bounds how far apart two counters that meet the constraints free of floors can be;
    `None`: no bound.
    """

    stride: int
    offset: IntExpr
    constraints: tuple[Constraint, ...]
    span: int | None
