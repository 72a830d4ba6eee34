"""Values of masks and of what they read, at numbers and at arrays of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np

from patterncc.codegen import lookup
from patterncc.dsl.mask import (
    MISSING,
    Abs,
    And,
    Branch,
    Compare,
    Const,
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

Env = Mapping[str, Any]


def evaluate(expr: Expr, env: Env) -> Any:
    """The value of an expression; names may be bound to int64 arrays, which broadcast.

    Args:
        expr: Any but a cover.
        env: What it reads by name: numbers or arrays of them; a table as an array of its shape
            (bool for truth values); segments as their `cu_seqlens`, int64 `[documents + 1]`.

    Raises:
        KeyError: For a name that `env` does not bind.
    """

    def go(inner: Expr) -> Any:
        return evaluate(inner, env)

    match expr:
        case Const(value) | Truth(value):
            return value
        case Var(name) | Param(name):
            return env[name]
        case Sum(terms):
            return reduce(lambda a, b: a + b, map(go, terms))
        case Product(factors):
            return reduce(lambda a, b: a * b, map(go, factors))
        case FloorDiv(value, divisor):
            return go(value) // go(divisor)
        case Mod(value, divisor):
            return go(value) % go(divisor)
        case Min(args):
            return reduce(np.minimum, map(go, args))
        case Max(args):
            return reduce(np.maximum, map(go, args))
        case Abs(value):
            return abs(go(value))
        case Select(condition, then, otherwise):
            return np.where(go(condition), go(then), go(otherwise))
        case Entry(table, indexes):
            return lookup.read(env[table], [*map(go, indexes)], MISSING)
        case Segment(kind, segments, position):
            return lookup.segment(kind, env[segments], go(position))
        case Compare(op, left, right):
            a, b = go(left), go(right)
            return {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b}[op]
        case And(args):
            return reduce(np.logical_and, map(go, args))
        case Or(args):
            return reduce(np.logical_or, map(go, args))
        case Not(arg):
            return np.logical_not(go(arg))
        case Branch(condition, then, otherwise):
            return np.where(go(condition), go(then), go(otherwise))
        case Member(table, indexes):
            return lookup.read(env[table], [*map(go, indexes)], False)
    raise TypeError(f"a cover has no value here: {expr!r}")
