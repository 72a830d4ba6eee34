"""Loops over the lines of a raster (`lines.Lines`), in tiles that divide its units.

A tile lies in one unit, so what it sees of a box of units is one interval along each axis: a loop
over the tiles of a line within loops over its lines (`ir.Repeat`). Tiles are consecutive positions
and are numbered as everywhere. Calls end where they end: of a box those places follow that are
whole along the outermost axis, then those of the last one that are whole along the next, and so on,
the last tile by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from patterncc.codegen.ir import (
    K_LAST,
    K_TILE,
    Q_FIRST,
    Q_OFFSET,
    BlockProgram,
    Kind,
    Repeat,
    Sweep,
)
from patterncc.codegen.lines import Lines, Part, interval
from patterncc.codegen.monotone import Interval, Side
from patterncc.codegen.passes.simplify import divide
from patterncc.codegen.patches import ROWS_END_WITHIN_KEYS
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
    subtract,
)
from patterncc.dsl.mask import Const, IntExpr, Min, Predicate, Var, parameters

_ZERO, _ONE = Const(0), Const(1)


def line_program(
    structure: str, body: Predicate, lines: Lines, tile: tuple[int, int]
) -> BlockProgram:
    """The forward direction of a mask in loops over lines, before all passes. It takes for granted
    that rows end within the keys, and that a tile of queries lies in one unit.

    Args:
        structure: Canonical text of the pattern.
        body: The mask.
        lines: How a raster sees it.
        tile: `block_q` and `block_k`, which divide the unit.
    """
    return BlockProgram(
        structure=structure,
        block_q=tile[0],
        block_k=tile[1],
        mask=body,
        forward=tuple(_forward(lines, *tile)),
        transposed=None,
        assume=all_of(ROWS_END_WITHIN_KEYS, _begins_at_multiple(tile[0])),
        scalars=tuple(sorted(parameters(body))),
        decided=lines.decided,
    )


def with_transposed_lines(program: BlockProgram, lines: Lines) -> BlockProgram:
    """The program with its transposed direction, before all passes, which takes for granted that
    the call's first row is the first of a place of the outermost axis."""
    return replace(
        program,
        transposed=tuple(_transposed(lines, program.block_q, program.block_k)),
        assume=all_of(ROWS_END_WITHIN_KEYS, _begins_at_multiple(lines.area)),
    )


def _begins_at_multiple(step: int) -> Predicate:
    return compare("==", modulo(Q_OFFSET, Const(step)), _ZERO)


def _forward(lines: Lines, block_q: int, block_k: int) -> Iterator[Sweep]:
    for part in lines.parts:
        rows = part.query
        guard = all_of(
            part.guard,
            *(compare("<=", low, Q_FIRST) for low in rows.lows),
            *(compare("<", Q_FIRST, high) for high in rows.highs),
        )
        end = minimum(Var("kv_len"), *part.key.highs, *part.key.cuts)
        whole, tiles = floordiv(end, Const(block_k)), _ceildiv(end, block_k)
        low = maximum(_ZERO, *_divided(part.key.lows, block_k))
        if part.is_box:
            box = _Box(lines, part, "q", _places(lines, Q_FIRST, 1), block_k, low, whole)
            yield from box.sweeps("full", guard)
            cut = Sweep("partial", whole, tiles, all_of(guard, box.holds_end))
        else:
            yield Sweep("full", low, whole, guard)
            cut = Sweep("partial", maximum(whole, low), tiles, guard)
        if block_k > 1:
            yield cut


def _transposed(lines: Lines, block_q: int, block_k: int) -> Iterator[Sweep]:
    first = multiply(Const(block_k), K_TILE)
    before = floordiv(Q_OFFSET, Const(block_q))  # tiles, exactly
    rows = add(before, _ceildiv(Var("q_len"), block_q))
    exists = compare("==", K_LAST, add(first, Const(block_k - 1)))
    for part in lines.parts:
        keys = part.key
        guard = all_of(
            part.guard,
            *(compare("<=", low, first) for low in keys.lows),
            *(compare("<", first, high) for high in keys.highs),
        )
        below = [compare("<=", add(first, Const(block_k)), cut) for cut in keys.cuts]
        end = minimum(rows, *_divided(part.query.highs, block_q))
        low = maximum(before, *_divided(part.query.lows, block_q))
        kinds: list[tuple[Kind, Predicate]] = [("full", all_of(guard, exists, *below))]
        if block_k > 1:
            seen = (compare("<", first, cut) for cut in keys.cuts)
            broken = any_of(*map(negate, (exists, *below)))
            kinds.append(("partial", all_of(guard, *seen, broken)))
        for kind, where in kinds:
            if part.is_box:
                box = _Box(lines, part, "k", _places(lines, K_TILE, block_k), block_q, low, end)
                yield from box.sweeps(kind, where, before)
            else:
                yield Sweep(kind, subtract(low, before), subtract(end, before), where)


