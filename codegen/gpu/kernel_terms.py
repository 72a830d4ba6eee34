"""What kernels compute of score terms: the terms in the variables of a pass, the entries of tables
whose gradients they sum, and the parameters of all that. Their text is written in `score_source`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.ir import CALL_KV_LEN, CALL_Q_LEN, DENSE, Q_CLASS
from patterncc.dsl.build import add, multiply, substitute
from patterncc.dsl.mask import Const, IntExpr, K, Predicate, Q, Var, variables
from patterncc.dsl.score.build import rebuild, scaled, times
from patterncc.dsl.score.nodes import (
    SCORE,
    Apply,
    Constant,
    Lookup,
    Number,
    Over,
    Real,
    Score,
    children,
    walk,
)

if TYPE_CHECKING:
    from patterncc.codegen.ir import BlockProgram, Tiling
    from patterncc.dsl.mask import Expr
    from patterncc.dsl.score.terms import ScoreTerms

SCALE = KernelParameter("natural_scale", "fp32")
"""What `scores` are multiplied by to be the scores of the terms."""

SCALE_NUMBER = Number("@scale")  # no name of the language holds an `@`
_LOG2_E = math.log2(math.e)


@dataclass(frozen=True, slots=True)
class RealTable:
    """A table of real numbers that a kernel reads, float32 and contiguous.

    Attributes:
        name: As the terms call it.
        spread: For each axis, whether a kernel looks up many of its indexes at once.
    """

    name: str
    spread: tuple[bool, ...]

    @property
    def pointer(self) -> KernelParameter:
        """Where it lies."""
        return KernelParameter(f"real_table_{self.name}_ptr", "*fp32", 4)

    @property
    def sizes(self) -> tuple[KernelParameter, ...]:
        """Its sizes."""
        return tuple(
            KernelParameter(f"real_table_{self.name}_size_{axis}", "i32")
            for axis in range(len(self.spread))
        )


class TermParameters:
    """What the score terms of a kernel add to its signature.

    Args:
        exprs: What the kernel computes, as `in_classes` gives it.
    """

    def __init__(self, exprs: Iterable[Real]) -> None:
        self._numbers: set[str] = set()
        spread: dict[str, tuple[bool, ...]] = {}
        self.scale = False
        for expr in exprs:
            for node in walk(expr):
                match node:
                    case Number():
                        if node == SCALE_NUMBER:
                            self.scale = True
                        else:
                            self._numbers.add(node.name)
                    case Lookup(table, indexes):
                        own = tuple(map(spreads, indexes))
                        known = spread.get(table, own)
                        spread[table] = tuple(map(any, zip(own, known, strict=True)))
        self._tables = tuple(RealTable(name, spread[name]) for name in sorted(spread))

    def pointers(self) -> Iterator[KernelParameter]:
        """The pointers to tables."""
        for table in self._tables:
            yield table.pointer

    def scalars(self) -> Iterator[KernelParameter]:
        """The scale, numbers and sizes of tables."""
        if self.scale:
            yield SCALE
        for name in sorted(self._numbers):
            yield KernelParameter(f"real_{name}", "fp32")
        for table in self._tables:
            yield from table.sizes


def in_classes(expr: Real, tiling: Tiling) -> Real:
    """A term of which `q` and `k` count the rows and keys of a class, and whose score is a product
    of `scores` and the scale; written with factors in place of constant divisors.
    """
    replace: dict[Expr, Expr] = {}
    if tiling != DENSE:
        shift = Q_CLASS if tiling.q_step > 1 else Const(0)
        replace = {
            Q: add(multiply(Const(tiling.q_step), Q), shift),
            K: add(multiply(Const(tiling.k_step), K), tiling.k_class),
            Var("q_len"): CALL_Q_LEN,
            Var("kv_len"): CALL_KV_LEN,
        }

    def changed(node: Real) -> Real:
        match node:
            case Score():
                return times(SCALE_NUMBER, node)
            case Over(dividend, Constant(divisor)):
                return times(Constant(1 / divisor), changed(dividend))
        return rebuild(node, changed, integer, predicate)

    def integer(expr: IntExpr) -> IntExpr:
        return substitute(expr, replace)

    def predicate(expr: Predicate) -> Predicate:
        return substitute(expr, replace)

    return changed(expr)


def in_base_2(expr: Real) -> Real:
    """A logit in units of `log 2`."""
    return scaled(expr, _LOG2_E)


def tile_logit(terms: ScoreTerms, tiling: Tiling) -> Real | None:
    """A pair's logit as kernels compute it; None where it is the score."""
    return None if terms.logit == SCORE else in_base_2(in_classes(terms.logit, tiling))


def tile_slope(terms: ScoreTerms, tiling: Tiling) -> Real:
    """The derivative of a pair's logit by its score, of natural units as both are."""
    return in_classes(terms.slope, tiling)


def finite_past_the_end(expr: Real) -> bool:
    """Is it surely finite for a row past the last one, whose scores are 0, where it is for rows
    that exist?"""
    match expr:
        case Lookup(_, indexes):
            return not any("q" in variables(index) for index in indexes)
        case Over(_, divisor):
            own = isinstance(divisor, Number)
        case Apply(function, _):
            own = function in ("tanh", "sigmoid", "sign")
        case _:
            own = True
    return own and all(map(finite_past_the_end, children(expr)))


@dataclass(frozen=True, slots=True)
class RowEntry:
    """An entry of a table that all pairs of a row read, of which a kernel sums the gradient.

    Attributes:
        name: Of the sums, in the kernel.
        lookup: The entry, as the terms have it.
        slope: The derivative of the logit by it, as kernels compute it.
    """

    name: str
    lookup: Lookup
    slope: Real


def row_entries(terms: ScoreTerms, tiling: Tiling) -> tuple[RowEntry, ...]:
    """The entries that a logit reads at no key's position, in the order of its text."""
    found = [
        (lookup, slope)
        for lookup, slope in terms.table_slopes()
        if not any("k" in variables(index) for index in lookup.indexes)
    ]
    return tuple(
        RowEntry(f"grad_entry_{number}", lookup, in_classes(slope, tiling))
        for number, (lookup, slope) in enumerate(found)
    )


def sink_logit(terms: ScoreTerms, tiling: Tiling) -> Real | None:
    """The sink's logit as kernels compute it."""
    return None if terms.sink is None else in_base_2(in_classes(terms.sink, tiling))


def corners_of(program: BlockProgram, shape: str) -> str:
    """`TermWriter`'s `corners`: in classes `row_first` and `k_first` are no positions, and those of
    patches do not follow one another."""
    return shape if program.tiling == DENSE and program.patches is None else ""


def spreads(index: IntExpr) -> bool:
    """Is it another one from row to row or from key to key?"""
    return bool(variables(index) & {"q", "k"})
