"""How an expression of the syntax is written: on one line, or broken after operators.

Parentheses stand only where the grammar needs them.
"""

from collections.abc import Sequence

from typing_extensions import assert_never

from patterncc.dsl.syntax import (
    Argument,
    Arithmetic,
    At,
    Call,
    Choose,
    Comparison,
    Connect,
    Expression,
    Index,
    InRange,
    InSet,
    Invert,
    Literally,
    Minus,
    Name,
    Number,
)

WIDTH = 100
INDENT = 4

# How tightly an expression binds: the rules of the grammar from loose to tight.
_CHOICE, _OR, _AND, _NOT, _COMPARISON, _SUM, _TERM, _FACTOR, _ATOM = range(9)


def written(node: Expression, level: int = _CHOICE) -> str:
    """A node on one line, where a node must stand that binds at least as tightly as `level`."""
    text, own = _flat(node)
    return text if own >= level else f"({text})"


def expression_lines(node: Expression, indent: int, lead: str = "") -> list[str]:
    """A node on as many lines as it needs.

    Args:
        node: The node.
        indent: Columns that every line begins with.
        lead: What the first line begins with after those.
    """
    lines = _broken(node, WIDTH - indent, lead, "")
    margin = " " * indent
    return [margin + line for line in lines]


def _flat(node: Expression) -> tuple[str, int]:
    """A node on one line, and how tightly it binds."""
    match node:
        case Number(digits):
            return digits.lstrip("0") or "0", _ATOM
        case Literally(value):
            return ("true" if value else "false"), _ATOM
        case Name(text):
            return text, _ATOM
        case Call(name, arguments):
            return f"{name.text}({', '.join(map(_argument, arguments))})", _ATOM
        case Index(name, indexes):
            return f"{name.text}[{', '.join(map(written, indexes))}]", _ATOM
        case At(pattern, q, k):
            return f"{written(pattern, _ATOM)} at ({written(q)}, {written(k)})", _ATOM
        case Minus(operand):
            return f"-{written(operand, _FACTOR)}", _FACTOR
        case Arithmetic(first, rest):
            own = _level(node)
            texts = [written(first, own), *(f"{op} {written(item, own + 1)}" for op, item in rest)]
            return " ".join(texts), own
        case Comparison(first, rest):
            texts = [written(first, _SUM), *(f"{op} {written(item, _SUM)}" for op, item in rest)]
            return " ".join(texts), _COMPARISON
        case InSet(value, elements):
            inner = ", ".join(map(written, elements))
            return f"{written(value, _SUM)} in {{{inner}}}", _COMPARISON
        case InRange(value, low, high):
            texts = [written(part, _SUM) for part in (value, low, high)]
            return "{} in {}..{}".format(*texts), _COMPARISON
        case Invert(operand):
            return f"not {written(operand, _NOT)}", _NOT
        case Connect(op, operands):
            own = _OR if op == "or" else _AND
            return f" {op} ".join(written(operand, own + 1) for operand in operands), own
        case Choose(condition, then, otherwise):
            # The grammar takes an `if` as condition and after `then`; a reader takes it wrong.
            texts = [written(condition, _OR), written(then, _OR), written(otherwise)]
            return "if {} then {} else {}".format(*texts), _CHOICE
        case _:
            assert_never(node)


def _level(node: Arithmetic) -> int:
    return _SUM if node.rest[0][0] in ("+", "-") else _TERM


def _argument(argument: Argument) -> str:
    lead = f"{argument.name.text} = " if argument.name is not None else ""
    return lead + written(argument.value)


def _broken(node: Expression, width: int, lead: str, tail: str, level: int = _CHOICE) -> list[str]:
    """A node on lines of at most `width` columns, if that can be done.

    Args:
        node: The node.
        width: Columns of a line.
        lead: What the first line begins with.
        tail: What the last line ends with.
        level: How tightly the node must bind.
    """
    line = lead + written(node, level) + tail
    if len(line) <= width:
        return [line]
    own = _flat(node)[1]
    if own < level:
        return _broken(node, width, f"{lead}(", f"){tail}")
    match node:
        case Connect(op, operands):
            inner = _OR if op == "or" else _AND
            return _chain([("", item) for item in operands], op, inner + 1, width, lead, tail)
        case Arithmetic(first, rest):
            items = [("", first), *rest]
            return _chain(items, None, _level(node) + 1, width, lead, tail)
        case Comparison(first, rest):
            return _chain([("", first), *rest], None, _SUM, width, lead, tail)
        case Choose(condition, then, otherwise):
            lines = _broken(condition, width, f"{lead}if ", " then", _OR)
            lines += _indented(_broken(then, width - INDENT, "", " else", _OR))
            if isinstance(otherwise, Choose):
                return lines + _broken(otherwise, width, "", tail)
            return lines + _indented(_broken(otherwise, width - INDENT, "", tail))
        case InSet(value, elements):
            start = f"{lead}{written(value, _SUM)} in {{"
            return filled(start, [written(element) for element in elements], f"}}{tail}", width)
        case Call(name, arguments) if arguments:
            return filled(f"{lead}{name.text}(", list(map(_argument, arguments)), f"){tail}", width)
        case Invert(operand):
            return _broken(operand, width, f"{lead}not ", tail, _NOT)
    return [line]


def _chain(
    items: Sequence[tuple[str, Expression]],
    op: str | None,
    level: int,
    width: int,
    lead: str,
    tail: str,
) -> list[str]:
    """Operands one a line, each line but the last ending in an operator.

    Args:
        items: Operands with the operator before each; the first has none.
        op: The operator before all others, if it is one and the same.
        level: How tightly operands must bind.
        width, lead, tail: As for `_broken`.
    """
    lines: list[str] = []
    for place, (_, item) in enumerate(items):
        last = place == len(items) - 1
        after = tail if last else f" {op or items[place + 1][0]}"
        if place == 0:
            lines += _broken(item, width, lead, after, level)
        else:
            lines += _indented(_broken(item, width - INDENT, "", after, level))
    return lines


def filled(
    start: str, items: Sequence[str], end: str, width: int, indent: int = INDENT
) -> list[str]:
    """Items with commas, as many on a line as fit, `indent` columns before all but the first."""
    lines = [start]
    for place, item in enumerate(items):
        text = item + (end if place == len(items) - 1 else ",")
        glue = "" if lines[-1] == start or not lines[-1].strip() else " "
        if len(lines[-1]) + len(glue) + len(text) > width and lines[-1].strip():
            lines.append(" " * indent + text)
        else:
            lines[-1] += glue + text
    return lines


def _indented(lines: Sequence[str]) -> list[str]:
    return [" " * INDENT + line for line in lines]
