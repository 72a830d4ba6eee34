"""Masks on rasters: positions as coordinates, and a mask as what it asks along each axis.

A pattern on an image says `q // width` and `q % width` where it means a row and a column. So the
widths by which a mask divides its positions are the sizes of a raster that it may be about: with `q
= (q_0 * sizes[0] + q_1) * sizes[1] + q_2` its quotients and remainders are coordinates. A mask that
asks each axis on its own, `near(row) and near(column)`, is a product, and what is known of the
tiles of each axis is known of all patches (`ir.Patches`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from math import gcd, prod

from patterncc.codegen.ir import MOST_AXES
from patterncc.codegen.scalars import is_scalar
from patterncc.dsl.build import (
    add,
    all_of,
    branch,
    floordiv,
    modulo,
    multiply,
    rebuild,
    substitute,
)
from patterncc.dsl.mask import (
    TRUE,
    And,
    Branch,
    Const,
    Cover,
    Entry,
    Expr,
    FloorDiv,
    IntExpr,
    K,
    Member,
    Mod,
    Predicate,
    Product,
    Q,
    Segment,
    Sum,
    Var,
    variables,
    walk,
)

_MASKS_KEPT = 64

MOST_STEPS = 6
"""Most numbers by which a mask divides that are tried as the sizes of a raster."""


@dataclass(frozen=True, slots=True)
class Raster:
    """A mask as a raster sees it.

    Attributes:
        sizes: Places along each axis but the outermost, as in `ir.Patches`.
        axes: What the mask asks along each axis, as masks whose `q` and `k` are coordinates; all of
            them must hold.
        others: The terms of the mask that are about several axes at once, in its own positions.
    """

    sizes: tuple[int, ...]
    axes: tuple[Predicate, ...]
    others: tuple[Predicate, ...]


@lru_cache(maxsize=_MASKS_KEPT)
def rasters(body: Predicate) -> tuple[Raster, ...]:
    """The rasters that a mask may be about: those along two axes or more of which it asks something
    of its own. A mask that reads a table at a position is about none.

    Args:
        body: The mask, without covers; what was found of those asked last is kept.
    """
    return tuple(_rasters(body))


def _rasters(body: Predicate) -> Iterator[Raster]:
    if any(
        isinstance(node, (Entry, Member, Segment, Cover)) and not is_scalar(node)
        for node in walk(body)
    ):
        return
    for sizes in sizes_of(body):
        raster = _seen(body, sizes)
        if raster is not None:
            yield raster


def sizes_of(body: Predicate) -> Iterator[tuple[int, ...]]:
    """The sizes of the rasters to try, by the numbers by which a mask divides its positions: fewer
    axes first."""
    steps = sorted(set(_steps(body)))[:MOST_STEPS]
    for count in range(1, min(len(steps), MOST_AXES - 1) + 1):
        for chain in combinations(steps, count):
            if all(wide % narrow == 0 for narrow, wide in pairwise(chain)):
                places = (wide // narrow for narrow, wide in zip((1, *chain), chain, strict=False))
                yield tuple(places)[::-1]


def raster_of(body: Predicate, sizes: Sequence[int]) -> Raster:
    """The raster of those sizes that a mask is about; it must be one of `rasters`."""
    return next(raster for raster in rasters(body) if raster.sizes == tuple(sizes))


def _steps(body: Predicate) -> Iterator[int]:
    """The numbers by which positions are divided."""
    for node in walk(body):
        match node:
            case FloorDiv(value, Const(step)) | Mod(value, Const(step)) if step > 1 and any(
                position in walk(value) for position in (Q, K)
            ):
                yield step
        match node:
            case Mod(FloorDiv(_, Const(inner)), Const(step)) if inner > 1 and step > 1:
                yield inner * step


def _seen(body: Predicate, sizes: tuple[int, ...]) -> Raster | None:
    """The mask on the raster of those sizes; None where fewer than two axes are asked anything."""
    coordinates = Coordinates(sizes)
    axes: list[list[Predicate]] = [[] for _ in range(len(sizes) + 1)]
    others: list[Predicate] = []
    for term in body.args if isinstance(body, And) else (body,):
        parts = axis_parts(coordinates.of(term), len(axes))
        if parts is None:
            others.append(term)
            continue
        for axis, part in zip(axes, parts, strict=True):
            axis.append(part)
    masks = [all_of(*parts) for parts in axes]
    if sum(not is_scalar(along(mask, number)) for number, mask in enumerate(masks)) < 2:
        return None
    return Raster(sizes, tuple(along(mask, i) for i, mask in enumerate(masks)), tuple(others))


def coordinate(position: Var, axis: int) -> Var:
    """What stands for the coordinate of a position along an axis."""
    return Var(f"{position.name}_{axis}")


def along(mask: Predicate, axis: int) -> Predicate:
    """A mask of one axis in `q` and `k`."""
    return substitute(mask, {coordinate(Q, axis): Q, coordinate(K, axis): K})


def axis_parts(mask: Predicate, axes: int) -> list[Predicate] | None:
    """What a mask in coordinates asks along each axis, if it is a product of that."""
    read = [axis for axis in range(axes) if _reads(mask, axis)]
    if len(read) <= 1:
        parts: list[Predicate] = [TRUE] * axes
        parts[read[0] if read else 0] = mask
        return parts
    match mask:
        case And(args):
            parts_of = [axis_parts(arg, axes) for arg in args]
            factors = [factor for factor in parts_of if factor is not None]
            if len(factors) < len(args):
                return None
            return [all_of(*along) for along in zip(*factors, strict=True)]
        case Branch(condition, then, otherwise) if not any(
            _reads(condition, axis) for axis in range(axes)
        ):
            yes, no = axis_parts(then, axes), axis_parts(otherwise, axes)
            if yes is not None and no is not None:
                return [branch(condition, a, b) for a, b in zip(yes, no, strict=True)]
    return None


def _reads(mask: Expr, axis: int) -> bool:
    return not variables(mask).isdisjoint(coordinate(p, axis).name for p in (Q, K))


class Coordinates:
    """Rewrites positions as coordinates and cancels what that makes of quotients and remainders.

    Args:
        sizes: Of the raster.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._steps = [prod(sizes[axis:]) for axis in range(len(sizes) + 1)]
        self._replace: Mapping[Expr, IntExpr] = {
            position: add(
                *(
                    multiply(Const(step), coordinate(position, axis))
                    for axis, step in enumerate(self._steps)
                )
            )
            for position in (Q, K)
        }
        self._most = {
            coordinate(position, axis + 1): size - 1
            for position in (Q, K)
            for axis, size in enumerate(sizes)
        }

    def of(self, mask: Predicate) -> Predicate:
        """The mask in coordinates."""
        return self._reduced(substitute(mask, self._replace))  # type: ignore[return-value]

    def _reduced(self, expr: Expr) -> Expr:
        match rebuild(expr, self._reduced):
            case FloorDiv(value, Const(divisor)) as quotient:
                for step in self._common(divisor):
                    whole, rest = self._split(value, step)
                    if rest is not None:
                        return floordiv(whole, Const(divisor // step))
                return quotient
            case Mod(value, Const(divisor)):
                value = _modulo(value, divisor)
                for step in self._common(divisor):
                    whole, rest = self._split(value, step)
                    if rest is not None:
                        again = modulo(whole, Const(divisor // step))
                        return add(multiply(Const(step), self._small(again)), rest)
                return modulo(value, Const(divisor))
            case simple:
                return simple

    def _common(self, divisor: int) -> list[int]:
        """The divisors by which a sum of coordinates may fall into multiples and a rest, the
        greatest first."""
        return sorted({divisor, *(gcd(divisor, step) for step in self._steps)} - {1}, reverse=True)

    def _split(self, value: IntExpr, step: int) -> tuple[IntExpr, IntExpr | None]:
        """`whole` and `rest` of `value == step * whole + rest` with `0 <= rest < step`; None for a
        rest of which that is not known."""
        whole: list[IntExpr] = []
        rest: list[IntExpr] = []
        for term in value.terms if isinstance(value, Sum) else (value,):
            match term:
                case Const(number):
                    whole.append(Const(number // step))
                    rest.append(Const(number % step))
                case Product((Const(factor), *others)) if factor % step == 0:
                    whole.append(multiply(Const(factor // step), *others))
                case _:
                    rest.append(term)
        left = add(*rest)
        return add(*whole), left if self._below(left, step) else None

    def _below(self, rest: IntExpr, step: int) -> bool:
        """Does a sum of coordinates lie in `[0, step)`?"""
        most = 0
        for term in rest.terms if isinstance(rest, Sum) else (rest,):
            match term:
                case Const(number) if number >= 0:
                    most += number
                case Product((Const(factor), Var() as one)) if factor > 0 and one in self._most:
                    most += factor * self._most[one]
                case Var() if term in self._most:
                    most += self._most[term]
                case _:
                    return False
        return most < step

    def _small(self, remainder: IntExpr) -> IntExpr:
        """A remainder of a coordinate that never reaches its divisor is that coordinate."""
        match remainder:
            case Mod(Var() as one, Const(divisor)) if self._most.get(one, divisor) < divisor:
                return one
        return remainder


def _modulo(value: IntExpr, divisor: int) -> IntExpr:
    """A number without the multiples of a divisor in it."""
    kept: list[IntExpr] = []
    for term in value.terms if isinstance(value, Sum) else (value,):
        match term:
            case Const(number):
                kept.append(Const(number % divisor))
            case Product((Const(factor), *_)) if factor % divisor == 0:
                pass
            case _:
                kept.append(term)
    return add(*kept)
