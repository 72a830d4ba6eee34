"""Rewrites a mask so that, inside a tile, rows and keys meet in as few operations as possible.

`0 <= q - k and q - k < window and k < kv_len` becomes `k < min(q + 1, kv_len) and q - window + 1 <=
k`: what reads only the row is computed once per row, and an element costs one comparison per bound.
The result means the same as the mask for keys that exist (`0 <= k`); it is an ordinary predicate,
with bounds in two forms, `keys < rows` and `rows <= keys`.

One of the two sides is held by the program while tiles of the other pass by. Documents are looked
up for that side, once: for a query tile `doc[q] == doc[k]` becomes `start(doc, q) <= k < end(doc,
q)`, for a key tile `start(doc, k) <= q < end(doc, k)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from typing_extensions import assert_never

from patterncc.codegen.gpu.interval import interval
from patterncc.codegen.ir import K_LAST, K_TILE, Q_FIRST, Q_LAST
from patterncc.dsl.build import (
    add,
    all_of,
    any_of,
    branch,
    compare,
    maximum,
    minimum,
    modulo,
    multiply,
    negate,
    select,
    substitute,
    subtract,
)
from patterncc.dsl.mask import (
    Abs,
    And,
    Branch,
    Compare,
    Const,
    Cover,
    Expr,
    IntExpr,
    K,
    Member,
    Mod,
    Not,
    Or,
    Predicate,
    Product,
    Q,
    Segment,
    Sum,
    Truth,
    Var,
    variables,
)

Side: TypeAlias = Literal["row", "key"]
"""The rows of a tile, which are queries, or its keys."""


@dataclass(frozen=True, slots=True)
class Held:
    """The side that a program keeps while tiles of the other pass by.

    Attributes:
        side: Which one.
        first, last: What bounds call the numbers of its first and its last existing row or key.
    """

    side: Side
    first: IntExpr
    last: Var

    @property
    def variable(self) -> Var:
        """What the mask calls one of its positions."""
        return Q if self.side == "row" else K


ROWS = Held("row", Q_FIRST, Q_LAST)
"""Of a program that computes a query tile."""


def keys_of_tiles(block_k: int) -> Held:
    """Of a program that computes a tile of so many keys."""
    return Held("key", multiply(Const(block_k), K_TILE), K_LAST)


def reads_row(expr: IntExpr | Predicate) -> bool:
    """Does it depend on the query's position?"""
    return "q" in variables(expr)


def reads_key(expr: IntExpr | Predicate) -> bool:
    """Does it depend on the key's position?"""
    return "k" in variables(expr)


def separate(mask: Predicate, held: Side = "row") -> Predicate:
    """The mask without negations, with every comparison that allows it split into a row's and a
    key's side.

    Args:
        mask: The predicate.
        held: The side that documents are looked up for.
    """

    def go(inner: Predicate) -> Predicate:
        return separate(inner, held)

    match mask:
        case Truth() | Member() | Cover() | Not(Member() | Cover()):
            return mask
        case Compare():
            return _comparison(mask, held)
        case And(args):
            return _merge_bounds(all_of(*map(go, _in_one_document(args, held))))
        case Or(args):
            return _merge_bounds(any_of(*map(go, args)))
        case Not(inner):
            return go(_negation(inner))
        case Branch(condition, then, otherwise):
            if reads_row(condition) and reads_key(condition):
                return branch(go(condition), go(then), go(otherwise))
            # `c -> then` and `not c -> otherwise`: bounds absorb a condition of one side alone.
            return go(all_of(_unless(negate(condition), then), _unless(condition, otherwise)))
    assert_never(mask)


def _unless(condition: Predicate, mask: Predicate) -> Predicate:
    """`condition or mask`, distributed over a conjunction."""
    if isinstance(mask, And):
        return all_of(*(_unless(condition, arg) for arg in mask.args))
    return any_of(condition, mask)


def _negation(arg: Predicate) -> Predicate:
    """`not arg` with the negation moved inwards by one step."""
    match arg:
        case And(args):
            return any_of(*map(negate, args))
        case Or(args):
            return all_of(*map(negate, args))
        case Branch(condition, then, otherwise):
            return branch(condition, negate(then), negate(otherwise))
        case Not(inner):
            return inner
    return negate(arg)


def _comparison(mask: Compare, held: Side) -> Predicate:
    if not (reads_row(mask) and reads_key(mask)):
        return _bound(mask) if reads_key(mask) else mask
    for opened in (_open_document(mask, held), _open_absolute(mask)):
        if opened is not None:
            return separate(opened, held)
    return _bound(_split_modulo(mask))


def _open_absolute(mask: Compare) -> Predicate | None:
    """`abs(x) <= n` as `x <= n and -x <= n`, which separates; None for other comparisons."""
    match mask:
        case Compare("<" | "<=" as op, Abs(value), right):
            return all_of(compare(op, value, right), compare(op, multiply(Const(-1), value), right))
        case Compare("<" | "<=" as op, left, Abs(value)):
            return any_of(compare(op, left, value), compare(op, left, multiply(Const(-1), value)))
    return None


