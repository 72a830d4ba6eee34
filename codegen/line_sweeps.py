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
from patterncc.codegen.lines import Lines, Part, interval, is_multiple
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
    select,
    subtract,
)
from patterncc.dsl.mask import TRUE, Const, IntExpr, Min, Predicate, Var, parameters

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
    intervals: list[Sweep] = []
    for part in lines.parts:
        rows = part.query
        guard = all_of(
            part.guard,
            *(compare("<=", low, Q_FIRST) for low in rows.lows),
            *(compare("<", Q_FIRST, high) for high in rows.highs),
        )
        edge = minimum(Var("kv_len"), *part.key.cuts)
        whole, tiles = floordiv(edge, Const(block_k)), _ceildiv(edge, block_k)
        low = maximum(_ZERO, *_divided(part.key.lows, block_k))
        highs = _divided(part.key.highs, block_k)
        # The tile that the edge cuts, which parts have in common.
        cut = all_of(compare("<=", low, whole), *(compare("<", whole, high) for high in highs))
        if part.is_box:
            box = _Box(lines, part, "q", _places(lines, Q_FIRST, 1), block_k, low, whole)
            yield from box.sweeps("full", guard)
            cut = all_of(cut, box.holds(whole))
        else:
            intervals.append(Sweep("full", low, minimum(whole, *highs), guard))
        if block_k > 1:
            yield Sweep("partial", whole, tiles, all_of(guard, cut))
    yield from _either(intervals)


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
        low = maximum(before, *_divided(part.query.lows, block_q))
        kinds: list[tuple[Kind, Predicate]] = [("full", all_of(guard, exists, *below))]
        if block_k > 1:
            seen = (compare("<", first, cut) for cut in keys.cuts)
            broken = any_of(*map(negate, (exists, *below)))
            kinds.append(("partial", all_of(guard, *seen, broken)))
        for kind, where in kinds:
            if part.is_box:
                box = _Box(lines, part, "k", _places(lines, K_TILE, block_k), block_q, low, rows)
                yield from box.sweeps(kind, where, before)
            else:
                end = minimum(rows, *_divided(part.query.highs, block_q))
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
        edge: The tile at which the whole ones of the call end.
    """

    lines: Lines
    part: Part
    held: Side
    at: tuple[IntExpr, ...]
    block: int
    low: IntExpr
    edge: IntExpr

    @property
    def _tiles(self) -> tuple[int, ...]:
        """How many tiles are between neighbouring places along each axis."""
        return tuple(step // self.block for step in self.lines.steps)

    @property
    def _highs(self) -> tuple[list[IntExpr], list[IntExpr]]:
        """The limits of passing positions: those at the beginning of a place of the outermost axis,
        as its coordinates, and the others, in tiles."""
        limits = self.part.key if self.held == "q" else self.part.query
        whole = [high for high in limits.highs if is_multiple(high, self.lines.area)]
        others = [high for high in limits.highs if high not in whole]
        return _divided(whole, self.lines.area), _divided(others, self.block)

    @property
    def _end(self) -> IntExpr:
        """The tile at which those that are visited end, but for the limits along the outermost
        axis."""
        return minimum(self.edge, *self._highs[1])

    @property
    def _end_at(self) -> tuple[IntExpr, ...]:
        """The coordinates of the tile at the end."""
        return _places(self.lines, self._end, self.block)

    @property
    def _seen(self) -> list[Interval]:
        """What is seen along each axis, both ends included, within the raster; along the outermost
        axis it may go on behind the end."""
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

    def holds(self, tile: IntExpr, axes: int | None = None) -> Predicate:
        """Is a tile in seen places along the outermost axes, or along all?"""
        places = zip(self._seen, _places(self.lines, tile, self.block), strict=True)
        return all_of(
            *(
                all_of(compare("<=", seen.lo, at), compare("<=", at, seen.hi))
                for seen, at in list(places)[:axes]
            )
        )

    def sweeps(self, kind: Kind, guard: Predicate, before: IntExpr = _ZERO) -> Iterator[Sweep]:
        """The loops over the whole tiles.

        Args:
            kind: Of all of them.
            guard: Where they run.
            before: Tiles that numbers do not count.
        """
        seen, tiles, end = self._seen, self._tiles, self._end
        limits, _ = self._highs
        last = len(tiles) - 1
        ranges = [(one.lo, add(one.hi, _ONE)) for one in seen]
        for axis in range(len(tiles)):
            cut = list(ranges)
            low, high = ranges[axis]
            cut[axis] = low, minimum(high, self._end_at[axis], *(limits if axis == 0 else ()))
            start: IntExpr = _ZERO
            if axis:
                wide = Const(tiles[axis - 1])
                start = multiply(wide, floordiv(end, wide))
            # Within a line tiles are counted, which need not be whole units before the end.
            inner_low, inner_high = (multiply(Const(tiles[last]), each) for each in ranges[last])
            if axis == last:
                inner_high = minimum(inner_high, subtract(end, start))
                if last == 0:
                    ends = (multiply(Const(tiles[0]), limit) for limit in limits)
                    inner_high = minimum(inner_high, *ends)
            repeats = [
                Repeat(*cut[number], tiles[number]) for number in range(last - 1, axis - 1, -1)
            ]
            # Of the place at the end.
            where = guard
            if axis:
                inside = (compare("<", self._end_at[0], limit) for limit in limits)
                where = all_of(guard, *inside, self.holds(end, axis))
            phase = subtract(start, before)
            yield Sweep(kind, inner_low, inner_high, where, phase=phase, repeats=tuple(repeats))


def _either(intervals: Sequence[Sweep]) -> Iterator[Sweep]:
    """Two intervals with the same end of which one or the other runs as one, for a loop takes
    registers of kernels."""
    match intervals:
        case [one, other] if one.hi == other.hi and negate(one.guard) == other.guard:
            yield replace(one, lo=select(one.guard, one.lo, other.lo), guard=TRUE)
        case _:
            yield from intervals


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
