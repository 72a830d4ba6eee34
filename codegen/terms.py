"""A mask as a union of conjunctions, as its author wrote them."""

from __future__ import annotations

from patterncc.dsl.build import negate
from patterncc.dsl.mask import And, Branch, Not, Or, Predicate, Truth

Conjunction = tuple[Predicate, ...]


def conjunctions(body: Predicate, most: int = 32) -> list[Conjunction] | None:
    """Conjunctions of which the union is the mask; `None` where there are more than `most`.

    `and`, `or`, `not` and `if` are taken apart. What is inside of a comparison is not.
    """
    match body:
        case Truth(value):
            return [()] if value else []
        case Or(args):
            return _union(args, most)
        case And(args):
            return _product(args, most)
        case Branch(condition, then, otherwise):
            yes = _product((condition, then), most)
            no = _product((negate(condition), otherwise), most)
            return _limited(yes, no, most)
        case Not(And(args)):
            return _union(tuple(map(negate, args)), most)
        case Not(Or(args)):
            return _product(tuple(map(negate, args)), most)
        case Not(Branch(condition, then, otherwise)):
            return conjunctions(Branch(condition, negate(then), negate(otherwise)), most)
    return [(body,)]


def _union(args: tuple[Predicate, ...], most: int) -> list[Conjunction] | None:
    result: list[Conjunction] | None = []
    for arg in args:
        result = _limited(result, conjunctions(arg, most), most)
    return result


def _product(args: tuple[Predicate, ...], most: int) -> list[Conjunction] | None:
    result: list[Conjunction] = [()]
    for arg in args:
        factor = conjunctions(arg, most)
        if factor is None or len(result) * len(factor) > most:
            return None
        result = [
            (*one, *(term for term in other if term not in one))
            for one in result
            for other in factor
        ]
    return result


def _limited(
    one: list[Conjunction] | None, other: list[Conjunction] | None, most: int
) -> list[Conjunction] | None:
    if one is None or other is None or len(one) + len(other) > most:
        return None
    return one + other