def _open_document(mask: Compare, held: Side) -> Predicate | None:
    """`doc[q] == doc[k]` as `start(doc, q) <= k < end(doc, q)`, or the same about the key's
    document: only that of the side that is held is looked up, once per row or key. None for other
    comparisons."""
    same = _same_document(mask)
    if same is None or mask.op not in ("==", "!="):
        return None
    known, other = same if held == "row" else same[::-1]
    start = Segment("start", known.segments, known.position)
    end = Segment("end", known.segments, known.position)
    inside = all_of(compare("<=", start, other.position), compare("<", other.position, end))
    return inside if mask.op == "==" else negate(inside)


def _same_document(mask: Predicate) -> tuple[Segment, Segment] | None:
    """The row's and the key's document where a comparison is about those two; None elsewhere."""
    match mask:
        case Compare(_, Segment("id", left, _) as a, Segment("id", right, _) as b):
            for of_row, of_key in ((a, b), (b, a)):
                if left == right and reads_key(of_key) and not reads_row(of_key):
                    return None if reads_key(of_row) else (of_row, of_key)
    return None


def _in_one_document(args: tuple[Predicate, ...], held: Side) -> tuple[Predicate, ...]:
    """The arguments of a conjunction, asking the document of the side that is held what they ask
    the other's where another one says that both are in the same."""
    found = [(arg, same) for arg in args if (same := _same_document(arg)) is not None]
    pairs = [(arg, same) for arg, same in found if isinstance(arg, Compare) and arg.op == "=="]
    for equal, same in pairs:
        known, other = same if held == "row" else same[::-1]
        replace: dict[Expr, IntExpr] = {
            Segment(kind, other.segments, other.position): Segment(
                kind, known.segments, known.position
            )
            for kind in ("id", "start", "end")
        }
        args = tuple(arg if arg == equal else substitute(arg, replace) for arg in args)
    return args


def _split_modulo(mask: Compare) -> Compare:
    """`(q - k) % s == c` as `k % s == (q - c) % s`, for a constant `c` in `[0, s)`."""
    match mask:
        case Compare("==" | "!=" as op, Mod(value, Const(step)), Const(rest)) if 0 <= rest < step:
            rows, keys, mixed = _parts(value)
            if mixed:
                return mask
            negative = _leading_factor(keys[0]) < 0
            key_side = add(*keys) if not negative else multiply(Const(-1), add(*keys))
            row_side = subtract(Const(rest), add(*rows))
            if negative:
                row_side = multiply(Const(-1), row_side)
            return Compare(op, modulo(key_side, Const(step)), modulo(row_side, Const(step)))
    return mask


def _bound(mask: Compare) -> Compare:
    """The comparison with its keys alone on one side, their first term positive, where they can be
    told apart."""
    rows, keys, mixed = _parts(subtract(mask.left, mask.right))
    if mixed or not keys:
        return mask
    key_side, row_side = add(*keys), multiply(Const(-1), add(*rows))
    positive = _leading_factor(keys[0]) > 0
    if not positive:
        key_side, row_side = multiply(Const(-1), key_side), multiply(Const(-1), row_side)
    match mask.op, positive:
        case ("==" | "!=") as op, _:
            return Compare(op, key_side, row_side)
        case "<", True:
            return Compare("<", key_side, row_side)
        case "<=", True:
            return Compare("<", key_side, add(row_side, Const(1)))
        case "<", False:
            return Compare("<=", add(row_side, Const(1)), key_side)
        case _:
            return Compare("<=", row_side, key_side)


def _parts(expr: IntExpr) -> tuple[list[IntExpr], list[IntExpr], list[IntExpr]]:
    """The terms of a sum that read no key, those that read only the key, and those that read
    both."""
    rows: list[IntExpr] = []
    keys: list[IntExpr] = []
    mixed: list[IntExpr] = []
    for term in expr.terms if isinstance(expr, Sum) else (expr,):
        if not reads_key(term):
            rows.append(term)
        elif not reads_row(term):
            keys.append(term)
        else:
            mixed.append(term)
    return rows, keys, mixed


def _leading_factor(expr: IntExpr) -> int:
    if isinstance(expr, Product) and isinstance(expr.factors[0], Const):
        return expr.factors[0].value
    return 1


