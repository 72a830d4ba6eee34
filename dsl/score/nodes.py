"""The score algebra: typed, frozen expressions over real numbers that turn a score into a logit.

A *score* is `scale * query . key`; a term of this algebra says which logit enters the softmax for
it. Integers and predicates inside are those of the mask algebra. Build nodes through
`patterncc.dsl.score.build`, whose constructors fold constants and put operands in one canonical
order. Nothing here parses, differentiates or knows tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, Union

from patterncc.dsl.mask import IntExpr, Predicate, variables

Function: TypeAlias = Literal["tanh", "exp", "log", "sqrt", "sigmoid", "sign"]
"""Functions of one real number; `sign` (-1, 0 or 1) occurs in derivatives only."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A real constant."""

    value: float


@dataclass(frozen=True, slots=True)
class Score:
    """`scale * query . key`, before any term."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number that the call gives, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Lifted:
    """An integer of the pattern language as a real number."""

    value: IntExpr


@dataclass(frozen=True, slots=True)
class Lookup:
    """An entry of a table of real numbers that the call gives; 0 outside of its axes."""

    table: str
    indexes: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Plus:
    """`terms[0] + terms[1] + ...`; a difference is a term `Times((Constant(-1.0), x))`."""

    terms: tuple[Real, ...]


@dataclass(frozen=True, slots=True)
class Times:
    """`factors[0] * factors[1] * ...`, a constant factor first."""

    factors: tuple[Real, ...]


@dataclass(frozen=True, slots=True)
class Over:
    """`dividend / divisor`."""

    dividend: Real
    divisor: Real


@dataclass(frozen=True, slots=True)
class Least:
    """The least of two or more; where two are equal, the first of them has the derivative."""

    args: tuple[Real, ...]


@dataclass(frozen=True, slots=True)
class Greatest:
    """The greatest of two or more; where two are equal, the first of them has the derivative."""

    args: tuple[Real, ...]


@dataclass(frozen=True, slots=True)
class Magnitude:
    """The absolute value; its derivative at 0 is 0."""

    value: Real


@dataclass(frozen=True, slots=True)
class Apply:
    """A function of one number."""

    function: Function
    value: Real


@dataclass(frozen=True, slots=True)
class Choice:
    """`then` where a predicate of the positions holds, `otherwise` elsewhere."""

    condition: Predicate
    then: Real
    otherwise: Real


@dataclass(frozen=True, slots=True)
class Below:
    """`then` where `left < right`, `otherwise` elsewhere; occurs in derivatives only."""

    left: Real
    right: Real
    then: Real
    otherwise: Real


Real: TypeAlias = Union[  # noqa: UP007  (a string-free union that also works at run time)
    Constant,
    Score,
    Number,
    Lifted,
    Lookup,
    Plus,
    Times,
    Over,
    Least,
    Greatest,
    Magnitude,
    Apply,
    Choice,
    Below,
]

SCORE = Score()
ZERO = Constant(0.0)
ONE = Constant(1.0)


def children(expr: Real) -> tuple[Real, ...]:
    """The direct subexpressions that are real numbers."""
    match expr:
        case Plus(parts) | Times(parts) | Least(parts) | Greatest(parts):
            return parts
        case Over(dividend, divisor):
            return dividend, divisor
        case Magnitude(value) | Apply(_, value):
            return (value,)
        case Choice(_, then, otherwise):
            return then, otherwise
        case Below(left, right, then, otherwise):
            return left, right, then, otherwise
    return ()


def walk(expr: Real) -> Iterator[Real]:
    """The expression and all its subexpressions, parents first, from left to right."""
    stack: list[Real] = [expr]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(children(node)))


def discrete(expr: Real) -> Iterator[IntExpr | Predicate]:
    """The integers and predicates in it: what is lifted, indexes, conditions."""
    for node in walk(expr):
        match node:
            case Lifted(value):
                yield value
            case Lookup(_, indexes):
                yield from indexes
            case Choice(condition, _, _):
                yield condition


def coordinates_read(expr: Real) -> frozenset[str]:
    """Names of the coordinates and sizes that it reads."""
    return frozenset().union(*(variables(part) for part in discrete(expr)))


def lookups(expr: Real) -> tuple[Lookup, ...]:
    """The distinct entries of tables that it reads, in the order in which they stand."""
    return tuple(dict.fromkeys(node for node in walk(expr) if isinstance(node, Lookup)))


def numbers_read(expr: Real) -> frozenset[str]:
    """Names of the numbers that the call must give."""
    return frozenset(node.name for node in walk(expr) if isinstance(node, Number))


def reads_score(expr: Real) -> bool:
    """Does it depend on the score?"""
    return any(isinstance(node, Score) for node in walk(expr))
