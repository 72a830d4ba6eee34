"""Which tiles the pairs of a mask touch and fill."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import islpy as isl

from patterncc.codegen.approximate import Enclosure
from patterncc.codegen.pieces import Piece
from patterncc.codegen.presburger.export import pieces
from patterncc.codegen.presburger.translate import DIV, QUOTA, SET, Symbols
from patterncc.codegen.terms import conjunctions
from patterncc.dsl.mask import Predicate

MOST_PIECES = 40  # of full or partial tiles: a kernel has a loop for each
MOST_NATURAL = 16  # terms of a union that are asked which tiles each fills alone
MOST_JOINED = 16  # parts of which it is tried whether some together are one
MOST_FLOORS = 3  # of one conjunction, before they are resolved


class Relation:
    """The allowed pairs (q, k) of a mask, with lengths, offsets and run-time numbers symbolic.

    Args:
        mask: The mask, or two masks that enclose it.
        extra: Symbols that the tile geometry needs besides those of the mask (`q_first`, `kv_len`,
            ...).
        facts: Comparisons that hold of the numbers that the mask reads.
        hull: Whether to look at the convex hull of the pairs alone, which is quick whatever the
            number of terms: then no tile is known to be full.

    Raises:
        UnsupportedError: For a term outside what can be computed with exactly (a table read at a
            position, products).
        TooIntricateError: A computation outgrows its budget.
    """

    def __init__(
        self,
        mask: Enclosure,
        extra: Sequence[str],
        facts: Sequence[Predicate] = (),
        *,
        hull: bool = False,
    ) -> None:
        union = conjunctions(mask.must)
        self._is_union = union is None or len(union) > 1
        self.symbols = Symbols([mask.could, mask.must], extra, facts)
        with self.symbols.budget():
            self.could = self.symbols.pairs(mask.could)
            if hull:
                self.must = isl.Set.empty(self.could.get_space())
                self.could = self.could.simple_hull().to_set()
            else:
                self.must = self.could if mask.exact else self.symbols.pairs(mask.must)

    @property
    def names(self) -> list[str]:
        """The symbols, in isl's order."""
        return self.symbols.names

    def tiles(
        self,
        region: Sequence[str],
        exists: Sequence[str],
        whole: Sequence[str],
        context: Sequence[str],
    ) -> tuple[list[Piece], list[Piece]]:
        """Full and partial tiles, each as disjoint pieces that together are exact.

        Of an enclosed mask that is not exact, every tile with an allowed pair is among them, and
        those that are called full are.

        Args:
            region: Which (q, k) belong to which tile, in isl's syntax over `tile, q, k` and the
                symbols.
            exists: Conditions under which a pair of the region exists at all.
            whole: Conditions on a pair that a full tile must meet besides being allowed.
            context: What may be taken for granted of the symbols.
        """
        with self.symbols.budget():
            context_set = self.symbols.conditions(context)
            base = self.symbols.region(region).intersect_params(context_set)
            could, must = self._lift(self.could), self._lift(self.must)
            present = self.symbols.region(exists) if exists else isl.Set.universe(base.get_space())
            entire = self.symbols.region(whole) if whole else isl.Set.universe(base.get_space())
            visited = self._project(base.intersect(could).intersect(present)).coalesce()
            full: list[isl.BasicSet] = []
            lacks = None
            if not must.is_empty():
                full, lacks = self._full(base, must, entire, visited)
            partial = _disjoint(_simplest_first(visited), full)
            if lacks is not None:
                full, partial = _filled_together(full, partial, lacks)
            return self._pieces(full, context_set), self._pieces(partial, context_set)

    def _full(
        self, base: isl.Set, must: isl.Set, entire: isl.Set, visited: isl.Set
    ) -> tuple[list[isl.BasicSet], isl.Set | None]:
        """Full tiles, and the tiles that lack a pair if other tiles than those may be full, too.

        One term of a union that alone makes a tile full gives the loops a person would write; what
        only several terms explain is left to isl's own decomposition.
        """
        # A tile that lacks nothing exists and is visited: start from whichever is simpler.
        existing = self._project(base.intersect(entire)) if visited.n_basic_set() > 1 else visited

        def lacking(allowed: isl.Set) -> isl.Set:
            return self._project(base.subtract(allowed.intersect(entire)))

        terms = must.get_basic_sets()
        if not self._is_union or not 1 < len(terms) <= MOST_NATURAL:
            return _disjoint(_simplest_first(existing.subtract(lacking(must)).coalesce())), None
        # All projections first: each has a budget of its own, and what follows has one together.
        lacks = lacking(must)
        natural = [existing.subtract(each) for each in [lacking(term.to_set()) for term in terms]]
        parts = [part for tiles in natural for part in _simplest_first(tiles.coalesce())]
        return _disjoint(parts), lacks

    def _project(self, tiles: isl.Set) -> isl.Set:
        """The tiles of which some pair is in the set."""
        projected = tiles.project_out(SET, 1, 2)
        if any(basic.dim(DIV) > MOST_FLOORS for basic in projected.get_basic_sets()):
            raise isl.Error(QUOTA)
        return self.symbols.resolve_floors(projected)

    def _pieces(self, parts: Sequence[isl.BasicSet], context: isl.Set) -> list[Piece]:
        return [piece for part in parts for piece in pieces(part, context, self.symbols)]

    def _lift(self, pairs: isl.Set) -> isl.Set:
        return pairs.insert_dims(SET, 0, 1).set_dim_name(SET, 0, "tile")


