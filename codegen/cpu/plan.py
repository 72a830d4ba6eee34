"""From visited tiles to few large calls of an attention kernel: what the CPU executor runs.

A query tile's key tiles form runs of neighbouring tiles. Each run is a *piece* of work, and the
pieces of a row are merged by log-sum-exp. Pieces alike in shape and mask whose rows and keys
advance by constant steps, as those of a window do, become one call on strided views, so that no key
is copied and the kernel starts its threads once. Runs that neighbouring query tiles share, such as
sinks, become one call with many rows. Where runs are many and irregular, all keys of a query tile
are gathered into one piece instead. Knows neither torch nor heads.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from patterncc.codegen.cpu.tiles import FULL, Bools, Ints, MaskedTiles

# Costs in units of one (query, key) pair of one head, found by fitting measured times.
_PER_CALL = 6000
_PER_ROW = 80  # of a call: starting and writing a row, and merging it
_PER_GATHERED_KEY = 40  # copying it and its value
_TALL = 192  # rows from which the kernel multiplies taller blocks
_TALL_GAIN = 0.9

_VECTOR = 16  # keys: matrix products of other widths end in slow remainders

_FEW = 4  # a run whose shape and mask occur less often than this is split where tiles are full


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call: `count` blocks of rows, alike, each with its keys.

    Block `b` has the rows `[row, row + size) + b * row_step` of the call and the keys
    `[start, stop) + b * key_step` of each span; there is one span unless the keys are gathered,
    and then one block. No row is in two blocks.

    Attributes:
        row: First row of block 0.
        row_step: Rows from a block to the next.
        size: Rows of a block.
        count: Blocks.
        spans: Key ranges of block 0, ascending.
        key_step: Keys from a block to the next, not negative.
        masks: int64 `[tall, wide]`, mask numbers of the block's tiles; `None` if all are full.
        skip: Keys that the first tile of `masks` has before the first key of `spans`.
        dead: bool `[size]`, the rows that see none of these keys; `None` if there are none.
        first: Whether no call before it has written these rows; all or none of them.
    """

    row: int
    row_step: int
    size: int
    count: int
    spans: tuple[tuple[int, int], ...]
    key_step: int
    masks: Ints | None
    skip: int
    dead: Bools | None
    first: bool

    @property
    def keys(self) -> int:
        """Keys of a block."""
        return sum(stop - start for start, stop in self.spans)

    @property
    def cost(self) -> float:
        """Modelled time for one head, in units of one pair."""
        pair = _TALL_GAIN if self.size >= _TALL else 1.0
        gathered = _PER_GATHERED_KEY * self.keys if len(self.spans) > 1 else 0
        return _PER_CALL + self.count * (self.size * (self.keys * pair + _PER_ROW) + gathered)


@dataclass(frozen=True, slots=True)
class Plan:
    """The calls for one head, in order.

    Attributes:
        calls: Kernel calls. Rows that none of them has see nothing.
        bank: bool `[masks, rows, block_k]`, what the mask numbers mean.
        untouched: Whether some row is in no call.
        merges: Whether some row is in several calls.
    """

    calls: tuple[Call, ...]
    bank: Bools
    untouched: bool
    merges: bool

    @property
    def pairs(self) -> int:
        """(query, key) pairs that are computed."""
        return sum(call.count * call.size * call.keys for call in self.calls)

    @property
    def nbytes(self) -> int:
        """Memory held, about."""
        held = sum(call.masks.nbytes for call in self.calls if call.masks is not None)
        return self.bank.nbytes + held + 400 * len(self.calls)

    def call_mask(self, call: Call) -> Bools:
        """The mask of a call's blocks, bool `[size, keys]`; the call must have one."""
        assert call.masks is not None
        return _expand(call.masks, self.bank)[: call.size, call.skip : call.skip + call.keys]


def make_plan(tiles: MaskedTiles, q_len: int, kv_len: int) -> Plan:
    """The cheaper of two plans: the runs of a query tile apart, or gathered into one piece."""
    rows = _runs(tiles)
    plans = [_assemble(_pieces(rows), tiles, q_len, kv_len)]
    if any(len(runs) > 1 for runs in rows.values()):
        plans.append(_assemble(_gathered(rows), tiles, q_len, kv_len))
    return min(plans, key=lambda plan: sum(call.cost for call in plan.calls))


