"""Constructors of the mask algebra: they fold constants and put operands in one canonical order.

Each returns the simplest node that says the same; none changes meaning.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

from patterncc.dsl.limits import MAX_CONSTANT
from patterncc.dsl.mask import (
    FALSE,
    TRUE,
    Abs,
    And,
    Branch,
    Compare,
    Const,
    Cover,
    Entry,
    Expr,
    FloorDiv,
    IntExpr,
    K,
    Max,
    Member,
    Min,
    Mod,
    Not,
    Or,
    Param,
    Predicate,
    Product,
    Q,
    Segment,
    Select,
    Sum,
    Truth,
    Var,
)
from patterncc.dsl.order import compare_expressions, order_key

E = TypeVar("E", bound=Expr)


def add(*terms: IntExpr) -> IntExpr:
    """The sum, flattened: equal terms are collected, constants folded, terms in canonical order."""
    constant = 0
    coefficients: dict[IntExpr, int] = {}

    def collect(term: IntExpr, factor: int) -> None:
        nonlocal constant
        match term:
            case Const(value):
                constant += factor * value
            case Sum(inner):
                for part in inner:
                    collect(part, factor)
            case Product((Const(value), *rest)):
                base = rest[0] if len(rest) == 1 else Product(tuple(rest))
                collect(base, factor * value)
            case _:
                coefficients[term] = coefficients.get(term, 0) + factor

    for term in terms:
        collect(term, 1)
    parts = [_scale(factor, term) for term, factor in coefficients.items() if factor != 0]
    # Positive terms come first so that a difference prints as `q - k`, not `-k + q`.
    if len(parts) > 1:
        parts.sort(key=order_key)
        parts.sort(key=lambda part: _leading_factor(part) < 0)
    if constant != 0 or not parts:
        parts.append(Const(constant))
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))


def _leading_factor(expr: IntExpr) -> int:
    if isinstance(expr, Product) and isinstance(expr.factors[0], Const):
        return expr.factors[0].value
    return 1


def subtract(left: IntExpr, right: IntExpr) -> IntExpr:
    """`left - right`."""
    return add(left, multiply(Const(-1), right))


def multiply(*factors: IntExpr) -> IntExpr:
    """The product, flattened, constants folded in front; a constant distributes over a sum."""
    if len(factors) == 2 and isinstance(factors[0], Const):  # by far the most common call
        return _scale(factors[0].value, factors[1])
    constant = 1
    rest: list[IntExpr] = []
    stack = list(factors)
    while stack:
        factor = stack.pop()
        match factor:
            case Const(value):
                constant *= value
            case Product(inner):
                stack.extend(inner)
            case _:
                rest.append(factor)
    if constant == 0 or not rest:
        return Const(constant if not rest else 0)
    if len(rest) == 1:
        return _scale(constant, rest[0])
    rest.sort(key=order_key)
    return Product(tuple(rest) if constant == 1 else (Const(constant), *rest))


def _scale(constant: int, value: IntExpr) -> IntExpr:
    """`constant * value`."""
    if constant == 1:
        return value
    if constant == 0:
        return Const(0)
    match value:
        case Const(number):
            return Const(constant * number)
        case Sum(terms):
            return add(*(_scale(constant, term) for term in terms))
        case Product((Const(number), *rest)):
            both = constant * number
            if both == 1:
                return rest[0] if len(rest) == 1 else Product(tuple(rest))
            return Product((Const(both), *rest))
        case Product(several):
            return Product((Const(constant), *several))
    return Product((Const(constant), value))


def floordiv(value: IntExpr, divisor: IntExpr) -> IntExpr:
    """`value // divisor`, folded for constants, a divisor of 1, and a quotient of a quotient."""
    match value, divisor:
        case FloorDiv(inner, Const(a)), Const(b) if a > 0 and b > 0 and a * b <= MAX_CONSTANT:
            return FloorDiv(inner, Const(a * b))
        case _, Const(1):
            return value
        case Const(a), Const(b) if b > 0:
            return Const(a // b)
    return FloorDiv(value, divisor)


def modulo(value: IntExpr, divisor: IntExpr) -> IntExpr:
    """`value % divisor`, folded for constants, a divisor of 1, and a remainder of a multiple."""
    match value, divisor:
        case Mod(inner, Const(a)), Const(b) if b > 0 and a % b == 0:
            return modulo(inner, divisor)
        case _, Const(1):
            return Const(0)
        case Const(a), Const(b) if b > 0:
            return Const(a % b)
    return Mod(value, divisor)


def _extremum(kind: type[Min] | type[Max], args: tuple[IntExpr, ...]) -> IntExpr:
    flat: set[IntExpr] = set()
    constants: list[int] = []
    for arg in args:
        for part in arg.args if isinstance(arg, kind) else (arg,):
            if isinstance(part, Const):
                constants.append(part.value)
            else:
                flat.add(part)
    if constants:
        flat.add(Const(min(constants) if kind is Min else max(constants)))
    parts = sorted(flat, key=order_key)
    return parts[0] if len(parts) == 1 else kind(tuple(parts))


def minimum(*args: IntExpr) -> IntExpr:
    """The least of the arguments, flattened and deduplicated."""
    return _extremum(Min, args)


def maximum(*args: IntExpr) -> IntExpr:
    """The greatest of the arguments, flattened and deduplicated."""
    return _extremum(Max, args)


def absolute(value: IntExpr) -> IntExpr:
    """`abs(value)`."""
    return Const(abs(value.value)) if isinstance(value, Const) else Abs(value)


def select(condition: Predicate, then: IntExpr, otherwise: IntExpr) -> IntExpr:
    """`if condition then ... else ...` for integers."""
    if isinstance(condition, Truth):
        return then if condition.value else otherwise
    return then if then == otherwise else Select(condition, then, otherwise)


def compare(
    op: Literal["==", "!=", "<", "<=", ">", ">="], left: IntExpr, right: IntExpr
) -> Predicate:
    """The comparison; constants fold, and `>`/`>=` exchange the sides."""
    if op == ">":
        return compare("<", right, left)
    if op == ">=":
        return compare("<=", right, left)
    if isinstance(left, Const) and isinstance(right, Const):
        a, b = left.value, right.value
        return Truth({"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b}[op])
    if left == right:
        return Truth(op in ("==", "<="))
    if op in ("==", "!=") and compare_expressions(right, left) < 0:
        left, right = right, left
    return Compare(op, left, right)


def _connect(kind: type[And] | type[Or], args: tuple[Predicate, ...]) -> Predicate:
    absorbing, neutral = (FALSE, TRUE) if kind is And else (TRUE, FALSE)
    flat: set[Predicate] = set()
    for arg in args:
        flat.update(arg.args if isinstance(arg, kind) else (arg,))
    flat.discard(neutral)
    if absorbing in flat:
        return absorbing
    if not flat:
        return neutral
    parts = sorted(flat, key=order_key)
    return parts[0] if len(parts) == 1 else kind(tuple(parts))


def all_of(*args: Predicate) -> Predicate:
    """The conjunction: flattened, no duplicates, in canonical order; `true` for no arguments."""
    return _connect(And, args)


def any_of(*args: Predicate) -> Predicate:
    """The disjunction: flattened, no duplicates, in canonical order; `false` for no arguments."""
    return _connect(Or, args)


def negate(arg: Predicate) -> Predicate:
    """The negation; comparisons and constants absorb it."""
    match arg:
        case Truth(value):
            return Truth(not value)
        case Not(inner):
            return inner
        case Compare("==", left, right):
            return compare("!=", left, right)
        case Compare("!=", left, right):
            return compare("==", left, right)
        case Compare("<", left, right):
            return compare("<=", right, left)
        case Compare("<=", left, right):
            return compare("<", right, left)
    return Not(arg)


def branch(condition: Predicate, then: Predicate, otherwise: Predicate) -> Predicate:
    """`if condition then ... else ...` for predicates."""
    if isinstance(condition, Truth):
        return then if condition.value else otherwise
    return then if then == otherwise else Branch(condition, then, otherwise)


def substitute(expr: E, replace: Mapping[Expr, Expr]) -> E:
    """The expression with parts of it replaced, rebuilt through the constructors above.

    The body of a `Cover` binds its own `q` and `k`, so replacements of those two reach only the
    place it is seen from.
    """
    leaves = all(isinstance(part, (Var, Param)) for part in replace)
    return _substitute(expr, replace, leaves)  # type: ignore[return-value]


def _substitute(expr: Expr, replace: Mapping[Expr, Expr], leaves: bool) -> Expr:
    def go(inner: Expr) -> Expr:
        return _substitute(inner, replace, leaves)

    if isinstance(expr, (Var, Param)) or not leaves:
        found = replace.get(expr)
        if found is not None:
            return found
    if isinstance(expr, Cover):
        inside = {leaf: value for leaf, value in replace.items() if leaf not in (Q, K)}
        expr = dataclasses.replace(expr, body=_substitute(expr.body, inside, leaves))  # type: ignore[arg-type]
    return rebuild(expr, go)


def rebuild(expr: Expr, function: Callable[[Expr], Expr]) -> Expr:
    """The expression with a function applied to its direct subexpressions, put together by the
    constructors above.

    The body of a `Cover` has positions of its own and stays as it is.
    """
    match expr:
        case Const() | Truth() | Var() | Param():
            return expr
        case Sum(terms):
            return add(*map(function, terms))  # type: ignore[arg-type]
        case Product(factors):
            return multiply(*map(function, factors))  # type: ignore[arg-type]
        case FloorDiv(value, divisor):
            return floordiv(function(value), function(divisor))  # type: ignore[arg-type]
        case Mod(value, divisor):
            return modulo(function(value), function(divisor))  # type: ignore[arg-type]
        case Min(args):
            return minimum(*map(function, args))  # type: ignore[arg-type]
        case Max(args):
            return maximum(*map(function, args))  # type: ignore[arg-type]
        case Abs(value):
            return absolute(function(value))  # type: ignore[arg-type]
        case Select(condition, then, otherwise):
            return select(function(condition), function(then), function(otherwise))  # type: ignore[arg-type]
        case Entry(table, indexes):
            return Entry(table, tuple(map(function, indexes)))  # type: ignore[arg-type]
        case Segment(kind, segments, position):
            return Segment(kind, segments, function(position))  # type: ignore[arg-type]
        case Compare(op, left, right):
            return compare(op, function(left), function(right))  # type: ignore[arg-type]
        case And(args):
            return all_of(*map(function, args))  # type: ignore[arg-type]
        case Or(args):
            return any_of(*map(function, args))  # type: ignore[arg-type]
        case Not(arg):
            return negate(function(arg))  # type: ignore[arg-type]
        case Branch(condition, then, otherwise):
            return branch(function(condition), function(then), function(otherwise))  # type: ignore[arg-type]
        case Member(table, indexes):
            return Member(table, tuple(map(function, indexes)))  # type: ignore[arg-type]
        case Cover(block_q, block_k, body, causal, q, k):
            return Cover(block_q, block_k, body, causal, function(q), function(k))  # type: ignore[arg-type]
    raise TypeError(f"not an expression: {expr!r}")
