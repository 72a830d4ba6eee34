"""Syntax nodes: what a text says, before names and types are looked at. Frozen, each with its span.

Numbers and predicates share one family of expressions here; only the checker tells the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, Union

from patterncc.dsl.source import Span

ArithmeticOp: TypeAlias = Literal["+", "-", "*", "//", "%", "/"]  # `/` in score terms only
ComparisonOp: TypeAlias = Literal["==", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Identifier:
    """A word that is defined or used somewhere."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Number:
    """Digits, unconverted: there may be too many of them. In score terms also `0.5`, `1e-3`."""

    digits: str
    span: Span


@dataclass(frozen=True, slots=True)
class Literally:
    """`true` or `false`."""

    value: bool
    span: Span


@dataclass(frozen=True, slots=True)
class Name:
    """A word that stands alone: a coordinate, size, parameter, let or pattern without arguments."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a call; positional where it has no name."""

    name: Identifier | None
    value: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Call:
    """`name(...)`: a function, or another pattern."""

    name: Identifier
    arguments: tuple[Argument, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Index:
    """`table[...]`."""

    name: Identifier
    indexes: tuple[Expression, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class At:
    """`pattern at (q, k)`."""

    pattern: Expression
    q: Expression
    k: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Minus:
    """`-operand`."""

    operand: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Operands of one level of binding, from left to right: `first op operand op operand ...`."""

    first: Expression
    rest: tuple[tuple[ArithmeticOp, Expression], ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Comparison:
    """`first op operand op operand ...`; every neighbouring pair must hold."""

    first: Expression
    rest: tuple[tuple[ComparisonOp, Expression], ...]
    span: Span


@dataclass(frozen=True, slots=True)
class InSet:
    """`value in {elements}`."""

    value: Expression
    elements: tuple[Expression, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class InRange:
    """`value in low..high`, `high` left out."""

    value: Expression
    low: Expression
    high: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Invert:
    """`not operand`."""

    operand: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Connect:
    """`operand and operand ...`, or the same with `or`."""

    op: Literal["and", "or"]
    operands: tuple[Expression, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Choose:
    """`if condition then ... else ...`."""

    condition: Expression
    then: Expression
    otherwise: Expression
    span: Span


Expression: TypeAlias = Union[  # noqa: UP007  (a string-free union that also works at run time)
    Number,
    Literally,
    Name,
    Call,
    Index,
    At,
    Minus,
    Arithmetic,
    Comparison,
    InSet,
    InRange,
    Invert,
    Connect,
    Choose,
]


@dataclass(frozen=True, slots=True)
class TypeName:
    """`int`, `int[head]`, `bool[head, *]`, `segments` as written; an axis of any size is `*`."""

    name: Identifier
    axes: tuple[Identifier, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class ParameterDeclaration:
    """`name`, `name: type`, `name = default`."""

    name: Identifier
    type: TypeName | None
    default: Expression | None
    span: Span


@dataclass(frozen=True, slots=True)
class Let:
    """`let name = value`."""

    name: Identifier
    value: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Definition:
    """One pattern; a lone expression has no name."""

    name: Identifier | None
    parameters: tuple[ParameterDeclaration, ...]
    lets: tuple[Let, ...]
    body: Expression
    span: Span


@dataclass(frozen=True, slots=True)
class Program:
    """A whole text.

    Attributes:
        definitions: Those that parse.
        broken: Names that the text defines, or seems to, in parts that do not parse.
    """

    definitions: tuple[Definition, ...]
    broken: frozenset[str] = frozenset()


def subexpressions(node: Expression) -> Iterator[Expression]:
    """The direct subexpressions, in source order."""
    match node:
        case Number() | Literally() | Name():
            return
        case Call(_, arguments):
            for argument in arguments:
                yield argument.value
        case Index(_, indexes):
            yield from indexes
        case At(pattern, q, k):
            yield from (pattern, q, k)
        case Minus(operand) | Invert(operand):
            yield operand
        case Arithmetic(first, rest) | Comparison(first, rest):
            yield first
            for _, operand in rest:
                yield operand
        case InSet(value, elements):
            yield value
            yield from elements
        case InRange(value, low, high):
            yield from (value, low, high)
        case Connect(_, operands):
            yield from operands
        case Choose(condition, then, otherwise):
            yield from (condition, then, otherwise)
