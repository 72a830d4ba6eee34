"""Masks that do not look into the units of a raster.

Sliding tiles are a window on a video whose places are *units* of 384 consecutive positions: all
queries of a unit see the same, and of a unit all keys are seen or none. In tiles that divide the
unit such a mask is true or false of a whole tile, and what a tile sees is a box of places, whose
innermost *line* is one run of keys. So all that is to be known of it are intervals of scalar
arithmetic along each axis (`monotone.seen`), and beside them limits, such as text before or behind
the video: a union of disjoint parts of which each is a box, or all that is within limits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from patterncc.codegen.monotone import Interval, Side, seen
from patterncc.codegen.raster import Coordinates, along, axis_parts, sizes_of
from patterncc.codegen.scalars import is_scalar
from patterncc.codegen.terms import Conjunction, conjunctions
from patterncc.dsl.build import add, all_of, multiply, negate, subtract
from patterncc.dsl.mask import (
    TRUE,
    And,
    Compare,
    Const,
    Cover,
    Entry,
    IntExpr,
    Member,
    Predicate,
    Product,
    Q,
    Segment,
    Sum,
    Var,
    walk,
)

MOST_TERMS = 16  # of a union
MOST_PARTS = 8
_MASKS_KEPT = 64
_SIDES: tuple[Side, Side] = ("q", "k")


@dataclass(frozen=True, slots=True)
class Limits:
    """Between which positions of a side a part lies.

    Attributes:
        lows: It begins at the greatest of these, and at 0.
        highs: It ends before the least of these.
        cuts: And of these, which may be in the middle of a unit; the others are multiples of it.
    """

    lows: tuple[IntExpr, ...] = ()
    highs: tuple[IntExpr, ...] = ()
    cuts: tuple[IntExpr, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """Pairs of a mask that are in no other part.

    Attributes:
        guard: What is asked of scalars.
        query, key: Limits of the positions.
        axes: What is asked along each axis but the one within a unit, as masks whose `q` and `k`
            are coordinates.
    """

    guard: Predicate
    query: Limits
    key: Limits
    axes: tuple[Predicate, ...]

    @property
    def is_box(self) -> bool:
        """Is anything asked along an axis?"""
        return any(mask != TRUE for mask in self.axes)


@dataclass(frozen=True, slots=True)
class Lines:
    """A mask that does not look into the units of a raster.

    Attributes:
        sizes: Places along each axis but the outermost, the last the positions of a unit.
        parts: Of which the mask is the union.
        decided: Terms of the mask's conjunction that are the same for all pairs of two units.
    """

    sizes: tuple[int, ...]
    parts: tuple[Part, ...]
    decided: tuple[Predicate, ...]

    @property
    def unit(self) -> int:
        """Positions of a place."""
        return self.sizes[-1]

    @property
    def area(self) -> int:
        """Positions for each place of the outermost axis."""
        return prod(self.sizes)

    @property
    def steps(self) -> tuple[int, ...]:
        """How many positions are between neighbouring places along each axis, units apart last."""
        return tuple(prod(self.sizes[axis:]) for axis in range(len(self.sizes)))

    def fits(self, block_q: int, block_k: int) -> bool:
        """Do tiles of a shape divide a unit?"""
        return self.unit % block_q == 0 and self.unit % block_k == 0


@lru_cache(maxsize=_MASKS_KEPT)
def lines_of(body: Predicate) -> Lines | None:
    """A mask as the lines of a raster, that with the longest units; None where it looks into units,
    reads a table at a position, or is no union of a few boxes and intervals.

    Args:
        body: The mask; what was found of those asked last is kept.
    """
    if any(
        isinstance(node, (Entry, Member, Segment, Cover)) and not is_scalar(node)
        for node in walk(body)
    ):
        return None
    union = conjunctions(body, MOST_TERMS)
    if union is None:
        return None
    found = [lines for sizes in sizes_of(body) if (lines := _lines(body, union, sizes))]
    return max(found, key=lambda lines: lines.unit, default=None)


def interval(mask: Predicate, held: Side, at: IntExpr, most: IntExpr) -> Interval:
    """The coordinates of the other side that a place sees along an axis, exactly.

    Args:
        mask: Of the axis, one of a `Part`.
        held: The side of the place.
        at: Its coordinate.
        most: The last coordinate of the other side.
    """
    return seen(mask, held, at, at, Const(0), most).some


# ------------------------------------------------------------------------------------ the analysis


def _lines(body: Predicate, union: list[Conjunction], sizes: tuple[int, ...]) -> Lines | None:
    reader = _Reader(sizes)
    parts: list[Part] = []
    for conjunction in _disjoint(union, reader):
        part = None if conjunction is None else reader.part(conjunction)
        if part is None or len(parts) == MOST_PARTS:
            return None
        parts.append(part)
    terms = body.args if isinstance(body, And) else (body,)
    return Lines(sizes, tuple(parts), tuple(term for term in terms if reader.decides(term)))


def _disjoint(union: list[Conjunction], reader: _Reader) -> Iterator[Conjunction | None]:
    """The conjunctions, those about no axis first, each without the pairs of those before; None for
    one that cannot be had so."""
    boxes = {one: any(reader.is_about_axis(term) for term in one) for one in union}
    before: list[Conjunction] = []
    for conjunction in sorted(union, key=lambda one: boxes[one]):
        others = [other for other in before if not _apart(conjunction, other)]
        if any(boxes[other] for other in others):
            yield None
            return
        # not (a and b): not a, or a and not b
        ways = [list(_opposite([t for t in other if t not in conjunction])) for other in others]
        for way in product(*ways):
            terms = dict.fromkeys((*conjunction, *(term for some in way for term in some)))
            if not any(negate(term) in terms for term in terms):
                yield tuple(terms)
        before.append(conjunction)


def _apart(one: Conjunction, other: Conjunction) -> bool:
    """Does one ask for the opposite of what the other asks for?"""
    return any(negate(term) in other for term in one)


def _opposite(terms: Iterable[Predicate]) -> Iterator[Conjunction]:
    """Disjoint conjunctions that hold where those terms do not hold together."""
    holding: list[Predicate] = []
    for term in terms:
        yield (*holding, negate(term))
        holding.append(term)


@dataclass(frozen=True, slots=True)
class _Limit:
    """`position >= value`, of a high one `position < value`."""

    side: Side
    high: bool
    value: IntExpr


class _Reader:
    """Reads the terms of a mask on a raster.

    Args:
        sizes: Of the raster.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self._unit = sizes[-1]
        self._area = prod(sizes)
        self._axes = len(sizes)
        self._coordinates = Coordinates(sizes)
        self._known: dict[Predicate, tuple[Predicate, ...] | None] = {}

    def part(self, conjunction: Conjunction) -> Part | None:
        """A conjunction as a part; None where it looks into a unit, or what a place sees along an
        axis is not known to be an interval."""
        guard: list[Predicate] = []
        limits: list[_Limit] = []
        axes: list[list[Predicate]] = [[] for _ in range(self._axes)]
        for term in conjunction:
            if is_scalar(term):
                guard.append(term)
            elif limit := _limit(term):
                limits.append(limit)
            else:
                parts = self._of_axes(term)
                if parts is None:
                    return None
                for axis, part in zip(axes, parts, strict=True):
                    axis.append(part)
        masks = tuple(all_of(*parts) for parts in axes)
        query, key = (self._limits(limits, side) for side in _SIDES)
        found = Part(all_of(*guard), query, key, masks)
        return found if self._is_exact(found, limits) else None

    def _limits(self, limits: Iterable[_Limit], side: Side) -> Limits:
        lows: list[IntExpr] = []
        highs: list[IntExpr] = []
        cuts: list[IntExpr] = []
        for limit in limits:
            if limit.side == side:
                whole = is_multiple(limit.value, self._unit)
                found = (highs if whole else cuts) if limit.high else lows
                found.append(limit.value)
        return Limits(tuple(lows), tuple(highs), tuple(cuts))

    def _is_exact(self, part: Part, limits: Iterable[_Limit]) -> bool:
        step = self._area if part.is_box else self._unit
        for limit in limits:
            if not limit.high and not is_multiple(limit.value, step):
                return False
        if part.query.cuts:
            return False
        # Around what is seen and within it: where both are the same, they are what is seen.
        at, most = Var("at"), Var("most")
        for mask in part.axes:
            for side in _SIDES:
                found = seen(mask, side, at, at, Const(0), most)
                if not found.known or found.some != found.every:
                    return False
        return True

    def is_about_axis(self, term: Predicate) -> bool:
        """Is a term neither about scalars alone nor a limit?"""
        return not is_scalar(term) and _limit(term) is None

    def decides(self, term: Predicate) -> bool:
        """Is a term of a mask the same for all pairs of two units?"""
        union = conjunctions(term, MOST_TERMS)
        return union is not None and all(self._is_of_units(each) for one in union for each in one)

    def _is_of_units(self, term: Predicate) -> bool:
        if is_scalar(term):
            return True
        limit = _limit(term)
        if limit is not None:
            return is_multiple(limit.value, self._unit)
        return self._of_axes(term) is not None

    def _of_axes(self, term: Predicate) -> tuple[Predicate, ...] | None:
        """What a term asks along each axis but the innermost, of which it must ask nothing."""
        if term not in self._known:
            parts = axis_parts(self._coordinates.of(term), self._axes + 1)
            self._known[term] = None
            if parts is not None and parts[-1] == TRUE:
                masks = (along(mask, axis) for axis, mask in enumerate(parts[:-1]))
                self._known[term] = tuple(masks)
        return self._known[term]


def _limit(term: Predicate) -> _Limit | None:
    """A comparison of one position with a scalar."""
    match term:
        case Compare("<" | "<=" as op, left, right):
            difference = subtract(left, right)  # < 0, or <= 0
            terms = difference.terms if isinstance(difference, Sum) else (difference,)
            moving = [each for each in terms if not is_scalar(each)]
            rest = add(*(each for each in terms if is_scalar(each)))
            closed = Const(1 if op == "<=" else 0)
            match moving:
                case [Var() as position]:
                    value = subtract(closed, rest)
                    return _Limit("q" if position == Q else "k", True, value)
                case [Product((Const(-1), Var() as position))]:
                    value = add(rest, Const(1), multiply(Const(-1), closed))
                    return _Limit("q" if position == Q else "k", False, value)
    return None


def is_multiple(value: IntExpr, step: int) -> bool:
    """Is a sum a multiple of a number, whatever its symbols are?"""
    for term in value.terms if isinstance(value, Sum) else (value,):
        match term:
            case Const(number) | Product((Const(number), *_)) if number % step == 0:
                pass
            case _:
                return False
    return True
