"""Covers as plain masks: the blocks that a pattern touches, found once and for all.

`cover(64, 64, P)` asks of a pair whether `P` holds anywhere in its pair of blocks. That is a
projection: with `q' = 64 * Q + i` and `k' = 64 * K + j` the offsets `i` and `j` are projected out,
and what is left is a condition on the numbers of the blocks.
"""

from __future__ import annotations

import islpy as isl

from patterncc.codegen.pieces import TooIntricateError
from patterncc.codegen.presburger.translate import DIV, Symbols, number
from patterncc.codegen.scalars import is_scalar
from patterncc.dsl.build import add, all_of, any_of, compare, floordiv, multiply, substitute
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import (
    TRUE,
    Const,
    Cover,
    Entry,
    IntExpr,
    Member,
    Predicate,
    Segment,
    walk,
)
from patterncc.dsl.printer import expression_text


def without_covers(body: Predicate) -> Predicate:
    """The mask with every `cover(...)` in it written out.

    Raises:
        UnsupportedError: A cover is of a pattern that reads a table at a position.
        TooIntricateError: A cover cannot be found within the compiler's budget.
    """
    # Innermost first, so that a cover of a cover is one of a plain mask.
    for node in reversed([node for node in walk(body) if isinstance(node, Cover)]):
        body = substitute(body, {node: _written_out(node)})
    covers = [node for node in walk(body) if isinstance(node, Cover)]
    return without_covers(body) if covers else body


def _written_out(cover: Cover) -> Predicate:
    for node in walk(cover.body):
        # Segments say which positions a cover ranges over, wherever they are asked.
        reads = isinstance(node, (Entry, Member)) and not is_scalar(node)
        if reads or isinstance(node, Segment):
            raise UnsupportedError(
                f"`{expression_text(cover)}` cannot be compiled: it covers a pattern that reads "
                f"`{expression_text(node)}`, a table"
            )
    if any(isinstance(node, Cover) for node in walk(cover.body)):
        return cover  # an inner one comes first
    symbols = Symbols([cover.body], [])
    with symbols.budget():
        touched = _blocks(symbols.pairs(cover.body), cover.block_q, cover.block_k, symbols)
        blocks = _predicate(touched, symbols, cover)
    return all_of(blocks, compare("<=", cover.k, cover.q) if cover.causal else TRUE)


def _blocks(pairs: isl.Set, block_q: int, block_k: int, symbols: Symbols) -> isl.Set:
    """The pairs of blocks `[Q, K]` that touch some pair of positions from 0 on."""
    names = ", ".join(symbols.names)
    into = isl.Map.read_from_str(
        symbols.context,
        f"[{names}] -> {{ [q, k] -> [Q, K] : q >= 0 and k >= 0 "
        f"and {block_q} Q <= q < {block_q} Q + {block_q} "
        f"and {block_k} K <= k < {block_k} K + {block_k} }}",
    )
    return pairs.apply(into).compute_divs().coalesce()


def _predicate(blocks: isl.Set, symbols: Symbols, cover: Cover) -> Predicate:
    """A condition on a pair whose blocks are in a set."""
    place = (
        floordiv(cover.q, Const(cover.block_q)),
        floordiv(cover.k, Const(cover.block_k)),
    )
    terms = []
    for each in blocks.get_basic_sets():
        basic = each.remove_redundancies()
        if basic.dim(DIV) > 8:
            raise TooIntricateError(f"`{expression_text(cover)}` is too intricate to write out")
        floors: list[IntExpr] = []

        def value(affine: isl.Aff, floors: list[IntExpr] = floors) -> IntExpr:
            parts: list[IntExpr] = [
                Const(number(affine.get_constant_val())),
                *symbols.terms(affine),
            ]
            for i, position in enumerate(place):
                factor = number(affine.get_coefficient_val(isl.dim_type.in_, i))
                parts.append(multiply(Const(factor), position))
            for i, floor in enumerate(floors):
                parts.append(multiply(Const(number(affine.get_coefficient_val(DIV, i))), floor))
            return add(*parts)

        for i in range(basic.dim(DIV)):
            affine = basic.get_div(i)
            divisor = number(affine.get_denominator_val())
            floors.append(floordiv(value(affine.scale_val(divisor)), Const(divisor)))
        conditions: list[Predicate] = []
        for constraint in basic.get_constraints():
            if not constraint.is_div_constraint():
                op = "==" if constraint.is_equality() else ">="
                left = value(constraint.get_aff())
                conditions.append(compare(op, left, Const(0)))  # type: ignore[arg-type]
        terms.append(all_of(*conditions))
    return any_of(*terms)
