"""Syntax → mask algebra: names are looked up, types checked, lets and calls written out.

What may be built from the parts is decided in assemble.py. What is wrong is reported once and is
`None` from then on, so that the rest of the text is still looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import assert_never

from patterncc.dsl import library
from patterncc.dsl.arguments import match_arguments
from patterncc.dsl.assemble import Assembler
from patterncc.dsl.build import all_of, any_of, branch, negate, select
from patterncc.dsl.declare import FUNCTIONS, declared_type, default_of
from patterncc.dsl.functions import call_function, describe_type, read_table
from patterncc.dsl.limits import MAX_DEPTH
from patterncc.dsl.linear import outer_position
from patterncc.dsl.makers import chained, in_range, in_set, opposite, total
from patterncc.dsl.mask import (
    COORDINATES,
    SIZES,
    Const,
    Param,
    Truth,
    Var,
    variables,
)
from patterncc.dsl.modules import Module, library_module
from patterncc.dsl.pattern import IntType
from patterncc.dsl.source import Span
from patterncc.dsl.suggest import nearest
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
    Literally,
    Minus,
    Name,
    Number,
    ParameterDeclaration,
)
from patterncc.dsl.values import Binding, Frame, Report, TableValue, Value

# How deep the stack may get: the caller may have used much of Python's 1000 frames.
_MAX_FRAMES = 6 * MAX_DEPTH
_EXPRESSION_FRAMES = 5
_CALL_FRAMES = 5
_CALL_WORK = 200  # what writing out a call costs by itself, in nodes


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a definition means.

    Attributes:
        value: Its body written out; None if something in it is wrong.
        fixed: Its parameters that must be known when a kernel is compiled.
        used: The names that it reads.
    """

    value: Value | None
    fixed: frozenset[str]
    used: frozenset[str]


