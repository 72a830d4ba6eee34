"""What each rule of grammar.lark builds. Knows the rules by name, and no parser.

A rule's parts are tokens and what other rules have built, in source order.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

from patterncc.dsl.source import Span
from patterncc.dsl.syntax import (
    Argument,
    Arithmetic,
    At,
    Call,
    Choose,
    Comparison,
    Connect,
    Definition,
    Expression,
    Identifier,
    Index,
    InRange,
    InSet,
    Invert,
    Let,
    Literally,
    Minus,
    Name,
    Number,
    ParameterDeclaration,
    TypeName,
)
from patterncc.dsl.tokens import Token


class Actions:
    """A method for each rule of the grammar, by the rule's name: its parts → its syntax node."""

    def program(self, items: list[Any]) -> tuple[Definition, ...]:
        return tuple(items)

    def definition(self, items: list[Any]) -> Definition:
        keyword, name, *rest, body, _ = items
        rest = [item for item in rest if not isinstance(item, Token)]
        parameters: tuple[ParameterDeclaration, ...] = ()
        if rest and isinstance(rest[0], tuple):
            parameters = rest.pop(0)
        return Definition(_identifier(name), parameters, tuple(rest), body, _span(keyword, body))

    def unnamed(self, items: list[Any]) -> Definition:
        *lets, body, _ = items
        return Definition(None, (), tuple(lets), body, _span(items[0], body))

    def parameters(self, items: list[Any]) -> tuple[ParameterDeclaration, ...]:
        return _nodes(items)

    def parameter(self, items: list[Any]) -> ParameterDeclaration:
        name, *rest = items
        declared = rest[1] if rest and isinstance(rest[1], TypeName) else None
        default = rest[-1] if rest and not isinstance(rest[-1], TypeName) else None
        return ParameterDeclaration(_identifier(name), declared, default, _span(name, items[-1]))

    def type(self, items: list[Any]) -> TypeName:
        name, *rest = items
        return TypeName(_identifier(name), _nodes(rest), _span(name, items[-1]))

    def axis(self, items: list[Any]) -> Identifier:
        return _identifier(items[0])

    def let(self, items: list[Any]) -> Let:
        keyword, name, _, value, _ = items
        return Let(_identifier(name), value, _span(keyword, value))

    def choose(self, items: list[Any]) -> Choose:
        keyword, condition, _, then, _, otherwise = items
        return Choose(condition, then, otherwise, _span(keyword, otherwise))

    def disjunction(self, items: list[Any]) -> Connect:
        return Connect("or", _nodes(items), _span(items[0], items[-1]))

    def conjunction(self, items: list[Any]) -> Connect:
        return Connect("and", _nodes(items), _span(items[0], items[-1]))

    def invert(self, items: list[Any]) -> Invert:
        return Invert(items[1], _span(items[0], items[1]))

    def compare(self, items: list[Any]) -> Comparison:
        return Comparison(items[0], _pairs(items[1:]), _span(items[0], items[-1]))

    def in_set(self, items: list[Any]) -> InSet:
        value, *elements = _nodes(items)
        return InSet(value, tuple(elements), _span(value, items[-1]))

    def in_range(self, items: list[Any]) -> InRange:
        value, low, high = _nodes(items)
        return InRange(value, low, high, _span(value, high))

    def arithmetic(self, items: list[Any]) -> Arithmetic:
        return Arithmetic(items[0], _pairs(items[1:]), _span(items[0], items[-1]))

    def minus(self, items: list[Any]) -> Minus:
        return Minus(items[1], _span(items[0], items[1]))

    def at(self, items: list[Any]) -> At:
        pattern, q, k = _nodes(items)
        return At(pattern, q, k, _span(pattern, items[-1]))

    def group(self, items: list[Any]) -> Expression:
        return cast("Expression", replace(items[1], span=_span(items[0], items[2])))

    def number(self, items: list[Any]) -> Number:
        return Number(items[0].text, items[0].span)

    def truth(self, items: list[Any]) -> Literally:
        return Literally(items[0].type == "TRUE", items[0].span)

    def name(self, items: list[Any]) -> Name:
        return Name(items[0].text, items[0].span)

    def call(self, items: list[Any]) -> Call:
        return Call(_identifier(items[0]), _nodes(items[1:]), _span(items[0], items[-1]))

    def argument(self, items: list[Any]) -> Argument:
        name = _identifier(items[0]) if len(items) == 3 else None
        return Argument(name, items[-1], _span(items[0], items[-1]))

    def index(self, items: list[Any]) -> Index:
        return Index(_identifier(items[0]), _nodes(items[1:]), _span(items[0], items[-1]))


def _span(first: Any, last: Any) -> Span:
    return Span(_start(first), _end(last))


def _start(item: Any) -> int:
    return int(item.start if isinstance(item, Token) else item.span.start)


def _end(item: Any) -> int:
    return int(item.end if isinstance(item, Token) else item.span.end)


def _identifier(token: Token) -> Identifier:
    return Identifier(token.text, token.span)


def _nodes(items: Iterable[Any]) -> tuple[Any, ...]:
    """The items that are syntax; brackets and commas left out."""
    return tuple(item for item in items if not isinstance(item, Token))


def _pairs(items: list[Any]) -> tuple[tuple[Any, Any], ...]:
    """`op operand op operand ...` as pairs."""
    return tuple((op.text, operand) for op, operand in zip(items[::2], items[1::2], strict=True))
