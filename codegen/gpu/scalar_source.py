"""Integer and predicate expressions as Triton text, with Python's floor division and without
overflow.

One writer serves scalars and tensors: what a name stands for is the caller's affair. Triton's `//`
    truncates and its `%` follows C, so a division becomes a shift, a plain division of what is
    never negative, or `floor_divide`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from typing_extensions import TypeIs, assert_never

from patterncc.codegen.gpu.interval import Interval, interval
from patterncc.codegen.gpu.table_source import ANSWERS, find_document_text, read_text
from patterncc.dsl.errors import InternalError, UnsupportedError
from patterncc.dsl.mask import (
    Abs,
    And,
    Branch,
    Compare,
    Const,
    Cover,
    Entry,
    Expr,
    FloorDiv,
    IntExpr,
    Max,
    Member,
    Min,
    Mod,
    Not,
    Or,
    Param,
    Predicate,
    Product,
    Segment,
    Select,
    Sum,
    Truth,
    Var,
)

Bits: TypeAlias = Literal[32, 64]

HELPERS = '''\
@triton.jit
def floor_divide(value, divisor):
    """Rounds towards minus infinity: for a negative value, ~(~value // divisor)."""
    sign = tl.where(value < 0, -1, 0).to(value.dtype)
    return ((value ^ sign) // divisor) ^ sign


@triton.jit
def floor_modulo(value, divisor):
    """The remainder of `floor_divide`, never negative."""
    return value - floor_divide(value, divisor) * divisor
'''
"""Source of the functions that written expressions may call."""


@dataclass(frozen=True, slots=True)
class Text:
    """Triton text of an integer: its width, and whether it binds as tightly as a name. Literals
    take any width."""

    text: str
    bits: Bits | None
    atom: bool = True

    def operand(self) -> str:
        """The text, bracketed where an operator beside it could pull it apart."""
        return self.text if self.atom else f"({self.text})"

    def widened(self, bits: Bits) -> Text:
        """The same value in exactly `bits` bits; the caller knows that it fits."""
        if self.bits is None or self.bits == bits:
            return self
        return Text(f"{self.operand()}.to(tl.int{bits})", bits)


Names: TypeAlias = Callable[[Expr], "Text | None"]
"""What the caller calls an expression: leaves always have a name, other expressions where they were
computed before."""


def is_predicate(expr: Expr) -> TypeIs[Predicate]:
    """Tells a predicate from an integer."""
    return isinstance(expr, (Truth, Compare, And, Or, Not, Branch, Member, Cover))


class ExpressionWriter:
    """Writes expressions over named values.

    Args:
        names: The text of leaves and of expressions that have been computed already.
        least_bits: 64 computes everything in 64 bits, 32 only what interval analysis cannot keep
            within 32.
    """

    def __init__(self, names: Names, least_bits: Bits = 32) -> None:
        self._names = names
        self._least_bits = least_bits

    def any(self, expr: Expr) -> Text:
        """An integer or a predicate (of no width)."""
        if is_predicate(expr):
            return Text(self.predicate(expr), None)
        return self.integer(expr)

    def integer(self, expr: IntExpr) -> Text:
        """An integer expression.

        Raises:
            UnsupportedError: It could leave 64 bits.
        """
        known = self._names(expr)
        if known is not None:
            return known
        match expr:
            case Const(value):
                return Text(str(value), None, atom=value >= 0)
            case Sum(terms):
                return self._sum(terms)
            case Product(factors):
                return self._product(factors)
            case FloorDiv(value, divisor):
                return self._division(value, divisor, "//")
            case Mod(value, divisor):
                return self._division(value, divisor, "%")
            case Min(args):
                return self._nested("tl.minimum", args)
            case Max(args):
                return self._nested("tl.maximum", args)
            case Abs(value):
                # |least integer| does not fit: compute where the result does.
                bits = self._bits(interval(value), interval(expr))
                return Text(f"tl.abs({self.integer(value).widened(bits).text})", bits)
            case Select(condition, then, otherwise):
                bits = self._bits(interval(then), interval(otherwise))
                yes, no = (self.integer(e).widened(bits).text for e in (then, otherwise))
                return Text(f"tl.where({self.predicate(condition)}, {yes}, {no})", bits)
            case Var(name) | Param(name):
                raise InternalError(f"the kernel has no value called {name}")
            case Entry(_, indexes):
                element = read_text(expr, [self.integer(index).text for index in indexes])
                return Text(element, 32).widened(self._least_bits)
            case Segment(kind, _, position):
                bits = self.document_bits(position)
                found = find_document_text(expr, self.integer(position).widened(bits).text)
                return Text(f"{found}[{ANSWERS.index(kind)}]", bits)
        assert_never(expr)

    def document_bits(self, position: IntExpr) -> Bits:
        """The width in which the document of a position is looked up."""
        return self._bits(*(interval(Segment(kind, "", position)) for kind in ANSWERS))

    def predicate(self, expr: Predicate) -> str:
        """A predicate whose negations have been pushed down to its comparisons, as one operand."""
        known = self._names(expr)
        if known is not None:
            return known.operand()
        match expr:
            case Compare(op, left, right):
                return f"({self.integer(left).operand()} {op} {self.integer(right).operand()})"
            case And(args):
                return "(" + " & ".join(self.predicate(arg) for arg in args) + ")"
            case Or(args):
                return "(" + " | ".join(self.predicate(arg) for arg in args) + ")"
            case Branch(condition, then, otherwise):
                parts = (self.predicate(part) for part in (condition, then, otherwise))
                return f"tl.where({', '.join(parts)})"
            case Member():
                return f"({self._member(expr)} != 0)"
            case Not(Member() as member):
                return f"({self._member(member)} == 0)"
        raise UnsupportedError(
            f"no kernel reads {type(expr).__name__.lower()} terms yet",
            "use a pattern without covers",
        )

    def _member(self, expr: Member) -> str:
        return read_text(expr, [self.integer(index).text for index in expr.indexes])

    def _bits(self, *values: Interval) -> Bits:
        if not all(value.fits(64) for value in values):
            raise UnsupportedError(
                "an expression of the pattern can leave 64 bits", "multiply smaller numbers"
            )
        if self._least_bits == 64 or not all(value.fits(32) for value in values):
            return 64
        return 32

    def _sum(self, terms: tuple[IntExpr, ...]) -> Text:
        partial = [Interval(0, 0)]
        for term in terms:
            partial.append(partial[-1] + interval(term))
        bits = self._bits(*map(interval, terms), *partial)
        text = ""
        for term in terms:
            sign, size = _signed(term)
            part = self.integer(size).widened(bits)
            # A product binds tighter than a sum and needs no brackets in it.
            operand = part.text if isinstance(size, Product) else part.operand()
            if text:
                text += f" {sign} {operand}"
            else:
                text = operand if sign == "+" else f"-{part.operand()}"
        return Text(text, bits, atom=False)

    def _product(self, factors: tuple[IntExpr, ...]) -> Text:
        partial = [interval(factors[0])]
        for factor in factors[1:]:
            partial.append(partial[-1] * interval(factor))
        bits = self._bits(*map(interval, factors), *partial)
        if factors[0] == Const(-1):
            rest = factors[1] if len(factors) == 2 else Product(factors[1:])
            return Text(f"-{self.integer(rest).widened(bits).operand()}", bits, atom=False)
        parts = [self.integer(factor).widened(bits).operand() for factor in factors]
        return Text(" * ".join(parts), bits, atom=False)

    def _division(self, value: IntExpr, divisor: IntExpr, op: Literal["//", "%"]) -> Text:
        bits = self._bits(interval(value), interval(divisor))
        dividend = self.integer(value).widened(bits)
        if isinstance(divisor, Const) and divisor.value & (divisor.value - 1) == 0:
            # An arithmetic shift is the floor of the quotient, and a bit mask the remainder.
            shift = divisor.value.bit_length() - 1
            how = f">> {shift}" if op == "//" else f"& {divisor.value - 1}"
            return Text(f"{dividend.operand()} {how}", bits, atom=False)
        by = self.integer(divisor).widened(bits)
        if interval(value).low >= 0:
            return Text(f"{dividend.operand()} {op} {by.operand()}", bits, atom=False)
        function = "floor_divide" if op == "//" else "floor_modulo"
        return Text(f"{function}({dividend.text}, {by.text})", bits)

    def _nested(self, function: str, args: tuple[IntExpr, ...]) -> Text:
        bits = self._bits(*map(interval, args))
        text = self.integer(args[-1]).widened(bits).text
        for arg in reversed(args[:-1]):
            text = f"{function}({self.integer(arg).widened(bits).text}, {text})"
        return Text(text, bits)


def _signed(term: IntExpr) -> tuple[Literal["+", "-"], IntExpr]:
    """The sign of a term of a sum and the term without it."""
    match term:
        case Const(value) if value < 0:
            return "-", Const(-value)
        case Product((Const(-1), factor)):
            return "-", factor
        case Product((Const(value), *rest)) if value < 0:
            if value == -1:
                return "-", Product(tuple(rest))
            return "-", Product((Const(-value), *rest))
    return "+", term
