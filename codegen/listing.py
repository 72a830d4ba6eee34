"""Terms that tables of truth values decide, as questions about tiles.

`keep[head, q // 64, k // 64]` says of a tile which of a few entries it reads: their indexes lie
between those of its first and its last pair, for an index that only rises or only falls with `q`
and with `k`. So a tile is visited where one of the entries is true, and needs no mask for it where
all are.

`verticals[head, k]` has an entry for each key: a tenth of its keys lie in nearly all tiles. Of such
*columns* runs of keys are listed instead of tiles (`run_length`), one key here and 32 of
`keep[head, q // 64, k // 32]`, and kernels gather them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, prod

from patterncc.codegen.ir import (
    K_FIRST,
    K_LAST,
    Q_FIRST,
    Q_LAST,
    BlockProgram,
    Clauses,
    Comparison,
    Entries,
    Literals,
    Range,
)
from patterncc.codegen.scalars import is_scalar
from patterncc.dsl.build import all_of, branch, compare, substitute
from patterncc.dsl.mask import (
    And,
    Compare,
    Const,
    Cover,
    Entry,
    Expr,
    FloorDiv,
    IntExpr,
    K,
    Member,
    Or,
    Predicate,
    Product,
    Q,
    Segment,
    Sum,
    Var,
    walk,
)

MOST_ENTRIES = 4096  # that one tile reads of one table
MOST_OF_RUN = 16  # that one run reads of one table: there are many more runs than tiles
LEAST_RUNS = 4  # of a key tile that is gathered; with fewer, tiles are not visited much in vain


def split_listed(
    body: Predicate, block_q: int, block_k: int, *, gathered: bool = False
) -> tuple[Predicate, Clauses]:
    """A mask as what loops can know, and what tables say besides.

    Args:
        body: The mask.
        block_q, block_k: The tile shape.
        gathered: The tiles are runs of keys: tables that are asked for more than `MOST_OF_RUN`
            entries of one are left to the mask.

    Returns:
        The terms of the conjunction that read no truth tables by position, and the others as
        clauses; terms that cannot be asked of a tile stay among the former.
    """
    rest: list[Predicate] = []
    clauses: list[Literals] = []
    most = MOST_OF_RUN if gathered else MOST_ENTRIES
    for term in body.args if isinstance(body, And) else (body,):
        clause = _clause(term, block_q, block_k, most, compares=gathered and block_k == 1)
        if clause is None:
            rest.append(term)
        else:
            clauses.append(clause)
    return all_of(*rest), tuple(clauses)


def is_listed(term: Predicate) -> bool:
    """Whether tables of truth values decide a term of a conjunction, by position."""
    return _clause(term, 1, 1) is not None


def run_length(term: Predicate, block_q: int, block_k: int) -> int | None:
    """How many keys the runs have that a term of a conjunction decides one by one.

    That is where each entry of its tables is about few keys and many rows: indexes read the key
    without the row, and a run of keys in a tile of rows reads no more than `MOST_OF_RUN`. A
    comparison with a number of the key, `q < until[k]`, decides single keys.

    Args:
        term: The term.
        block_q: Rows of a query tile.
        block_k: Keys of a key tile.

    Returns:
        A power of two, at most `block_k // LEAST_RUNS`; None where no runs should be gathered.
    """
    length = block_k
    for part in term.args if isinstance(term, Or) else (term,):
        if isinstance(part, Compare) and _comparison(part) is not None:
            length = 1
            continue
        if not isinstance(part, Member):
            return None
        of_keys = [index for index in part.indexes if _direction(index, K) != 0]
        if not of_keys or any(Q in walk(index) for index in of_keys):
            return None
        length = min(length, *map(_alike, of_keys))
    if length * LEAST_RUNS > block_k:
        return None
    clause = _clause(term, block_q, length, MOST_OF_RUN, compares=length == 1)
    return None if clause is None else length


def ranked(program: BlockProgram) -> bool:
    """Whether one list of runs serves all query tiles of a gathered program: what tables say of a
    run hangs on no row, and each sweep takes consecutive runs, thus consecutive ones of that
    list."""
    if program.gathered == 1 or not program.listed:
        return False
    rows = {Q_FIRST, Q_LAST}
    of_rows = any(
        rows & set(walk(expr))
        for clause in program.listed
        for literal in clause
        for expr in asked(literal)
    )
    return not of_rows and all(
        sweep.stride == 1 and sweep.classes == 1 and sweep.phase == Const(0)
        for sweep in program.forward
    )


def kernel_mask(program: BlockProgram) -> Predicate:
    """The mask that kernels evaluate in partial tiles.

    Of a gathered program what its lists say of every row and key of a run is left out. And where a
    table has at most two entries for the rows of a tile, `keep[head, q // 64, k]`, its first and
    its last row read it for all others: an entry for each key, not for each pair. What is true of
    whole tiles, of all that are visited, is left out.
    """
    terms = program.mask.args if isinstance(program.mask, And) else (program.mask,)
    if program.gathered == 1:
        if not program.decided:
            return program.mask
        return all_of(*(term for term in terms if term not in program.decided))

    def is_known(term: Predicate) -> bool:
        _, listed = split_listed(term, program.block_q, program.block_k, gathered=True)
        return bool(listed) and all(map(_is_exact, listed[0]))

    return _by_row_ends(all_of(*(term for term in terms if not is_known(term))), program.block_q)


def _by_row_ends(mask: Predicate, block_q: int) -> Predicate:
    replaced: dict[Expr, Predicate] = {}
    for node in walk(mask):
        if not isinstance(node, Member):
            continue
        of_rows = [index for index in node.indexes if Q in walk(index)]
        if len(of_rows) != 1 or K in walk(of_rows[0]) or _direction(of_rows[0], Q) is None:
            continue
        if _span(of_rows[0], block_q, 1) > 1:
            continue
        (index,) = of_rows
        first, last = (substitute(index, {Q: row}) for row in (Q_FIRST, Q_LAST))
        at = [
            Member(node.table, tuple(end if i == index else i for i in node.indexes))
            for end in (first, last)
        ]
        replaced[node] = branch(compare("==", index, first), *at)
    return substitute(mask, replaced)


def _is_exact(literal: Entries | Comparison) -> bool:
    """Is it the same for all rows of a query tile and all keys of a run?"""
    if isinstance(literal, Comparison):
        return literal.some == literal.every
    return all(bounds.most == 1 for bounds in literal.ranges)


def asked(literal: Entries | Comparison) -> Iterator[Expr]:
    """What is computed of a literal for a tile."""
    if isinstance(literal, Comparison):
        yield from (literal.some, literal.every)
        return
    yield Member(literal.table, tuple(bounds.lo for bounds in literal.ranges))
    yield from (bounds.hi for bounds in literal.ranges)


def decides_runs(entries: Entries | Comparison) -> bool:
    """Whether entries that a tile reads are about short runs of its keys: gathering those could
    pay, see `run_length`."""
    if isinstance(entries, Comparison):
        return True
    spans = [bounds.most for bounds in entries.ranges]
    of_keys = [
        bounds.most
        for bounds in entries.ranges
        if not {Q_FIRST, Q_LAST} & set(walk(bounds.lo)) and {K_FIRST, K_LAST} & set(walk(bounds.lo))
    ]
    longest = max(of_keys, default=1)
    return longest > LEAST_RUNS and prod(spans) <= MOST_OF_RUN * longest


def _alike(index: IntExpr) -> int:
    """The longest aligned runs of keys, powers of two, in which an index that reads no row is the
    same."""
    match index:
        case Sum(terms):
            return min(_alike(term) for term in terms if K in walk(term))
        case Product((Const(), inner)):
            return _alike(inner)
        case FloorDiv(value, Const(divisor)):
            terms = value.terms if isinstance(value, Sum) else (value,)
            rest = [term for term in terms if term != K]
            if len(rest) < len(terms) and all(isinstance(term, Const) for term in rest):
                # (k + c) // d is the same for keys from a multiple of g on, if g divides both.
                common = gcd(divisor, *(term.value for term in rest if isinstance(term, Const)))
                return common & -common
            return _alike(value)
    return 1


def _clause(
    term: Predicate,
    block_q: int,
    block_k: int,
    most_entries: int = MOST_ENTRIES,
    *,
    compares: bool = False,
) -> Literals | None:
    found: list[Entries | Comparison] = []
    for part in term.args if isinstance(term, Or) else (term,):
        if compares and isinstance(part, Compare):
            comparison = _comparison(part)
            if comparison is None:
                return None
            found.append(comparison)
            continue
        if not isinstance(part, Member) or is_scalar(part):
            return None
        ranges = [_range(index, block_q, block_k) for index in part.indexes]
        most = 1
        for bounds in ranges:
            if bounds is None:
                return None
            most *= bounds.most
        if most > most_entries:
            return None
        found.append(Entries(part.table, tuple(bounds for bounds in ranges if bounds)))
    return tuple(found)


def _comparison(term: Compare) -> Comparison | None:
    """A comparison with numbers that tables have for the key, if it only rises or only falls with
    the row, which no table is read by."""
    nodes = list(walk(term))
    tables = [node for node in nodes if isinstance(node, (Entry, Member, Segment, Cover))]
    if not any(isinstance(node, Entry) and K in walk(node) for node in tables):
        return None
    if any(Q in walk(node) or isinstance(node, (Segment, Cover)) for node in tables):
        return None
    at: dict[Expr, Expr] = {K: K_FIRST}
    if Q not in nodes:
        same = substitute(term, at)
        return Comparison(same, same)
    slopes = [_slope(term.left), _slope(term.right)]
    if term.op not in ("<", "<=") or None in slopes:
        return None
    rise = (slopes[0] or 0) - (slopes[1] or 0)
    first, last = (substitute(term, {**at, Q: row}) for row in (Q_FIRST, Q_LAST))
    # `left - right` is least, and the comparison easiest, at the first row if it rises.
    return Comparison(first, last) if rise >= 0 else Comparison(last, first)


def _slope(expr: IntExpr) -> int | None:
    """The factor of the row in a sum whose other terms do not read it."""
    slope = 0
    for term in expr.terms if isinstance(expr, Sum) else (expr,):
        match term:
            case Var("q"):
                slope += 1
            case Product((Const(factor), Var("q"))):
                slope += factor
            case _ if Q in walk(term):
                return None
    return slope


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
