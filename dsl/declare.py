"""What definitions declare: names that are taken, parameter types, defaults. Not their meaning."""

from collections.abc import Iterable, Sequence

from patterncc.dsl.limits import MAX_CONSTANT
from patterncc.dsl.mask import COORDINATES, SIZES
from patterncc.dsl.pattern import IntType, ParameterType, SegmentsType, TableType
from patterncc.dsl.suggest import did_you_mean
from patterncc.dsl.syntax import (
    Definition,
    Identifier,
    Minus,
    Number,
    ParameterDeclaration,
    TypeName,
)
from patterncc.dsl.values import Report

# Names of functions and how many arguments each takes; `min` and `max` take more as well.
FUNCTIONS = {"min": 2, "max": 2, "abs": 1, "clamp": 3, "start": 2, "end": 2, "cover": 3}

ANONYMOUS = "_"  # what a pattern with parameters but without a name is called in canonical text

# Arguments of calls in Python: a parameter of that name could never be given.
CALL_ARGUMENTS = frozenset(
    {"block_k", "block_q", "dtype", "file", "head_dim", "key", "name", "query", "return_lse"}
    | {"scale", "score", "sink", "source", "value", "value_head_dim"}
)
# Symbols of the block IR, which shares its name space with run-time numbers.
TILE_SYMBOLS = frozenset(
    {"call_kv_len", "call_q_len", "k_first", "k_last", "k_tile", "q_class", "q_first", "q_last"}
    | {"residue"}
)
_AXES = ("head", "kv_head", "layer", "batch")
_TYPES = ("int", "bool", "segments")


def check_declarations(definitions: Sequence[Definition], report: Report) -> None:
    """Reports names that are taken, unknown types and defaults that are no constants."""
    seen: set[str] = set()
    for definition in definitions:
        if definition.name is not None:
            name = definition.name
            if name.text in seen:
                report.add("duplicate-name", f"two patterns are called `{name.text}`", name.span)
            elif name.text in FUNCTIONS or _is_coordinate(name.text):
                _reserved(name, "pattern", report)
            seen.add(name.text)
        _check_definition(definition, report)


def _check_definition(definition: Definition, report: Report) -> None:
    taken: dict[str, str] = {}
    for parameter in definition.parameters:
        name = parameter.name
        if _is_coordinate(name.text) or name.text in CALL_ARGUMENTS | TILE_SYMBOLS:
            _reserved(name, "parameter", report)
        elif name.text in taken:
            report.add("duplicate-name", f"two parameters are called `{name.text}`", name.span)
        taken[name.text] = "parameter"
        kind = _check_type(parameter.type, report) if parameter.type is not None else IntType()
        if kind is None or parameter.default is None:
            continue
        if not isinstance(kind, IntType):
            report.add(
                "wrong-value",
                f"`{name.text}` is a table and cannot have a default",
                parameter.default.span,
                "tables are given at the call",
            )
        elif default_of(parameter) is None:
            _check_default(parameter, report)
    for let in definition.lets:
        name = let.name
        if _is_coordinate(name.text):
            _reserved(name, "let", report)
        elif name.text in taken:
            what = taken[name.text]
            message = f"a {what} is called `{name.text}` already"
            report.add("duplicate-name", message, name.span)
        taken[name.text] = "let"


def declared_type(parameter: ParameterDeclaration) -> ParameterType | None:
    """The type of a parameter; None if it is not a legal one."""
    return IntType() if parameter.type is None else _type(parameter.type)


def default_of(parameter: ParameterDeclaration) -> int | None:
    """The default of an `int` parameter; None if it has none, or not a legal one."""
    match parameter.default:
        case Number(digits) if len(digits.lstrip("0")) <= len(str(MAX_CONSTANT)):
            value = int(digits)
        case Minus(Number(digits)) if len(digits.lstrip("0")) <= len(str(MAX_CONSTANT)):
            value = -int(digits)
        case _:
            return None
    return value if abs(value) <= MAX_CONSTANT else None


def _check_default(parameter: ParameterDeclaration, report: Report) -> None:
    default = parameter.default
    assert default is not None
    if isinstance(default, Number) or (
        isinstance(default, Minus) and isinstance(default.operand, Number)
    ):
        report.add(
            "constant-too-large",
            "the default is too large",
            default.span,
            f"numbers go from -{MAX_CONSTANT} to {MAX_CONSTANT}",
        )
    else:
        report.add("wrong-value", "a default is a plain number", default.span)


def _type(written: TypeName) -> ParameterType | None:
    axes = tuple(axis.text for axis in written.axes)
    named = [axis for axis in axes if axis != "*"]
    if len(named) != len(set(named)):
        return None
    match written.name.text, axes:
        case "int", ():
            return IntType()
        case "segments", ():
            return SegmentsType()
        case "int", ("token",):
            return TableType("int", axes)
        case "int", _ if set(axes) <= set(_AXES):
            return TableType("int", axes)
        case "bool", _ if axes and set(named) <= set(_AXES):
            return TableType("bool", tuple(None if axis == "*" else axis for axis in axes))
    return None


def _check_type(written: TypeName, report: Report) -> ParameterType | None:
    """The type, reported if it is not a legal one."""
    kind = _type(written)
    if kind is not None:
        return kind
    name, axes = written.name, written.axes
    if name.text not in _TYPES:
        report.add(
            "unknown-type",
            f"no type is called `{name.text}`",
            name.span,
            did_you_mean(name.text, _TYPES) or "the types are `int`, `bool[...]` and `segments`",
        )
        return None
    if name.text == "segments":
        report.add("unknown-type", "`segments` has no axes", written.span, "write `segments`")
        return None
    if not axes:
        report.add(
            "unknown-type",
            "`bool` is a table and needs axes",
            written.span,
            "write for instance `bool[head]` or `bool[*, *]`",
        )
        return None
    legal = (*_AXES, "token") if name.text == "int" else (*_AXES, "*")
    for place, axis in enumerate(axes):
        if axis.text not in legal:
            message = f"`{name.text}` has no axis `{axis.text}`"
            if axis.text == "*":
                message = "an `int` table has no free axes"
            hint = did_you_mean(axis.text, legal) or f"the axes are {_listed(legal)}"
            report.add("unknown-type", message, axis.span, hint)
            return None
        if axis.text != "*" and axis.text in (earlier.text for earlier in axes[:place]):
            report.add("unknown-type", f"the axis `{axis.text}` is there twice", axis.span)
            return None
    report.add("unknown-type", "`token` is an axis by itself", written.span, "write `int[token]`")
    return None


def _is_coordinate(name: str) -> bool:
    return name in COORDINATES or name in SIZES or name == "q_offset"


def _reserved(name: Identifier, what: str, report: Report) -> None:
    meaning = "an argument of every call"
    if name.text in COORDINATES or name.text == "q_offset":
        meaning = "a coordinate"
    elif name.text in SIZES:
        meaning = "a size of the call"
    elif name.text in FUNCTIONS:
        meaning = "a function"
    elif name.text in TILE_SYMBOLS:
        meaning = "a name of the compiler"
    report.add(
        "reserved-name",
        f"a {what} cannot be called `{name.text}`: that is {meaning}",
        name.span,
        f"take another name, for instance `{name.text}_`",
    )


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
