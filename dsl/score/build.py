"""Constructors of the score algebra: constants are folded, operands put in one canonical order.

An expression means what its real numbers mean: `0 * x` is 0 and `x - x` is 0 whatever `x` is, and
the order in which terms are added is not part of the meaning. What folds to no finite number
becomes a `Constant` that is not finite; the checker refuses it.
"""

import math
from collections.abc import Callable

from patterncc.dsl.build import absolute, add, maximum, minimum, multiply, select
from patterncc.dsl.mask import Const, IntExpr, Predicate, Truth
from patterncc.dsl.score.nodes import (
    ZERO,
    Apply,
    Below,
    Choice,
    Constant,
    Function,
    Greatest,
    Least,
    Lifted,
    Lookup,
    Magnitude,
    Number,
    Over,
    Plus,
    Real,
    Score,
    Times,
)
from patterncc.dsl.score.printer import real_text

# In sums what varies most comes first; in products what varies least.
_RANKS: tuple[type, ...] = (
    *(Score, Apply, Over, Times, Plus, Least, Greatest, Magnitude),
    *(Choice, Below, Lookup, Number, Lifted, Constant),
)
_TERM_RANK = {kind: rank for rank, kind in enumerate(_RANKS)}
_FACTOR_RANK = {
    kind: rank
    for rank, kind in enumerate(
        (
            *(Constant, Number, Lookup, Score, Magnitude, Apply, Over),
            *(Least, Greatest, Plus, Choice, Below, Times, Lifted),
        )
    )
}


def lift(value: IntExpr) -> Real:
    """An integer as a real number."""
    return Constant(float(value.value)) if isinstance(value, Const) else Lifted(value)


def plus(*terms: Real) -> Real:
    """The sum, flattened: equal terms are collected, constants folded, integers added as such."""
    constant = 0.0
    integers: list[IntExpr] = []
    coefficients: dict[Real, float] = {}

    def collect(term: Real, factor: float) -> None:
        nonlocal constant
        match term:
            case Constant(value):
                constant += factor * value
            case Plus(inner):
                for part in inner:
                    collect(part, factor)
            case Times((Constant(value), *rest)):
                collect(rest[0] if len(rest) == 1 else Times(tuple(rest)), factor * value)
            case Lifted(value) if abs(factor) == 1:
                integers.append(value if factor == 1 else multiply(Const(-1), value))
            case _:
                coefficients[term] = coefficients.get(term, 0.0) + factor

    for term in terms:
        collect(term, 1.0)
    whole = lift(add(*integers))
    if isinstance(whole, Constant):
        constant += whole.value
    else:
        coefficients[whole] = coefficients.get(whole, 0.0) + 1.0
    parts = [
        (factor, times(Constant(factor), term))
        for term, factor in coefficients.items()
        if factor != 0
    ]
    parts.sort(key=lambda part: (part[0] < 0, _TERM_RANK[type(_unscaled(part[1]))], _key(part[1])))
    found = [part for _, part in parts]
    if constant != 0 or not found:
        # In front of differences only: `1.0 - x` rather than `-x + 1.0`.
        falls = all(factor < 0 for factor, _ in parts) and constant > 0
        found.insert(0 if falls else len(found), Constant(constant))
    return found[0] if len(found) == 1 else Plus(tuple(found))


def minus(expr: Real) -> Real:
    """`-expr`."""
    return times(Constant(-1.0), expr)


def times(*factors: Real) -> Real:
    """The product, flattened, constants folded in front."""
    constant = 1.0
    rest: list[Real] = []
    stack = list(factors)
    while stack:
        factor = stack.pop()
        match factor:
            case Constant(value):
                constant *= value
            case Times(inner):
                stack.extend(inner)
            case _:
                rest.append(factor)
    if constant == 0 or not rest:
        return Constant(constant if not rest else 0.0)
    if constant == -1 and isinstance(rest[0], Lifted) and len(rest) == 1:
        return Lifted(multiply(Const(-1), rest[0].value))
    rest.sort(key=lambda factor: (_FACTOR_RANK[type(factor)], _key(factor)))
    if constant != 1:
        rest.insert(0, Constant(constant))
    return rest[0] if len(rest) == 1 else Times(tuple(rest))


def over(dividend: Real, divisor: Real) -> Real:
    """The quotient; constants fold."""
    match dividend, divisor:
        case Constant(a), Constant(b):
            return Constant(a / b if b else math.nan)
        case Constant(0.0), _:
            return ZERO
        case _, Constant(1.0):
            return dividend
    return Over(dividend, divisor)


def least(*args: Real) -> Real:
    """The least of the arguments, flattened and without duplicates."""
    return _extremum(Least, minimum, min, args)