@dataclass(frozen=True, slots=True)
class _Box:
    """The tiles of a box of places that some held tile sees.

    Attributes:
        lines: The raster.
        part: What is asked.
        held: The side of the held tile.
        at: Its coordinates.
        block: Positions of a passing tile.
        low: The first tile that may be visited, at the beginning of a place of the outermost axis.
        end: The tile at which the whole ones end.
    """

    lines: Lines
    part: Part
    held: Side
    at: tuple[IntExpr, ...]
    block: int
    low: IntExpr
    end: IntExpr

    @property
    def _tiles(self) -> tuple[int, ...]:
        """How many tiles are between neighbouring places along each axis."""
        return tuple(step // self.block for step in self.lines.steps)

    @property
    def _end_at(self) -> tuple[IntExpr, ...]:
        """The coordinates of the tile at `end`."""
        return _places(self.lines, self.end, self.block)

    @property
    def _seen(self) -> list[Interval]:
        """What is seen along each axis, both ends included, within the raster; along the outermost
        axis it may go on behind `end`."""
        found = []
        for axis, (mask, at) in enumerate(zip(self.part.axes, self.at, strict=True)):
            if axis:
                most: IntExpr = Const(self.lines.sizes[axis - 1] - 1)
                seen = interval(mask, self.held, at, most)
                found.append(Interval(maximum(seen.lo, _ZERO), minimum(seen.hi, most)))
                continue
            most = self._end_at[0]
            seen = interval(mask, self.held, at, most)
            least = divide(self.low, self._tiles[0])
            ends = seen.hi.args if isinstance(seen.hi, Min) else (seen.hi,)
            high = minimum(*([end for end in ends if end != most] or [most]))
            found.append(Interval(maximum(seen.lo, least), high))
        return found

    def _ends(self, axis: int) -> Predicate:
        """Is the tile at `end` in a seen place along an axis?"""
        seen, at = self._seen[axis], self._end_at[axis]
        return all_of(compare("<=", seen.lo, at), compare("<=", at, seen.hi))

    @property
    def holds_end(self) -> Predicate:
        """Is the tile at `end` in the box?"""
        return all_of(*(self._ends(axis) for axis in range(len(self._tiles))))

    def sweeps(self, kind: Kind, guard: Predicate, before: IntExpr = _ZERO) -> Iterator[Sweep]:
        """The loops over the tiles before `end`.

        Args:
            kind: Of all of them.
            guard: Where they run.
            before: Tiles that numbers do not count.
        """
        seen, tiles = self._seen, self._tiles
        last = len(tiles) - 1
        ranges = [(one.lo, add(one.hi, _ONE)) for one in seen]
        for axis in range(len(tiles)):
            cut = list(ranges)
            low, high = ranges[axis]
            cut[axis] = low, minimum(high, self._end_at[axis])
            start: IntExpr = _ZERO
            if axis:
                wide = Const(tiles[axis - 1])
                start = multiply(wide, floordiv(self.end, wide))
            # Within a line tiles are counted, which need not be whole units before the end.
            inner_low, inner_high = (multiply(Const(tiles[last]), each) for each in ranges[last])
            if axis == last:
                inner_high = minimum(inner_high, subtract(self.end, start))
            repeats = [
                Repeat(*cut[number], tiles[number]) for number in range(last - 1, axis - 1, -1)
            ]
            where = all_of(guard, *(self._ends(number) for number in range(axis)))
            phase = subtract(start, before)
            yield Sweep(kind, inner_low, inner_high, where, phase=phase, repeats=tuple(repeats))


def _places(lines: Lines, value: IntExpr, block: int) -> tuple[IntExpr, ...]:
    """The coordinates of a position, or of a tile of so many positions."""
    places = [divide(value, step // block) for step in lines.steps]
    inner = zip(places[1:], lines.sizes[:-1], strict=True)
    return places[0], *(modulo(place, Const(size)) for place, size in inner)


def _divided(limits: Sequence[IntExpr], block: int) -> list[IntExpr]:
    """Limits that are multiples of a block, in blocks."""
    return [divide(limit, block) for limit in limits]


def _ceildiv(value: IntExpr, divisor: int) -> IntExpr:
    return floordiv(add(value, Const(divisor - 1)), Const(divisor))
