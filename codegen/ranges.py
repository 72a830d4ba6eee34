"""What a mask decides by the ranges of its numbers alone: `k // 16 % 4 < 4` holds of every key.

Patterns with parameters leave such comparisons behind once the parameters are numbers, and every
one that is left costs integer sets and kernels a division.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from patterncc.dsl.build import add, multiply, rebuild
from patterncc.dsl.mask import (
    Abs,
    Compare,
    Const,
    Expr,
    FloorDiv,
    IntExpr,
    Max,
    Min,
    Mod,
    Predicate,
    Product,
    Select,
    Sum,
    Truth,
    Var,
)

# Sizes and coordinates of every call, and keys.
LEAST = {"q_len": 1, "kv_len": 1, "heads": 1, "kv_heads": 1, "layers": 1}
LEAST |= {"call_q_len": 1, "call_kv_len": 1, "head": 0, "kv_head": 0, "layer": 0, "batch": 0}
_LEAST = LEAST | {"k": 0}

Bounds: TypeAlias = tuple[int | None, int | None]
"""The least and the greatest value, both included; None where there is no such bound."""


def without_foregone(body: Predicate) -> Predicate:
    """The mask without comparisons that are the same at every pair of every call."""

    def go(expr: Expr) -> Expr:
        match rebuild(expr, go):
            case Compare(op, left, right) as comparison:
                least, greatest = bounds(add(left, multiply(Const(-1), right)))
                decided = _decided(op, least, greatest)
                return comparison if decided is None else Truth(decided)
            case simple:
                return simple

    return go(body)  # type: ignore[return-value]


def _decided(op: str, least: int | None, greatest: int | None) -> bool | None:
    """Whether a difference between two bounds meets `op` with 0, if that is certain."""
    below = greatest is not None and greatest < 0
    above = least is not None and least > 0
    match op:
        case "<" if below or (least is not None and least >= 0):
            return below
        case "<=" if above or (greatest is not None and greatest <= 0):
            return not above
        case "==" | "!=" if below or above:
            return op == "!="
    return None


def bounds(expr: IntExpr) -> Bounds:
    """Bounds of a number, from what remainders can be and the sizes of a call."""
    match expr:
        case Const(value):
            return value, value
        case Var(name):
            return _LEAST.get(name), None
        case Sum(terms):
            return _sum(map(bounds, terms))
        case Product((Const(factor), *rest)) if len(rest) == 1:
            low, high = (_scaled(end, factor) for end in bounds(rest[0]))
            return (low, high) if factor > 0 else (high, low)
        case FloorDiv(value, Const(divisor)) if divisor > 0:
            low, high = bounds(value)
            return _divided(low, divisor), _divided(high, divisor)
        case Mod(value, Const(divisor)) if divisor > 0:
            low, high = bounds(value)
            inside = low is not None and high is not None and low >= 0 and high < divisor
            return (low, high) if inside else (0, divisor - 1)
        case Min(args):
            lows, highs = zip(*map(bounds, args), strict=True)
            return _least(lows), min(_known(highs), default=None)
        case Max(args):
            lows, highs = zip(*map(bounds, args), strict=True)
            return max(_known(lows), default=None), _greatest(highs)
        case Abs():
            return 0, None
        case Select(_, then, otherwise):
            lows, highs = zip(bounds(then), bounds(otherwise), strict=True)
            return _least(lows), _greatest(highs)
    return None, None


def _sum(parts: Iterable[Bounds]) -> Bounds:
    least: int | None = 0
    greatest: int | None = 0
    for low, high in parts:
        least = None if least is None or low is None else least + low
        greatest = None if greatest is None or high is None else greatest + high
    return least, greatest


def _scaled(end: int | None, factor: int) -> int | None:
    return None if end is None else factor * end


def _divided(end: int | None, divisor: int) -> int | None:
    return None if end is None else end // divisor


def _known(ends: Sequence[int | None]) -> list[int]:
    return [end for end in ends if end is not None]


def _least(ends: Sequence[int | None]) -> int | None:
    """The least of some ends, if all are known."""
    return None if None in ends else min(_known(ends))


def _greatest(ends: Sequence[int | None]) -> int | None:
    """The greatest of some ends, if all are known."""
    return None if None in ends else max(_known(ends))
