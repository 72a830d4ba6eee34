"""The score algebra evaluated element by element in torch, differentiably.

Where integers and predicates come from is the caller's affair; knows no tile and no attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from typing_extensions import assert_never

from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.mask import IntExpr, Predicate
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

if TYPE_CHECKING:
    from patterncc.codegen.score.readings import Reading

Discrete: TypeAlias = Callable[["IntExpr | Predicate"], Tensor]
"""The value of an integer (int64) or a predicate (bool), of a shape that broadcasts."""

_FUNCTIONS: Mapping[Function, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
}


class RealEvaluator:
    """Evaluates expressions at the same scores and positions; equal parts once.

    Args:
        score: The scores; `None` where nothing reads them.
        discrete: Evaluates integers and predicates.
        numbers: Run-time numbers by name.
        tables: Tables of real numbers by name, of the rank that is read.
        like: Of the type and device of the results.
        readings: Where entries are read, of those that it is known of.
    """

    def __init__(
        self,
        score: Tensor | None,
        discrete: Discrete,
        numbers: Mapping[str, float],
        tables: Mapping[str, Tensor],
        like: Tensor,
        readings: Mapping[Lookup, Reading] = MappingProxyType({}),
    ) -> None:
        self._score = score
        self._discrete = discrete
        self._numbers = numbers
        self._tables = tables
        self._like = like
        self._readings = readings
        self._known: dict[Real, Tensor] = {}

    def __call__(self, expr: Real) -> Tensor:
        """The value of an expression, of a shape that broadcasts with the scores.

        Raises:
            ArgumentError: A number or table is missing, or a table has another rank.
        """
        found = self._known.get(expr)
        if found is None:
            found = self._known[expr] = self._evaluate(expr)
        return found

    def _evaluate(self, expr: Real) -> Tensor:
        match expr:
            case Constant(value):
                return self._full(value)
            case Score():
                if self._score is None:
                    raise ArgumentError("there is no score to read here")
                return self._score
            case Number(name):
                if name not in self._numbers:
                    raise ArgumentError(f"the score reads the number `{name}`, which is missing")
                return self._full(self._numbers[name])
            case Lifted(value):
                return self._discrete(value).to(self._like.dtype)
            case Lookup(name) if expr in self._readings:
                return self._readings[expr].read(self._tables[name].to(self._like.dtype))
            case Lookup():
                places, inside = self.places(expr)
                table = self._tables[expr.table].to(self._like.dtype)
                if table.numel() == 0:
                    return torch.zeros_like(inside, dtype=self._like.dtype)
                # Unlike that of an index, this derivative adds in a fixed order on the CPU.
                flat = flat_index(places, table.shape)
                found = table.reshape(-1).index_select(0, flat.flatten()).view(flat.shape)
                return torch.where(inside, found, 0)
            case Plus(terms):
                return reduce(torch.add, map(self, terms))
            case Times(factors):
                return reduce(torch.mul, map(self, factors))
            case Over(dividend, divisor):
                return self(dividend) / self(divisor)
            case Least(args):
                return reduce(lambda a, b: torch.where(b < a, b, a), map(self, args))
            case Greatest(args):
                return reduce(lambda a, b: torch.where(a < b, b, a), map(self, args))
            case Magnitude(value):
                return self(value).abs()
            case Apply(function, value):
                return _FUNCTIONS[function](self(value))
            case Choice(condition, then, otherwise):
                return torch.where(self._discrete(condition), self(then), self(otherwise))
            case Below(left, right, then, otherwise):
                return torch.where(self(left) < self(right), self(then), self(otherwise))
            case _:
                assert_never(expr)

    def _full(self, number: float) -> Tensor:
        """A number, made where it is used: a copy from the host would wait for the device."""
        return torch.full((), number, dtype=self._like.dtype, device=self._like.device)

    def places(self, lookup: Lookup) -> tuple[tuple[Tensor, ...], Tensor]:
        """Where a table is read: an index for each axis, 0 where it is outside, and where it is
        inside.

        Raises:
            ArgumentError: The table is missing, or has another rank.
        """
        if lookup.table not in self._tables:
            raise ArgumentError(f"the score reads the table `{lookup.table}`, which is missing")
        shape = self._tables[lookup.table].shape
        if len(shape) != len(lookup.indexes):
            raise ArgumentError(
                f"the table `{lookup.table}` has {len(shape)} axes; the score reads "
                f"{len(lookup.indexes)}"
            )
        indexes = torch.broadcast_tensors(*map(self._discrete, lookup.indexes))  # type: ignore[no-untyped-call]
        inside = reduce(
            torch.logical_and,
            [(at >= 0) & (at < size) for at, size in zip(indexes, shape, strict=True)],
        )
        return tuple(torch.where(inside, at, 0) for at in indexes), inside


def flat_index(places: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Where elements lie in a contiguous tensor of a shape, from an index for each axis."""
    flat = places[0]
    for at, size in zip(places[1:], shape[1:], strict=True):
        flat = flat * size + at
    return flat