class Elaborator:
    """Writes out the definitions of one module.

    Attributes:
        assemble: Builds values; knows the fixed parameters that were seen.
        report: Where mistakes go.
    """

    def __init__(self, module: Module, report: Report) -> None:
        self.module = module
        self.report = report
        self.assemble = Assembler(report)
        self._frames = 0
        self._meanings: dict[int, Meaning] = {}  # by id of a definition of this module
        self._calls: dict[tuple[int, tuple[object, ...]], Meaning] = {}  # with their arguments
        self._path: list[Definition] = []  # definitions being checked, each used by the one before

    # ------------------------------------------------------------------------------- definitions

    def meaning(self, definition: Definition) -> Meaning:
        """What a definition of this module means, its parameters open; written out once."""
        if id(definition) not in self._meanings:
            self._meanings[id(definition)] = self.meaning_with(definition, {})
        return self._meanings[id(definition)]

    def meaning_with(self, definition: Definition, numbers: Mapping[str, int]) -> Meaning:
        """What a definition of this module means with values of some parameters."""
        frame = Frame(self.module, definition.name.text if definition.name else "")
        for parameter in definition.parameters:
            kind = declared_type(parameter)
            name = parameter.name.text
            value: Binding = None
            if isinstance(kind, IntType):
                value = Value(Const(numbers[name]) if name in numbers else Param(name))
            elif kind is not None:
                value = TableValue(name, kind)
            frame.bindings[name] = value
        mistakes = len(self.report)
        # Its own parameters are no business of a definition that uses it.
        outer, self.assemble.fixed = self.assemble.fixed, set()
        self._path.append(definition)
        result = self._body(definition, frame)
        self._path.pop()
        fixed, self.assemble.fixed = frozenset(self.assemble.fixed), outer
        sound = len(self.report) == mistakes
        return Meaning(result if sound else None, fixed, frozenset(frame.used))

    def _body(self, definition: Definition, frame: Frame) -> Value | None:
        for let in definition.lets:
            frame.bindings[let.name.text] = self.expression(let.value, frame)
        return self.predicate(definition.body, frame, "a pattern is")

    # ------------------------------------------------------------------------------- expressions

    def integer(self, node: Expression, frame: Frame, user: str) -> Value | None:
        """A node that must be a number; `user` says who takes it."""
        value = self.expression(node, frame)
        if value is not None and not value.is_integer:
            message = f"{user} a number, and this is true or false"
            self.assemble.fail("type-mismatch", message, node, frame)
            return None
        return value

    def predicate(self, node: Expression, frame: Frame, user: str) -> Value | None:
        """A node that must be true or false; `user` says who takes it."""
        value = self.expression(node, frame)
        if value is not None and value.is_integer:
            message = f"{user} true or false, and this is a number"
            hint = "compare it with another number"
            self.assemble.fail("type-mismatch", message, node, frame, hint)
            return None
        return value

    def expression(self, node: Expression, frame: Frame) -> Value | None:
        """A node that may be a number or a predicate."""
        if self._frames > _MAX_FRAMES:
            self.assemble.too_deep(node, frame)
        self._frames += _EXPRESSION_FRAMES
        value = self._expression(node, frame)
        self._frames -= _EXPRESSION_FRAMES
        return value

    def _expression(self, node: Expression, frame: Frame) -> Value | None:
        join = self.assemble.join
        match node:
            case Number(digits):
                return self.assemble.number(digits, node, frame)
            case Literally(truth):
                return Value(Truth(truth))
            case Name():
                return self._name(node, frame)
            case Index():
                return self._index(node, frame)
            case Call(name) if name.text in FUNCTIONS:
                return call_function(self, node, frame)
            case Call(name, arguments):
                return self._call(name, arguments, node, frame)
            case Minus(operand):
                return join(opposite, [self.integer(operand, frame, "`-` takes")], node, frame)
            case Arithmetic(_, ((("+" | "-"), _), *_)):
                return self._sum(node, frame)
            case Arithmetic():
                return self._product(node, frame)
            case Comparison():
                return self._comparison(node, frame)
            case InSet(value, elements):
                operands = self.integers((value, *elements), frame, "`in` takes")
                return join(in_set, operands, node, frame, copies=len(elements))
            case InRange(value, low, high):
                operands = self.integers((value, low, high), frame, "`in` takes")
                return join(in_range, operands, node, frame, copies=2)
            case Invert(operand):
                return join(negate, [self.predicate(operand, frame, "`not` takes")], node, frame)
            case Connect(op, operands):
                parts = [self.predicate(operand, frame, f"`{op}` takes") for operand in operands]
                return join(all_of if op == "and" else any_of, parts, node, frame)
            case Choose():
                return self._choose(node, frame)
            case At(pattern, q, k):
                body = self.predicate(pattern, frame, "`at` takes")
                places = self.integers((q, k), frame, "`at` takes")
                return self.assemble.moved(body, places[0], places[1], node, frame)
            case _:
                assert_never(node)

    def integers(self, nodes: Sequence[Expression], frame: Frame, user: str) -> list[Value | None]:
        """Nodes that must be numbers."""
        return [self.integer(node, frame, user) for node in nodes]

    def _sum(self, node: Arithmetic, frame: Frame) -> Value | None:
        terms = [self.integer(node.first, frame, f"`{node.rest[0][0]}` takes")]
        terms += [self.integer(operand, frame, f"`{op}` takes") for op, operand in node.rest]
        signs = [1, *(1 if op == "+" else -1 for op, _ in node.rest)]
        return self.assemble.join(total(signs), terms, node, frame)

    def _product(self, node: Arithmetic, frame: Frame) -> Value | None:
        # The factors since the last division; None once something is wrong.
        factors: list[Value] | None = []
        for op, operand in (("*", node.first), *node.rest):
            user = f"`{node.rest[0][0] if operand is node.first else op}` takes"
            value = self.integer(operand, frame, user)
            if value is None or factors is None:
                factors = None
            elif op == "*":
                factors.append(value)
            else:
                left = self._multiplied(factors, node, frame)
                result = left and self.assemble.quotient(op, left, value, operand, node, frame)
                factors = None if result is None else [result]
        return None if factors is None else self._multiplied(factors, node, frame)

    def _multiplied(self, factors: list[Value], node: Arithmetic, frame: Frame) -> Value | None:
        return factors[0] if len(factors) == 1 else self.assemble.product(factors, node, frame)

    def _comparison(self, node: Comparison, frame: Frame) -> Value | None:
        operands = [self.integer(node.first, frame, f"`{node.rest[0][0]}` takes")]
        operands += [self.integer(operand, frame, f"`{op}` takes") for op, operand in node.rest]
        ops = [op for op, _ in node.rest]
        return self.assemble.join(chained(ops), operands, node, frame, copies=2)

    def _choose(self, node: Choose, frame: Frame) -> Value | None:
        condition = self.predicate(node.condition, frame, "`if` takes")
        then = self.expression(node.then, frame)
        otherwise = self.expression(node.otherwise, frame)
        if then is not None and otherwise is not None and then.is_integer != otherwise.is_integer:
            kinds = ("a number", "true or false")
            first, second = kinds if then.is_integer else reversed(kinds)
            message = f"`then` gives {first} and `else` gives {second}"
            self.assemble.fail("type-mismatch", message, node, frame)
            return None
        make = select if then is not None and then.is_integer else branch
        return self.assemble.join(make, (condition, then, otherwise), node, frame)

    # ------------------------------------------------------------------------------- names

    def _name(self, node: Name, frame: Frame) -> Value | None:
        text = node.text
        if text in frame.bindings:
            frame.used.add(text)
            value = frame.bindings[text]
            if isinstance(value, TableValue):
                message = f"`{text}` is a table, and only its entries have a value"
                hint = f"read an entry: `{text}[...]`"
                self.assemble.fail("type-mismatch", message, node, frame, hint)
                return None
            return value
        if text in COORDINATES or text in SIZES:
            return Value(Var(text))
        return self._call(Identifier(text, node.span), (), node, frame)

    def _index(self, node: Index, frame: Frame) -> Value | None:
        name = node.name.text
        indexes = self.integers(node.indexes, frame, "an index is")
        if name not in frame.bindings:
            tables = [key for key, value in frame.bindings.items() if isinstance(value, TableValue)]
            self._unknown("no table", node.name, tables, frame)
            return None
        frame.used.add(name)
        table = frame.bindings[name]
        if isinstance(table, TableValue):
            return read_table(self.assemble, table, indexes, node, frame)
        if table is not None:
            message = f"`{name}` is no table and cannot be indexed"
            self.report.add("type-mismatch", message, node.name.span)
        return None

    def _unknown(self, what: str, name: Identifier, known: Sequence[str], frame: Frame) -> None:
        """Reports a name that nothing defines, unless what defines it did not parse."""
        if name.text in frame.module.broken:
            return
        found = nearest(name.text, known)
        hint = f"did you mean `{found}`?" if found else None
        message = f"{what} is called `{name.text}`"
        if name.text in frame.bindings:
            frame.used.add(name.text)
            table = isinstance(frame.bindings[name.text], TableValue)
            hint = f"`{name.text}` is a table: read it with `[...]`" if table else hint
        elif name.text == "q_offset":
            hint = "`q` counts from it already"
        self.report.add("unknown-name", message, name.span, hint)

    # ------------------------------------------------------------------------------- calls

    def _call(
        self, name: Identifier, arguments: Sequence[Argument], node: Expression, frame: Frame
    ) -> Value | None:
        """Another pattern, written out."""
        module = frame.module
        definition = module.definitions.get(name.text)
        hidden = name.text in module.broken
        if definition is None and name.text in library.names() and not hidden:
            module = library_module(name.text)
            definition = module.definitions[name.text]
        if definition is None:
            known = [*frame.module.definitions, *library.names(), *FUNCTIONS]
            what = "no pattern"
            if isinstance(node, Name):
                patterns, known = known, [*known, *COORDINATES, *SIZES, *frame.bindings]
                what = what if nearest(name.text, known) in patterns else "nothing"
            self._unknown(what, name, known, frame)
            self._look_at(arguments, frame)
            return None
        given = match_arguments(name, definition.parameters, arguments, node.span, self.report)
        if given is None:
            self._look_at(arguments, frame)
            return None
        origins: dict[str, Span] = {}
        site = frame.site or node.span
        inner = Frame(module, name.text, {}, frame.depth + 1, site, origins)
        for parameter in definition.parameters:
            key = parameter.name.text
            inner.bindings[key] = self._argument(name, parameter, given.get(key), frame)
            if key in given:
                origins[key] = frame.place(given[key].value)
        self._frames += _CALL_FRAMES
        result: Value | None = None
        if self._usable(module, definition, name) and None not in inner.bindings.values():
            result = self._inline(definition, inner, node, frame)
        self._frames -= _CALL_FRAMES
        return result

    def _inline(
        self, definition: Definition, inner: Frame, node: Expression, frame: Frame
    ) -> Value | None:
        """The body of a definition whose parameters are bound, written out once."""
        arguments = tuple(
            value.expr if isinstance(value, Value) else value for value in inner.bindings.values()
        )
        known = self._calls.get((id(definition), arguments))
        if known is not None:
            self.assemble.fixed |= known.fixed
            return known.value
        self.assemble.spend(_CALL_WORK, node, frame)
        before, self.assemble.fixed = self.assemble.fixed, set()
        result = self._substituted(definition, inner, node, frame)
        if result is not None:
            # A call that went wrong is written out again: each place of it is a mistake.
            meaning = Meaning(result, frozenset(self.assemble.fixed), frozenset())
            self._calls[id(definition), arguments] = meaning
        self.assemble.fixed |= before
        return result

    def _substituted(
        self, definition: Definition, inner: Frame, node: Expression, frame: Frame
    ) -> Value | None:
        """The body of a definition whose parameters are bound, at the positions of the call.

        An argument means the positions at the call, whatever `at` and `cover` do inside, so those
        get names of their own until the body is written out.
        """
        outer = {name: outer_position(name, inner.depth) for name in ("q", "k")}
        moved = False
        for key, value in inner.bindings.items():
            if isinstance(value, Value) and variables(value.expr) & outer.keys():
                inner.bindings[key] = self.assemble.replaced(
                    value, {Var(name): mark for name, mark in outer.items()}, node, frame
                )
                moved = True
        result = self._body(definition, inner)
        if result is None or not moved:
            return result
        back = {mark: Var(name) for name, mark in outer.items()}
        return self.assemble.replaced(result, back, node, frame)

    def _argument(
        self,
        callee: Identifier,
        parameter: ParameterDeclaration,
        argument: Argument | None,
        frame: Frame,
    ) -> Binding:
        """What a parameter of a called pattern is bound to."""
        kind = declared_type(parameter)
        name = parameter.name.text
        if argument is None:
            default = default_of(parameter)
            return None if default is None else Value(Const(default))
        if isinstance(kind, IntType):
            return self.integer(argument.value, frame, f"`{name}` of `{callee.text}` is")
        if kind is None:
            return None
        node = argument.value
        if isinstance(node, Name) and node.text in frame.bindings:
            frame.used.add(node.text)
            table = frame.bindings[node.text]
            if table is None or (isinstance(table, TableValue) and table.type == kind):
                return table
        wanted = describe_type(kind)
        self.report.add(
            "type-mismatch",
            f"`{name}` of `{callee.text}` is a parameter of type `{wanted}`",
            frame.place(node),
            f"declare one and give its name: `{name}: {wanted}`",
        )
        return None

    def _look_at(self, arguments: Sequence[Argument], frame: Frame) -> None:
        """Looks for mistakes in arguments that cannot be used."""
        for argument in arguments:
            node = argument.value
            if isinstance(node, Name) and isinstance(frame.bindings.get(node.text), TableValue):
                frame.used.add(node.text)
            else:
                self.expression(node, frame)

    def _usable(self, module: Module, definition: Definition, name: Identifier) -> bool:
        """Can a definition be written out here? Reports recursion."""
        if module.library:
            return True
        depths = [depth for depth, step in enumerate(self._path) if step is definition]
        if depths:
            cycle = self._path[depths[0] :]
            names = [step.name.text for step in (*cycle, definition) if step.name]
            hint = "patterns cannot be recursive"
            if name.text in library.names():
                hint = f"the library's `{name.text}` is hidden by this one; give it another name"
            message = f"`{name.text}` uses itself: {' -> '.join(names)}"
            self.report.add("recursion", message, name.span, hint)
            return False
        return self.meaning(definition).value is not None
