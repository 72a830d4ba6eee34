"""What a picture of a mask shows, as arrays: pairs of tokens while few, shares of tiles above.

Drawing is `patterncc.plot`'s and `patterncc.terminal`'s. Loads no torch and no matplotlib.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.call import Call
from patterncc.codegen import schedule
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.codegen.ir import BlockProgram
from patterncc.dsl.errors import ConfigError, UnsupportedError

MOST_TOKENS = 512  # rows and keys up to which every pair is drawn
MOST_TILES = 1 << 14  # tiles a side that are counted; longer calls are shown in larger tiles
MOST_COUNTS = 1 << 26  # rows times loops up to which visible pairs are counted
_CHUNK = 1 << 22  # tiles listed at a time

EMPTY, PARTIAL, FULL = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Picture:
    """The mask of one head of one layer, seen in tiles.

    Attributes:
        call: The pattern and its sizes.
        layer: Layer number.
        head: Query head.
        block_q: Rows of a tile.
        block_k: Keys of a tile.
        full: Full tiles.
        partial: Partial tiles.
        tiles: All tiles.
        pairs: Visible pairs; `None` where counting them would take too long.
        cells: float32 `[rows, columns, 2]`: the shares of partial and of full tiles in each cell.
        cell_q: Tiles that share a cell, down.
        cell_k: Tiles that share a cell, across.
        allowed: bool `[q_len, kv_len]` where every pair is drawn, else `None`.
        states: uint8 `[q_len, kv_len]`, the state of each pair's tile, where every pair is drawn.
    """

    call: Call
    layer: int
    head: int
    block_q: int
    block_k: int
    full: int
    partial: int
    tiles: int
    pairs: int | None
    cells: npt.NDArray[np.float32]
    cell_q: int
    cell_k: int
    allowed: npt.NDArray[np.bool_] | None = None
    states: npt.NDArray[np.uint8] | None = None


def default_block(length: int) -> int:
    """The tile edge to show a length in: 128 from 512 tokens on, an eighth of it below."""
    if length > MOST_TOKENS:
        return max(128, 1 << max(0, (length - 1).bit_length() - MOST_TILES.bit_length() + 1))
    return max(4, 1 << max(0, (length // 8).bit_length() - 1))


def take(
    call: Call,
    *,
    layer: int = 0,
    head: int = 0,
    block_q: int | None = None,
    block_k: int | None = None,
    most_cells: int = 512,
) -> Picture:
    """Takes the picture of one head.

    Args:
        call: The pattern and its sizes.
        layer: Layer number.
        head: Query head.
        block_q: Rows of a tile; chosen from the length if not given.
        block_k: Keys of a tile; likewise.
        most_cells: Cells a side; where there are more tiles, 2, 4, 8, ... share one.

    Raises:
        ConfigError: The tiles are so small that there would be more than `MOST_TILES` a side.
        UnsupportedError: The pattern has a term that is not lowered yet.
    """
    shorter = default_block(max(call.q_len, call.kv_len))
    block_q, block_k = block_q or shorter, block_k or shorter
    rows, columns = -(-call.q_len // block_q), -(-call.kv_len // block_k)
    for name, count in (("block_q", rows), ("block_k", columns)):
        if count > MOST_TILES:
            raise ConfigError(
                f"{name} is too small: {count} tiles a side, the most is {MOST_TILES}"
            )
    call.require_tables()
    program = call.program(block_q, block_k)
    env = call.env(head, layer)
    counts = schedule.tile_counts(program, env)
    full, partial = (int(count.sum()) for count in counts)
    cell_q, cell_k = (_sharing(count, most_cells) for count in (rows, columns))
    cells = shares(program, env, cell_q, cell_k)
    visible = _visible(call, env)
    shape = (block_q, block_k, full, partial, rows * columns, visible, cells, cell_q, cell_k)
    if max(call.q_len, call.kv_len) > MOST_TOKENS:
        return Picture(call, layer, head, *shape)
    rows_of_call = call.q_offset + np.arange(call.q_len)
    places = {"q": rows_of_call[:, None], "k": np.arange(call.kv_len)}
    shape_of_call = (call.q_len, call.kv_len)
    allowed = np.broadcast_to(schedule.evaluate(program.mask, env | places), shape_of_call)
    states = schedule.block_map(program, env)
    states = states.repeat(block_q, axis=0)[: call.q_len].repeat(block_k, axis=1)[:, : call.kv_len]
    return Picture(call, layer, head, *shape, allowed, states)


def _visible(call: Call, env: dict[str, Any]) -> int | None:
    """The visible pairs; `None` where counting them would take too long."""
    pairs = pair_program(call.pattern, call.sizes, within=call.within, transposed=False)
    if call.q_len * sum(sweep.classes for sweep in pairs.forward) > MOST_COUNTS:
        return None
    try:
        return int(count_pairs(pairs, env).rows.sum())
    except UnsupportedError:  # more open pairs than can be looked at
        return None


def _sharing(tiles: int, most: int) -> int:
    """How many tiles share a cell: a power of two, so that what repeats stays even."""
    return 1 << max(0, (-(-tiles // most) - 1).bit_length())


def shares(
    program: BlockProgram, env: schedule.Env, cell_q: int, cell_k: int
) -> npt.NDArray[np.float32]:
    """The shares of partial and full tiles in each cell, float32 `[cells down, cells across, 2]`.

    Intervals are added by their ends, so a million tokens cost no more than their rows of tiles.
    """
    rows = -(-int(env["q_len"]) // program.block_q)
    columns = -(-int(env["kv_len"]) // program.block_k)
    height, width = -(-rows // cell_q), -(-columns // cell_k)
    row_cell = np.arange(rows) // cell_q
    starts = np.arange(width) * cell_k
    counts = np.zeros((2, height, width))
    for kind in range(2):
        ends = np.zeros((height, columns + 1), np.int32)
        for sweep, first, count, phase in schedule.extents(program, env):
            if (sweep.kind == "full") != bool(kind):
                continue
            live = np.flatnonzero(count)
            if sweep.stride == 1:
                low = first[live] + phase[live]
                np.add.at(ends, (row_cell[live], low), 1)
                np.add.at(ends, (row_cell[live], low + count[live]), -1)
            else:
                _add_steps(counts[kind], sweep.stride, first, count, phase, row_cell, cell_k)
        visits = np.cumsum(ends[:, :-1], axis=1)
        counts[kind] += np.add.reduceat(visits, starts, axis=1)
    tiles = np.bincount(row_cell, minlength=height)[:, None] * np.diff([*starts, columns])[None, :]
    return np.moveaxis(counts / tiles, 0, -1).astype(np.float32)


def _add_steps(
    counts: npt.NDArray[np.float64],
    stride: int,
    first: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    phase: npt.NDArray[np.int64],
    row_cell: npt.NDArray[np.int64],
    cell_k: int,
) -> None:
    """Adds the tiles of a progression to `counts` `[height, width]`, some rows at a time."""
    height, width = counts.shape
    total = np.cumsum(count)
    begin = 0
    while begin < len(count):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + _CHUNK, side="right")))
        part = slice(begin, end)
        row = np.repeat(np.arange(begin, end), count[part])
        step = np.arange(len(row)) - np.repeat(np.cumsum(count[part]) - count[part], count[part])
        column = (stride * (first[row] + step) + phase[row]) // cell_k
        cell = row_cell[row] * width + column
        counts += np.bincount(cell, minlength=height * width).reshape(height, width)
        begin = end
