"""Whether two patterns are the same, or one is part of the other, for every call at once.

Lengths, offsets, heads, layers and run-time numbers are symbols, and run-time numbers of one name
are one symbol. What is claimed is proved by isl; what is denied is shown by a pair of positions
that `dsl.evaluate`, which shares nothing with isl, has confirmed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Literal, TypeAlias

from patterncc.codegen.facts import calls
from patterncc.codegen.facts.questions import ask
from patterncc.codegen.presburger.compare import Inclusion
from patterncc.codegen.presburger.exact import is_nonlinear
from patterncc.dsl.build import all_of, compare, substitute
from patterncc.dsl.errors import InternalError, UnsupportedError
from patterncc.dsl.evaluate import allows
from patterncc.dsl.mask import (
    SIZES,
    TRUE,
    Const,
    Expr,
    FloorDiv,
    IntExpr,
    Mod,
    Param,
    Predicate,
    Product,
    Var,
    parameters,
    variables,
    walk,
)
from patterncc.dsl.pattern import Pattern
from patterncc.dsl.printer import expression_text

Relation: TypeAlias = Literal["equal", "within", "contains", "disjoint", "different"]
Side: TypeAlias = Literal["left", "right"]

# In which order the numbers of a counterexample are made small.
ORDER = (
    *("kv_len", "q", "k", "q_len", "q_offset", "layer", "layers", "head", "kv_head", "heads"),
    *("kv_heads", "batch"),
)

# Numbers that are tried where unknowns are multiplied or divided by each other.
TRIED_HEADS = ((1, 1), (2, 1), (2, 2), (4, 2), (8, 2), (8, 8), (12, 4), (32, 8))
TRIED_NUMBERS = (1, 2, 3, 4, 0, 8, -1)
MOST_TRIES = 64
TRIED_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Witness:
    """A pair of positions that one pattern allows and the other does not.

    Attributes:
        allowed_by: Which of the two patterns allows it.
        q, k: The positions.
        values: The lengths of the call, and what else the patterns read, by name.
        only_outside: Whether it is proved that only calls with rows before or behind the keys have
            such a pair.
    """

    allowed_by: Side
    q: int
    k: int
    values: tuple[tuple[str, int], ...]
    only_outside: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two patterns relate.

    Attributes:
        relation: `equal`; `within`: every pair of the left is one of the right; `contains`: the
            other way round; `disjoint`: no pair is in both; `different`: none of these.
        left_only: The smallest pair that only the left pattern allows; `None` if there is none.
        right_only: Likewise.
        symbols: Run-time numbers that stand for every value.
        at_defaults: How they relate where run-time numbers have their defaults, each pattern its
            own; `None` where that is no other relation.
    """

    relation: Relation
    left_only: Witness | None
    right_only: Witness | None
    symbols: tuple[str, ...]
    at_defaults: Comparison | None

    @property
    def within(self) -> bool:
        """Whether every pair of the left pattern is one of the right."""
        return self.left_only is None

    @property
    def contains(self) -> bool:
        """Whether every pair of the right pattern is one of the left."""
        return self.right_only is None

    @property
    def equal(self) -> bool:
        """Whether both allow the same pairs."""
        return self.relation == "equal"


def compare_patterns(
    left: Pattern,
    right: Pattern,
    *,
    sizes: Mapping[str, int] | None = None,
    defaults: bool = False,
) -> Comparison:
    """Compares two patterns in all calls.

    Args:
        left, right: The patterns.
        sizes: Values of `heads`, `kv_heads`, `layers`; those left out stand for all.
        defaults: Whether run-time numbers that have a default have that value; else they stand for
            all values.

    Raises:
        UnsupportedError: A pattern reads a table or has a term that integer sets cannot express;
            unknowns are multiplied or divided in a way that leaves the question open; or it is too
            intricate for isl's budget. The message names the term.
    """
    bodies = (left.body, right.body)
    return ask(bodies, _compare, left, right, dict(sizes or {}), defaults)


