"""The functions of the language, and the reading of tables: `min`, `start`, `cover`, `w[head]`."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from patterncc.dsl.arguments import count
from patterncc.dsl.assemble import Assembler
from patterncc.dsl.build import absolute, maximum, minimum
from patterncc.dsl.declare import FUNCTIONS
from patterncc.dsl.mask import Entry, Expr, IntExpr, Member, Segment, Var
from patterncc.dsl.pattern import IntType, ParameterType, SegmentsType
from patterncc.dsl.syntax import Call, Expression, Index, Name
from patterncc.dsl.values import Binding, Frame, TableValue, Value


class Elaborates(Protocol):
    """What a function needs to look at its arguments."""

    assemble: Assembler

    def integer(self, node: Expression, frame: Frame, user: str) -> Value | None:
        """A node that must be a number."""

    def integers(self, nodes: Sequence[Expression], frame: Frame, user: str) -> list[Value | None]:
        """Nodes that must be numbers."""

    def predicate(self, node: Expression, frame: Frame, user: str) -> Value | None:
        """A node that must be true or false."""


def call_function(elaborate: Elaborates, call: Call, frame: Frame) -> Value | None:
    """The value of a function of the language."""
    assemble = elaborate.assemble
    name = call.name.text
    wanted = FUNCTIONS[name]
    nodes = [argument.value for argument in call.arguments]
    more = name in ("min", "max")
    if len(nodes) < wanted or (len(nodes) > wanted and not more):
        least = "at least " if more else ""
        message = f"`{name}` takes {least}{count(wanted, 'argument')}, not {len(nodes)}"
        assemble.fail("wrong-arguments", message, call, frame, f"it is `{_SIGNATURES[name]}`")
        return None
    named = next((argument for argument in call.arguments if argument.name is not None), None)
    if named is not None:
        message = f"the arguments of `{name}` have no names"
        assemble.report.add("wrong-arguments", message, named.span, f"it is `{_SIGNATURES[name]}`")
        return None
    user = f"`{name}` takes"
    match name:
        case "start" | "end":
            segments = _segments(assemble, nodes[0], name, frame)
            position = elaborate.integer(nodes[1], frame, user)
            if segments is None:
                return None
            return assemble.join(_segment_maker(name, segments), [position], call, frame)
        case "cover":
            block_q, block_k = elaborate.integers(nodes[:2], frame, user)
            body = elaborate.predicate(nodes[2], frame, user)
            if block_q is None or block_k is None or body is None:
                return None
            sizes = ((block_q, nodes[0]), (block_k, nodes[1]))
            return assemble.covered(sizes, body, call, frame)
    arguments = elaborate.integers(nodes, frame, user)
    return assemble.join(_MAKERS[name], arguments, call, frame)


def _clamp(value: IntExpr, low: IntExpr, high: IntExpr) -> IntExpr:
    """`min(max(value, low), high)`: where `low > high`, `high` wins."""
    return minimum(maximum(value, low), high)


_MAKERS: dict[str, Callable[..., Expr]] = {
    "min": minimum,
    "max": maximum,
    "abs": absolute,
    "clamp": _clamp,
}
_SIGNATURES = {
    "min": "min(a, b)",
    "max": "max(a, b)",
    "abs": "abs(a)",
    "clamp": "clamp(x, low, high)",
    "start": "start(doc, q)",
    "end": "end(doc, q)",
    "cover": "cover(block_q, block_k, pattern)",
}


def _segment_maker(kind: str, segments: str) -> Callable[[IntExpr], Expr]:
    which: Literal["start", "end"] = "start" if kind == "start" else "end"
    return lambda position: Segment(which, segments, position)


def _segments(assemble: Assembler, node: Expression, function: str, frame: Frame) -> str | None:
    """The name of the segments parameter that a node stands for."""
    value: Binding = None
    if isinstance(node, Name) and node.text in frame.bindings:
        frame.used.add(node.text)
        value = frame.bindings[node.text]
        if value is None:
            return None
    if isinstance(value, TableValue) and isinstance(value.type, SegmentsType):
        return value.name
    message = f"`{function}` takes a parameter of type `segments`"
    assemble.fail("type-mismatch", message, node, frame, f"it is `{_SIGNATURES[function]}`")
    return None


def read_table(
    assemble: Assembler,
    table: TableValue,
    indexes: Sequence[Value | None],
    node: Index,
    frame: Frame,
) -> Value | None:
    """`table[indexes]`."""
    written = node.name.text
    kind = table.type
    axes = (None,) if isinstance(kind, SegmentsType) else kind.axes
    if len(indexes) != len(axes):
        wanted = count(len(axes), "index", "indexes")
        message = f"`{written}` has {wanted}, not {len(indexes)}"
        hint = f"its type is `{describe_type(kind)}`"
        assemble.fail("table-index", message, node, frame, hint)
        return None
    for place, (axis, index) in enumerate(zip(axes, indexes, strict=True)):
        if axis is None or axis == "token" or index is None or index.expr == Var(axis):
            continue
        hint = f"write `{axis}` there"
        if not isinstance(kind, SegmentsType) and kind.element == "bool":
            hint += ", or declare the axis as `*`"
        message = f"index {place + 1} of `{written}` is always `{axis}`"
        assemble.fail("table-index", message, node.indexes[place], frame, hint)
        return None

    def make(*exprs: IntExpr) -> Expr:
        if isinstance(kind, SegmentsType):
            return Segment("id", table.name, exprs[0])
        return (Entry if kind.element == "int" else Member)(table.name, exprs)

    return assemble.join(make, indexes, node, frame)


def describe_type(kind: ParameterType) -> str:
    """A type as it is written."""
    if isinstance(kind, IntType):
        return "int"
    if isinstance(kind, SegmentsType):
        return "segments"
    return f"{kind.element}[{', '.join(axis or '*' for axis in kind.axes)}]"
