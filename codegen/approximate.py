"""Masks with terms that no relation holds, enclosed from both sides.

`could` allows every pair that the mask may allow and `must` only pairs that it does allow, whatever
the unknown terms say. Tiles are visited where some pair could be allowed and are full where all
must be, and the mask itself decides inside of partial tiles: results are exact, only work may be
lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from patterncc.codegen.scalars import is_scalar
from patterncc.dsl.build import all_of, any_of, branch, negate
from patterncc.dsl.mask import (
    FALSE,
    TRUE,
    And,
    Branch,
    Cover,
    Entry,
    Expr,
    FloorDiv,
    Member,
    Mod,
    Not,
    Or,
    Predicate,
    Segment,
    Truth,
    children,
    walk,
)


@dataclass(frozen=True, slots=True)
class Enclosure:
    """A mask between two others: `must` implies it, and it implies `could`."""

    could: Predicate
    must: Predicate

    @property
    def exact(self) -> bool:
        """Whether both sides are the mask itself."""
        return self.could == self.must


UNKNOWN = Enclosure(TRUE, FALSE)


def enclose(
    expr: Predicate,
    unknown: Callable[[Predicate], bool],
    known: Mapping[Predicate, Enclosure] | None = None,
) -> Enclosure:
    """Encloses a mask some of whose terms are unknown.

    Args:
        expr: The mask.
        unknown: Says of a term, a part that is neither logic nor a branch, that nothing is known.
        known: What is known of some terms.
    """

    def go(inner: Predicate) -> Enclosure:
        if known is not None and inner in known:
            return known[inner]
        match inner:
            case And(args):
                parts = [go(arg) for arg in args]
                return Enclosure(
                    all_of(*(part.could for part in parts)), all_of(*(part.must for part in parts))
                )
            case Or(args):
                parts = [go(arg) for arg in args]
                return Enclosure(
                    any_of(*(part.could for part in parts)), any_of(*(part.must for part in parts))
                )
            case Not(arg):
                part = go(arg)
                return Enclosure(negate(part.must), negate(part.could))
            case Branch(condition, then, otherwise):
                return _branch(go(condition), go(then), go(otherwise))
        return UNKNOWN if unknown(inner) else Enclosure(inner, inner)

    return go(expr)


def _branch(condition: Enclosure, then: Enclosure, otherwise: Enclosure) -> Enclosure:
    if condition.exact:
        where = condition.could
        return Enclosure(
            branch(where, then.could, otherwise.could), branch(where, then.must, otherwise.must)
        )
    could = any_of(
        all_of(condition.could, then.could), all_of(negate(condition.must), otherwise.could)
    )
    must = any_of(
        all_of(condition.must, then.must),
        all_of(negate(condition.could), otherwise.must),
        all_of(then.must, otherwise.must),
    )
    return Enclosure(could, must)


def reads_table_by_position(term: Expr) -> bool:
    """Whether a term reads a table or segments at a position, or is a cover."""
    return any(
        isinstance(node, Cover)
        or (isinstance(node, (Entry, Member, Segment)) and not is_scalar(node))
        for node in walk(term)
    )


def reads_segments_alone(term: Expr) -> bool:
    """Whether the only tables that a term reads are segments: tiles know their documents."""
    return not any(isinstance(node, (Cover, Entry, Member)) for node in walk(term))


def intricate_terms(body: Predicate) -> list[list[Predicate]]:
    """The terms of a mask that divide positions, in groups, the most intricate first."""
    groups: dict[int, list[Predicate]] = {}
    for term in terms(body):
        if _divisions(term):
            groups.setdefault(_divisions(term), []).append(term)
    return [groups[weight] for weight in sorted(groups, reverse=True)]


def intricacy(body: Predicate, ignored: Collection[Predicate] = ()) -> int:
    """How many divisions of positions meet in one conjunction of the mask or of its negation, which
    decides what tiles are full; remainders count more.
    """

    def go(expr: Predicate, conjunction: type[And] | type[Or]) -> int:
        match expr:
            case And(args) | Or(args):
                parts = [go(arg, conjunction) for arg in args]
                return sum(parts) if isinstance(expr, conjunction) else max(parts)
            case Not(arg):
                return go(arg, Or if conjunction is And else And)
            case Branch(condition, then, otherwise):
                chosen = max(go(then, conjunction), go(otherwise, conjunction))
                return go(condition, conjunction) + chosen
        return 0 if expr in ignored else _divisions(expr)

    return max(go(body, And), go(body, Or))


def _divisions(term: Predicate) -> int:
    divisions = (node for node in walk(term) if isinstance(node, (FloorDiv, Mod)))
    # A remainder is a quotient and more.
    return sum(2 + isinstance(node, Mod) for node in divisions if not is_scalar(node))


def terms(expr: Predicate) -> list[Predicate]:
    """The parts of a mask that are neither logic nor branches, each once."""
    match expr:
        case And() | Or() | Not() | Branch():
            found: dict[Predicate, None] = {}
            for child in children(expr):
                found |= dict.fromkeys(terms(child))  # type: ignore[arg-type]
            return list(found)
        case Truth():
            return []
    return [expr]