@dataclass(frozen=True, slots=True)
class _Run:
    """Neighbouring key tiles `[start, start + width)` of a query tile; `masks` as int64 bytes."""

    start: int
    width: int
    masks: bytes

    @property
    def full(self) -> bool:
        return self.masks == _FULL_BYTES * self.width

    def part(self, low: int, high: int) -> "_Run":
        size = len(_FULL_BYTES)
        return _Run(self.start + low, high - low, self.masks[low * size : high * size])


_FULL_BYTES: bytes = np.int64(FULL).tobytes()


@dataclass(frozen=True, slots=True)
class _Piece:
    """Runs of one query tile, or of `tall` neighbouring ones that share them, for one call."""

    q_tile: int
    tall: int
    runs: tuple[_Run, ...]
    first: bool


def _runs(tiles: MaskedTiles) -> dict[int, list[_Run]]:
    """The maximal runs of each query tile that visits something."""
    rows: dict[int, list[_Run]] = defaultdict(list)
    if len(tiles.q_tiles) == 0:
        return rows
    apart = (np.diff(tiles.q_tiles) != 0) | (np.diff(tiles.k_tiles) != 1)
    edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(tiles.q_tiles)]
    q_tiles, starts = tiles.q_tiles[edges[:-1]].tolist(), tiles.k_tiles[edges[:-1]].tolist()
    for q_tile, start, low, high in zip(q_tiles, starts, edges, edges[1:], strict=False):
        rows[q_tile].append(_Run(start, high - low, tiles.masks[low:high].tobytes()))
    return rows


def _pieces(rows: dict[int, list[_Run]]) -> Iterator[_Piece]:
    """Each run apart; the full runs that a query tile shares with a neighbour together.

    A masked run of a rare shape, such as each row of a causal mask, is split: its edges have a
    shape that is common, and its full tiles need no mask, whatever rows they are joined with.
    """
    common = Counter((run.width, run.masks) for runs in rows.values() for run in runs)
    shared: dict[int, tuple[_Run, ...]] = {}
    stretches: list[_Stretch] = []
    written: set[int] = set()
    for q_tile, runs in rows.items():
        around = {*rows.get(q_tile - 1, ()), *rows.get(q_tile + 1, ())}
        shared[q_tile] = tuple(run for run in runs if run.full and run in around)
        # The last run first: the one next to the diagonal, which most rows have.
        for run in reversed(runs):
            if run in shared[q_tile]:
                continue
            parts = [run]
            # A lone query tile, as in decoding, has no neighbours to share the parts with.
            if len(rows) > 1 and common[run.width, run.masks] < _FEW:
                parts, stretch = _split(run)
                stretches += [_Stretch(q_tile, *stretch)] if stretch else []
            for part in reversed(parts):
                yield _Piece(q_tile, 1, (part,), first=q_tile not in written)
                written.add(q_tile)
    for strip in _strips(stretches):
        for q_tile, tall, start, stop in _rectangles(strip):
            run = _Run(start, stop - start, _FULL_BYTES * (stop - start))
            yield from _stacked(dict.fromkeys(range(q_tile, q_tile + tall), (run,)), written)
    yield from _stacked(shared, written)


def _gathered(rows: dict[int, list[_Run]]) -> Iterator[_Piece]:
    """All runs of a query tile together."""
    yield from _stacked({q_tile: tuple(runs) for q_tile, runs in rows.items()}, set())


def _stacked(rows: dict[int, tuple[_Run, ...]], written: set[int]) -> Iterator[_Piece]:
    """One piece for neighbouring query tiles with the same runs; adds their rows to `written`."""
    stack: list[int] = []
    for q_tile, runs in [*rows.items(), (-1, ())]:
        if stack and (
            q_tile != stack[-1] + 1
            or runs != rows[stack[0]]
            or (q_tile in written) != (stack[0] in written)
        ):
            yield _Piece(stack[0], len(stack), rows[stack[0]], stack[0] not in written)
            written.update(stack)
            stack = []
        if runs:
            stack.append(q_tile)


