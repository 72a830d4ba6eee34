"""Masks in changed variables: what is left of a pattern when rows and keys are counted within one
class.

`q = q_step * q' + Q_CLASS` and `k = k_step * k' + k_class` (see `ir.Tiling`) turn a dilated window
into a dense one: `(q - k) % 8 == 0 and 0 <= q - k < 4096` becomes `0 <= q' - k' < 512`.
"""

from __future__ import annotations

from math import gcd

from patterncc.codegen.ir import CALL_KV_LEN, CALL_Q_LEN, DENSE, Q_CLASS, Tiling
from patterncc.codegen.passes.simplify import divide
from patterncc.dsl.build import (
    absolute,
    add,
    all_of,
    any_of,
    branch,
    compare,
    maximum,
    minimum,
    modulo,
    multiply,
    negate,
    select,
    substitute,
)
from patterncc.dsl.mask import (
    Abs,
    And,
    Branch,
    Compare,
    Const,
    Entry,
    FloorDiv,
    IntExpr,
    K,
    Max,
    Member,
    Min,
    Mod,
    Not,
    Or,
    Predicate,
    Product,
    Q,
    Segment,
    Select,
    Sum,
    Truth,
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
    return _Reducer(tiling).predicate(changed)


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

    def predicate(self, expr: Predicate) -> Predicate:
        match expr:
            case Compare(op, left, right):
                return _reduced(op, self.integer(left), self.integer(right))
            case And(args):
                return all_of(*map(self.predicate, args))
            case Or(args):
                return any_of(*map(self.predicate, args))
            case Not(arg):
                return negate(self.predicate(arg))
            case Branch(condition, then, otherwise):
                parts = map(self.predicate, (condition, then, otherwise))
                return branch(*parts)
            case Member(table, indexes):
                return Member(table, tuple(map(self.integer, indexes)))
        return expr

    def integer(self, expr: IntExpr) -> IntExpr:
        match expr:
            case Sum(terms):
                return add(*map(self.integer, terms))
            case Product(factors):
                return multiply(*map(self.integer, factors))
            case FloorDiv(value, Const(divisor)):
                whole = self._without_class(self.integer(value), divisor)
                return self._quotient(divide(whole, divisor))
            case Mod(value, Const(divisor)):
                return self._remainder(self.integer(value), divisor)
            case Min(args):
                return minimum(*map(self.integer, args))
            case Max(args):
                return maximum(*map(self.integer, args))
            case Abs(value):
                return absolute(self.integer(value))
            case Select(condition, then, otherwise):
                return select(
                    self.predicate(condition), self.integer(then), self.integer(otherwise)
                )
            case Entry(table, indexes):
                return Entry(table, tuple(map(self.integer, indexes)))
            case Segment(kind, segments, position):
                return Segment(kind, segments, self.integer(position))
        return expr

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


def _reduced(op: str, left: IntExpr, right: IntExpr) -> Predicate:
    """A comparison whose terms have a common factor, divided by it.

    With `x` a multiple of `g`: `x + c <= 0` is `x // g <= -c // g`, and `x + c == 0` needs `g` to
    divide `c`.
    """
    difference = add(left, multiply(Const(-1), right))
    last = difference.terms[-1] if isinstance(difference, Sum) else difference
    constant = last.value if isinstance(last, Const) else 0
    common = gcd(*_factors(add(difference, Const(-constant))))
    if common <= 1:
        return compare(op, left, right)  # type: ignore[arg-type]
    linear = divide(add(difference, Const(-constant)), common)
    if op in ("==", "!="):
        if constant % common:
            return Truth(op == "!=")
        limit = -constant // common
    else:
        # strictly below: x < -c  <=>  x <= -c - 1
        limit = (-constant - (op == "<")) // common
        op = "<="
    positive, negative = [], []
    for term in linear.terms if isinstance(linear, Sum) else (linear,):
        match term:
            case Product((Const(factor), *_)) if factor < 0:
                negative.append(multiply(Const(-1), term))
            case _:
                positive.append(term)
    if limit >= 0 or not negative:
        return _shifted(op, add(*positive), add(*negative), limit)
    return _shifted(op, add(*positive, Const(-limit)), add(*negative), 0)


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


def _shifted(op: str, left: IntExpr, right: IntExpr, limit: int) -> Predicate:
    return compare(op, left, add(right, Const(limit)))  # type: ignore[arg-type]