def _merge_bounds(mask: Predicate) -> Predicate:
    """Bounds on equal keys become one: of upper ones `and` keeps the least and `or` the greatest.

    What else reads the rows alone, or the keys alone, goes into the two sides of one such bound.
    """
    match mask:
        case And(args):
            connect, one_upper, one_lower = all_of, minimum, maximum
        case Or(args):
            connect, one_upper, one_lower = any_of, maximum, minimum
        case _:
            return mask
    uppers: dict[IntExpr, list[IntExpr]] = {}
    lowers: dict[IntExpr, list[IntExpr]] = {}
    rest: list[Predicate] = []
    for arg in args:
        match arg:
            case Compare("<", keys, rows) if is_bound(keys, rows):
                uppers.setdefault(keys, []).append(rows)
            case Compare("<=", rows, keys) if is_bound(keys, rows):
                lowers.setdefault(keys, []).append(rows)
            case _:
                rest.append(arg)
    if isinstance(mask, And):
        uppers = {keys: _without_document_ends(bounds, "end") for keys, bounds in uppers.items()}
        lowers = {keys: _without_document_ends(bounds, "start") for keys, bounds in lowers.items()}
        uppers = _without_own_document(uppers, "start")
        lowers = _without_own_document(lowers, "end")
    rest += [Compare("<", keys, one_upper(*bounds)) for keys, bounds in uppers.items()]
    rest += [Compare("<=", one_lower(*bounds), keys) for keys, bounds in lowers.items()]
    both = [part for part in rest if reads_row(part) and reads_key(part)]
    for number, part in enumerate(both):
        match part:
            case Compare("<", keys, rows) if is_bound(keys, rows):
                bound = _Bound(True, keys, rows)
            case Compare("<=", rows, keys) if is_bound(keys, rows):
                bound = _Bound(False, keys, rows)
            case _:
                continue
        one_sided = [part for part in rest if part not in both]
        both[number] = bound.absorb(one_sided, conjunction=isinstance(mask, And))
        return connect(*both)
    return connect(*rest)


def _without_document_ends(bounds: list[IntExpr], kind: Literal["start", "end"]) -> list[IntExpr]:
    """Bounds of which all must hold, without those that others imply: the document of a position
    starts at or before it and ends after it, so `k <= q` says that `k < end(doc, q)`."""

    def implied(bound: IntExpr) -> bool:
        if not (isinstance(bound, Segment) and bound.kind == kind):
            return False
        apart = (subtract(other, bound.position) for other in bounds if other != bound)
        return any(
            isinstance(distance, Const)
            and (distance.value <= 1 if kind == "end" else distance.value >= 0)
            for distance in apart
        )

    return [bound for bound in bounds if not implied(bound)]


def _without_own_document(
    bounds: dict[IntExpr, list[IntExpr]], kind: Literal["start", "end"]
) -> dict[IntExpr, list[IntExpr]]:
    """Bounds on keys without those on the ends of a key's document that others imply: `k < q + 1`
    says that `start(doc, k) < q + 1`, and `q < k` that `q + 1 <= end(doc, k)`.

    Args:
        bounds: For keys, the rows that all bound them: from above for the starts of documents,
            from below for their ends.
        kind: Which end of a document is left out.
    """

    def implied(keys: IntExpr, rows: IntExpr) -> bool:
        if not (isinstance(keys, Segment) and keys.kind == kind):
            return False
        slacks = (
            subtract(add(rows, subtract(others, keys.position)), limit)
            for others, limits in bounds.items()
            if others != keys
            for limit in limits
        )
        # The start is at most the position, the end at least the next one.
        return any(
            isinstance(slack, Const) and (slack.value >= 0 if kind == "start" else slack.value <= 1)
            for slack in slacks
        )

    kept = {
        keys: [limit for limit in rows if not implied(keys, limit)] for keys, rows in bounds.items()
    }
    return {keys: rows for keys, rows in kept.items() if rows}


@dataclass(frozen=True, slots=True)
class _Bound:
    """`keys < rows` (upper) or `rows <= keys` (lower)."""

    upper: bool
    keys: IntExpr
    rows: IntExpr

    def absorb(self, parts: list[Predicate], conjunction: bool) -> Predicate:
        """The bound `and` (`or`) the parts, each of which reads the rows alone or the keys alone.

        Where a part decides, its side is replaced by a value beyond the other side's range.
        """
        connect = all_of if conjunction else any_of
        rows, keys = self.rows, self.keys
        of_rows = connect(*(part for part in parts if not reads_key(part)))
        of_keys = connect(*(part for part in parts if reads_key(part)))
        # With the rows' side within [low, high + 1] the outcomes are: keys of low - 1 are below
        # it and keys of high + 1 are not; rows of low are above no key and rows of high + 1 are.
        low, high = interval(keys).low, interval(keys).high
        holds = not conjunction  # what a part that decides makes of the bound
        if of_keys != connect():
            rows = maximum(minimum(rows, Const(high + 1)), Const(low))
            decided = Const(low - 1 if self.upper == holds else high + 1)
            keys = select(of_keys, keys, decided) if conjunction else select(of_keys, decided, keys)
        if of_rows != connect():
            decided = Const(high + 1 if self.upper == holds else low)
            rows = select(of_rows, rows, decided) if conjunction else select(of_rows, decided, rows)
        return Compare("<", keys, rows) if self.upper else Compare("<=", rows, keys)


def is_bound(keys: IntExpr, rows: IntExpr) -> bool:
    """Is one side of a comparison the keys' and the other the row's (or nobody's)?"""
    return reads_key(keys) and not reads_row(keys) and not reads_key(rows)
