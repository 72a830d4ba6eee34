"""`Pattern`: what the language front hands on. Text plus numbers, one predicate, no tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from patterncc.dsl.mask import Predicate


@dataclass(frozen=True, slots=True)
class IntType:
    """A number."""


@dataclass(frozen=True, slots=True)
class TableType:
    """A table of numbers or of truth values, one axis per index; `None` is a free axis (`*`)."""

    element: Literal["int", "bool"]
    axes: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class SegmentsType:
    """Packed documents, given as `cu_seqlens`: int32 `[documents + 1]`, from 0, never falling."""


ParameterType: TypeAlias = IntType | TableType | SegmentsType


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter, with its value if it has one.

    `fixed`: it divides, is a modulus, multiplies a position or sizes a block. Those of
    `Pattern.parameters` never do.
    """

    name: str
    type: ParameterType
    value: int | None = None
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class Pattern:
    """A checked pattern with its lets, calls and fixed parameters written out.

    Two patterns are equal when their `text` is.

    Attributes:
        name: What the text calls it; "" for a lone expression. Not part of its identity.
        parameters: In declared order, those still open at the call: run-time numbers (with their
            default, or `None` where the call must give one), tables and segments.
        fixed: The parameters that divide, are a modulus, multiply a position or size a block, in
            declared order, with the values that are constants of `body` by now.
        body: May the query at `q` attend to the key at `k`?
        text: Canonical text, its identity: equal for spellings that differ in spacing, names of
            lets, order of arguments or operands; loads back as an equal pattern. Run-time defaults
            are in it.
        structure: `text` without the run-time defaults: what a kernel is compiled from, so that
            another window or length is the same kernel. Its parameters are in name order.
    """

    name: str = field(compare=False)
    parameters: tuple[Parameter, ...] = field(compare=False)
    fixed: tuple[tuple[str, int], ...] = field(compare=False)
    body: Predicate = field(compare=False)
    text: str
    structure: str = field(compare=False)

    @property
    def numbers(self) -> tuple[Parameter, ...]:
        """The run-time `int` parameters in name order, in which their values travel to a kernel."""
        return tuple(
            sorted(
                (p for p in self.parameters if isinstance(p.type, IntType)), key=lambda p: p.name
            )
        )

    @property
    def defaults(self) -> dict[str, int]:
        """The values of the run-time numbers that have one, by name, in name order."""
        return {number.name: number.value for number in self.numbers if number.value is not None}

    @property
    def open_numbers(self) -> tuple[str, ...]:
        """The names of the run-time numbers that have no value, in name order."""
        return tuple(number.name for number in self.numbers if number.value is None)

    @property
    def tables(self) -> tuple[Parameter, ...]:
        """The table and segments parameters in name order."""
        return tuple(
            sorted(
                (p for p in self.parameters if not isinstance(p.type, IntType)),
                key=lambda p: p.name,
            )
        )