def _compare(left: Pattern, right: Pattern, sizes: Mapping[str, int], defaults: bool) -> Comparison:
    bound: dict[Expr, IntExpr] = {Var(name): Const(value) for name, value in sizes.items()}
    group = sizes["heads"] // sizes["kv_heads"] if {"heads", "kv_heads"} <= sizes.keys() else None
    bodies = []
    for pattern in (left, right):
        numbers = _defaults(pattern) if defaults else {}
        bodies.append(substitute(pattern.body, {**bound, **numbers}))
    question = _Question(
        bodies[0],
        bodies[1],
        substitute(_facts(bodies, sizes, group), bound),
        tuple(_number_conditions(left, right, bodies)),
        group is None and calls.heads_are_related(_reads(bodies, sizes)),
        dict(sizes),
    )
    left_only = question.witness("left")
    right_only = question.witness("right")
    names = tuple(sorted(parameters(bodies[0]) | parameters(bodies[1])))
    relation = question.relation(left_only, right_only)
    at_defaults = None
    if relation != "equal" and not defaults and (_defaults(left) or _defaults(right)):
        at_defaults = _compare(left, right, sizes, True)
        if at_defaults.relation == relation:
            at_defaults = None
    return Comparison(relation, left_only, right_only, names, at_defaults)


def _defaults(pattern: Pattern) -> dict[Expr, IntExpr]:
    return {Param(name): Const(value) for name, value in pattern.defaults.items()}


def _reads(bodies: list[Predicate], sizes: Mapping[str, int]) -> frozenset[str]:
    """What the masks read of a call, with the sizes that were given: heads may hang on them."""
    return variables(bodies[0]) | variables(bodies[1]) | (sizes.keys() & {"heads", "kv_heads"})


def _facts(bodies: list[Predicate], sizes: Mapping[str, int], group: int | None) -> Predicate:
    return all_of(calls.pair_exists(), calls.coordinates_exist(_reads(bodies, sizes), group))


def _number_conditions(
    left: Pattern, right: Pattern, bodies: list[Predicate]
) -> Iterator[Predicate]:
    """Values of run-time numbers to look for a counterexample with, the most telling first: the
    defaults of one pattern, then of the other, then counts from 1 on, then any.
    """
    names = sorted(parameters(bodies[0]) | parameters(bodies[1]))
    if not names:
        yield TRUE
        return
    for first, second in ((left, right), (right, left)):
        values = {**_defaults(second), **_defaults(first)}
        known = [
            compare("==", Param(name), values[Param(name)])
            for name in names
            if Param(name) in values
        ]
        open_numbers = [
            calls.at_least(Param(name), 1) for name in names if Param(name) not in values
        ]
        if known:
            yield all_of(*known, *open_numbers)
    yield all_of(*(calls.at_least(Param(name), 1) for name in names))
    yield TRUE


