"""The call at which tiles are counted before there is one: its lengths, run-time numbers and
tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.dsl.mask import (
    Compare,
    Const,
    Entry,
    Expr,
    FloorDiv,
    Predicate,
    Var,
    children,
    parameters,
    variables,
    walk,
)
from patterncc.dsl.pattern import ParameterType, Pattern, TableType

REFERENCE_LENGTH = 16384
REFERENCE_NUMBER = 1024
"""Positions that a run-time number without a default stands for."""
_POSITIONS = frozenset({"q", "k"})


def reference_numbers(
    pattern: Pattern, sizes: Mapping[str, int] | None, documents: int = 4
) -> dict[str, Any]:
    """The numbers and tables of a call at the reference length.

    Args:
        pattern: What is called.
        sizes: `heads`, `kv_heads` and `layers`, where they are known.
        documents: How many documents of one length are taken to be packed.
    """
    env: dict[str, Any] = {
        "heads": 8,
        "kv_heads": 8,
        "layers": 1,
        **(sizes or {}),
        "q_len": REFERENCE_LENGTH,
        "kv_len": REFERENCE_LENGTH,
        "q_offset": 0,
        "head": 0,
        "kv_head": 0,
        "layer": 0,
        "batch": 0,
    }
    env |= {
        name: max(1, REFERENCE_NUMBER // counted_in(pattern.body, name))
        for name in pattern.open_numbers
    }
    env |= pattern.defaults
    for table in pattern.tables:
        env[table.name] = _reference_table(table.type, documents)
    return env


def counted_in(body: Predicate, number: str) -> int:
    """How many positions one of a run-time number stands for: 16 of `blocks` in
    `k // 16 < blocks`; the least where comparisons differ."""
    units = (
        min(_units(node), default=1)
        for node in walk(body)
        if isinstance(node, Compare) and number in parameters(node)
    )
    return min(units, default=1)


def _units(expr: Expr) -> Iterator[int]:
    """By what the positions in an expression are divided; entries of tables are no positions."""
    match expr:
        case FloorDiv(value, Const(divisor)) if variables(value) & _POSITIONS:
            yield divisor
        case Var(name) if name in _POSITIONS:
            yield 1
        case Entry():
            return
        case _:
            for child in children(expr):
                yield from _units(child)


def _reference_table(kind: ParameterType, documents: int) -> npt.NDArray[Any]:
    """A table to count with: documents of one length, one number everywhere, all true. It holds one
    element, whatever its shape.
    """
    if not isinstance(kind, TableType):
        return np.arange(documents + 1, dtype=np.int64) * (REFERENCE_LENGTH // documents)
    shape = [REFERENCE_LENGTH if axis in (None, "token") else 1 for axis in kind.axes]
    element = np.bool_(True) if kind.element == "bool" else np.int64(REFERENCE_NUMBER)
    return np.broadcast_to(element, shape)
