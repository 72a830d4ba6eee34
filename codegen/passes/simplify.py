"""Simplifies bounds and guards by identities of floor division; the mask is left as the user wrote
it.

Fewer divisions per program, and bounds that read as a person would write them: `(s - 128) // 128 +
1` is `s // 128`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import gcd

from patterncc.codegen.ir import BlockProgram, Sweep
from patterncc.dsl.build import (
    add,
    all_of,
    any_of,
    compare,
    floordiv,
    maximum,
    minimum,
    modulo,
    multiply,
    negate,
)
from patterncc.dsl.mask import (
    And,
    Compare,
    Const,
    FloorDiv,
    IntExpr,
    Max,
    Min,
    Mod,
    Not,
    Or,
    Predicate,
    Product,
    Sum,
)


def simplify(program: BlockProgram) -> BlockProgram:
    """The program with bounds, phases and guards in a simpler form of equal value."""
    return program.map_sweeps(lambda sweeps: map(_sweep, sweeps))


def _sweep(sweep: Sweep) -> Sweep:
    return replace(
        sweep,
        lo=integer(sweep.lo),
        hi=integer(sweep.hi),
        phase=integer(sweep.phase),
        guard=predicate(sweep.guard),
        repeats=tuple(
            replace(repeat, lo=integer(repeat.lo), hi=integer(repeat.hi))
            for repeat in sweep.repeats
        ),
    )


def predicate(expr: Predicate) -> Predicate:
    """A guard, simplified."""
    match expr:
        case Compare(op, left, right):
            sides = _integers((left, right))
            return expr if sides is None else compare(op, *sides)
        case And(args):
            return all_of(*map(predicate, args))
        case Or(args):
            return any_of(*map(predicate, args))
        case Not(arg):
            return negate(predicate(arg))
    return expr


def integer(expr: IntExpr) -> IntExpr:
    """A bound, simplified bottom up; the same object where there is nothing to simplify."""
    match expr:
        case Sum(terms):
            simpler = _integers(terms)
            return expr if simpler is None else add(*simpler)
        case Product(factors):
            simpler = _integers(factors)
            return expr if simpler is None else multiply(*simpler)
        case FloorDiv(value, Const(divisor)):
            inner = integer(value)
            if inner is value and _is_reduced(value, divisor):
                return expr
            return divide(inner, divisor)
        case Mod(value, Const(divisor)):
            inner = integer(value)
            return expr if inner is value else modulo(inner, Const(divisor))
        case Min(args):
            return _extremum(Min, [integer(arg) for arg in args])
        case Max(args):
            return _extremum(Max, [integer(arg) for arg in args])
    return expr


def _integers(exprs: Sequence[IntExpr]) -> list[IntExpr] | None:
    """Expressions simplified, or None where none of them gets simpler."""
    simpler = [integer(expr) for expr in exprs]
    changed = any(new is not old for new, old in zip(simpler, exprs, strict=True))
    return simpler if changed else None


def _is_reduced(value: IntExpr, divisor: int) -> bool:
    """Whether `divide` would leave `value // divisor` as it is."""
    factors: list[int] = []
    constant = 0
    for term in value.terms if isinstance(value, Sum) else (value,):
        match term:
            case Const(constant):
                pass
            case Product((Const(factor), *_)):
                factors.append(factor)
            case _:
                factors.append(1)
    divided = any(factor % divisor == 0 for factor in factors)
    return not divided and gcd(divisor, *factors) == 1 and 0 <= constant < divisor


def divide(value: IntExpr, divisor: int) -> IntExpr:
    """`value // divisor`: multiples of the divisor leave the division, a common factor cancels.

    `(d * x + y) // d == x + y // d`, and `(g * x + c) // (g * d) == (x + c // g) // d`.
    """
    outside: list[IntExpr] = []
    inside: list[tuple[int, IntExpr]] = []
    constant = 0
    for term in value.terms if isinstance(value, Sum) else (value,):
        match term:
            case Const(number):
                constant = number
            case Product((Const(factor), *rest)):
                inside.append((factor, multiply(*rest)))
            case _:
                inside.append((1, term))
    kept: list[tuple[int, IntExpr]] = []
    for factor, term in inside:
        if factor % divisor == 0:
            outside.append(multiply(Const(factor // divisor), term))
        else:
            kept.append((factor, term))
    if not kept:
        return add(*outside, Const(constant // divisor))
    common = gcd(divisor, *(factor for factor, _ in kept))
    divisor //= common
    outside.append(Const(constant // common // divisor))
    rest_constant = constant // common % divisor
    parts = [multiply(Const(factor // common), term) for factor, term in kept]
    return add(*outside, floordiv(add(*parts, Const(rest_constant)), Const(divisor)))


def _extremum(kind: type[Min] | type[Max], args: list[IntExpr]) -> IntExpr:
    """Gathers arguments divided by the same number: `max(a // d, b // d + 1) == max(a, b + d) //
    d`.
    """
    combine = minimum if kind is Min else maximum
    groups: dict[int, list[IntExpr]] = defaultdict(list)
    others: list[IntExpr] = []
    for arg in args:
        quotient = _as_quotient(arg)
        if quotient is None:
            others.append(arg)
        else:
            groups[quotient[1]].append(quotient[0])
    for divisor, values in groups.items():
        others.append(divide(combine(*_undominated(kind, values)), divisor))
    return combine(*_undominated(kind, others))


def _as_quotient(expr: IntExpr) -> tuple[IntExpr, int] | None:
    """`x // d + c` as `(x + c * d, d)`."""
    match expr:
        case FloorDiv(value, Const(divisor)):
            return value, divisor
        case Sum((FloorDiv(value, Const(divisor)), Const(constant))):
            return add(value, Const(constant * divisor)), divisor
    return None


def _undominated(kind: type[Min] | type[Max], args: list[IntExpr]) -> list[IntExpr]:
    """Of arguments that differ by a constant only the one that decides."""
    best: dict[IntExpr, int] = {}
    for arg in args:
        base, constant = arg, 0
        if isinstance(arg, Sum) and isinstance(arg.terms[-1], Const):
            constant = arg.terms[-1].value
            base = add(arg, Const(-constant))
        elif isinstance(arg, Const):
            base, constant = Const(0), arg.value
        pick = min if kind is Min else max
        best[base] = pick(best[base], constant) if base in best else constant
    return [add(base, Const(constant)) for base, constant in best.items()]
