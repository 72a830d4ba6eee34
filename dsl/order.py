"""The canonical order of expressions: operands that may be exchanged are written in it.

It is total, the same in every run, and made for reading: what is short and common comes first,
constants come last.
"""

from functools import cmp_to_key

from patterncc.dsl.mask import (
    COORDINATES,
    SIZES,
    Abs,
    And,
    Branch,
    Compare,
    Const,
    Cover,
    Entry,
    Expr,
    FloorDiv,
    Max,
    Member,
    Min,
    Mod,
    Not,
    Or,
    Param,
    Product,
    Segment,
    Select,
    Sum,
    Truth,
    Var,
)

_INTEGERS: tuple[type, ...] = (
    *(Var, Param, Entry, Segment, FloorDiv, Mod, Product),
    *(Min, Max, Abs, Select, Sum, Const),
)
_PREDICATES: tuple[type, ...] = (Truth, Compare, Member, Not, And, Or, Branch, Cover)
_KIND_RANK = {kind: rank for rank, kind in enumerate((*_INTEGERS, *_PREDICATES))}
_NAME_RANK = {name: rank for rank, name in enumerate((*COORDINATES, *SIZES))}
_OP_RANK = {"==": 0, "<=": 1, "<": 2, "!=": 3}


def compare_expressions(left: Expr, right: Expr) -> int:
    """Negative, zero or positive as `left` comes before, equals or comes after `right`."""
    if left is right:
        return 0
    if type(left) is not type(right):
        return _KIND_RANK[type(left)] - _KIND_RANK[type(right)]
    match left, right:
        case Var(a), Var(b):
            rank = _NAME_RANK.get(a, len(_NAME_RANK)) - _NAME_RANK.get(b, len(_NAME_RANK))
            return rank or _compare(a, b)
        case Compare(op_a, left_a, right_a), Compare(op_b, left_b, right_b):
            return (
                compare_expressions(left_a, left_b)
                or compare_expressions(right_a, right_b)
                or _OP_RANK[op_a] - _OP_RANK[op_b]
            )
    for name in type(left).__match_args__:
        order = _compare(getattr(left, name), getattr(right, name))
        if order:
            return order
    return 0


def _compare(left: object, right: object) -> int:
    """`compare_expressions` for the values of a field."""
    if isinstance(left, tuple) and isinstance(right, tuple):
        for a, b in zip(left, right, strict=False):
            order = _compare(a, b)
            if order:
                return order
        return len(left) - len(right)
    if isinstance(left, (int, str)):
        return (left > right) - (left < right)  # type: ignore[operator]
    return compare_expressions(left, right)  # type: ignore[arg-type]


order_key = cmp_to_key(compare_expressions)
