"""Which parts of a mask are numbers of the whole tile, and the symbols that stand for them in a
relation.
"""

from __future__ import annotations

from patterncc.dsl.build import negate, select
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import (
    And,
    Branch,
    Compare,
    Const,
    Cover,
    Entry,
    Expr,
    IntExpr,
    Member,
    Not,
    Or,
    Param,
    Predicate,
    Product,
    Segment,
    Sum,
    Truth,
    Var,
    children,
    variables,
    walk,
)
from patterncc.dsl.printer import expression_text


class Scalars:
    """Names for the symbolic numbers of one lowering, and the way back from an isl parameter to its
    expression.

    A subexpression that reads no position and is not affine (`layer * window`, `layer % 6 == 5`)
    becomes one opaque symbol: isl then answers for every value of it, so what is derived stays
    exact for the value it really has.
    """

    def __init__(self) -> None:
        self.meaning: dict[str, IntExpr] = {}
        self.flags: set[str] = set()

    def named(self, expr: Var | Param) -> str:
        self.meaning[expr.name] = expr
        return expr.name

    def opaque(self, expr: IntExpr) -> str:
        return self._new(expr)

    def flag(self, predicate: Predicate) -> tuple[str, bool]:
        """The yes/no symbol of a predicate or of its negation, and which of them it stands for."""
        opposite = select(negate(predicate), Const(1), Const(0))
        for name in self.flags:
            if self.meaning[name] == opposite:
                return name, False
        name = self._new(select(predicate, Const(1), Const(0)))
        self.flags.add(name)
        return name, True

    def _new(self, expr: IntExpr) -> str:
        for name, known in self.meaning.items():
            if known == expr:
                return name
        name = f"_{len(self.meaning)}"
        self.meaning[name] = expr
        return name


def is_scalar(expr: Expr) -> bool:
    """Whether it has one value in a whole tile: it reads neither `q` nor `k`."""
    return not ({"q", "k"} & variables(expr)) and not any(
        isinstance(node, Cover) for node in walk(expr)
    )


def is_affine(expr: IntExpr) -> bool:
    match expr:
        case Const() | Var() | Param():
            return True
        case Sum(terms):
            return all(map(is_affine, terms))
        case Product((Const(), factor)):
            return is_affine(factor)
    return False


def register(expr: Expr, scalars: Scalars) -> None:
    """Registers every symbol that translating `expr` will need (isl wants them all before the
    first set is built).
    """
    match expr:
        case Var(name) if name in ("q", "k"):
            pass
        case Var() | Param():
            scalars.named(expr)
        case Truth() | Const():
            pass
        case Compare() | And() | Or() | Not() | Branch() | Member() if is_scalar(expr):
            scalars.flag(expr)
        case _ if is_scalar(expr) and not is_affine(expr):  # type: ignore[arg-type]
            scalars.opaque(expr)  # type: ignore[arg-type]
        case Entry() | Segment() | Member() | Cover():
            raise UnsupportedError(f"`{expression_text(expr)}` is no number of a whole tile")
        case _:
            for child in children(expr):
                register(child, scalars)
