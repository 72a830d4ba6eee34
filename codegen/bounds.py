"""Pieces to sweeps: linear constraints on a tile number become loop bounds in scalar arithmetic.
Knows no isl.

Three cases, in order of preference. Constraints linear in the counter give the ends of an interval
directly, and so does one floor of it, since floors are monotone. Where floors remain (periodic
patterns whose period is no multiple of the tile), a piece known to be a few tiles long is written
out tile by tile; otherwise the counter is split into residue classes, in each of which every floor
is linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import gcd

from patterncc.codegen.ir import RESIDUE, Kind, Sweep
from patterncc.codegen.pieces import Constraint, Floor, Linear, Piece, TooIntricateError
from patterncc.dsl.build import add, all_of, compare, floordiv, maximum, minimum, multiply, negate
from patterncc.dsl.mask import TRUE, Const, IntExpr, Predicate, Product, Select, Sum

UNROLLED_TILES = 4
MOST_CLASSES = 4096


def sweeps(piece: Piece, kind: Kind) -> list[Sweep]:
    """The loops that visit exactly the tiles of a piece.

    Raises:
        TooIntricateError: If the pattern repeats only after more than `MOST_CLASSES` tiles.
    """
    ends = _Ends()
    mixed: list[Constraint] = []
    for constraint in piece.constraints:
        if not _direct(constraint, ends):
            mixed.append(constraint)
    if not mixed:
        return [ends.sweep(kind, piece.stride, piece.offset)]
    if piece.span is not None and piece.span < UNROLLED_TILES and ends.lows:
        return [_single(piece, kind, ends, mixed, i) for i in range(piece.span + 1)]
    return [_classes(piece, kind)]


@dataclass
class _Ends:
    """What has been gathered of one loop: `max(lows) <= n < min(highs)` where all guards hold."""

    lows: list[IntExpr] = field(default_factory=list)
    highs: list[IntExpr] = field(default_factory=list)
    guards: list[Predicate] = field(default_factory=list)

    def at_least(self, slope: int, rest: IntExpr) -> None:
        """Adds `slope * n + rest >= 0`."""
        if slope > 0:
            self.lows.append(_ceildiv(multiply(Const(-1), rest), slope))
        elif slope < 0:
            self.highs.append(add(floordiv(rest, Const(-slope)), Const(1)))
        else:
            self.guards.append(_nonnegative(rest))

    def sweep(self, kind: Kind, stride: int, phase: IntExpr, classes: int = 1) -> Sweep:
        assert self.lows and self.highs, "a set of tiles is bounded"
        return Sweep(
            kind,
            maximum(*self.lows),
            minimum(*self.highs),
            all_of(TRUE, *self.guards),
            stride,
            phase,
            classes,
        )


def _direct(constraint: Constraint, ends: _Ends) -> bool:
    """Takes a constraint that bounds the counter without residue classes; says whether it could."""
    value = constraint.value
    if not value.floors:
        if constraint.equality:
            _equality(value.tile, value.rest, ends)
        else:
            ends.at_least(value.tile, value.rest)
        return True
    if value.tile or len(value.floors) != 1 or value.floors[0][1].arg.floors:
        return False
    factor, floor = value.floors[0]
    signs = (1, -1) if constraint.equality else (1,)
    for sign in signs:
        _monotone(sign * factor, floor, multiply(Const(sign), value.rest), ends)
    return True


def _equality(slope: int, rest: IntExpr, ends: _Ends) -> None:
    """`slope * n + rest == 0`: one counter at most."""
    if slope == 0:
        ends.guards.append(_zero(rest))
        return
    ends.at_least(slope, rest)
    ends.at_least(-slope, multiply(Const(-1), rest))


def _monotone(factor: int, floor: Floor, rest: IntExpr, ends: _Ends) -> None:
    """`factor * floor(arg / divisor) + rest >= 0`, by `floor(x / d) >= e  <=>  x >= d * e`."""
    arg, divisor = floor.arg, floor.divisor
    if factor > 0:
        least = _ceildiv(multiply(Const(-1), rest), factor)
        ends.at_least(arg.tile, add(arg.rest, multiply(Const(-divisor), least)))
    else:
        most = floordiv(rest, Const(-factor))
        limit = add(multiply(Const(divisor), most), Const(divisor - 1))
        ends.at_least(-arg.tile, add(limit, multiply(Const(-1), arg.rest)))


def _single(piece: Piece, kind: Kind, ends: _Ends, mixed: Sequence[Constraint], i: int) -> Sweep:
    """The i-th tile of a short piece, with the awkward constraints as its guard."""
    low = maximum(*ends.lows)
    n = add(low, Const(i))
    guards = [*ends.guards]
    for constraint in mixed:
        value = constraint.value.at(n)
        guards.append(_zero(value) if constraint.equality else _nonnegative(value))
    only = _Ends([n], [*ends.highs, add(n, Const(1))], guards)
    return only.sweep(kind, piece.stride, piece.offset)


def _classes(piece: Piece, kind: Kind) -> Sweep:
    """One loop per residue of the counter: with `n = period * m + residue` every floor is linear
    in `m`.
    """
    period = 1
    for constraint in piece.constraints:
        for _, floor in constraint.value.floors:
            period = _common_period(floor, period)
    if period > MOST_CLASSES:
        raise TooIntricateError(
            f"the pattern repeats only every {period} tiles, more than {MOST_CLASSES}: "
            "choose strides whose common multiple with the tile is smaller"
        )
    ends = _Ends()
    for constraint in piece.constraints:
        value = constraint.value
        slope = period * _slope(value)
        assert slope.denominator == 1
        rest = value.at(RESIDUE)
        if constraint.equality:
            _equality(int(slope), rest, ends)
        else:
            ends.at_least(int(slope), rest)
    phase = add(multiply(Const(piece.stride), RESIDUE), piece.offset)
    return ends.sweep(kind, piece.stride * period, phase, period)


def _slope(value: Linear) -> Fraction:
    """Growth per tile in the long run."""
    return Fraction(value.tile) + sum(
        (factor * _slope(floor.arg) / floor.divisor for factor, floor in value.floors), Fraction(0)
    )


def _common_period(floor: Floor, period: int) -> int:
    for _, inner in floor.arg.floors:
        period = _common_period(inner, period)
    denominator = (_slope(floor.arg) / floor.divisor).denominator
    return period * denominator // gcd(period, denominator)


def _ceildiv(value: IntExpr, divisor: int) -> IntExpr:
    return floordiv(add(value, Const(divisor - 1)), Const(divisor))


# ---------------------------------------------------------------------------------- readable guards


def _split(rest: IntExpr) -> tuple[IntExpr, IntExpr]:
    """`rest == left - right` with no leading minus on either side."""
    left: list[IntExpr] = []
    right: list[IntExpr] = []
    for term in rest.terms if isinstance(rest, Sum) else (rest,):
        match term:
            case Product((Const(factor), *_)) if factor < 0:
                right.append(multiply(Const(-1), term))
            case Const(value) if value < 0:
                right.append(Const(-value))
            case _:
                left.append(term)
    return add(*left), add(*right)


def _nonnegative(rest: IntExpr) -> Predicate:
    flag = _flag(rest, ">=")
    return compare(">=", *_split(rest)) if flag is None else flag


def _zero(rest: IntExpr) -> Predicate:
    flag = _flag(rest, "==")
    return compare("==", *_split(rest)) if flag is None else flag


def _flag(rest: IntExpr, op: str) -> Predicate | None:
    """A constraint on a yes/no symbol, written as the condition it stands for."""
    chosen = [node for node in (rest.terms if isinstance(rest, Sum) else (rest,)) if _is_flag(node)]
    if len(chosen) != 1 or rest != add(chosen[0], add(rest, multiply(Const(-1), chosen[0]))):
        return None
    other = add(rest, multiply(Const(-1), chosen[0]))
    if not isinstance(other, Const):
        return None
    match chosen[0]:
        case Select(condition, _, _):
            slope = 1
        case Product((Const(slope), Select(condition, _, _))):
            pass
        case _:
            return None
    holds = [slope * value + other.value for value in (0, 1)]
    met = [value >= 0 if op == ">=" else value == 0 for value in holds]
    if met == [False, True]:
        return condition
    return negate(condition) if met == [True, False] else None


def _is_flag(node: IntExpr) -> bool:
    match node:
        case Select(_, Const(1), Const(0)) | Product((Const(), Select(_, Const(1), Const(0)))):
            return True
    return False
