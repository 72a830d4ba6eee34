"""Rewrites a mask so that, inside a tile, rows and keys meet in as few operations as possible.

`0 <= q - k and q - k < window and k < kv_len` becomes `k < min(q + 1, kv_len) and q - window + 1 <=
k`: what reads only the row is computed once per row, and an element costs one comparison per bound.
The result means the same as the mask for keys that exist (`0 <= k`); it is an ordinary predicate,
with bounds in two forms, `passing < limit` and `limit <= passing`.

A program holds one side of a tile while the other passes by. Limits are about the side that is
held, so they and what they need are computed once: for a program of a query tile they bound keys,
as above, for one of a key tile they bound queries, `k <= q and q < k + window`.
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

    @property
    def other(self) -> Side:
        """The side that passes by."""
        return "key" if self.side == "row" else "row"

    def stays(self, expr: Expr) -> bool:
        """Does an expression depend on the side that is held?"""
        return self.variable.name in variables(expr)

    def passes(self, expr: Expr) -> bool:
        """Does it depend on the one that passes by?"""
        return ("k" if self.side == "row" else "q") in variables(expr)

    def is_bound(self, passing: IntExpr, limit: IntExpr) -> bool:
        """Is one side of a comparison that which passes, and the other what is held or neither?"""
        return self.passes(passing) and not self.stays(passing) and not self.passes(limit)


ROWS = Held("row", Q_FIRST, Q_LAST)
"""Of a program that computes a query tile."""


def keys_of_tiles(block_k: int) -> Held:
    """Of a program that computes a tile of so many keys."""
    return Held("key", multiply(Const(block_k), K_TILE), K_LAST)


def separate(mask: Predicate, held: Held = ROWS) -> Predicate:
    """The mask without negations, with every comparison that allows it split into a row's and a
    key's side.

    Args:
        mask: The predicate.
        held: The side that limits are about.
    """

    def go(inner: Predicate) -> Predicate:
        return separate(inner, held)

    match mask:
        case Truth() | Member() | Cover() | Not(Member() | Cover()):
            return mask
        case Compare():
            return _comparison(mask, held)
        case And(args):
            return _merge_bounds(all_of(*map(go, _in_one_document(args, held))), held)
        case Or(args):
            return _merge_bounds(any_of(*map(go, args)), held)
        case Not(inner):
            return go(_negation(inner))
        case Branch(condition, then, otherwise):
            if held.stays(condition) and held.passes(condition):
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


def _comparison(mask: Compare, held: Held) -> Predicate:
    if not (held.stays(mask) and held.passes(mask)):
        return _bound(mask, held) if held.passes(mask) else mask
    for opened in (_open_document(mask, held), _open_absolute(mask)):
        if opened is not None:
            return separate(opened, held)
    return _bound(_split_modulo(mask, held), held)


def _open_absolute(mask: Compare) -> Predicate | None:
    """`abs(x) <= n` as `x <= n and -x <= n`, which separates; None for other comparisons."""
    match mask:
        case Compare("<" | "<=" as op, Abs(value), right):
            return all_of(compare(op, value, right), compare(op, multiply(Const(-1), value), right))
        case Compare("<" | "<=" as op, left, Abs(value)):
            return any_of(compare(op, left, value), compare(op, left, multiply(Const(-1), value)))
    return None


def _open_document(mask: Compare, held: Held) -> Predicate | None:
    """`doc[q] == doc[k]` as `start(doc, q) <= k < end(doc, q)`, or the same about the key's
    document: only that of the side that is held is looked up, once per row or key. None for other
    comparisons."""
    same = _same_document(mask)
    if same is None or mask.op not in ("==", "!="):
        return None
    known, other = same if held.side == "row" else same[::-1]
    start = Segment("start", known.segments, known.position)
    end = Segment("end", known.segments, known.position)
    inside = all_of(compare("<=", start, other.position), compare("<", other.position, end))
    return inside if mask.op == "==" else negate(inside)


def _same_document(mask: Predicate) -> tuple[Segment, Segment] | None:
    """The row's and the key's document where a comparison is about those two; None elsewhere."""
    match mask:
        case Compare(_, Segment("id", left, _) as a, Segment("id", right, _) as b):
            for of_row, of_key in ((a, b), (b, a)):
                if left == right and ROWS.passes(of_key) and not ROWS.stays(of_key):
                    return None if ROWS.passes(of_row) else (of_row, of_key)
    return None


def _in_one_document(args: tuple[Predicate, ...], held: Held) -> tuple[Predicate, ...]:
    """The arguments of a conjunction, asking the document of the side that is held what they ask
    the other's where another one says that both are in the same."""
    found = [(arg, same) for arg in args if (same := _same_document(arg)) is not None]
    pairs = [(arg, same) for arg, same in found if isinstance(arg, Compare) and arg.op == "=="]
    for equal, same in pairs:
        known, other = same if held.side == "row" else same[::-1]
        replace: dict[Expr, IntExpr] = {
            Segment(kind, other.segments, other.position): Segment(
                kind, known.segments, known.position
            )
            for kind in ("id", "start", "end")
        }
        args = tuple(arg if arg == equal else substitute(arg, replace) for arg in args)
    return args


