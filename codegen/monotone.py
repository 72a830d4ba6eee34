"""Ends of intervals by arithmetic: between which coordinates a comparison allows a pair.

Along one axis of a raster most masks are an interval of keys that moves with the row, written with
`min`, `max`, sums and quotients: `centre - left <= k` with `centre = clamp(q, left, size - 1 -
right)`. Such terms only rise or only fall with the position they read, so their ends over a box are
at its ends, and a limit on one of them is a limit on the position. No set is computed with, and
symbols may stand for whatever number: the result is one interval, in scalar arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from patterncc.codegen.scalars import is_scalar
from patterncc.dsl.build import (
    add,
    compare,
    floordiv,
    maximum,
    minimum,
    multiply,
    select,
    subtract,
)
from patterncc.dsl.mask import (
    Abs,
    And,
    Branch,
    Compare,
    Const,
    FloorDiv,
    IntExpr,
    K,
    Max,
    Min,
    Mod,
    Predicate,
    Product,
    Q,
    Sum,
    Var,
    variables,
)

Side: TypeAlias = Literal["q", "k"]
_POSITION = {"q": Q, "k": K}


@dataclass(frozen=True, slots=True)
class Interval:
    """The integers from `lo` to `hi`, both included; none where `hi < lo`."""

    lo: IntExpr
    hi: IntExpr


@dataclass(frozen=True, slots=True)
class Seen:
    """Coordinates of one side of the pairs of a mask, seen from a box of the other side.

    Attributes:
        some: Around those that are in a pair with some coordinate of the box.
        every: Those that are in a pair with every one of them.
        known: Was everything that the mask asks taken notice of?
    """

    some: Interval
    every: Interval
    known: bool


@dataclass(frozen=True, slots=True)
class _Box:
    """A box of coordinates of one side, and the range of all of the other."""

    held: Side
    first: IntExpr
    last: IntExpr
    least: IntExpr
    most: IntExpr

    @property
    def position(self) -> Var:
        """What the mask calls the coordinate that is held."""
        return _POSITION[self.held]

    @property
    def other(self) -> Var:
        """What it calls the one that is asked for."""
        return K if self.held == "q" else Q


def seen(
    mask: Predicate, held: Side, first: IntExpr, last: IntExpr, least: IntExpr, most: IntExpr
) -> Seen:
    """What a box of one side's coordinates sees of the other side's.

    Args:
        mask: Of one axis.
        held: The side of the box.
        first, last: Its ends, both included.
        least, most: The ends of all coordinates of the other side.
    """
    return _seen(mask, _Box(held, first, last, least, most))


def _seen(mask: Predicate, box: _Box) -> Seen:
    everything = Interval(box.least, box.most)
    nothing = Interval(box.least, add(box.least, Const(-1)))
    match mask:
        case And(args):
            parts = [_seen(arg, box) for arg in args]
            return Seen(
                _meet([part.some for part in parts]),
                _meet([part.every for part in parts]),
                all(part.known for part in parts),
            )
        case Branch(condition, then, otherwise) if is_scalar(condition):
            yes, no = _seen(then, box), _seen(otherwise, box)

            def either(one: Interval, two: Interval) -> Interval:
                return Interval(
                    select(condition, one.lo, two.lo), select(condition, one.hi, two.hi)
                )

            return Seen(
                either(yes.some, no.some), either(yes.every, no.every), yes.known and no.known
            )
        case _ if is_scalar(mask):
            where = _where(mask, box)
            return Seen(where, where, True)
        case Compare("==", left, right):
            both = _at_most(subtract(left, right), box), _at_most(subtract(right, left), box)
            limits = [limit for limit in both if limit is not None]
            if len(limits) == 2:
                return Seen(
                    _meet([limit.some for limit in limits]),
                    _meet([limit.every for limit in limits]),
                    True,
                )
        case Compare("<=" | "<" as op, left, right):
            shift = Const(1) if op == "<" else Const(0)
            match left, right:
                case Abs(inner), limit:
                    signs = (inner, multiply(Const(-1), inner))
                    parts = [_seen(compare("<=", add(one, shift), limit), box) for one in signs]
                    return Seen(
                        _meet([part.some for part in parts]),
                        _meet([part.every for part in parts]),
                        all(part.known for part in parts),
                    )
            found = _at_most(add(subtract(left, right), shift), box)
            if found is not None:
                return found
    return Seen(everything, nothing, False)


def _where(condition: Predicate, box: _Box) -> Interval:
    """All coordinates where a condition on scalars holds, none elsewhere."""
    return Interval(
        select(condition, box.least, add(box.most, Const(1))),
        select(condition, box.most, add(box.least, Const(-1))),
    )


def _meet(parts: list[Interval]) -> Interval:
    return Interval(maximum(*(part.lo for part in parts)), minimum(*(part.hi for part in parts)))


def _at_most(difference: IntExpr, box: _Box) -> Seen | None:
    """Where a difference is 0 or less; None where no limit on a coordinate says so."""
    terms = difference.terms if isinstance(difference, Sum) else (difference,)
    asked = [term for term in terms if box.other.name in variables(term)]
    rest = add(*(term for term in terms if term not in asked))
    low, high = _ends(rest, box)
    if low is None or high is None:
        return None
    if not asked:  # about the box alone
        one, all_ = (_where(compare("<=", end, Const(0)), box) for end in (low, high))
        return Seen(one, all_, True)
    if len(asked) > 1 or box.position.name in variables(asked[0]):
        return None
    # asked <= -rest
    some, every = (_limited(asked[0], multiply(Const(-1), end), box) for end in (low, high))
    return None if some is None or every is None else Seen(some, every, True)


def _limited(term: IntExpr, limit: IntExpr, box: _Box) -> Interval | None:
    """Where `term <= limit`, a term that reads the coordinate that is asked for."""
    match term:
        case Product((Const(factor), *others)) if factor < 0:
            low = _least_of(multiply(*others), _ceildiv(multiply(Const(-1), limit), -factor), box)
            return None if low is None else Interval(low, box.most)
    high = _most_of(term, limit, box)
    return None if high is None else Interval(box.least, high)


def _most_of(term: IntExpr, limit: IntExpr, box: _Box) -> IntExpr | None:
    """The largest coordinate at which `term <= limit`, for a term that rises; below all of them
    where there is none."""
    if is_scalar(term):
        return select(compare("<=", term, limit), box.most, add(box.least, Const(-1)))
    match term:
        case Var():
            return limit if term == box.other else None
        case Sum():
            moving, rest = _apart(term)
            return None if moving is None else _most_of(moving, subtract(limit, rest), box)
        case Product((Const(factor), *others)) if factor > 0:
            return _most_of(multiply(*others), floordiv(limit, Const(factor)), box)
        case FloorDiv(value, Const(divisor)) if divisor > 0:
            above = add(multiply(Const(divisor), limit), Const(divisor - 1))
            return _most_of(value, above, box)
        case Min(args):
            return _joined(maximum, [_most_of(arg, limit, box) for arg in args])
        case Max(args):
            return _joined(minimum, [_most_of(arg, limit, box) for arg in args])
    return None


def _least_of(term: IntExpr, limit: IntExpr, box: _Box) -> IntExpr | None:
    """The least coordinate at which `limit <= term`, for a term that rises; above all of them where
    there is none."""
    if is_scalar(term):
        return select(compare("<=", limit, term), box.least, add(box.most, Const(1)))
    match term:
        case Var():
            return limit if term == box.other else None
        case Sum():
            moving, rest = _apart(term)
            return None if moving is None else _least_of(moving, subtract(limit, rest), box)
        case Product((Const(factor), *others)) if factor > 0:
            return _least_of(multiply(*others), _ceildiv(limit, factor), box)
        case FloorDiv(value, Const(divisor)) if divisor > 0:
            return _least_of(value, multiply(Const(divisor), limit), box)
        case Min(args):
            return _joined(maximum, [_least_of(arg, limit, box) for arg in args])
        case Max(args):
            return _joined(minimum, [_least_of(arg, limit, box) for arg in args])
    return None


def _apart(total: Sum) -> tuple[IntExpr | None, IntExpr]:
    """The one term of a sum that reads a position, None where there are several, and the rest."""
    moving = [term for term in total.terms if not is_scalar(term)]
    rest = add(*(term for term in total.terms if is_scalar(term)))
    return (moving[0] if len(moving) == 1 else None), rest


def _joined(join: object, limits: list[IntExpr | None]) -> IntExpr | None:
    known = [limit for limit in limits if limit is not None]
    return join(*known) if len(known) == len(limits) else None  # type: ignore[operator]


def _ends(expr: IntExpr, box: _Box) -> tuple[IntExpr | None, IntExpr | None]:
    """The least and the greatest value over the box: exact of a term that rises or falls, around
    the values of others."""
    if is_scalar(expr):
        return expr, expr
    match expr:
        case Var():
            return (box.first, box.last) if expr == box.position else (None, None)
        case Sum(terms):
            return _each(add, [_ends(term, box) for term in terms])
        case Product((Const(factor), *others)):
            low, high = _each(
                lambda one: multiply(Const(factor), one), [_ends(multiply(*others), box)]
            )
            return (low, high) if factor > 0 else (high, low)
        case FloorDiv(value, Const(divisor)) if divisor > 0:
            return _each(lambda one: floordiv(one, Const(divisor)), [_ends(value, box)])
        case Min(args):
            return _each(minimum, [_ends(arg, box) for arg in args])
        case Max(args):
            return _each(maximum, [_ends(arg, box) for arg in args])
        case Mod(_, Const(divisor)) if divisor > 0:
            return Const(0), Const(divisor - 1)
    return None, None


def _each(
    function: object, ends: list[tuple[IntExpr | None, IntExpr | None]]
) -> tuple[IntExpr | None, IntExpr | None]:
    lows, highs = zip(*ends, strict=True)
    return _joined(function, list(lows)), _joined(function, list(highs))


def _ceildiv(value: IntExpr, divisor: int) -> IntExpr:
    return floordiv(add(value, Const(divisor - 1)), Const(divisor))
