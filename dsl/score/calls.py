"""Calls in score terms: functions of real numbers, and ready terms, which are written out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from patterncc.dsl import library
from patterncc.dsl.arguments import count
from patterncc.dsl.declare import FUNCTIONS
from patterncc.dsl.modules import Module
from patterncc.dsl.score.build import apply, greatest, least, magnitude
from patterncc.dsl.score.nodes import Function, Real
from patterncc.dsl.score.ready import READY, ReadyTerm, ready_program
from patterncc.dsl.source import Span
from patterncc.dsl.suggest import did_you_mean
from patterncc.dsl.syntax import Call, Definition, Expression, Name
from patterncc.dsl.values import Frame, Report, Value

APPLIED: Mapping[str, Function] = {
    "tanh": "tanh",
    "exp": "exp",
    "log": "log",
    "sqrt": "sqrt",
    "sigmoid": "sigmoid",
}
LIFTING = frozenset({"min", "max", "abs", "clamp"})  # of reals where an argument is one


@dataclass(slots=True)
class Scope:
    """What names stand for: lets, and the parameters of a ready term.

    Attributes:
        frame: Has the integers and predicates.
        reals: Has the real numbers; `None` for what is wrong.
        tables: Has the tables that are called otherwise at the call.
        site: The call of a ready term that this is the inside of.
    """

    frame: Frame
    reals: dict[str, Real | None] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)
    site: Span | None = None


class ChecksTerms(Protocol):
    """What a call needs to look at its arguments."""

    report: Report
    module: Module

    def real(self, node: Expression, scope: Scope) -> Real | None:
        """A node that must be a number."""

    def integer(self, node: Expression, scope: Scope, user: str) -> Value | None:
        """A node that must be an integer of the pattern language; `user` says who takes it."""

    def body(self, definition: Definition, scope: Scope) -> Real | None:
        """The value of a definition, its lets before it."""

    def bounded(self, expr: Real | None, node: Expression, scope: Scope) -> Real | None:
        """An expression that is not too large; reports one that is."""

    def fail(
        self, code: str, message: str, node: Expression, scope: Scope, hint: str | None = None
    ) -> None:
        """Reports a mistake at a node, or at the ready term that it is inside of."""


def call_function(check: ChecksTerms, node: Call, scope: Scope) -> Real | None:
    name = node.name.text
    if name not in APPLIED and name not in LIFTING:
        known = (*APPLIED, *LIFTING, *READY, *library.names())
        hint = did_you_mean(name, known) or f"the functions are {', '.join(APPLIED)}, " + (
            ", ".join(sorted(LIFTING))
        )
        check.report.add("unknown-name", f"no function is called `{name}`", node.name.span, hint)
        return None
    wanted = FUNCTIONS.get(name, 1)
    nodes = [argument.value for argument in node.arguments]
    more = name in ("min", "max")
    if len(nodes) < wanted or (len(nodes) > wanted and not more):
        least_ = "at least " if more else ""
        message = f"`{name}` takes {least_}{count(wanted, 'argument')}, not {len(nodes)}"
        check.fail("wrong-arguments", message, node, scope)
        return None
    if any(argument.name is not None for argument in node.arguments):
        message = f"the arguments of `{name}` have no names"
        check.fail("wrong-arguments", message, node, scope)
        return None
    arguments = [check.real(argument, scope) for argument in nodes]
    sound = [argument for argument in arguments if argument is not None]
    if len(sound) < len(arguments):
        return None
    match name:
        case "min":
            return least(*sound)
        case "max":
            return greatest(*sound)
        case "abs":
            return magnitude(sound[0])
        case "clamp":
            return least(greatest(sound[0], sound[1]), sound[2])
    return apply(APPLIED[name], sound[0])


def written_out(check: ChecksTerms, ready: ReadyTerm, node: Call, scope: Scope) -> Real | None:
    """A ready term, written out: its text with the arguments in it."""
    given: dict[str, Expression] = {}
    names = [name for name, _ in ready.parameters]
    positional = [argument for argument in node.arguments if argument.name is None]
    for name, argument in zip(names, positional, strict=False):
        given[name] = argument.value
    wrong = len(positional) > len(names)
    for argument in node.arguments:
        if argument.name is not None:
            wrong = wrong or argument.name.text not in names or argument.name.text in given
            given[argument.name.text] = argument.value
    if wrong or len(given) != len(names):
        message = f"`{ready.name}` takes {count(len(names), 'argument')}: {', '.join(names)}"
        check.fail("wrong-arguments", message, node, scope, f"it is `{ready.signature}`")
        return None
    inner = Scope(Frame(check.module, ready.name), site=scope.site or node.span)
    sound = True
    for name, kind in ready.parameters:
        argument_node = given[name]
        match kind:
            case "table":
                if isinstance(argument_node, Name):
                    text = argument_node.text
                    inner.tables[name] = scope.tables.get(text, text)
                    continue
                message = f"`{name}` of `{ready.name}` is a table; give its name"
                check.fail("type-mismatch", message, argument_node, scope)
                sound = False
            case "integer":
                user = f"`{name}` of `{ready.name}` is"
                value = check.integer(argument_node, scope, user)
                inner.frame.bindings[name] = value
                sound = sound and value is not None
            case "real":
                inner.reals[name] = check.real(argument_node, scope)
                sound = sound and inner.reals[name] is not None
    if not sound:
        return None
    inner.frame.site = inner.site
    return check.bounded(check.body(ready_program(ready.name), inner), node, scope)
