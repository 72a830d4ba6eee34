"""What tables say of tiles or of runs of keys, many at once, as Triton text.

`visited` is a vector of lanes, one tile or run each; clauses of the block IR leave fewer of them
(`ir.Clauses`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.bound_source import wide_name
from patterncc.codegen.gpu.scalar_source import ExpressionWriter, Text
from patterncc.codegen.gpu.table_sum_source import is_summed, sum_parameter
from patterncc.codegen.ir import K_FIRST, K_LAST, Q_FIRST, Q_LAST, Comparison
from patterncc.dsl.mask import Expr, Param, Var, variables

if TYPE_CHECKING:
    from patterncc.codegen.gpu.table_source import Table
    from patterncc.codegen.ir import BlockProgram, Direction, Entries

_SHORT = 8  # fewer entries along an axis are looked at one by one
_AT_ONCE = {True: 16, False: 8}  # or that many at once: along the last axis, along another
_ACROSS = ("[:, None]", "[None, :]")  # a vector as the rows and as the columns of a tile

LANE_ENDS: Mapping[str, tuple[Var, Var]] = {
    "forward": (K_FIRST, K_LAST),
    "transposed": (Q_FIRST, Q_LAST),
}
"""First and last key, or row, of the tiles that are looked at: one of each in every lane."""


def clause_lines(
    program: BlockProgram, direction: Direction, tables: Mapping[str, Table]
) -> Iterator[str]:
    """Keeps of the tiles in lanes, `visited`, those in which each clause may hold, and of `whole`
    those in which each holds throughout."""
    for clause in program.listed:
        yield "any_true = tl.zeros([LANES], tl.int32)"
        yield "any_whole = tl.zeros([LANES], tl.int32)"
        for literal in clause:
            if isinstance(literal, Comparison):
                yield from _compared(literal)
            elif is_summed(literal):
                yield from _summed(literal, tables[literal.table])
            else:
                yield from _entries(literal, tables[literal.table], LANE_ENDS[direction])
            yield "any_true = tl.maximum(any_true, some)"
            yield "any_whole = tl.maximum(any_whole, every)"
        yield "visited = visited & (any_true != 0)"
        yield "whole = whole & (any_whole != 0)"


def _compared(comparison: Comparison) -> Iterator[str]:
    """`some`, `every`, from a comparison of the numbers of keys in lanes."""
    writer = ExpressionWriter(_wide, least_bits=64)
    for name, holds in (("some", comparison.some), ("every", comparison.every)):
        yield f"{name} = tl.where(visited & {writer.predicate(holds)}, 1, 0)"


def _summed(entries: Entries, table: Table) -> Iterator[str]:
    """`some`, `every`, from the counts of true entries before each place of the last axis."""
    writer = ExpressionWriter(_wide, least_bits=64)
    *front, last = (bounds.lo for bounds in entries.ranges)
    yield "inside = visited"
    yield "row = tl.cast(0, tl.int64)"
    for index, size in zip(front, table.sizes, strict=False):
        place = writer.integer(index).operand()
        yield f"inside = inside & ({place} >= 0) & ({place} < {size.name})"
        yield f"row = row * {size.name} + {place}"
    size_name = table.sizes[-1].name
    yield f"low = {writer.integer(last).text}"
    yield f"high = {writer.integer(entries.ranges[-1].hi).text}"
    yield f"first = tl.minimum(tl.maximum(low, 0), {size_name})"
    yield f"after = tl.minimum(tl.maximum(high + 1, 0), {size_name})"
    yield f"row = tl.where(inside, row * ({size_name} + 1), 0)"
    counts = sum_parameter(entries.table).name
    yield f"count = tl.load({counts} + row + after, mask=inside, other=0)"
    yield f"count -= tl.load({counts} + row + first, mask=inside, other=0)"
    yield "some = tl.where(count > 0, 1, 0)"
    yield "every = tl.where(inside & (count == high - low + 1), 1, 0)"


def _entries(entries: Entries, table: Table, lanes: tuple[Var, Var]) -> Iterator[str]:
    """`some`, `every`: are some and are all entries true that a tile reads?

    Entries along the longest axis are looked at many at once. Their lanes are those nearest in
    memory where that is the table's last axis, which the entries lie along; else it is the tiles'
    lanes, which follow that axis.

    Args:
        entries: Which entries.
        table: Their table.
        lanes: What differs between lanes.
    """
    of_lanes = {leaf.name for leaf in lanes}
    spans = [bounds.most for bounds in entries.ranges]
    longest = max(range(len(spans)), key=lambda axis: (spans[axis], axis))
    last = longest == len(spans) - 1
    at_once = 1
    if spans[longest] >= _SHORT:
        at_once = min(1 << (spans[longest] - 1).bit_length(), _AT_ONCE[last])
    tile, along = ("", "") if at_once == 1 else _ACROSS if last else _ACROSS[::-1]
    steps = [span if axis != longest else -(-span // at_once) for axis, span in enumerate(spans)]
    writer = ExpressionWriter(_wide, least_bits=64)
    for axis, bounds in enumerate(entries.ranges):
        yield f"low_{axis} = {writer.integer(bounds.lo).text}"
        if bounds.most > 1:
            yield f"high_{axis} = {writer.integer(bounds.hi).text}"
    yield "some = tl.zeros([LANES], tl.int32)"
    yield "every = tl.full([LANES], 1, tl.int32)"
    yield f"for entry in range(0, {prod(steps)}):"
    yield f"    within = visited{tile}"
    left = prod(steps)
    for axis, bounds in enumerate(entries.ranges):
        left //= steps[axis]
        # Else bounds are numbers of the whole program.
        of_tile = tile if variables(bounds.lo) & of_lanes else ""
        number = f" + entry // {left} % {steps[axis]}" if bounds.most > 1 else ""
        if axis == longest and at_once > 1:
            number = f" + ({number[3:]} * {at_once} + tl.arange(0, {at_once})){along}"
        yield f"    index_{axis} = low_{axis}{of_tile}{number}"
        if bounds.most > 1:
            yield f"    within = within & (index_{axis} <= high_{axis}{of_tile})"
    yield "    inside = within"
    yield "    place = index_0"
    for axis, size in enumerate(table.sizes):
        if axis:
            yield f"    place = place * {size.name} + index_{axis}"
        yield f"    inside = inside & (index_{axis} >= 0) & (index_{axis} < {size.name})"
    # The choice also gives each lane a place.
    yield "    place = tl.where(inside, place, 0)"
    yield f"    true = tl.load({table.pointer.name} + place, mask=inside, other=0) != 0"
    some, every = "tl.where(true, 1, 0)", "tl.where(true | (within == 0), 1, 0)"
    if at_once > 1:
        axis = 1 if last else 0
        some, every = f"tl.max({some}, {axis})", f"tl.min({every}, {axis})"
    yield f"    some = tl.maximum(some, {some})"
    yield f"    every = tl.minimum(every, {every})"


def _wide(expr: Expr) -> Text | None:
    return Text(wide_name(expr), 64) if isinstance(expr, (Var, Param)) else None
