"""Relations of layers one after the other: what a position reads through several of them."""

from __future__ import annotations

from collections.abc import Sequence

import islpy as isl

from patterncc.codegen.pieces import TooIntricateError
from patterncc.codegen.presburger.exact import ExactSymbols
from patterncc.codegen.presburger.forms import predicate_of, project
from patterncc.codegen.presburger.translate import SET
from patterncc.dsl.build import all_of, any_of, compare
from patterncc.dsl.mask import Const, IntExpr, K, Predicate, Q

MOST_PARTS = 48  # of a union; more are no closed form that anybody reads


class Chain:
    """What positions read in layers of one model, each of which also keeps its own input.

    Args:
        masks: The masks of the layers, of one head each or joined; equal ones need be given once.
        length: Tokens of the sequence, all of them queries and keys.

    Raises:
        UnsupportedError: A term is outside what can be computed with exactly.
        TooIntricateError: A computation outgrows its budget.
    """

    def __init__(self, masks: Sequence[Predicate], length: IntExpr) -> None:
        exists = all_of(
            *(compare("<=", Const(0), position) for position in (Q, K)),
            *(compare("<", position, length) for position in (Q, K)),
        )
        itself = compare("==", Q, K)
        self._symbols = ExactSymbols([*masks, exists])
        with self._symbols.budget():
            self._exists = self._symbols.pairs(exists)
            self._itself = self._symbols.pairs(all_of(itself, exists))
        self._masks = [any_of(mask, itself) for mask in masks]
        self._known: dict[int, isl.Set] = {}

    def position(self, position: int) -> isl.Set:
        """One position, as a set."""
        with self._symbols.budget():
            return project(self._itself.fix_val(SET, 0, position), ["q"], ()).set_dim_name(
                SET, 0, "k"
            )

    def image(self, positions: isl.Set, mask: int) -> isl.Set:
        """What some positions read in a layer with mask number `mask`, themselves included."""
        with self._symbols.budget():
            readers = positions.insert_dims(SET, 1, 1)
            readers = readers.set_dim_name(SET, 0, "q").set_dim_name(SET, 1, "k")
            return self._few(project(self._reads(mask).intersect(readers), ["q"], ()))

    def readers(self, position: int, mask: int) -> Predicate:
        """Which positions `q` read a position, itself included."""
        with self._symbols.budget():
            found = self._reads(mask).fix_val(SET, 1, position)
            return predicate_of(project(found, ["k"], ()), self._symbols)

    def predicate(self, positions: isl.Set) -> Predicate:
        """A set of positions as a predicate of `k`."""
        with self._symbols.budget():
            return predicate_of(positions, self._symbols)

    def through(self, masks: Sequence[int]) -> tuple[Predicate, int]:
        """What position `q` reads through several layers, the first of them nearest to it.

        Args:
            masks: The numbers of the layers' masks.

        Returns:
            A predicate of `q`, `k` and the length for the longest beginning of the layers for which
            there is one within the budget, and how many layers that is. It leaves out that both
            positions exist.
        """
        chained = self._itself
        form = all_of(compare("==", Q, K))
        for number, mask in enumerate(masks):
            try:
                with self._symbols.budget():
                    first = chained.insert_dims(SET, 2, 1)
                    second = self._reads(mask).insert_dims(SET, 0, 1)
                    for place, name in enumerate(("q", "between", "k")):
                        first = first.set_dim_name(SET, place, name)
                        second = second.set_dim_name(SET, place, name)
                    both = project(first.intersect(second), ["between"], ())
                    chained = self._few(self._tidy(both))
                    simple = chained.gist(self._exists).compute_divs().coalesce()
                    form = predicate_of(simple, self._symbols)
            except TooIntricateError:
                return form, number
        return form, len(masks)

    def _reads(self, mask: int) -> isl.Set:
        """Pairs that exist of a reader and what it reads."""
        if mask not in self._known:
            pairs = self._symbols.pairs(self._masks[mask])
            self._known[mask] = self._tidy(pairs.intersect(self._exists))
        return self._known[mask]

    def _tidy(self, pairs: isl.Set) -> isl.Set:
        return pairs.compute_divs().coalesce().remove_redundancies()

    def _few(self, union: isl.Set) -> isl.Set:
        if union.n_basic_set() > MOST_PARTS:
            raise TooIntricateError(f"a union of more than {MOST_PARTS} parts")
        return union