def greatest(*args: Real) -> Real:
    """The greatest of the arguments, flattened and without duplicates."""
    return _extremum(Greatest, maximum, max, args)


def _extremum(
    kind: type[Least] | type[Greatest],
    of_integers: Callable[..., IntExpr],
    of_constants: Callable[..., float],
    args: tuple[Real, ...],
) -> Real:
    flat: dict[Real, None] = {}
    for arg in args:
        flat.update(dict.fromkeys(arg.args if isinstance(arg, kind) else (arg,)))
    integers = [part.value for part in flat if isinstance(part, Lifted)]
    constants = [part.value for part in flat if isinstance(part, Constant)]
    parts: list[Real] = [part for part in flat if not isinstance(part, (Lifted, Constant))]
    if integers:
        parts.append(lift(of_integers(*integers)))
    if constants:
        parts.append(Constant(of_constants(constants)))
    parts.sort(key=lambda part: (_TERM_RANK[type(part)], _key(part)))
    return parts[0] if len(parts) == 1 else kind(tuple(parts))


def magnitude(value: Real) -> Real:
    """`abs(value)`."""
    match value:
        case Constant(number):
            return Constant(abs(number))
        case Lifted(integer):
            return lift(absolute(integer))
    return value if isinstance(value, Magnitude) else Magnitude(value)


def apply(function: Function, value: Real) -> Real:
    """`function(value)`; of a constant, its value."""
    if not isinstance(value, Constant):
        return Apply(function, value)
    return Constant(_value(function, value.value))


def choice(condition: Predicate, then: Real, otherwise: Real) -> Real:
    """`if condition then ... else ...`."""
    if isinstance(condition, Truth):
        return then if condition.value else otherwise
    if then == otherwise:
        return then
    if isinstance(then, Lifted) and isinstance(otherwise, Lifted):
        return lift(select(condition, then.value, otherwise.value))
    return Choice(condition, then, otherwise)


def below(left: Real, right: Real, then: Real, otherwise: Real) -> Real:
    """`then` where `left < right`, `otherwise` elsewhere."""
    if then == otherwise:
        return then
    if isinstance(left, Constant) and isinstance(right, Constant):
        return then if left.value < right.value else otherwise
    return Below(left, right, then, otherwise)


def rebuild(
    expr: Real,
    function: Callable[[Real], Real],
    integer: Callable[[IntExpr], IntExpr],
    predicate: Callable[[Predicate], Predicate],
) -> Real:
    """The expression with functions applied to its direct parts, put together again.

    Args:
        expr: The expression.
        function: Of each real part.
        integer: Of each integer: what is lifted, and indexes.
        predicate: Of a condition.
    """
    match expr:
        case Lifted(value):
            return lift(integer(value))
        case Lookup(table, indexes):
            return Lookup(table, tuple(map(integer, indexes)))
        case Plus(terms):
            return plus(*map(function, terms))
        case Times(factors):
            return times(*map(function, factors))
        case Over(dividend, divisor):
            return over(function(dividend), function(divisor))
        case Least(args):
            return least(*map(function, args))
        case Greatest(args):
            return greatest(*map(function, args))
        case Magnitude(value):
            return magnitude(function(value))
        case Apply(name, value):
            return apply(name, function(value))
        case Choice(condition, then, otherwise):
            return choice(predicate(condition), function(then), function(otherwise))
        case Below(left, right, then, otherwise):
            return below(*map(function, (left, right, then, otherwise)))
    return expr


def scaled(expr: Real, factor: float) -> Real:
    """`factor * expr`, the factor moved to where it meets constants or what is known per row."""
    match expr:
        case Plus(terms):
            return plus(*(scaled(term, factor) for term in terms))
        case Choice(condition, then, otherwise):
            return choice(condition, scaled(then, factor), scaled(otherwise, factor))
        case Over(dividend, divisor) if isinstance(dividend, (Constant, Times)):
            return over(scaled(dividend, factor), divisor)
        case Over(dividend, Constant(divisor)):
            return times(Constant(factor / divisor), dividend)
    return times(Constant(factor), expr)


def _value(function: Function, number: float) -> float:
    try:
        match function:
            case "tanh":
                return math.tanh(number)
            case "exp":
                return math.exp(number)
            case "log":
                return math.log(number)
            case "sqrt":
                return math.sqrt(number)
            case "sigmoid":
                return 0.5 + 0.5 * math.tanh(0.5 * number)
            case "sign":
                return float((number > 0) - (number < 0))
    except (ValueError, OverflowError):
        return math.nan


def _unscaled(expr: Real) -> Real:
    """A term without its constant factor."""
    match expr:
        case Times((Constant(), factor)):
            return factor
    return expr


def _key(expr: Real) -> str:
    return real_text(expr)
