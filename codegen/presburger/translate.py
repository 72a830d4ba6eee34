"""Masks as integer sets, with every run-time number symbolic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce

import islpy as isl

from patterncc.codegen.pieces import TooIntricateError
from patterncc.codegen.scalars import Scalars, is_affine, is_scalar, register
from patterncc.dsl.build import add, floordiv, multiply
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import (
    Abs,
    And,
    Branch,
    Compare,
    Const,
    FloorDiv,
    IntExpr,
    Max,
    Min,
    Mod,
    Not,
    Or,
    Param,
    Predicate,
    Product,
    Select,
    Sum,
    Truth,
    Var,
    children,
    variables,
)
from patterncc.dsl.printer import expression_text

# isl's own counts. Whatever is found within them takes a third of a second.
OPERATION_BUDGET = 300_000  # of one direction; the library needs up to 200,000
FLOOR_BUDGET = 40_000  # of one projection; the library needs up to 32,000
QUOTA = "maximal number of operations"  # what isl says when the budget is used up

SET = isl.dim_type.set
PARAM = isl.dim_type.param
DIV = isl.dim_type.div


def is_spent(error: isl.Error) -> bool:
    """Whether isl stopped because the budget is used up.

    Where that happens while it reads a text it calls it a syntax error; texts of ours have none.
    """
    return QUOTA in str(error) or "syntax error" in str(error)


class Symbols:
    """The symbolic numbers of masks and of what is asked of it, with the isl context they live
    in.

    Args:
        bodies: The masks.
        extra: Symbols that the questions need besides those of the masks (`q_first`, `kv_len`,
            ...).
        facts: Comparisons of affine expressions in symbols that hold at every call.

    Raises:
        UnsupportedError: For a term outside what can be computed with exactly (a table read at a
            position, products).
    """

    _facts: Sequence[str] = ()
    _spent = "this pattern is too intricate to lower exactly within the compiler's budget"

    def __init__(
        self, bodies: Iterable[Predicate], extra: Sequence[str], facts: Sequence[Predicate] = ()
    ) -> None:
        self.scalars = Scalars()
        for body in bodies:
            register(body, self.scalars)
        for fact in facts:
            for side in children(fact):
                register(side, self.scalars)
        for name in extra:
            self.scalars.named(Var(name))
        self.names = sorted(self.scalars.meaning)
        self.context = isl.Context()
        self.context.set_max_operations(OPERATION_BUDGET)
        self._facts = [self._condition(fact) for fact in facts]

    @contextmanager
    def budget(self) -> Iterator[None]:
        """Where isl computes: the end of its budget becomes a TooIntricateError."""
        try:
            yield
        except isl.Error as error:
            if is_spent(error):
                raise TooIntricateError(self._spent) from error
            raise

    def resolve_floors(self, tiles: isl.Set) -> isl.Set:
        """The set with the floors in it as explicit numbers, within a budget of its own.

        That takes isl longer for each operation that it counts, the longer it goes on.
        """
        self.context.reset_operations()
        self.context.set_max_operations(FLOOR_BUDGET)
        resolved = tiles.compute_divs()
        self.context.reset_operations()
        self.context.set_max_operations(OPERATION_BUDGET)
        return resolved

    def pairs(self, body: Predicate) -> isl.Set:
        """The allowed pairs `[q, k]` of a mask that reads no other symbols."""
        return Translator(self).predicate(body).coalesce()

    def conditions(self, texts: Sequence[str]) -> isl.Set:
        """What holds of the symbols, as a set without dimensions: conditions in isl's syntax, the
        facts, and that yes/no symbols are 0 or 1.
        """
        flags = [f"0 <= {name} <= 1" for name in sorted(self.scalars.flags)]
        return self._read("", [*texts, *self._facts, *flags, *self._quotients()])

    def _quotients(self) -> Iterator[str]:
        """What is known of symbols that stand for a quotient or a remainder."""
        for name, meaning in sorted(self.scalars.meaning.items()):
            match meaning:
                case Mod(_, Const(divisor)) if divisor > 0:
                    yield f"0 <= {name} < {divisor}"
                case FloorDiv(value, Const(divisor)) if (
                    divisor > 0 and variables(value) and self._is_known(value)
                ):
                    yield f"0 <= {self._text(value)} - {divisor} * {name} < {divisor}"

    def _is_known(self, expr: IntExpr) -> bool:
        """Whether a number is affine in the symbols."""
        match expr:
            case Const():
                return True
            case Sum(terms):
                return all(map(self._is_known, terms))
            case Product((Const(), inner)):
                return self._is_known(inner)
        return expr in self.scalars.meaning.values()

    def region(self, texts: Sequence[str]) -> isl.Set:
        """The triples `[tile, q, k]` that meet conditions written in isl's syntax."""
        return self._read("[tile, q, k]", texts)

    def _read(self, dimensions: str, texts: Sequence[str]) -> isl.Set:
        condition = " and ".join(texts) or "1 = 1"
        return isl.Set.read_from_str(
            self.context, f"[{', '.join(self.names)}] -> {{ {dimensions} : {condition} }}"
        )

    def _condition(self, fact: Predicate) -> str:
        """A comparison of affine expressions in known symbols, in isl's syntax."""
        assert isinstance(fact, Compare), fact
        return f"{self._text(fact.left)} {fact.op} {self._text(fact.right)}"

    def _text(self, expr: IntExpr) -> str:
        match expr:
            case Const(value):
                return str(value)
            case Var(name) | Param(name):
                return name
            case Sum(terms):
                return " + ".join(map(self._text, terms))
            case Product((Const(factor), inner)):
                return f"{factor} * ({self._text(inner)})"
        return self.scalars.opaque(expr)

    # -- back to expressions

    def quasi_affine(self, affine: isl.Aff) -> IntExpr:
        """A quasi-affine expression of the symbols alone."""
        denominator = number(affine.get_denominator_val())
        whole = affine.scale_val(denominator)
        terms = [Const(number(whole.get_constant_val())), *self.terms(whole)]
        for i in range(affine.dim(DIV)):
            if factor := number(whole.get_coefficient_val(DIV, i)):
                terms.append(multiply(Const(factor), self.quasi_affine(affine.get_div(i))))
        return floordiv(add(*terms), Const(denominator))

    def terms(self, affine: isl.Aff) -> list[IntExpr]:
        """The terms of an integer affine expression in the symbols."""
        terms = []
        for i, name in enumerate(self.names):
            factor = affine.get_coefficient_val(PARAM, i)
            if not factor.is_zero():
                terms.append(multiply(Const(number(factor)), self.scalars.meaning[name]))
        return terms


