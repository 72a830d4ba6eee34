"""The meaning of the score algebra, one pair of positions at a time, in plain Python floats.

The slowest and plainest reading of a term, to test everything else against. It knows no tensor: a
table is anything with a length and integer indexes.
"""

import math
from collections.abc import Mapping
from typing import Any

from typing_extensions import assert_never

from patterncc.dsl.errors import ConfigError
from patterncc.dsl.evaluate import allows, integer
from patterncc.dsl.score.nodes import (
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


def real(
    expr: Real,
    score: float,
    env: Mapping[str, int],
    numbers: Mapping[str, float] | None = None,
    tables: Mapping[str, Any] | None = None,
) -> float:
    """The value of an expression; NaN where real numbers have none, as for `sqrt(-1)`.

    Args:
        expr: The expression.
        score: What `score` is.
        env: The coordinates, `q` and `k` among them, and the sizes that it reads.
        numbers: Run-time numbers by name.
        tables: Tables of real numbers by name, as nested sequences.

    Raises:
        ConfigError: Something that it reads has no value.
    """
    return _Evaluator(score, env, numbers or {}, tables or {}).value(expr)


class _Evaluator:
    def __init__(
        self,
        score: float,
        env: Mapping[str, int],
        numbers: Mapping[str, float],
        tables: Mapping[str, Any],
    ) -> None:
        self.score = score
        self.env = env
        self.numbers = numbers
        self.tables = tables

    def value(self, expr: Real) -> float:
        match expr:
            case Constant(value):
                return value
            case Score():
                return self.score
            case Number(name):
                return float(_given(name, self.numbers))
            case Lifted(value):
                return float(integer(value, self.env))
            case Lookup():
                return self._entry(expr)
            case Plus(terms):
                return sum(map(self.value, terms))
            case Times(factors):
                return math.prod(map(self.value, factors))
            case Over(dividend, divisor):
                below, above = self.value(divisor), self.value(dividend)
                return above / below if below else math.nan
            case Least(args):
                return min(map(self.value, args))
            case Greatest(args):
                return max(map(self.value, args))
            case Magnitude(value):
                return abs(self.value(value))
            case Apply(function, value):
                return _applied(function, self.value(value))
            case Choice(condition, then, otherwise):
                q, k = self.env.get("q", 0), self.env.get("k", 0)
                return self.value(then if allows(condition, q, k, self.env) else otherwise)
            case Below(left, right, then, otherwise):
                return self.value(then if self.value(left) < self.value(right) else otherwise)
            case _:
                assert_never(expr)

    def _entry(self, lookup: Lookup) -> float:
        entry = _given(lookup.table, self.tables)
        for index in lookup.indexes:
            place = integer(index, self.env)
            if not 0 <= place < len(entry):
                return 0.0
            entry = entry[place]
        return float(entry)


def _given(name: str, values: Mapping[str, Any]) -> Any:
    try:
        return values[name]
    except KeyError:
        raise ConfigError(f"`{name}` has no value") from None


def _applied(function: Function, number: float) -> float:
    match function:
        case "tanh":
            return math.tanh(number)
        case "exp":
            return math.exp(number) if number < 709 else math.inf
        case "log":
            return math.log(number) if number > 0 else (math.nan if number else -math.inf)
        case "sqrt":
            return math.sqrt(number) if number >= 0 else math.nan
        case "sigmoid":
            return 0.5 + 0.5 * math.tanh(0.5 * number)
        case "sign":
            return float((number > 0) - (number < 0))