def _split(run: _Run) -> tuple[list[_Run], tuple[int, int] | None]:
    """The run without its longest stretch of full tiles, and the key tiles of that."""
    full = np.frombuffer(run.masks, np.int64) == FULL
    edges = np.flatnonzero(np.diff(np.concatenate([[False], full, [False]])))
    if len(edges) == 0:
        return [run], None
    longest = int(np.argmax(edges[1::2] - edges[::2]))
    low, high = int(edges[2 * longest]), int(edges[2 * longest + 1])
    parts = [run.part(start, stop) for start, stop in ((0, low), (high, run.width)) if stop > start]
    return parts, (run.start + low, run.start + high)


class _Stretch(NamedTuple):
    """Key tiles `[start, stop)` of a query tile, all full."""

    q_tile: int
    start: int
    stop: int


def _strips(stretches: list[_Stretch]) -> Iterator[list[_Stretch]]:
    """The stretches, ascending by query tile, in chains of neighbours that overlap."""
    open_strips: list[list[_Stretch]] = []
    for stretch in stretches:
        still_open = []
        home: list[_Stretch] | None = None
        for strip in open_strips:
            last = strip[-1]
            if last.q_tile < stretch.q_tile - 1:
                yield strip
                continue
            still_open.append(strip)
            meets = last.start < stretch.stop and stretch.start < last.stop
            if home is None and last.q_tile == stretch.q_tile - 1 and meets:
                home = strip
        if home is None:
            still_open.append([stretch])
        else:
            home.append(stretch)
        open_strips = still_open
    yield from open_strips


def _rectangles(strip: list[_Stretch]) -> Iterator[tuple[int, int, int, int]]:
    """A strip cut into rectangles: first query tile, how many, first key tile, end.

    Of a staircase, as the full tiles of a causal mask are, these are squares of halving sizes that
    stand in rows, so that each size is one call.
    """
    if not strip:
        return
    start, stop = max(part.start for part in strip), min(part.stop for part in strip)
    longest = max(part.stop - part.start for part in strip)
    first, last = strip[0].q_tile, strip[-1].q_tile
    if 2 * (stop - start) >= longest:
        yield first, len(strip), start, stop
        before = [part._replace(stop=start) for part in strip if part.start < start]
        after = [part._replace(start=stop) for part in strip if part.stop > stop]
        for rest in (*_strips(before), *_strips(after)):
            yield from _rectangles(rest)
    else:
        # The multiple of the highest power of two, so that all staircases are cut alike.
        bit = 1 << ((first ^ last).bit_length() - 1)
        middle = last // bit * bit - first
        yield from _rectangles(strip[:middle])
        yield from _rectangles(strip[middle:])


def _assemble(pieces: Iterator[_Piece], tiles: MaskedTiles, q_len: int, kv_len: int) -> Plan:
    """Calls for pieces: those alike whose rows and keys advance by constant steps as one."""
    alike: dict[tuple[int, bool, tuple[tuple[int, bytes], ...]], list[_Piece]] = defaultdict(list)
    written = 0
    for piece in pieces:
        rows = min(piece.tall * tiles.block_q, q_len - piece.q_tile * tiles.block_q)
        written += rows if piece.first else 0
        shape = tuple((run.start - piece.runs[0].start, run.masks) for run in piece.runs)
        alike[rows, piece.first, shape].append(piece)
    calls = []
    for (size, _, _), group in alike.items():
        for part in _progressions(group):
            call = _call(part[0], tiles, size, _beyond(part[-1], tiles, kv_len))
            calls.append(_repeated(call, part, tiles))
    # Rows are written before anything is merged into them; the sort is stable.
    calls.sort(key=lambda call: not call.first)
    merges = any(not call.first for call in calls)
    return Plan(tuple(calls), tiles.bank, written < q_len, merges)