def number(value: isl.Val) -> int:
    """The number; isl gives no text of it, and no error, once its operations are used up."""
    text = value.to_str()
    if text is None:
        raise isl.Error(QUOTA)
    return int(text)


class Translator:
    """Masks to isl sets over `[q, k]`, bottom up."""

    def __init__(self, symbols: Symbols) -> None:
        self.symbols = symbols
        self.space = isl.Space.create_from_names(
            symbols.context, set=["q", "k"], params=symbols.names
        )
        self.local = isl.LocalSpace.from_space(self.space)
        self.position = {name: i for i, name in enumerate(symbols.names)}

    def is_symbol(self, expr: IntExpr) -> bool:
        """Whether a number is taken as one symbol, whatever it is made of."""
        return is_scalar(expr) and not is_affine(expr)

    def is_flag(self, expr: Predicate) -> bool:
        """Whether a condition is taken as one symbol that is 0 or 1."""
        return is_scalar(expr)

    def constant(self, value: int) -> isl.PwAff:
        return isl.PwAff.from_aff(isl.Aff.zero_on_domain(self.local).add_constant_val(value))

    def symbol(self, name: str) -> isl.PwAff:
        return isl.PwAff.from_aff(isl.Aff.var_on_domain(self.local, PARAM, self.position[name]))

    def integer(self, expr: IntExpr) -> isl.PwAff:
        match expr:
            case Const(value):
                return self.constant(value)
            case Var("q"):
                return isl.PwAff.from_aff(isl.Aff.var_on_domain(self.local, SET, 0))
            case Var("k"):
                return isl.PwAff.from_aff(isl.Aff.var_on_domain(self.local, SET, 1))
            case Var(name) | Param(name):
                return self.symbol(name)
        if self.is_symbol(expr):
            return self.symbol(self.symbols.scalars.opaque(expr))
        match expr:
            case Sum(terms):
                return reduce(isl.PwAff.add, map(self.integer, terms))
            case Product((Const(value), factor)):
                return self.integer(factor).scale_val(value)
            case FloorDiv(inner, Const(divisor)) if divisor > 0:
                return self.integer(inner).scale_down_val(divisor).floor()
            case Mod(inner, Const(divisor)) if divisor > 0:
                return self.integer(inner).mod_val(divisor)
            case Min(args):
                return reduce(isl.PwAff.min, map(self.integer, args))
            case Max(args):
                return reduce(isl.PwAff.max, map(self.integer, args))
            case Abs(inner):
                signed = self.integer(inner)
                return signed.max(signed.neg())
            case Select(condition, then, otherwise):
                where = self.predicate(condition)
                return (
                    self.integer(then)
                    .intersect_domain(where)
                    .union_add(self.integer(otherwise).intersect_domain(where.complement()))
                )
        raise UnsupportedError(
            f"`{expression_text(expr)}` is not linear in the positions: divide and multiply "
            "them by numbers that are fixed when the pattern is compiled"
        )

    def predicate(self, expr: Predicate) -> isl.Set:
        match expr:
            case Truth(value):
                universe = isl.Set.universe(self.space)
                return universe if value else universe.complement()
        if self.is_flag(expr):
            name, positive = self.symbols.scalars.flag(expr)
            return self.symbol(name).eq_set(self.constant(int(positive)))
        match expr:
            case Compare(op, left, right):
                a, b = self.integer(left), self.integer(right)
                compare: dict[str, Callable[[isl.PwAff, isl.PwAff], isl.Set]] = {
                    "==": isl.PwAff.eq_set,
                    "!=": isl.PwAff.ne_set,
                    "<": isl.PwAff.lt_set,
                    "<=": isl.PwAff.le_set,
                }
                return compare[op](a, b)
            case And(args):
                return reduce(isl.Set.intersect, map(self.predicate, args))
            case Or(args):
                return reduce(isl.Set.union, map(self.predicate, args)).coalesce()
            case Not(arg):
                return self.predicate(arg).complement()
            case Branch(condition, then, otherwise):
                where = self.predicate(condition)
                return (
                    where.intersect(self.predicate(then))
                    .union(where.complement().intersect(self.predicate(otherwise)))
                    .coalesce()
                )
        raise UnsupportedError(f"`{expression_text(expr)}` cannot be lowered")
