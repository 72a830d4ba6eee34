"""Packed documents in terms of a tile: what `segments` say of its first and last position.

Documents are intervals, so the keys that share a document with a row `q` are those from its start
to its end. For a tile of rows that is known from four numbers, found by a search in `cu_seqlens`
when the kernel runs: start and end of the documents of the first and of the last row. Where both
are the same document everything is known of the tile; where they are not, its rows see at most the
keys between the first document's start and the last one's end.
"""

from __future__ import annotations

from dataclasses import dataclass

from patterncc.codegen.approximate import (
    Enclosure,
    enclose,
    reads_table_by_position,
    terms,
)
from patterncc.dsl.build import all_of, any_of, compare, negate, substitute
from patterncc.dsl.mask import (
    FALSE,
    TRUE,
    Compare,
    Expr,
    IntExpr,
    Predicate,
    Segment,
    walk,
)


@dataclass(frozen=True, slots=True)
class Tile:
    """Positions of a tile's rows (forward) or keys (transposed), in the positions of the call.

    Attributes:
        position: What runs through the tile: of a row (key) in terms of the mask's coordinates.
        other: The position of the key (row) that it is compared with.
        first, last: The first and the last existing position of the tile.
    """

    position: IntExpr
    other: IntExpr
    first: IntExpr
    last: IntExpr


def without_documents(body: Predicate, tile: Tile) -> tuple[Enclosure, list[Predicate]]:
    """Encloses a mask by masks that read `segments` at the ends of the tile alone.

    Returns:
        The enclosure, and what holds of the numbers it reads.
    """
    enclosure = Enclosure(body, body)
    facts: list[Predicate] = []
    for name in _segments(body):
        ends = _Ends(name, tile)
        facts += ends.facts()
        enclosure = Enclosure(
            _enclose(enclosure.could, ends).could, _enclose(enclosure.must, ends).must
        )
    return enclosure, facts


def _segments(body: Expr) -> list[str]:
    return sorted({node.segments for node in walk(body) if isinstance(node, Segment)})


class _Ends:
    """Start and end of the documents of a tile's first and last position."""

    def __init__(self, name: str, tile: Tile) -> None:
        self.name = name
        self.tile = tile
        self.start_first = Segment("start", name, tile.first)
        self.end_first = Segment("end", name, tile.first)
        self.start_last = Segment("start", name, tile.last)
        self.end_last = Segment("end", name, tile.last)

    def facts(self) -> list[Predicate]:
        first, last = self.tile.first, self.tile.last
        return [
            compare("<=", self.start_first, first),
            compare("<", first, self.end_first),
            compare("<=", self.start_last, last),
            compare("<", last, self.end_last),
            compare("<=", self.start_first, self.start_last),
            compare("<=", self.end_first, self.end_last),
        ]

    def between(self, start: IntExpr, end: IntExpr) -> Predicate:
        return all_of(compare("<=", start, self.tile.other), compare("<", self.tile.other, end))

    @property
    def alone(self) -> Predicate:
        """Whether the tile lies within one document."""
        return compare("<", self.tile.last, self.end_first)

    def is_same(self, term: Expr) -> bool:
        """Whether a term says that both positions are in one document."""
        pair = {self.tile.position, self.tile.other}
        match term:
            case Compare("==", Segment("id", a, left), Segment("id", b, right)):
                return a == b == self.name and {left, right} == pair
        return False


def _enclose(body: Predicate, ends: _Ends) -> Enclosure:
    together = Enclosure(
        ends.between(ends.start_first, ends.end_last),
        ends.between(ends.start_last, ends.end_first),
    )
    same = {term: together for term in terms(body) if ends.is_same(term)}
    mixed = enclose(body, lambda term: _reads(term, ends.name), same)
    others = [
        node
        for node in walk(body)
        if isinstance(node, Segment)
        and node.segments == ends.name
        and node.position in (ends.tile.position, ends.tile.other)
        and node.kind != "id"
    ]
    if not others:
        return mixed
    # Documents' own positions are read: tiles within one document are told apart, and keys in it.
    here, elsewhere = _substituted(body, ends, inside=True), _substituted(body, ends, inside=False)
    inside = ends.between(ends.start_first, ends.end_first)
    cases = [
        (all_of(ends.alone, inside), enclose(here, lambda term: _reads(term, ends.name))),
        (
            all_of(ends.alone, negate_both(inside)),
            enclose(elsewhere, lambda term: _reads(term, ends.name)),
        ),
        (negate(ends.alone), mixed),
    ]
    return Enclosure(
        any_of(*(all_of(where, part.could) for where, part in cases)),
        any_of(*(all_of(where, part.must) for where, part in cases)),
    )


def negate_both(inside: Predicate) -> Predicate:
    """The negation of a conjunction as a union."""
    return any_of(*map(negate, getattr(inside, "args", (inside,))))


def _reads(term: Expr, name: str) -> bool:
    """Whether a term reads these segments at a position of the mask."""
    return any(
        isinstance(node, Segment) and node.segments == name and reads_table_by_position(node)
        for node in walk(term)
    )


def _substituted(body: Predicate, ends: _Ends, *, inside: bool) -> Predicate:
    """The mask where the tile lies in one document, and the other position in it or not."""
    replace: dict[Expr, Expr] = {}
    for node in walk(body):
        if ends.is_same(node):
            replace[node] = TRUE if inside else FALSE
        elif isinstance(node, Segment) and node.segments == ends.name and node.kind != "id":
            known = {ends.tile.position, ends.tile.other} if inside else {ends.tile.position}
            if node.position in known:
                replace[node] = Segment(node.kind, ends.name, ends.tile.first)
    return substitute(body, replace)
