"""Terms that tables of truth values decide, as questions about tiles.

`keep[head, q // 64, k // 64]` says of a tile which of a few entries it reads: their indexes lie
between those of its first and its last pair, for an index that only rises or only falls with `q`
and with `k`. So a tile is visited where one of the entries is true, and needs no mask for it where
all are.
"""

from __future__ import annotations

from patterncc.codegen.ir import K_FIRST, K_LAST, Q_FIRST, Q_LAST, Clauses, Entries, Range
from patterncc.codegen.scalars import is_scalar
from patterncc.dsl.build import all_of, substitute
from patterncc.dsl.mask import (
    And,
    Const,
    Expr,
    FloorDiv,
    IntExpr,
    K,
    Member,
    Or,
    Predicate,
    Product,
    Q,
    Sum,
)

MOST_ENTRIES = 4096  # that one tile reads of one table


def split_listed(body: Predicate, block_q: int, block_k: int) -> tuple[Predicate, Clauses]:
    """A mask as what loops can know, and what tables say besides.

    Returns:
        The terms of the conjunction that read no truth tables by position, and the others as
        clauses; terms that cannot be asked of a tile stay among the former.
    """
    rest: list[Predicate] = []
    clauses: list[tuple[Entries, ...]] = []
    for term in body.args if isinstance(body, And) else (body,):
        clause = _clause(term, block_q, block_k)
        if clause is None:
            rest.append(term)
        else:
            clauses.append(clause)
    return all_of(*rest), tuple(clauses)


def is_listed(term: Predicate) -> bool:
    """Whether tables of truth values decide a term of a conjunction, by position."""
    return _clause(term, 1, 1) is not None


def _clause(term: Predicate, block_q: int, block_k: int) -> tuple[Entries, ...] | None:
    found = []
    for part in term.args if isinstance(term, Or) else (term,):
        if not isinstance(part, Member) or is_scalar(part):
            return None
        ranges = [_range(index, block_q, block_k) for index in part.indexes]
        most = 1
        for bounds in ranges:
            if bounds is None:
                return None
            most *= bounds.most
        if most > MOST_ENTRIES:
            return None
        found.append(Entries(part.table, tuple(bounds for bounds in ranges if bounds)))
    return tuple(found)


def _range(index: IntExpr, block_q: int, block_k: int) -> Range | None:
    """The values of an index in a tile, if it is monotone in both positions."""
    q, k = _direction(index, Q), _direction(index, K)
    if q is None or k is None:
        return None
    least: dict[Expr, Expr] = {Q: Q_FIRST if q >= 0 else Q_LAST, K: K_FIRST if k >= 0 else K_LAST}
    most: dict[Expr, Expr] = {Q: Q_LAST if q >= 0 else Q_FIRST, K: K_LAST if k >= 0 else K_FIRST}
    span = _span(index, block_q, block_k)
    return Range(substitute(index, least), substitute(index, most), span + 1)


def _direction(expr: IntExpr, position: IntExpr) -> int | None:
    """1 or -1 where the value never falls or never rises with a position, 0 where it stays."""
    if expr == position:
        return 1
    match expr:
        case Sum(terms):
            signs = {_direction(term, position) for term in terms} - {0}
            return None if len(signs) > 1 else signs.pop() if signs else 0
        case Product((Const(factor), inner)):
            sign = _direction(inner, position)
            return None if sign is None else sign if factor > 0 else -sign
        case FloorDiv(inner, Const(divisor)) if divisor > 0:
            return _direction(inner, position)
    return 0 if expr in (Q, K) or is_scalar(expr) else None


def _span(expr: IntExpr, block_q: int, block_k: int) -> int:
    """How far apart two values of a monotone index in one tile can be."""
    match expr:
        case _ if is_scalar(expr):
            return 0
        case Sum(terms):
            return sum(_span(term, block_q, block_k) for term in terms)
        case Product((Const(factor), inner)):
            return abs(factor) * _span(inner, block_q, block_k)
        case FloorDiv(inner, Const(divisor)):
            return -(-_span(inner, block_q, block_k) // divisor)
    return (block_q if expr == Q else block_k) - 1
