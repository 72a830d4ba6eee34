"""Builders of the mask algebra for forms of the text that are more than one node."""

from collections.abc import Callable, Sequence

from patterncc.dsl.build import add, all_of, any_of, compare, multiply
from patterncc.dsl.mask import Const, IntExpr, Predicate
from patterncc.dsl.syntax import ComparisonOp


def opposite(expr: IntExpr) -> IntExpr:
    """`-expr`."""
    return multiply(Const(-1), expr)


def total(signs: Sequence[int]) -> Callable[..., IntExpr]:
    """A function that adds terms with the given signs."""

    def make(*terms: IntExpr) -> IntExpr:
        pairs = zip(signs, terms, strict=True)
        return add(*(term if sign > 0 else opposite(term) for sign, term in pairs))

    return make


def in_set(value: IntExpr, *elements: IntExpr) -> Predicate:
    """`value in {elements}`."""
    return any_of(*(compare("==", value, element) for element in elements))


def in_range(value: IntExpr, low: IntExpr, high: IntExpr) -> Predicate:
    """`value in low..high`."""
    return all_of(compare("<=", low, value), compare("<", value, high))


def chained(ops: Sequence[ComparisonOp]) -> Callable[..., Predicate]:
    """A function that compares each neighbouring pair of its arguments."""

    def make(*operands: IntExpr) -> Predicate:
        pairs = zip(ops, operands, operands[1:], strict=False)
        return all_of(*(compare(op, left, right) for op, left, right in pairs))

    return make