def _split_modulo(mask: Compare, held: Held) -> Compare:
    """`(q - k) % s == c` as `k % s == (q - c) % s`, for a constant `c` in `[0, s)`."""
    match mask:
        case Compare("==" | "!=" as op, Mod(value, Const(step)), Const(rest)) if 0 <= rest < step:
            kept, passing, mixed = _parts(value, held)
            if mixed:
                return mask
            negative = _leading_factor(passing[0]) < 0
            side = add(*passing) if not negative else multiply(Const(-1), add(*passing))
            limit = subtract(Const(rest), add(*kept))
            if negative:
                limit = multiply(Const(-1), limit)
            return Compare(op, modulo(side, Const(step)), modulo(limit, Const(step)))
    return mask


def _bound(mask: Compare, held: Held) -> Compare:
    """The comparison with what passes alone on one side, its first term positive, where it can be
    told apart."""
    kept, passing, mixed = _parts(subtract(mask.left, mask.right), held)
    if mixed or not passing:
        return mask
    side, limit = add(*passing), multiply(Const(-1), add(*kept))
    positive = _leading_factor(passing[0]) > 0
    if not positive:
        side, limit = multiply(Const(-1), side), multiply(Const(-1), limit)
    match mask.op, positive:
        case ("==" | "!=") as op, _:
            return Compare(op, side, limit)
        case "<", True:
            return Compare("<", side, limit)
        case "<=", True:
            return Compare("<", side, add(limit, Const(1)))
        case "<", False:
            return Compare("<=", add(limit, Const(1)), side)
        case _:
            return Compare("<=", limit, side)


def _parts(expr: IntExpr, held: Held) -> tuple[list[IntExpr], list[IntExpr], list[IntExpr]]:
    """The terms of a sum that read nothing that passes, those that read that alone, and those that
    read both sides."""
    kept: list[IntExpr] = []
    passing: list[IntExpr] = []
    mixed: list[IntExpr] = []
    for term in expr.terms if isinstance(expr, Sum) else (expr,):
        if not held.passes(term):
            kept.append(term)
        elif not held.stays(term):
            passing.append(term)
        else:
            mixed.append(term)
    return kept, passing, mixed


def _leading_factor(expr: IntExpr) -> int:
    if isinstance(expr, Product) and isinstance(expr.factors[0], Const):
        return expr.factors[0].value
    return 1


def _merge_bounds(mask: Predicate, held: Held) -> Predicate:
    """Bounds on equal terms become one: of upper ones `and` keeps the least and `or` the greatest.

    What else reads one side alone goes into the two sides of one such bound.
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
            case Compare("<", passing, limit) if held.is_bound(passing, limit):
                uppers.setdefault(passing, []).append(limit)
            case Compare("<=", limit, passing) if held.is_bound(passing, limit):
                lowers.setdefault(passing, []).append(limit)
            case _:
                rest.append(arg)
    if isinstance(mask, And):
        uppers = {side: _without_document_ends(bounds, "end") for side, bounds in uppers.items()}
        lowers = {side: _without_document_ends(bounds, "start") for side, bounds in lowers.items()}
    rest += [Compare("<", passing, one_upper(*limits)) for passing, limits in uppers.items()]
    rest += [Compare("<=", one_lower(*limits), passing) for passing, limits in lowers.items()]
    both = [part for part in rest if held.stays(part) and held.passes(part)]
    for number, part in enumerate(both):
        match part:
            case Compare("<", passing, limit) if held.is_bound(passing, limit):
                bound = _Bound(True, passing, limit, held)
            case Compare("<=", limit, passing) if held.is_bound(passing, limit):
                bound = _Bound(False, passing, limit, held)
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


@dataclass(frozen=True, slots=True)
class _Bound:
    """`passing < limit` (upper) or `limit <= passing` (lower)."""

    upper: bool
    passing: IntExpr
    limit: IntExpr
    held: Held

    def absorb(self, parts: list[Predicate], conjunction: bool) -> Predicate:
        """The bound `and` (`or`) the parts, each of which reads one side alone.

        Where a part decides, its side is replaced by a value beyond the other side's range.
        """
        connect = all_of if conjunction else any_of
        passing, limit = self.passing, self.limit
        of_held = connect(*(part for part in parts if not self.held.passes(part)))
        of_passing = connect(*(part for part in parts if self.held.passes(part)))
        # With the limit within [low, high + 1] the outcomes are: values of low - 1 are below it
        # and values of high + 1 are not; limits of low are above none and those of high + 1 are.
        low, high = interval(passing).low, interval(passing).high
        holds = not conjunction  # what a part that decides makes of the bound
        if of_passing != connect():
            limit = maximum(minimum(limit, Const(high + 1)), Const(low))
            decided = Const(low - 1 if self.upper == holds else high + 1)
            passing = (
                select(of_passing, passing, decided)
                if conjunction
                else select(of_passing, decided, passing)
            )
        if of_held != connect():
            decided = Const(high + 1 if self.upper == holds else low)
            limit = (
                select(of_held, limit, decided) if conjunction else select(of_held, decided, limit)
            )
        return Compare("<", passing, limit) if self.upper else Compare("<=", limit, passing)