@dataclass(frozen=True, slots=True)
class _Question:
    """Two masks, what holds of every call, and how to look for counterexamples.

    Attributes:
        left, right: The masks, with what has a value put in.
        facts: What holds of every pair of every call.
        numbers: Conditions on run-time numbers, the most telling first.
        related_heads: Whether the answer may hang on how query heads share key/value heads, which
            `facts` do not say.
        sizes: Sizes that were put in.
    """

    left: Predicate
    right: Predicate
    facts: Predicate
    numbers: tuple[Predicate, ...]
    related_heads: bool
    sizes: dict[str, int]

    def witness(self, side: Side) -> Witness | None:
        """The smallest pair that only one side allows; `None` where it is proved that there is
        none.
        """
        inner, outer = (self.left, self.right) if side == "left" else (self.right, self.left)
        conditions = [
            all_of(number, call)
            for call in (calls.WHOLE_SEQUENCE, calls.ROWS_WITHIN_KEYS, TRUE)
            for number in self.numbers
        ]
        usual = 2 * len(self.numbers)
        inclusion = Inclusion(inner, outer, self.facts, conditions)
        if inclusion.holds:
            return None
        if inclusion.symbols.opaque or self.related_heads:
            return self._tried(side, inner, outer, inclusion)
        for i, condition in enumerate(conditions):
            point = inclusion.point(condition, ORDER)
            if point is not None:
                return self._confirmed(side, point, only_outside=i >= usual)
        raise InternalError("a difference between patterns was proved, but no pair shows it")

    def relation(self, left_only: Witness | None, right_only: Witness | None) -> Relation:
        if left_only is None and right_only is None:
            return "equal"
        if left_only is None:
            return "within"
        if right_only is None:
            return "contains"
        disjoint = Inclusion(self.left, self.right, self.facts).disjoint
        return "disjoint" if disjoint else "different"

    def _tried(
        self, side: Side, inner: Predicate, outer: Predicate, inclusion: Inclusion
    ) -> Witness:
        """A counterexample with numbers for the unknowns that are multiplied or divided."""
        unknown = _unknown_factors(self.left) | _unknown_factors(self.right)
        if self.related_heads:
            unknown |= {Var("heads"), Var("kv_heads")}
        assert unknown, "only products and quotients of unknowns are opaque"
        end = time.monotonic() + TRIED_SECONDS
        for values in islice(_trials(unknown), MOST_TRIES):
            if time.monotonic() > end:
                break
            given: dict[Expr, IntExpr] = {leaf: Const(value) for leaf, value in values.items()}
            known = {leaf.name: value for leaf, value in values.items()}
            facts = self.facts
            if self.related_heads:
                reads = variables(self.left) | variables(self.right)
                group = known["heads"] // known["kv_heads"]
                facts = all_of(facts, calls.coordinates_exist(reads, group))
            trial = _Question(
                substitute(self.left, given),
                substitute(self.right, given),
                substitute(facts, given),
                tuple(substitute(number, given) for number in self.numbers),
                False,
                {**self.sizes, **known},
            )
            found = trial.witness(side)
            if found is not None:
                return replace(found, only_outside=False)  # other values were not looked at
        terms = [expression_text(term) for term in inclusion.symbols.opaque.values()]
        subject = f"`{terms[0]}`" if terms else "how query heads share key/value heads"
        names = ", ".join(sorted(leaf.name for leaf in unknown))
        raise UnsupportedError(
            f"whether the patterns differ hangs on {subject}, which was not decided for all values",
            f"give values of {names}",
        )

    def _confirmed(self, side: Side, point: dict[str, int], *, only_outside: bool) -> Witness:
        """A pair that isl found, held against the plain reading of both masks."""
        q, k = point.pop("q"), point.pop("k")
        env = {**self.sizes, **point}
        allowed = [allows(body, q, k, env) for body in (self.left, self.right)]
        if allowed != [side == "left", side == "right"]:
            raise InternalError(f"isl and the evaluator disagree at q = {q}, k = {k}, {env}")
        shown = {"kv_len", "q_len", "q_offset"} | set(self.sizes)
        shown |= variables(self.left) | variables(self.right)
        shown |= parameters(self.left) | parameters(self.right)
        rank = {name: i for i, name in enumerate(ORDER)}
        names = sorted(shown & env.keys(), key=lambda name: (rank.get(name, len(rank)), name))
        return Witness(side, q, k, tuple((name, env[name]) for name in names), only_outside)


def _unknown_factors(body: Predicate) -> set[Var | Param]:
    """Symbols of which values make every product and quotient of scalars a linear one."""
    found: set[Var | Param] = set()
    for node in walk(body):
        loose: Sequence[IntExpr] = ()
        match node:
            case Product(factors) if is_nonlinear(node):
                loose = [factor for factor in factors if not isinstance(factor, Const)][1:]
            case FloorDiv(_, divisor) | Mod(_, divisor):
                loose = (divisor,)
        for factor in loose:
            found |= {leaf for leaf in walk(factor) if isinstance(leaf, (Var, Param))}
    return found


def _trials(unknown: set[Var | Param]) -> Iterator[dict[Var | Param, int]]:
    """Values to try for some symbols, small and usual ones first."""
    heads = {leaf for leaf in unknown if leaf.name in ("heads", "kv_heads")}
    others = sorted(unknown - heads, key=lambda leaf: leaf.name)
    choices: list[list[dict[Var | Param, int]]] = []
    if heads:
        pairs = ({"heads": many, "kv_heads": few} for many, few in TRIED_HEADS)
        choices.append([{leaf: pair[leaf.name] for leaf in heads} for pair in pairs])
    for leaf in others:
        least = -1 if isinstance(leaf, Param) else 1 if leaf.name in SIZES else 0
        numbers = [value for value in TRIED_NUMBERS if value >= least]
        choices.append([{leaf: value} for value in numbers])
    # By rising sum of places, so that the first tries of each come early.
    places = sorted(product(*(range(len(choice)) for choice in choices)), key=sum)
    for place in places:
        merged: dict[Var | Param, int] = {}
        for choice, i in zip(choices, place, strict=True):
            merged |= choice[i]
        yield merged