def _filled_together(
    full: list[isl.BasicSet], partial: list[isl.BasicSet], lacking: isl.Set
) -> tuple[list[isl.BasicSet], list[isl.BasicSet]]:
    """Moves tiles that lack nothing from the partial to the full ones."""
    left: list[isl.BasicSet] = []
    for part in partial:
        tiles = part.to_set()
        if tiles.is_subset(lacking):
            left.append(part)
            continue
        filled = tiles.subtract(lacking).coalesce()
        full = full + _disjoint(_simplest_first(filled))
        rest = tiles.subtract(filled)
        # Looking at all pairs of many parts takes longer than it ever saves.
        joined = rest.coalesce() if rest.n_basic_set() <= MOST_JOINED else rest
        left += _disjoint(_simplest_first(joined))
    return full, left


def _tile_floors(basic: isl.BasicSet) -> int:
    return sum(
        1 for i in range(basic.dim(DIV)) if basic.get_div(i).involves_dims(isl.dim_type.in_, 0, 1)
    )


def _simplest_first(tiles: isl.Set) -> list[isl.BasicSet]:
    """Basic sets with fewer floors of the tile first: plain intervals keep their shape when made
    disjoint.
    """
    parts = list(tiles.compute_divs().get_basic_sets())
    return sorted(parts, key=lambda part: (_tile_floors(part), part.n_constraint(), part.to_str()))


def _disjoint(
    parts: Sequence[isl.BasicSet], before: Sequence[isl.BasicSet] = ()
) -> list[isl.BasicSet]:
    """The same union as disjoint basic sets, earlier parts kept whole, without those `before`.

    Raises:
        isl.Error: They are more than `MOST_PIECES`.
    """
    result: list[isl.BasicSet] = []
    covered = [reduce(isl.Set.union, (part.to_set() for part in before))] if before else []
    for part in parts:
        rest = part.to_set()
        if covered:
            # What was covered last is most like this part: so the rest stays in few pieces.
            rest = reduce(isl.Set.subtract, reversed(covered), rest).coalesce()
        result += [basic for basic in rest.get_basic_sets() if not basic.is_empty()]
        if len(result) > MOST_PIECES:
            raise isl.Error(QUOTA)
        covered.append(part.to_set())
    return result
