"""Ways to split a mask into parts, each in the variables that suit it.

A term that asks `(q - k) % s == 0` is a dense pattern among the rows and keys of one remainder, and
one that asks `k % s == c` is a dense pattern over every `s`-th key. Of one that a table decides key
by key the keys can be gathered. A union of such terms with others becomes several parts over
disjoint pairs, whose results are merged by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from patterncc.codegen.ir import DENSE, Q_CLASS, Patches, Tiling
from patterncc.codegen.listing import is_listed
from patterncc.codegen.scalars import is_scalar
from patterncc.codegen.terms import conjunctions
from patterncc.dsl.build import (
    add,
    all_of,
    any_of,
    compare,
    modulo,
    multiply,
    negate,
    substitute,
    subtract,
)
from patterncc.dsl.mask import (
    TRUE,
    And,
    Compare,
    Const,
    IntExpr,
    K,
    Mod,
    Or,
    Predicate,
    Product,
    Q,
    Sum,
    Var,
)

MOST_TERMS = 16  # of a union that is split


@dataclass(frozen=True, slots=True)
class Part:
    """Pairs of a mask, and the variables to lower them in.

    Attributes:
        body: The pairs, among those that lie within the classes of the tiling.
        tiling: The variables.
        run: Its key tiles are gathered from runs of so many keys; None for consecutive keys.
        patches: Its tiles are patches of a raster; None for consecutive rows and keys.
    """

    body: Predicate
    tiling: Tiling = DENSE
    run: int | None = None
    patches: Patches | None = None


Runs: TypeAlias = Callable[[Predicate], "int | None"]
"""The length of the runs of keys to gather for a term of a conjunction; None where there are none
to gather."""


def no_runs(term: Predicate) -> None:
    """Nothing is gathered."""


def decompositions(body: Predicate, runs: Runs = no_runs) -> Iterator[tuple[Part, ...]]:
    """Ways to compute a mask as disjoint parts; the first is the mask as it is.

    Then come the ways that take all terms with a stride apart, or those of one stride alone; after
    each the same way with all keys gathered that can be.

    Args:
        body: The mask.
        runs: What can be gathered.
    """
    yield (Part(body),)
    union = conjunctions(body, MOST_TERMS)
    if not union:
        return
    strided: dict[Tiling, list[Predicate]] = {}
    dense: list[Predicate] = []
    for term in (all_of(*conjunction) for conjunction in union):
        found = _stride(term)
        if found is None:
            dense.append(term)
        else:
            tiling, rest = found
            strided.setdefault(tiling, []).append(rest)
    groups = list(strided.items())
    if not groups:
        if len(dense) > 1 and 0 < sum(map(_is_listed, dense)) < len(dense):
            yield _disjoint(dense, [])
        if any(_run(term, runs) for term in dense):
            yield _disjoint(dense, [], runs)
    chosen = [groups] if len(groups) < 2 else [groups, *([group] for group in groups)]
    for some in chosen:
        if some:
            others = [group for group in groups if group not in some]
            positions = [*dense, *(_undone(*group) for group in others)]
            yield _disjoint(positions, some)
            if any(_run(term, runs) for term in positions):
                yield _disjoint(positions, some, runs)


def _disjoint(
    dense: list[Predicate],
    strided: list[tuple[Tiling, list[Predicate]]],
    runs: Runs = no_runs,
) -> tuple[Part, ...]:
    """The dense terms as one part, then each stride, then gathered keys, without what earlier parts
    hold."""
    parts: list[Part] = []
    before: list[Predicate] = []  # terms
    lengths = {term: run for term in dense if (run := _run(term, runs)) is not None}
    rest = [term for term in dense if term not in lengths]
    # What tables list is taken apart from what loops know, for its tiles are listed, too.
    known = [term for term in rest if not _is_listed(term)]
    listed = [term for term in rest if _is_listed(term)]
    for some in (known, listed):
        if some:
            body = _without(some, before)
            parts.append(Part(_factored(body) if some is listed else body))
            before += some
    for tiling, terms in strided:
        parts.append(Part(_without(terms, before), tiling))
        before += [all_of(term, class_condition(tiling)) for term in terms]
    # Last, for what is left of a few gathered tiles may well be an intricate mask.
    if lengths:
        body = _factored(_without(list(lengths), before))
        parts.append(Part(body, run=min(lengths.values())))
    return tuple(parts)


def _run(term: Predicate, runs: Runs) -> int | None:
    """The length of the runs of keys to gather for a conjunction: the shortest that some term of it
    asks for."""
    found = [run for conjunct in _conjuncts(term) if (run := runs(conjunct)) is not None]
    return min(found, default=None)


def _without(terms: list[Predicate], before: list[Predicate]) -> Predicate:
    """A union of terms less other terms; what both ask for is asked once, and terms that cannot
    meet (one asks for the opposite of what the other asks for) leave each other alone.
    """
    kept = []
    for term in terms:
        shared = set(_conjuncts(term))
        opposite = set(map(negate, shared))
        others = (b for b in before if opposite.isdisjoint(_conjuncts(b)))
        rests = (all_of(*(c for c in _conjuncts(b) if c not in shared)) for b in others)
        kept.append(all_of(term, *map(negate_all, rests)))
    return any_of(*kept)


def _factored(union: Predicate) -> Predicate:
    """A union with what all of its terms ask for asked once: `listing` looks for terms of tables in
    a conjunction."""
    if not isinstance(union, Or):
        return union
    shared = [
        conjunct
        for conjunct in _conjuncts(union.args[0])
        if all(conjunct in _conjuncts(term) for term in union.args)
    ]
    rests = (all_of(*(c for c in _conjuncts(term) if c not in shared)) for term in union.args)
    return all_of(*shared, any_of(*rests))


def _conjuncts(term: Predicate) -> tuple[Predicate, ...]:
    return term.args if isinstance(term, And) else (term,)


def _is_listed(term: Predicate) -> bool:
    return any(map(is_listed, _conjuncts(term)))


def _undone(tiling: Tiling, terms: list[Predicate]) -> Predicate:
    """Terms of a stride with the condition on the class put back."""
    return all_of(any_of(*terms), class_condition(tiling))


def class_condition(tiling: Tiling) -> Predicate:
    """Which pairs lie within the classes of a tiling, as a mask."""
    rows = modulo(Q, Const(tiling.q_step))
    first = substitute(tiling.k_class, {Q_CLASS: rows})
    key = modulo(subtract(K, first), Const(tiling.k_step))
    return Compare("==", key, Const(0))


def negate_all(expr: Predicate) -> Predicate:
    """The negation, moved inwards, so that terms stay visible."""
    match expr:
        case And(args):
            return any_of(*map(negate_all, args))
        case Or(args):
            return all_of(*map(negate_all, args))
    return negate(expr)


def _stride(term: Predicate) -> tuple[Tiling, Predicate] | None:
    """The tiling with the widest stride that a term allows, and the rest of the term."""
    conjuncts = _conjuncts(term)
    found: list[tuple[Tiling, Predicate]] = []
    for conjunct in conjuncts:
        congruence = _congruence(conjunct)
        tiling = None if congruence is None else _tiling(congruence, conjuncts)
        if congruence is not None and tiling is not None:
            others = (other for other in conjuncts if other is not conjunct)
            found.append((tiling, all_of(*others, congruence.possible)))
    return max(found, key=lambda each: each[0].k_step, default=None)


@dataclass(frozen=True, slots=True)
class _Congruence:
    """`value == 0 (mod modulus)` wherever `possible`, which reads no position, holds."""

    modulus: int
    value: IntExpr
    possible: Predicate = TRUE


def _tiling(congruence: _Congruence, conjuncts: tuple[Predicate, ...]) -> Tiling | None:
    """The variables in which a congruence holds everywhere: it fixes the remainder of the key."""
    modulus = congruence.modulus
    q, k, rest = _split(congruence.value)
    if k not in (1, -1) or not is_scalar(rest):
        return None
    if q == 0 and any(_fixes_rows(other, modulus) for other in conjuncts):
        q_step = modulus  # rows of other remainders see nothing
    else:
        q_step = modulus if q else 1
    rows = multiply(Const(q), Q_CLASS)
    # value == 0 (mod m) with a key's factor of 1 or -1
    first = multiply(Const(-k), add(rows, rest))
    if q_step == modulus and first == Q_CLASS:
        return Tiling(modulus, modulus, Q_CLASS)
    return Tiling(q_step, modulus, modulo(first, Const(modulus)))


def _fixes_rows(conjunct: Predicate, modulus: int) -> bool:
    congruence = _congruence(conjunct)
    if congruence is None or congruence.modulus != modulus:
        return False
    q, k, rest = _split(congruence.value)
    return q in (1, -1) and k == 0 and is_scalar(rest)


def _congruence(conjunct: Predicate) -> _Congruence | None:
    """What a conjunct says of a remainder, if it is about one."""
    match conjunct:
        case Compare("==", Mod(left, Const(a)), Mod(right, Const(b))) if a == b > 1:
            return _Congruence(a, subtract(left, right))
        case Compare("==", Mod(value, Const(modulus)), other) if modulus > 1 and is_scalar(other):
            pass
        case Compare("==", other, Mod(value, Const(modulus))) if modulus > 1 and is_scalar(other):
            pass
        case _:
            return None
    # No remainder equals a number that is none.
    possible = compare("==", other, modulo(other, Const(modulus)))
    return _Congruence(modulus, subtract(value, other), possible)


def _split(value: IntExpr) -> tuple[int, int, IntExpr]:
    """Factors of `q` and `k` in a sum, and the rest."""
    factors = {Q: 0, K: 0}
    rest: list[IntExpr] = []
    for term in value.terms if isinstance(value, Sum) else (value,):
        match term:
            case Var("q" | "k"):
                factors[term] = 1
            case Product((Const(factor), Var("q" | "k") as position)):
                factors[position] = factor
            case _:
                rest.append(term)
    return factors[Q], factors[K], add(*rest)
