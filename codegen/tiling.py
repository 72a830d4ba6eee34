"""Masks in changed variables: what is left of a pattern when rows and keys are counted within one
class.

`q = q_step * q' + Q_CLASS` and `k = k_step * k' + k_class` (see `ir.Tiling`) turn a dilated window
into a dense one: `(q - k) % 8 == 0 and 0 <= q - k < 4096` becomes `0 <= q' - k' < 512`.
"""

from __future__ import annotations

from math import gcd

from patterncc.codegen.ir import CALL_KV_LEN, CALL_Q_LEN, DENSE, Q_CLASS, Tiling
from patterncc.codegen.passes.simplify import divide
from patterncc.codegen.scalars import is_scalar
from patterncc.dsl.build import (
    add,
    all_of,
    any_of,
    compare,
    modulo,
    multiply,
    rebuild,
    substitute,
)
from patterncc.dsl.mask import (
    Compare,
    CompareOp,
    Const,
    Expr,
    FloorDiv,
    IntExpr,
    K,
    Mod,
    Predicate,
    Product,
    Q,
    Sum,
    Var,
)


def residue_tiling(step: int) -> Tiling:
    """Rows and keys of the same remainder: for patterns in which `(q - k) % step == 0` holds."""
    return Tiling(step, step, Q_CLASS)


def change_variables(body: Predicate, tiling: Tiling) -> Predicate:
    """The mask of one class, simplified: its `q` and `k` count rows and keys of the class."""
    if tiling == DENSE:
        return body
    changed = substitute(
        body,
        {
            Q: add(multiply(Const(tiling.q_step), Q), Q_CLASS if tiling.q_step > 1 else Const(0)),
            K: add(multiply(Const(tiling.k_step), K), tiling.k_class),
            Var("q_len"): CALL_Q_LEN,
            Var("kv_len"): CALL_KV_LEN,
        },
    )
    return _Reducer(tiling).reduced(changed)  # type: ignore[return-value]


class _Reducer:
    """Cancels the steps in quotients, remainders and comparisons, bottom up."""

    def __init__(self, tiling: Tiling) -> None:
        self._keys = (
            divide(
                add(CALL_KV_LEN, multiply(Const(-1), tiling.k_class), Const(tiling.k_step - 1)),
                tiling.k_step,
            )
            if tiling.k_step > 1
            else None
        )
        self._ranges: dict[IntExpr, int] = {Q_CLASS: tiling.q_step}  # each in [0, n)
        if not isinstance(tiling.k_class, Const):
            self._ranges[tiling.k_class] = tiling.k_step

    def reduced(self, expr: Expr) -> Expr:
        match rebuild(expr, self.reduced):
            case Compare(op, left, right):
                return _reduced(op, left, right)
            case FloorDiv(value, Const(divisor)):
                return self._quotient(divide(self._without_class(value, divisor), divisor))
            case Mod(value, Const(divisor)):
                return self._remainder(value, divisor)
            case simple:
                return simple

    def _without_class(self, value: IntExpr, divisor: int) -> IntExpr:
        """Drops the class of a dividend where it never decides: `(8 * q + q_class) // 64`."""
        terms = value.terms if isinstance(value, Sum) else (value,)
        classes = [term for term in terms if term in self._ranges]
        if len(classes) != 1:
            return value
        rest = add(value, multiply(Const(-1), classes[0]))
        step = gcd(divisor, *_factors(rest))
        return rest if self._ranges[classes[0]] <= step else value

    def _quotient(self, expr: IntExpr) -> IntExpr:
        """Drops quotients of a number below its divisor, `q_class // 8`, and knows the count of a
        class's keys.
        """
        terms: list[IntExpr] = []
        for term in expr.terms if isinstance(expr, Sum) else (expr,):
            match term:
                case FloorDiv(value, Const(divisor)) if self._ranges.get(value, divisor + 1) <= (
                    divisor
                ):
                    continue
            terms.append(Var("kv_len") if term == self._keys else term)
        return add(*terms)

    def _remainder(self, value: IntExpr, divisor: int) -> IntExpr:
        """`value % divisor` without the multiples of the divisor in it."""
        kept: list[IntExpr] = []
        for term in value.terms if isinstance(value, Sum) else (value,):
            match term:
                case Const(number):
                    kept.append(Const(number % divisor))
                case Product((Const(factor), *_)) if factor % divisor == 0:
                    pass
                case _:
                    kept.append(term)
        rest = add(*kept)
        return (
            rest if self._ranges.get(rest, divisor + 1) <= divisor else modulo(rest, Const(divisor))
        )


def _reduced(op: CompareOp, left: IntExpr, right: IntExpr) -> Predicate:
    """A comparison in which the terms that read positions have a common factor, divided by it.

    With `x` a multiple of `g` and `c` the same in a whole tile: `x <= c` is `x // g <= c // g`, and
    `x == c` needs `g` to divide `c`.
    """
    difference = add(left, multiply(Const(-1), right))
    terms = difference.terms if isinstance(difference, Sum) else (difference,)
    positions = add(*(term for term in terms if not is_scalar(term)))
    # The opposite of what the positions are compared with.
    scalar = add(*(multiply(Const(-1), term) for term in terms if is_scalar(term)))
    common = gcd(*_factors(positions))
    if common <= 1:
        return compare(op, left, right)
    linear = divide(positions, common)
    if op in ("==", "!="):
        same = compare(op, modulo(scalar, Const(common)), Const(0))
        limited = _sides(op, linear, divide(scalar, common))
        return all_of(same, limited) if op == "==" else any_of(same, limited)
    # strictly below: x < c  <=>  x <= c - 1
    limit = add(scalar, Const(-1)) if op == "<" else scalar
    return _sides("<=", linear, divide(limit, common))


def _sides(op: CompareOp, linear: IntExpr, limit: IntExpr) -> Predicate:
    """`linear op limit` with no leading minus on either side, as far as possible."""
    positive, negative = [], []
    for term in linear.terms if isinstance(linear, Sum) else (linear,):
        match term:
            case Product((Const(factor), *_)) if factor < 0:
                negative.append(multiply(Const(-1), term))
            case _:
                positive.append(term)
    if isinstance(limit, Const) and limit.value < 0 and negative:
        return compare(op, add(*positive, Const(-limit.value)), add(*negative))
    return compare(op, add(*positive), add(*negative, limit))


def _factors(value: IntExpr) -> list[int]:
    """The constant factor of each term; a constant term is its own."""
    factors: list[int] = []
    for term in value.terms if isinstance(value, Sum) else (value,):
        match term:
            case Const(number) | Product((Const(number), *_)):
                factors.append(number)
            case _:
                factors.append(1)
    return factors
