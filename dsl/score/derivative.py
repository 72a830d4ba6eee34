"""Symbolic derivatives in the score algebra: of a logit by the score and by entries of tables.

What cancels is cancelled, so that the derivative of `c * tanh(score / c)` reads
`1.0 - tanh(score / c) * tanh(score / c)`.
"""

from typing_extensions import assert_never

from patterncc.dsl.score.build import (
    apply,
    below,
    choice,
    greatest,
    least,
    minus,
    over,
    plus,
    times,
)
from patterncc.dsl.score.nodes import (
    ONE,
    ZERO,
    Apply,
    Below,
    Choice,
    Constant,
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
    walk,
)


def derivative(expr: Real, leaf: Score | Lookup) -> Real:
    """The partial derivative by a leaf, as which every occurrence of it counts.

    Where two arguments of `min` or `max` are equal it is that of the first; at 0, `abs` has 0.
    """
    if expr == leaf:
        return ONE
    if leaf not in walk(expr):
        return ZERO
    match expr:
        case Constant() | Score() | Number() | Lifted() | Lookup():
            return ZERO
        case Plus(terms):
            return plus(*(derivative(term, leaf) for term in terms))
        case Times(factors):
            return plus(
                *(
                    _product(derivative(factor, leaf), *factors[:place], *factors[place + 1 :])
                    for place, factor in enumerate(factors)
                )
            )
        case Over(dividend, divisor):
            first = _product(derivative(dividend, leaf), Over(ONE, divisor))
            second = _product(derivative(divisor, leaf), expr, Over(ONE, divisor))
            return plus(first, minus(second))
        case Least(args):
            one, other = args[0], least(*args[1:])
            return below(other, one, derivative(other, leaf), derivative(one, leaf))
        case Greatest(args):
            one, other = args[0], greatest(*args[1:])
            return below(one, other, derivative(other, leaf), derivative(one, leaf))
        case Magnitude(value):
            return _product(apply("sign", value), derivative(value, leaf))
        case Apply():
            return _product(_slope(expr), derivative(expr.value, leaf))
        case Choice(condition, then, otherwise):
            return choice(condition, derivative(then, leaf), derivative(otherwise, leaf))
        case Below(left, right, then, otherwise):
            return below(left, right, derivative(then, leaf), derivative(otherwise, leaf))
        case _:
            assert_never(expr)


def _slope(expr: Apply) -> Real:
    """The derivative of a function at its argument, by its value where that is cheapest."""
    match expr.function:
        case "tanh":
            return plus(ONE, minus(times(expr, expr)))
        case "exp":
            return expr
        case "log":
            return Over(ONE, expr.value)
        case "sqrt":
            return Over(Constant(0.5), expr)
        case "sigmoid":
            return times(expr, plus(ONE, minus(expr)))
        case "sign":
            return ZERO
        case _:
            assert_never(expr.function)


def _product(*factors: Real) -> Real:
    """The product, with factors that also divide cancelled."""
    constant, by = 1.0, 1.0
    above: list[Real] = []
    under: list[Real] = []
    stack = list(factors)
    while stack:
        match stack.pop():
            case Constant(value):
                constant *= value
            case Times(inner):
                stack.extend(inner)
            case Over(dividend, Constant(value)):
                stack.append(dividend)
                by *= value
            case Over(dividend, divisor):
                stack.append(dividend)
                under.append(divisor)
            case factor:
                above.append(factor)
    for factor in tuple(under):
        if factor in above:
            above.remove(factor)
            under.remove(factor)
    if constant / by * by != constant:  # rounded, so an outer factor would not cancel it
        return Over(times(Constant(constant), *above), times(Constant(by), *under))
    product = times(Constant(constant / by), *above)
    return over(product, times(*under)) if under else product
