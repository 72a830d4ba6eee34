"""Which keys some queries read: projections of a mask, and their closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import islpy as isl

from patterncc.codegen.presburger.exact import ExactSymbols
from patterncc.codegen.presburger.forms import predicate_of, project
from patterncc.codegen.presburger.translate import DIV, SET, number
from patterncc.codegen.terms import Conjunction, conjunctions
from patterncc.dsl.build import all_of, any_of, compare
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Const, K, Predicate, Q, parameters, variables, walk
from patterncc.dsl.printer import expression_text


class Image:
    """The keys that at least one of some queries reads.

    Args:
        body: The mask.
        readers: Which queries are meant: a condition on `q`, the symbols and perhaps `k`.
        given: What holds of `k` and the symbols; the closed form leaves it out.
        forget: Symbols of which any value will do, besides `q`.

    Raises:
        UnsupportedError: A term is outside what can be computed with exactly, or a computation
            outgrows its budget.
    """

    def __init__(
        self, body: Predicate, readers: Predicate, given: Predicate, forget: Sequence[str] = ()
    ) -> None:
        self._body = body
        self._forget = tuple(forget)
        self._symbols = ExactSymbols([body, readers, given])
        for meaning in self._symbols.opaque.values():
            if hidden := variables(meaning) & set(forget):
                raise UnsupportedError(
                    f"`{expression_text(meaning)}` multiplies or divides by `{min(hidden)}`, of "
                    "which all values are meant"
                )
        with self._symbols.budget():
            self._given = self._symbols.pairs(given)
            self._readers = self._symbols.pairs(readers).intersect(self._given)
            self._keys = self._image(self._symbols.pairs(body))

    @property
    def empty(self) -> bool:
        """Whether no key is read, whatever the symbols are."""
        with self._symbols.budget():
            return bool(self._keys.is_empty())

    def closed_form(self) -> Predicate:
        """The keys as a predicate of `k` and the symbols, exact where `given` holds.

        The terms of the mask's own union are kept apart and in their author's words as far as they
        read no query, where that is shorter than what isl makes of the whole.
        """
        with self._symbols.budget():
            context = project(self._given, ["q"], self._forget)
            whole = predicate_of(_simple(self._keys, context), self._symbols)
            terms = conjunctions(self._body)
            if terms is None:
                return whole
            by_terms = self._by_terms(terms, context)
            return by_terms if _length(by_terms) <= 2 * _length(whole) else whole

    def _image(self, pairs: isl.Set) -> isl.Set:
        return project(pairs.intersect(self._readers), ["q"], self._forget)

    def _by_terms(self, terms: Sequence[Conjunction], context: isl.Set) -> Predicate:
        images = []
        for term in terms:
            keys = self._image(self._symbols.pairs(all_of(*term)))
            if not keys.is_empty():
                images.append(_Term(term, keys))
        images.sort(key=lambda image: (image.floors, _length(all_of(*image.conditions))))
        kept = list(images)
        for image in reversed(images):
            others = [other.keys for other in kept if other is not image]
            if others and image.keys.is_subset(_union(others)):
                kept = [other for other in kept if other is not image]
        return any_of(*(self._form(image, context) for image in kept))

    def _form(self, image: _Term, context: isl.Set) -> Predicate:
        """The keys of one term: its own conditions on the key, and what the others come to."""
        whole = predicate_of(_simple(image.keys, context), self._symbols)
        hidden = {"q", *self._forget}
        own = all_of(*(part for part in image.conditions if not hidden & variables(part)))
        rest = all_of(*(part for part in image.conditions if hidden & variables(part)))
        within = project(self._symbols.pairs(own).intersect(self._given), ["q"], self._forget)
        others = self._image(self._symbols.pairs(rest))
        if not others.intersect(within).is_equal(image.keys):
            return whole
        split = all_of(own, predicate_of(_simple(others, within), self._symbols))
        return split if _length(split) <= 2 * _length(whole) else whole


@dataclass(frozen=True)
class _Term:
    """One conjunction of a mask and the keys that it reads."""

    conditions: Conjunction
    keys: isl.Set

    @property
    def floors(self) -> int:
        return max(part.dim(DIV) for part in self.keys.get_basic_sets())


def _simple(keys: isl.Set, context: isl.Set) -> isl.Set:
    return keys.gist(context).compute_divs().coalesce()


def _union(sets: Sequence[isl.Set]) -> isl.Set:
    result = sets[0]
    for other in sets[1:]:
        result = result.union(other)
    return result


def _length(predicate: Predicate) -> int:
    return sum(1 for _ in walk(predicate))


def farthest_from_both_ends(form: Predicate) -> int | None:
    """The most that `min(k, q - k)` gets among pairs with `0 <= k <= q`; -1 where there are none,
    `None` where it has no end.

    Args:
        form: A predicate of `q` and `k` alone.

    Raises:
        UnsupportedError: The computation outgrows its budget.
    """
    assert variables(form) <= {"q", "k"} and not parameters(form)
    below = all_of(compare("<=", K, Q), compare(">=", K, Const(0)))
    symbols = ExactSymbols([form, below])
    with symbols.budget():
        pairs = symbols.pairs(all_of(form, below))
        space = isl.LocalSpace.from_space(pairs.get_space())
        key = isl.Aff.var_on_domain(space, SET, 1)
        distance = isl.Aff.var_on_domain(space, SET, 0).sub(key)
        ends = []
        for value, other in ((key, distance), (distance, key)):
            near = pairs.intersect(isl.PwAff.from_aff(value).le_set(isl.PwAff.from_aff(other)))
            for part in near.get_basic_sets():
                if part.is_empty():
                    continue
                most = part.to_set().max_val(value)
                if not most.is_int():
                    return None
                ends.append(number(most))
        return max(ends, default=-1)
