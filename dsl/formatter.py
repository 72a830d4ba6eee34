"""Text → the same text in one style: `patterncc fmt`. Keeps comments, names of lets, and calls.

Lays statements and comments out; how an expression is written is in writer.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from patterncc.dsl.codes import error_for
from patterncc.dsl.parser import parse
from patterncc.dsl.source import Source
from patterncc.dsl.syntax import Definition, ParameterDeclaration
from patterncc.dsl.tokens import Token
from patterncc.dsl.writer import INDENT, WIDTH, expression_lines, filled, written


@dataclass(slots=True)
class _Statement:
    """A header, a `let` or a body: what it is written as, and the comments that belong to it."""

    start: int
    end: int
    indent: int
    lines: list[str]
    heads: bool = False  # begins a definition
    before: list[Token] = field(default_factory=list)
    after: Token | None = None


def format_source(text: str, file: str | None = None) -> str:
    """The text in one style.

    Args:
        text: A text that parses; names and types may be wrong in it.
        file: What to call it in messages, such as its path.

    Raises:
        PatternError: The text does not parse.
    """
    source = Source(file or "<pattern>", text)
    parsed = parse(source)
    if parsed.diagnostics:
        raise error_for(parsed.diagnostics)
    statements = [
        statement
        for definition in parsed.program.definitions
        for statement in _statements(definition)
    ]
    rest = _attach(parsed.comments, statements, source)
    return "\n".join(_lines(statements, rest, source)) + "\n"


def _statements(definition: Definition) -> Iterator[_Statement]:
    indent = 0
    start = definition.span.start
    first = definition.lets[0].span if definition.lets else definition.body.span
    if definition.name is not None:
        yield _Statement(start, first.start - 1, 0, _header(definition), heads=True)
        indent = INDENT
    for let in definition.lets:
        lines = expression_lines(let.value, indent, f"let {let.name.text} = ")
        yield _Statement(let.span.start, let.span.end, indent, lines)
    body = definition.body
    lines = expression_lines(body, indent)
    yield _Statement(body.span.start, body.span.end, indent, lines)


def _header(definition: Definition) -> list[str]:
    name = definition.name.text if definition.name else ""
    parameters = [_parameter(parameter) for parameter in definition.parameters]
    if not parameters:
        return [f"pattern {name}():"]
    return filled(f"pattern {name}(", parameters, "):", WIDTH, 2 * INDENT)


def _parameter(parameter: ParameterDeclaration) -> str:
    text = parameter.name.text
    if parameter.type is not None:
        axes = ", ".join(axis.text for axis in parameter.type.axes)
        text += f": {parameter.type.name.text}" + (f"[{axes}]" if axes else "")
    if parameter.default is not None:
        text += f" = {written(parameter.default)}"
    return text


def _attach(
    comments: tuple[Token, ...], statements: list[_Statement], source: Source
) -> list[Token]:
    """Gives each comment to a statement; returns those that come after the last one."""
    rest: list[Token] = []
    for comment in comments:
        owner = next((item for item in statements if comment.start < _line_end(item, source)), None)
        if owner is None:
            rest.append(comment)
        elif comment.start > owner.start and _is_trailing(comment, source):
            if owner.after is not None:
                owner.before.append(owner.after)
            owner.after = comment
        else:
            owner.before.append(comment)
    return rest


def _line_end(statement: _Statement, source: Source) -> int:
    """Where the line ends on which a statement ends."""
    return source.line_span(_last(statement, source)).end + 1


def _last(statement: _Statement, source: Source) -> int:
    """The last character of a statement that is not white space or a comment."""
    if not statement.heads:
        return max(statement.end - 1, statement.start)
    # A header ends with the last `:` before what follows it that no comment holds.
    last = statement.start
    for offset in range(statement.start, statement.end + 1):
        if source.text[offset] == ":":
            line = source.line_span(offset)
            if "#" not in source.text[line.start : offset]:
                last = offset
    return last


def _is_trailing(comment: Token, source: Source) -> bool:
    line = source.line_span(comment.start)
    return bool(source.text[line.start : comment.start].strip())


def _lines(statements: list[_Statement], rest: list[Token], source: Source) -> Iterator[str]:
    previous_end: int | None = None
    previous: _Statement | None = None
    for statement in statements:
        first = True
        items: tuple[Token | _Statement, ...] = (*statement.before, statement)
        for item in items:
            if previous_end is not None:
                separate = statement.heads and first
                inside = previous is not None and previous.heads and not statement.heads
                if separate or (not inside and _blank_between(previous_end, item.start, source)):
                    yield ""
            first = False
            if isinstance(item, Token):
                yield " " * statement.indent + item.text.rstrip()
            else:
                yield from item.lines[:-1]
                after = f"  {item.after.text.rstrip()}" if item.after is not None else ""
                yield item.lines[-1] + after
            previous_end = item.end
        previous = statement
    for comment in rest:
        if previous_end is not None and _blank_between(previous_end, comment.start, source):
            yield ""
        yield comment.text.rstrip()
        previous_end = comment.end


def _blank_between(start: int, end: int, source: Source) -> bool:
    """Is there an empty line between two offsets?"""
    lines = source.text[start:end].split("\n")[1:-1]
    return any(not line.strip() for line in lines)