def _progressions(group: list[_Piece]) -> list[list[_Piece]]:
    """A group in parts whose query and key tiles advance by constant steps, as few as are found.

    Pieces of a part have no query tile in common.

    Tried in order of rows, which finds runs that rows share at intervals; along diagonals, which
    finds windows and slashes; and along columns.
    """
    if len(group) == 1 or len(group[0].runs) > 1:
        return [[piece] for piece in group]
    places = np.array([(piece.q_tile, piece.runs[0].start) for piece in group])
    q_tiles, starts = places.T
    best: list[list[_Piece]] = []
    for order in ((starts, q_tiles), (q_tiles, starts - q_tiles), (q_tiles, starts)):
        ranked = np.lexsort(order)
        steps = np.diff(places[ranked], axis=0)
        # Rows of a call are written block by block, so blocks must not share any.
        forward = (steps[:, 0] >= group[0].tall) & (steps[:, 1] >= 0)
        parts = []
        low = 0
        while low < len(group):
            high = low + 1
            if high < len(group) and forward[low]:
                changes = np.flatnonzero((steps[low:] != steps[low]).any(axis=1))
                high += int(changes[0]) if len(changes) else len(group) - high
            parts.append([group[at] for at in ranked[low:high]])
            low = high
        if not best or len(parts) < len(best):
            best = parts
    return best


def _beyond(piece: _Piece, tiles: MaskedTiles, kv_len: int) -> int:
    """How many positions of its last tile come after the last key."""
    last = piece.runs[-1]
    return max(0, (last.start + last.width) * tiles.block_k - kv_len)


def _call(piece: _Piece, tiles: MaskedTiles, size: int, beyond: int) -> Call:
    """The call of one piece, without keys at its ends that no row sees.

    If it needs a mask it keeps some of these, so that it begins and ends at whole vectors of the
    tiles at its ends, but none of the `beyond` last positions.
    """
    block = tiles.block_k
    spans = [(run.start * block, (run.start + run.width) * block) for run in piece.runs]
    row = piece.q_tile * tiles.block_q
    masks: Ints | None = None
    dead: Bools | None = None
    skip = 0
    if not all(run.full for run in piece.runs):
        line = np.frombuffer(b"".join(run.masks for run in piece.runs), np.int64)
        masks = np.broadcast_to(line, (piece.tall, len(line)))
        allowed = _expand(masks, tiles.bank)[:size]
        seen = np.flatnonzero(allowed.any(axis=0))
        skip, stop = int(seen[0]), int(seen[-1]) + 1
        if allowed[:, skip:stop].all():
            masks = None
        else:
            skip -= skip % _VECTOR
            stop = min(stop + -stop % _VECTOR, allowed.shape[1] - beyond)
            if not allowed.any(axis=1).all():
                dead = np.logical_not(allowed.any(axis=1))
        spans[-1] = (spans[-1][0], spans[-1][1] - (allowed.shape[1] - stop))
        spans[0] = (spans[0][0] + skip, spans[0][1])
    return Call(row, size, size, 1, tuple(spans), 0, masks, skip, dead, piece.first)


def _repeated(call: Call, pieces: list[_Piece], tiles: MaskedTiles) -> Call:
    """The call for pieces alike, of which it has the first."""
    if len(pieces) == 1:
        return call
    rows = (pieces[1].q_tile - pieces[0].q_tile) * tiles.block_q
    keys = (pieces[1].runs[0].start - pieces[0].runs[0].start) * tiles.block_k
    size, count = call.size, len(pieces)
    if call.masks is None and keys == 0 and rows == size:
        size, count, rows = size * count, 1, size * count
    return Call(
        call.row, rows, size, count, call.spans, keys, call.masks, call.skip, call.dead, call.first
    )


def _expand(masks: Ints, bank: Bools) -> Bools:
    """Mask numbers `[tall, wide]` as bool `[tall * rows, wide * block_k]`."""
    tall, wide = masks.shape
    _, rows, columns = bank.shape
    blocks = np.ones((tall, wide, rows, columns), np.bool_)
    partial = masks != FULL
    blocks[partial] = bank[masks[partial]]
    result: Bools = blocks.transpose(0, 2, 1, 3).reshape(tall * rows, wide * columns)
    return result
