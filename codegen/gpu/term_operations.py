"""How many operations score terms take for each pair, as the choice of tiles counts them.

What depends on the row alone is computed once for a query tile and not counted. Equal parts are
computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.kernel_terms import tile_logit
from patterncc.codegen.ir import DENSE
from patterncc.dsl.mask import Const, Param, Var, variables
from patterncc.dsl.mask import walk as walk_discrete
from patterncc.dsl.score.nodes import (
    Apply,
    Below,
    Choice,
    Function,
    Greatest,
    Least,
    Lifted,
    Magnitude,
    Over,
    Plus,
    Real,
    Score,
    Times,
    children,
    discrete,
    walk,
)

if TYPE_CHECKING:
    from patterncc.dsl.mask import IntExpr, Predicate
    from patterncc.dsl.score.terms import ScoreTerms


@dataclass(frozen=True, slots=True)
class Operations:
    """Operations for a pair.

    Attributes:
        simple: Sums, products, comparisons, conversions.
        special: Powers of two, logarithms, roots, reciprocals, which one unit of a multiprocessor
            computes, as it does the weights of the softmax.
    """

    simple: int = 0
    special: int = 0

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.simple + other.simple, self.special + other.special)


_FUNCTIONS: dict[Function, Operations] = {
    "tanh": Operations(3, 2),
    "sigmoid": Operations(3, 2),
    "exp": Operations(1, 1),
    "log": Operations(1, 1),
    "sqrt": Operations(1, 1),
    "sign": Operations(4, 0),
}
_QUOTIENT = Operations(4, 1)


@lru_cache(maxsize=256)
def pair_operations(terms: ScoreTerms) -> Operations:
    """What score terms take for each pair besides the score; nothing where they change none."""
    logit = tile_logit(terms, DENSE)
    if logit is None:
        return Operations()
    parts = dict.fromkeys(part for part in walk(logit) if _changes(part))
    return sum(map(_own, parts), Operations())


def _own(expr: Real) -> Operations:
    """What a part takes besides its own parts."""
    match expr:
        case Plus() | Times() | Least() | Greatest():
            changing = sum(map(_changes, children(expr)))
            return Operations(changing - (changing == len(children(expr))))
        case Over():
            return _QUOTIENT
        case Apply(function, _):
            return _FUNCTIONS[function]
        case Lifted(value):
            return Operations(1 + _integer_operations(value))
        case Choice(condition, _, _):
            return Operations(1 + _integer_operations(condition))
        case Magnitude():
            return Operations(1)
        case Below():
            return Operations(2)
    return Operations()


def _integer_operations(expr: IntExpr | Predicate) -> int:
    """The operations of an integer or a predicate that read a key."""
    return sum(
        not isinstance(node, (Const, Param, Var)) and "k" in variables(node)
        for node in walk_discrete(expr)
    )


def _changes(expr: Real) -> bool:
    """Is it another one from key to key?"""
    return any(isinstance(node, Score) for node in walk(expr)) or any(
        "k" in variables(part) for part in discrete(expr)
    )
