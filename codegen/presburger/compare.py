"""Whether one mask is part of another, and the smallest pair that shows it is not."""

from __future__ import annotations

from collections.abc import Sequence

import islpy as isl

from patterncc.codegen.presburger.exact import ExactSymbols
from patterncc.codegen.presburger.translate import PARAM, SET, number
from patterncc.dsl.mask import Predicate


class Inclusion:
    """Two masks as sets of pairs, under what holds of every call.

    Args:
        inner: The mask that may be part of the other.
        outer: The other.
        facts: What holds of every pair that is asked about, its lengths and numbers.
        conditions: Further conditions that `point` will be asked with.

    Raises:
        UnsupportedError: A term is outside what can be computed with exactly, or a computation
            outgrows its budget.
    """

    def __init__(
        self,
        inner: Predicate,
        outer: Predicate,
        facts: Predicate,
        conditions: Sequence[Predicate] = (),
    ) -> None:
        self.symbols = ExactSymbols([inner, outer, facts, *conditions])
        with self.symbols.budget():
            self._inner = self.symbols.pairs(inner).intersect(self.symbols.pairs(facts))
            self._outer = self.symbols.pairs(outer)

    @property
    def holds(self) -> bool:
        """Whether the inner mask is part of the outer one, whatever the symbols are."""
        with self.symbols.budget():
            return bool(self._inner.is_subset(self._outer))

    @property
    def disjoint(self) -> bool:
        """Whether no pair is in both masks, whatever the symbols are."""
        with self.symbols.budget():
            return bool(self._inner.is_disjoint(self._outer))

    def point(self, condition: Predicate, order: Sequence[str]) -> dict[str, int] | None:
        """The least pair that meets a condition and is only in the inner mask.

        Args:
            condition: One of the conditions, or made of symbols that they or the masks read.
            order: Names of positions and symbols, in the order in which they are made small:
                the first as small as it gets, the second as small as it then gets. Numbers from 0
                on are smaller than negative ones, of which those near 0 are.

        Returns:
            The value of every position and symbol by name; `None` where there is no such pair.
        """
        with self.symbols.budget():
            inner = self._inner.intersect(self.symbols.pairs(condition))
            if inner.is_subset(self._outer):
                return None
            return _least(inner.subtract(self._outer), order)


def _least(points: isl.Set, order: Sequence[str]) -> dict[str, int]:
    """The least point of a set that is not empty, parameters among its coordinates."""
    points = points.move_dims(SET, points.dim(SET), PARAM, 0, points.dim(PARAM))
    names = [str(points.get_dim_name(SET, i)) for i in range(points.dim(SET))]
    first = [names.index(name) for name in order if name in names]
    rest = [i for i in range(len(names)) if i not in first]
    result = {}
    for i in [*first, *rest]:
        from_zero = points.lower_bound_val(SET, i, 0)
        if not from_zero.is_empty():
            points = from_zero
            value = min(number(part.dim_min_val(i)) for part in _parts(points))
        else:
            value = max(number(part.dim_max_val(i)) for part in _parts(points))
        result[names[i]] = value
        points = points.fix_val(SET, i, value)
    return result


def _parts(points: isl.Set) -> list[isl.Set]:
    """The parts of a union that are not empty: isl has no extremum of a union with an empty one."""
    return [part.to_set() for part in points.get_basic_sets() if not part.is_empty()]
