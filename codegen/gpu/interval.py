"""Interval analysis: between which two integers does an expression lie, whatever the call?

The kernel writer asks here which arithmetic fits into 32 bits and which operands of a division are
never negative. Ranges of single names are known, no relation between them, so the answers are sound
but not tight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from typing_extensions import assert_never

from patterncc.codegen.ir import BOX_NAMES
from patterncc.dsl.mask import (
    MISSING,
    Abs,
    Const,
    Entry,
    FloorDiv,
    IntExpr,
    Max,
    Min,
    Mod,
    Param,
    Product,
    Segment,
    SegmentKind,
    Select,
    Sum,
    Var,
)

LIMIT = 2**30
"""Largest magnitude of a position, an offset, a length, a constant and a run-time number."""

MOST_PROGRAMS = 65535
"""Most heads and most batch entries of one launch: two axes of a CUDA grid."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The integers `low <= x <= high`."""

    low: int
    high: int

    def fits(self, bits: int) -> bool:
        """Does every value fit a signed integer of that many bits?"""
        return -(1 << (bits - 1)) <= self.low and self.high < 1 << (bits - 1)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def __mul__(self, other: Interval) -> Interval:
        corners = [a * b for a, b in product((self.low, self.high), (other.low, other.high))]
        return Interval(min(corners), max(corners))

    def __or__(self, other: Interval) -> Interval:
        return Interval(min(self.low, other.low), max(self.high, other.high))


_POSITION = Interval(-LIMIT, LIMIT)
_KEY = Interval(0, LIMIT)
_COUNT = Interval(1, MOST_PROGRAMS)
_INDEX = Interval(0, MOST_PROGRAMS - 1)

RANGES: Mapping[str, Interval] = {
    "q": _POSITION,
    "k": _KEY,
    "head": _INDEX,
    "kv_head": _INDEX,
    "batch": _INDEX,
    "layer": _POSITION,
    "q_len": _KEY,
    "kv_len": _KEY,
    "heads": _COUNT,
    "kv_heads": _COUNT,
    "layers": Interval(1, LIMIT),
    "q_offset": _POSITION,
    "q_first": _POSITION,
    "q_last": _POSITION,
    "k_first": _KEY,
    "k_last": _KEY,
    "k_tile": _KEY,
    "residue": _KEY,
    "q_class": _KEY,
    "k_class": _KEY,
    "row_class": _KEY,
    "call_q_len": _KEY,
    "call_kv_len": _KEY,
    **dict.fromkeys(sorted(BOX_NAMES), _KEY),
}
"""What each name of the language, of the block IR and of kernels can be; the launcher refuses calls
outside of it."""

_ENTRY = Interval(MISSING, 2**31 - 1)


def interval(expr: IntExpr, ranges: Mapping[str, Interval] = RANGES) -> Interval:
    """The range of an expression's values, for existing rows and keys.

    Args:
        expr: The expression.
        ranges: What each name can be; of whatever call if not given.
    """
    match expr:
        case Const(value):
            return Interval(value, value)
        case Var(name):
            return ranges[name]
        case Param():
            return _POSITION
        case Sum(terms):
            total = Interval(0, 0)
            for term in terms:
                total += interval(term, ranges)
            return total
        case Product(factors):
            scaled = Interval(1, 1)
            for factor in factors:
                scaled *= interval(factor, ranges)
            return scaled
        case FloorDiv(value, divisor):
            inner, by = interval(value, ranges), _divisor(divisor, ranges)
            corners = [a // b for a, b in product((inner.low, inner.high), (by.low, by.high))]
            return Interval(min(corners), max(corners))
        case Mod(value, divisor):
            inner, by = interval(value, ranges), _divisor(divisor, ranges)
            if inner.low >= 0:
                return Interval(0, min(inner.high, by.high - 1))
            return Interval(0, by.high - 1)
        case Min(args):
            parts = [interval(arg, ranges) for arg in args]
            return Interval(min(p.low for p in parts), min(p.high for p in parts))
        case Max(args):
            parts = [interval(arg, ranges) for arg in args]
            return Interval(max(p.low for p in parts), max(p.high for p in parts))
        case Abs(value):
            inner = interval(value, ranges)
            least = 0 if inner.low <= 0 <= inner.high else min(abs(inner.low), abs(inner.high))
            return Interval(least, max(abs(inner.low), abs(inner.high)))
        case Select(_, then, otherwise):
            return interval(then, ranges) | interval(otherwise, ranges)
        case Entry():
            return _ENTRY
        case Segment(kind, _, position):
            return _of_document(kind, interval(position, ranges))
    assert_never(expr)


def _of_document(kind: SegmentKind, position: Interval) -> Interval:
    """What can be answered of the document of a position: there are less than `LIMIT` documents,
    and none ends beyond `LIMIT`."""
    match kind:
        case "id":  # beyond the last document: position - its end + number of documents
            return Interval(min(position.low, 0), max(position.high, 0) + LIMIT - 1)
        case "start":
            return Interval(min(position.low, 0), max(position.high, LIMIT))
        case "end":
            return Interval(min(position.low + 1, 0), max(position.high + 1, LIMIT))
    assert_never(kind)


def _divisor(expr: IntExpr, ranges: Mapping[str, Interval]) -> Interval:
    """The range of a divisor, which the language keeps positive."""
    found = interval(expr, ranges)
    return Interval(max(found.low, 1), max(found.high, 1))
