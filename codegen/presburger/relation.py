"""Which tiles the pairs of a mask touch and fill."""

from __future__ import annotations

from collections.abc import Sequence

import islpy as isl

from patterncc.codegen.approximate import Enclosure
from patterncc.codegen.pieces import Piece
from patterncc.codegen.presburger.export import pieces
from patterncc.codegen.presburger.translate import DIV, QUOTA, SET, Symbols
from patterncc.dsl.mask import Predicate

MOST_FLOORS = 4  # of one conjunction, before they are resolved


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
            visited = _project(base.intersect(could).intersect(present))
            full = visited.subtract(_project(base.subtract(must.intersect(entire)))).coalesce()
            # One term of a union that alone makes a tile full gives the loops a person would write;
            # only what no single term explains is left to isl's own decomposition.
            natural = []
            terms = must.get_basic_sets()
            if 1 < len(terms) <= 16:
                for term in terms:
                    alone = visited.subtract(
                        _project(base.subtract(term.to_set().intersect(entire)))
                    )
                    natural.append(alone.coalesce())
            full_pieces = _disjoint(
                [part for whole_part in [*natural, full] for part in _simplest_first(whole_part)]
            )
            partial_pieces = _disjoint(_simplest_first(visited))
            if full_pieces:
                partial_pieces = [
                    rest
                    for part in partial_pieces
                    for rest in _disjoint(_simplest_first(part.to_set().subtract(full).coalesce()))
                ]
            return (
                [
                    piece
                    for part in full_pieces
                    for piece in pieces(part, context_set, self.symbols)
                ],
                [
                    piece
                    for part in partial_pieces
                    for piece in pieces(part, context_set, self.symbols)
                ],
            )

    def _lift(self, pairs: isl.Set) -> isl.Set:
        return pairs.insert_dims(SET, 0, 1).set_dim_name(SET, 0, "tile")


def _project(tiles: isl.Set) -> isl.Set:
    """The tiles of which some pair is in the set."""
    projected = tiles.project_out(SET, 1, 2)
    # Resolving many floors at once can outlast any wait without isl counting an operation.
    if any(basic.dim(DIV) > MOST_FLOORS for basic in projected.get_basic_sets()):
        raise isl.Error(QUOTA)
    return projected.compute_divs().coalesce()


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


def _disjoint(parts: Sequence[isl.BasicSet]) -> list[isl.BasicSet]:
    """The same union as disjoint basic sets, earlier parts kept whole."""
    result: list[isl.BasicSet] = []
    covered: isl.Set | None = None
    for part in parts:
        rest = part.to_set()
        if covered is not None:
            rest = rest.subtract(covered).coalesce().make_disjoint().coalesce()
        fresh = [basic for basic in rest.get_basic_sets() if not basic.is_empty()]
        result.extend(fresh)
        covered = part.to_set() if covered is None else covered.union(part.to_set())
    return result
