"""Masks as integer sets in which the arithmetic of scalars stays exact too.

Lowering takes `layer % 6 == 5` as one unknown truth value, which makes it the guard of a loop. Here
it is a condition on `layer` like any other, so that two spellings of it are known to agree and a
point of a set is a point of the mask. Only a product or quotient of two unknowns is left a symbol
of its own: `Symbols.opaque` names those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import islpy as isl

from patterncc.codegen.presburger.translate import Symbols, Translator
from patterncc.codegen.scalars import Scalars, is_scalar
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import (
    Const,
    Cover,
    Entry,
    Expr,
    FloorDiv,
    IntExpr,
    Member,
    Mod,
    Param,
    Predicate,
    Product,
    Segment,
    Var,
    children,
    walk,
)
from patterncc.dsl.printer import expression_text

OPERATIONS = 2_000_000  # isl's own count for one question: some seconds


class ExactSymbols(Symbols):
    """The symbolic numbers of some masks, scalars taken apart as far as integer sets can.

    Args:
        bodies: The masks and conditions that will be made sets of.
        extra: Symbols that are needed besides.
        budget: Operations of isl that all questions together may take.

    Raises:
        UnsupportedError: A mask reads a table or segments; the message names the term.
    """

    _spent = "this question is too intricate to answer exactly within the budget of operations"

    def __init__(
        self,
        bodies: Iterable[Predicate],
        extra: Iterable[str] = (),
        budget: int = OPERATIONS,
    ) -> None:
        self.scalars = Scalars()
        for body in bodies:
            _register(body, self.scalars)
        for name in extra:
            self.scalars.named(Var(name))
        self.names = sorted(self.scalars.meaning)
        self.context = isl.Context()
        self.context.set_max_operations(budget)

    @property
    def opaque(self) -> dict[str, IntExpr]:
        """The symbols that stand for a product or quotient of unknowns, with what they mean."""
        return {
            name: meaning
            for name, meaning in self.scalars.meaning.items()
            if not isinstance(meaning, (Var, Param))
        }

    def pairs(self, body: Predicate) -> isl.Set:
        """The pairs `[q, k]` at which a predicate holds, if it reads no other symbols."""
        return _ExactTranslator(self).predicate(body).coalesce()


class _ExactTranslator(Translator):
    def is_symbol(self, expr: IntExpr) -> bool:
        return is_nonlinear(expr) and is_scalar(expr)

    def is_flag(self, expr: Predicate) -> bool:
        return False

    def predicate(self, expr: Predicate) -> isl.Set:
        return self._cover(expr) if isinstance(expr, Cover) else super().predicate(expr)

    def _cover(self, cover: Cover) -> isl.Set:
        """Pairs in a block of positions from 0 on that holds a pair of the body."""
        sizes = (cover.block_q, cover.block_k)
        local = [self.integer(Var(name)) for name in ("q", "k")]
        held = self.predicate(cover.body)
        for position in local:
            held = held.intersect(position.ge_set(self.constant(0)))
        blocks = held.apply(isl.Map.from_multi_pw_aff(self._blocks(local, sizes)))
        seen = [self.integer(cover.q), self.integer(cover.k)]
        pairs = blocks.preimage_multi_pw_aff(self._blocks(seen, sizes))
        return pairs.intersect(seen[1].le_set(seen[0])) if cover.causal else pairs

    def _blocks(self, positions: Sequence[isl.PwAff], sizes: Sequence[int]) -> isl.MultiPwAff:
        """The numbers of the blocks that two positions are in."""
        floors = isl.PwAffList.alloc(self.symbols.context, 2)
        for position, size in zip(positions, sizes, strict=True):
            floors = floors.add(position.scale_down_val(size).floor())
        space = self.space.map_from_domain_and_range(self.space)
        return isl.MultiPwAff.from_pw_aff_list(space, floors)


def is_nonlinear(expr: Expr) -> bool:
    """Whether the node itself, not what is inside, is a product or quotient of two unknowns."""
    match expr:
        case Product(factors):
            return sum(not isinstance(factor, Const) for factor in factors) > 1
        case FloorDiv(_, divisor) | Mod(_, divisor):
            return not isinstance(divisor, Const)
    return False


def _register(expr: Expr, scalars: Scalars) -> None:
    """Registers every symbol that translating `expr` will need."""
    refuse_tables(expr)
    stack = [expr]
    while stack:
        node = stack.pop()
        match node:
            case Var("q" | "k"):
                pass
            case Var() | Param():
                scalars.named(node)
            case Product() | FloorDiv() | Mod() if is_nonlinear(node) and is_scalar(node):
                scalars.opaque(node)
            case _:
                stack.extend(children(node))


def refuse_tables(expr: Expr) -> None:
    """Refuses what is only known at run time.

    Raises:
        UnsupportedError: The expression reads a table or segments; the message names the term.
    """
    for node in walk(expr):
        if isinstance(node, (Entry, Member, Segment)):
            raise UnsupportedError(
                f"`{expression_text(node)}` reads a run-time table, of which nothing is known "
                "before a call",
                "only patterns without tables and segments have facts that hold for all lengths",
            )
