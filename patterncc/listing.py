"""The text forms of the early stages: the syntax tree, and the checked pattern."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from patterncc.dsl.pattern import Parameter, ParameterType, Pattern, SegmentsType, TableType
from patterncc.dsl.printer import expression_text
from patterncc.dsl.source import Span
from patterncc.dsl.syntax import Identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def format_pattern(pattern: Pattern) -> str:
    """The text that `--emit mask` prints: what the front has found out, one fact a line."""
    lines = [
        f"pattern    {pattern.name or '-'}",
        f"text       {pattern.text}",
        f"structure  {pattern.structure}",
        f"numbers    {_list(map(_number, pattern.numbers))}",
        f"tables     {_list(f'{p.name}: {_type(p.type)}' for p in pattern.tables)}",
        f"fixed      {_list(f'{name} = {value}' for name, value in pattern.fixed)}",
        f"mask       {expression_text(pattern.body)}",
    ]
    # A text of several lines goes on below its first one.
    return "".join(line.replace("\n", "\n" + " " * 11) + "\n" for line in lines)


def _list(items: Iterable[str]) -> str:
    return ", ".join(items) or "-"


def _number(parameter: Parameter) -> str:
    value = "given at the call" if parameter.value is None else str(parameter.value)
    return f"{parameter.name} = {value}"


def _type(kind: ParameterType) -> str:
    match kind:
        case TableType(element, axes):
            return f"{element}[{', '.join(axis or '*' for axis in axes)}]"
        case SegmentsType():
            return "segments"
    return "int"


def format_tree(node: Any) -> str:
    """The text that `--emit ast` prints: `Call window  [11:23]`, and its parts below it, indented.

    Words, numbers and truth values stand on the line of their node; other parts carry the name of
    their field.
    """
    return "".join(f"{line}\n" for line in _lines(node, "", 0))


def _lines(node: Any, field: str, depth: int) -> Iterator[str]:
    words = []
    parts: list[tuple[str, Any]] = []
    place = ""
    for name, value in ((field.name, getattr(node, field.name)) for field in fields(node)):
        if isinstance(value, Identifier):
            words.append(value.text)
        elif isinstance(value, Span):
            place = f"  [{value.start}:{value.end}]"
        elif isinstance(value, tuple):
            parts.extend((name, part) for item in value for part in _flat(item))
        elif is_dataclass(value):
            parts.append((name, value))
        elif isinstance(value, frozenset):
            words.extend(sorted(map(str, value)))
        elif value is not None:
            words.append(str(value).lower() if isinstance(value, bool) else str(value))
    label = f"{field}: " if field else ""
    yield " ".join([f"{'  ' * depth}{label}{type(node).__name__}", *words]) + place
    for name, part in parts:
        if is_dataclass(part):
            yield from _lines(part, name, depth + 1)
        else:
            yield f"{'  ' * (depth + 1)}{name}: {part}"


def _flat(item: Any) -> Iterator[Any]:
    """The parts of an item of a list; a pair counts as its two halves."""
    if isinstance(item, tuple):
        for part in item:
            yield from _flat(part)
    else:
        yield item
