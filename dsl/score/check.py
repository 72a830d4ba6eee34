"""Syntax → score algebra: what is a real number, an integer or a predicate; ready terms and lets.

Integers and predicates are elaborated by the pattern language's own `Elaborator`, so they mean, and
may be, what they are in patterns. What is wrong is reported once and is `None` from then on.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

from patterncc.dsl import library
from patterncc.dsl.arguments import count
from patterncc.dsl.declare import CALL_ARGUMENTS, FUNCTIONS, TILE_SYMBOLS
from patterncc.dsl.elaborate import Elaborator
from patterncc.dsl.limits import MAX_DEPTH, MAX_TERM
from patterncc.dsl.makers import total
from patterncc.dsl.mask import COORDINATES, SIZES, Predicate
from patterncc.dsl.modules import Module
from patterncc.dsl.score import nodes as algebra
from patterncc.dsl.score.build import (
    choice,
    lift,
    minus,
    over,
    plus,
    times,
)
from patterncc.dsl.score.calls import APPLIED, LIFTING, Scope, call_function, written_out
from patterncc.dsl.score.nodes import SCORE, Constant, Lookup, Real, children, walk
from patterncc.dsl.score.ready import READY
from patterncc.dsl.source import Source
from patterncc.dsl.syntax import (
    Arithmetic,
    Call,
    Choose,
    Definition,
    Expression,
    Index,
    Minus,
    Name,
    Number,
    subexpressions,
)
from patterncc.dsl.values import Frame, Report, Value

_Kind: TypeAlias = Literal["integer", "real", "predicate"]

RESERVED = COORDINATES + SIZES + ("q_offset", "score", "sink")


class TermChecker:
    """Checks one text of a score term.

    Args:
        source: The text.
        report: Where mistakes go.
        sink: It is the logit of a sink, which has no key.
    """

    def __init__(self, source: Source, report: Report, *, sink: bool = False) -> None:
        module = Module(source, {})
        self.report = report
        self._sink = sink
        self._elaborator = Elaborator(module, report)
        self.module = module
        self._ranks: dict[str, int] = {}
        self._numbers: set[str] = set()
        self._reads_score = False

    def term(self, definition: Definition) -> Real | None:
        """The meaning of a text, if nothing is wrong with it."""
        scope = Scope(Frame(self.module, ""))
        found = self.body(definition, scope)
        if found is None or len(self.report):
            return None
        if not self._sink and not self._reads_score:
            self.report.add(
                "unused",
                "the logit does not read `score`, so queries and keys have no influence",
                definition.body.span,
                "add it: `score + ...`",
            )
            return None
        return found

    def body(self, definition: Definition, scope: Scope) -> Real | None:
        """The value of a definition, its lets before it."""
        for let in definition.lets:
            name = let.name.text
            if name in RESERVED or name in APPLIED or name in FUNCTIONS or name in READY:
                message = f"a let cannot be called `{name}`: that has a meaning already"
                hint = f"take another name, for instance `{name}_`"
                self.report.add("reserved-name", message, let.name.span, hint)
            elif name in scope.reals or name in scope.frame.bindings:
                message = f"a let is called `{name}` already"
                self.report.add("duplicate-name", message, let.name.span)
            if self._kind(let.value, scope) == "real":
                scope.reals[name] = self.bounded(self.real(let.value, scope), let.value, scope)
            elif self._refused(let.value, scope):
                scope.frame.bindings[name] = None
            else:
                scope.frame.bindings[name] = self._elaborator.expression(let.value, scope.frame)
        return self.bounded(self.real(definition.body, scope), definition.body, scope)

    def bounded(self, expr: Real | None, node: Expression, scope: Scope) -> Real | None:
        """An expression that is neither too large nor too deep and has only finite constants."""
        if expr is None:
            return None
        size = 0
        stack = [(expr, 1)]
        while stack:
            part, depth = stack.pop()
            size += 1
            if size > MAX_TERM:
                message = f"with lets and ready terms written out, this has over {MAX_TERM} parts"
                self.fail("too-long", message, node, scope, "put numbers into a table")
                return None
            if depth > MAX_DEPTH:
                message = f"this is nested more than {MAX_DEPTH} deep"
                self.fail("too-deep", message, node, scope)
                return None
            stack.extend((inner, depth + 1) for inner in children(part))
        if any(isinstance(p, Constant) and not math.isfinite(p.value) for p in walk(expr)):
            message = "this gives a constant that is no finite number"
            self.fail("constant-too-large", message, node, scope)
            return None
        return expr

    # ------------------------------------------------------------------------------- kinds

    def _kind(self, node: Expression, scope: Scope) -> _Kind:
        """What an expression is, before it is known to be right."""
        match node:
            case Number(digits):
                return "integer" if digits.isdigit() else "real"
            case Name(text):
                return self._kind_of_name(text, scope)
            case Index():
                return "real"
            case Call(name, arguments) if name.text in LIFTING:
                kinds = {self._kind(argument.value, scope) for argument in arguments}
                return "real" if "real" in kinds else "integer"
            case Call(name):
                if name.text in ("start", "end"):
                    return "integer"
                patterns = name.text in library.names() or name.text in FUNCTIONS
                return "predicate" if patterns else "real"
            case Minus(operand):
                return self._kind(operand, scope)
            case Arithmetic(first, rest):
                kinds = {self._kind(operand, scope) for operand in (first, *(x for _, x in rest))}
                real = "real" in kinds or any(op == "/" for op, _ in rest)
                return "real" if real else "integer"
            case Choose(_, then, otherwise):
                kinds = {self._kind(then, scope), self._kind(otherwise, scope)}
                return "real" if "real" in kinds else kinds.pop()
        return "predicate"

    def _kind_of_name(self, text: str, scope: Scope) -> _Kind:
        if text in scope.reals:
            return "real"
        if text in scope.frame.bindings:
            value = scope.frame.bindings[text]
            integer = not isinstance(value, Value) or value.is_integer
            return "integer" if integer else "predicate"
        if text in COORDINATES or text in SIZES:
            return "integer"
        return "predicate" if text in library.names() else "real"

    # ------------------------------------------------------------------------------- expressions

    def real(self, node: Expression, scope: Scope) -> Real | None:
        """A node that must be a number; integers are lifted."""
        kind = self._kind(node, scope)
        if kind == "integer":
            value = self.integer(node, scope)
            return None if value is None else lift(value.expr)  # type: ignore[arg-type]
        if kind == "predicate":
            message = "a number must stand here, and this is true or false"
            hint = "choose between numbers: `if ... then a else b`"
            if isinstance(node, Name):
                message = f"`{node.text}` is a pattern, and a number must stand here"
                hint = "give the number another name"
            self.fail("type-mismatch", message, node, scope, hint)
            return None
        match node:
            case Number(digits):
                return Constant(float(digits))
            case Name(text):
                return self._name(text, node, scope)
            case Index():
                return self._lookup(node, scope)
            case Minus(operand):
                found = self.real(operand, scope)
                return None if found is None else minus(found)
            case Arithmetic(_, ((("+" | "-"), _), *_)):
                return self._sum(node, scope)
            case Arithmetic():
                return self._product(node, scope)
            case Choose(condition, then, otherwise):
                chosen = self._predicate(condition, scope)
                parts = [self.real(part, scope) for part in (then, otherwise)]
                if chosen is None or parts[0] is None or parts[1] is None:
                    return None
                return choice(chosen, parts[0], parts[1])
            case Call(name) if name.text in READY:
                return written_out(self, READY[name.text], node, scope)
            case Call():
                return call_function(self, node, scope)
        raise AssertionError(node)

    def _name(self, text: str, node: Name, scope: Scope) -> Real | None:
        if text in scope.reals:
            return scope.reals[text]
        if text == "score":
            self._reads_score = True
            if self._sink:
                message = "a sink has no key, so there is no `score` for it"
                self.fail("type-mismatch", message, node, scope)
                return None
            return SCORE
        known = (*APPLIED, *READY, *FUNCTIONS)
        if text in known:
            message = f"`{text}` is a function, and a number must stand here"
            self.fail("type-mismatch", message, node, scope, f"call it: `{text}(...)`")
            return None
        if self._taken(text, "number", node, scope):
            return None
        if text in self._ranks:
            self._both(text, node, scope)
            return None
        self._numbers.add(text)
        return algebra.Number(text)

    def _taken(self, name: str, what: str, node: Expression, scope: Scope) -> bool:
        """Reports a name that calls could not give."""
        taken = name in CALL_ARGUMENTS or name in TILE_SYMBOLS or name in RESERVED
        if taken:
            message = f"a {what} cannot be called `{name}`: that has a meaning already"
            hint = f"take another name, for instance `{name}_`"
            if name == "q_offset":
                hint = "`q` counts from it already"
            self.fail("reserved-name", message, node, scope, hint)
        return taken

    def _both(self, name: str, node: Expression, scope: Scope) -> None:
        message = f"`{name}` is used as a table and as a number"
        hint = f"read an entry: `{name}[...]`"
        self.fail("type-mismatch", message, node, scope, hint)

    def _lookup(self, node: Index, scope: Scope) -> Real | None:
        written = node.name.text
        table = scope.tables.get(written, written)
        indexes = [self.integer(index, scope, "an index is") for index in node.indexes]
        if written in scope.reals or written in scope.frame.bindings:
            message = f"`{written}` is no table and cannot be indexed"
            self.fail("type-mismatch", message, node, scope)
            return None
        if self._taken(table, "table", node, scope):
            return None
        if table in self._numbers:
            self._both(table, node, scope)
            return None
        rank = self._ranks.setdefault(table, len(indexes))
        if rank != len(indexes):
            first = count(rank, "index", "indexes")
            message = f"`{table}` is read with {first} elsewhere, and with {len(indexes)} here"
            self.fail("table-index", message, node, scope)
            return None
        exprs = [index.expr for index in indexes if index is not None]
        if len(exprs) < len(indexes):
            return None
        return Lookup(table, tuple(exprs))  # type: ignore[arg-type]

    def _sum(self, node: Arithmetic, scope: Scope) -> Real | None:
        pairs = (("+", node.first), *node.rest)
        integers = [(op, item) for op, item in pairs if self._kind(item, scope) == "integer"]
        values = [self.integer(item, scope) for _, item in integers]
        terms = [
            (op, self.real(item, scope))
            for op, item in pairs
            if self._kind(item, scope) != "integer"
        ]
        if integers:
            signs = [1 if op == "+" else -1 for op, _ in integers]
            whole = self._elaborator.assemble.join(total(signs), values, node, scope.frame)
            terms.append(("+", None if whole is None else lift(whole.expr)))  # type: ignore[arg-type]
        signed = [
            None if term is None else term if op == "+" else minus(term) for op, term in terms
        ]
        sound = [term for term in signed if term is not None]
        return plus(*sound) if len(sound) == len(signed) else None

    def _product(self, node: Arithmetic, scope: Scope) -> Real | None:
        """From left to right: integers up to the first real number, then real numbers."""
        operands = (("*", node.first), *node.rest)
        whole = 0
        while (
            whole < len(operands)
            and operands[whole][0] != "/"
            and self._kind(operands[whole][1], scope) == "integer"
        ):
            whole += 1
        found: Real | None = None
        wrong = False
        if whole:
            prefix: Expression = node.first
            if whole > 1:
                span = node.first.span.cover(node.rest[whole - 2][1].span)
                prefix = Arithmetic(node.first, node.rest[: whole - 1], span)
            value = self.integer(prefix, scope)
            wrong = value is None
            found = None if value is None else lift(value.expr)  # type: ignore[arg-type]
        for op, operand in operands[whole:]:
            if op in ("//", "%"):
                message = f"`{op}` takes integers, and a real number stands before it"
                hint = "`/` divides real numbers"
                if self._kind(operand, scope) == "integer" and op == "//":
                    hint += "; put integers that are divided into parentheses"
                self.fail("type-mismatch", message, operand, scope, hint)
                wrong = True
                continue
            factor = self.real(operand, scope)
            if factor is None:
                wrong = True
            elif op == "*":
                found = factor if found is None else times(found, factor)
            elif factor == Constant(0.0):
                self.fail("wrong-value", "this divides by 0", operand, scope)
                wrong = True
            elif found is not None:
                found = over(found, factor)
        return None if wrong else found

    # ------------------------------------------------------------------------------- integers

    def integer(self, node: Expression, scope: Scope, user: str = "here stands") -> Value | None:
        """A node that must be an integer of the pattern language."""
        if self._refused(node, scope):
            return None
        return self._elaborator.integer(node, scope.frame, user)

    def _predicate(self, node: Expression, scope: Scope) -> Predicate | None:
        """A node that must be a predicate of the pattern language."""
        if self._refused(node, scope):
            return None
        value = self._elaborator.predicate(node, scope.frame, "`if` takes")
        return None if value is None else value.expr  # type: ignore[return-value]

    def _refused(self, node: Expression, scope: Scope) -> bool:
        """Reports real numbers in what must be made of integers, and the key's position of a sink.

        What is left is elaborated as in a pattern.
        """
        refused = False
        stack: list[Expression] = [node]
        while stack:
            part = stack.pop()
            match part:
                case Name("k") if self._sink:
                    message = "a sink has no key, so there is no `k` for it"
                    self.fail("type-mismatch", message, part, scope)
                    refused = True
                case Number() | Name() | Index() if self._kind(part, scope) == "real":
                    text = "`/` and real numbers"
                    if isinstance(part, Name):
                        text = f"`{part.text}`, a real number,"
                    elif isinstance(part, Index):
                        text = f"`{part.name.text}`, a table of real numbers,"
                    message = f"{text} cannot stand in an integer or a condition"
                    hint = "those are made of whole numbers, positions, head, layer and sizes"
                    self.fail("type-mismatch", message, part, scope, hint)
                    refused = True
                    continue
                case Arithmetic(_, rest) if any(op == "/" for op, _ in rest):
                    message = "`/` gives a real number, and an integer must stand here"
                    self.fail("type-mismatch", message, part, scope, "`//` rounds down")
                    refused = True
                case Call(name) if name.text in APPLIED or name.text in READY:
                    message = f"`{name.text}` gives a real number, and an integer must stand here"
                    self.fail("type-mismatch", message, part, scope)
                    refused = True
                    continue
            stack.extend(subexpressions(part))
        return refused

    def fail(
        self, code: str, message: str, node: Expression, scope: Scope, hint: str | None = None
    ) -> None:
        self.report.add(code, message, scope.site or node.span, hint)


def table_ranks(exprs: Sequence[Real]) -> dict[str, int]:
    """How many axes each table has that expressions read, by name in name order."""
    found = {
        node.table: len(node.indexes)
        for expr in exprs
        for node in walk(expr)
        if isinstance(node, Lookup)
    }
    return dict(sorted(found.items()))
