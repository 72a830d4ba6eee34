"""A `BlockProgram` at concrete numbers: which tiles are visited, as arrays. For executors on the
CPU, plots, counts, tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from patterncc.codegen.evaluation import Env as Env
from patterncc.codegen.evaluation import evaluate as evaluate
from patterncc.codegen.ir import BlockProgram, Clauses, Comparison, Direction, Entries, Sweep
from patterncc.codegen.patches import boxes, tile_count
from patterncc.dsl.errors import ConfigError

_LOOKED_AT_ONCE = 1 << 22  # tiles


@dataclass(frozen=True, slots=True)
class TileLists:
    """Visited tiles in compressed rows: row `i` visits `tiles[indptr[i]:indptr[i + 1]]`, ascending;
    of a gathered program runs of keys, of one with patches the positions where they begin.

    Attributes:
        indptr: int64 `[rows + 1]`.
        tiles: int64 `[visited]`.
        full: bool `[visited]`.
    """

    indptr: npt.NDArray[np.int64]
    tiles: npt.NDArray[np.int64]
    full: npt.NDArray[np.bool_]


def forward_tiles(program: BlockProgram, env: Env) -> TileLists:
    """The key tiles of each query tile.

    Args:
        program: What to evaluate.
        env: `q_len`, `kv_len`, `q_offset`, and the coordinates, sizes and run-time numbers that the
            pattern reads.

    Raises:
        ConfigError: If the call breaks what the program takes for granted (`program.assume`).
    """
    return _lists(program, env, "forward")


def transposed_tiles(program: BlockProgram, env: Env) -> TileLists:
    """The query tiles of each key tile; arguments and errors as in `forward_tiles`."""
    return _lists(program, env, "transposed")


def tile_lists(program: BlockProgram, env: Env, direction: Direction) -> TileLists:
    """The tiles of one direction; arguments and errors as in `forward_tiles`."""
    return _lists(program, env, direction)


def block_map(program: BlockProgram, env: Env) -> npt.NDArray[np.uint8]:
    """The map `[query tiles, key tiles]` of one head: 0 empty, 1 partial, 2 full; of a program
    without patches, whose key tiles begin wherever that suits a query tile."""
    lists = forward_tiles(program, env)
    columns = -(-int(env["kv_len"]) // program.block_k)
    result = np.zeros((len(lists.indptr) - 1, columns), dtype=np.uint8)
    rows = np.repeat(np.arange(len(lists.indptr) - 1), np.diff(lists.indptr))
    result[rows, lists.tiles] = 1 + lists.full
    return result


def tile_counts(
    program: BlockProgram, env: Env, direction: Direction = "forward"
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many full and how many partial tiles each row of tiles visits; they are listed only where
    a table says which tiles are visited. Of a gathered program query tiles count the key tiles that
    kernels gather: whole ones of full runs, and what is left of these with the partial ones.

    Returns:
        Two int64 arrays `[query tiles]` (`[key tiles]` for the transposed direction): full,
        partial.
    """
    if program.listed:
        lists = _lists(program, env, direction)
        rows = len(lists.indptr) - 1
        row = np.repeat(np.arange(rows), np.diff(lists.indptr))
        full = np.bincount(row[lists.full], minlength=rows)
        return _gathered(program, direction, full, np.diff(lists.indptr) - full)
    rows, scope = _rows(program, env, direction)
    counts = {"full": np.zeros(rows, np.int64), "partial": np.zeros(rows, np.int64)}
    if rows:
        for sweep, _, count, _ in _extents(program, direction, rows, scope):
            counts[sweep.kind] += count
    return _gathered(program, direction, counts["full"], counts["partial"])


def _gathered(
    program: BlockProgram,
    direction: Direction,
    full: npt.NDArray[np.int64],
    partial: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Counts of runs as counts of the tiles that they are gathered into."""
    if program.gathered == 1 or direction == "transposed":
        return full, partial
    whole = full // program.gathered
    left = partial + full - whole * program.gathered
    return whole, -(-left // program.gathered)


def _rows(program: BlockProgram, env: Env, direction: Direction) -> tuple[int, dict[str, Any]]:
    """The number of rows of tiles that can visit anything, and the scalars of each as arrays."""
    if program.patches is not None:
        side: Literal["q", "k"] = "q" if direction == "forward" else "k"
        rows = tile_count(program.patches, side, env)
        return rows, {**env, **boxes(program.patches, side, env)}
    q_len, kv_len, offset = int(env["q_len"]), int(env["kv_len"]), env["q_offset"]
    if direction == "forward":
        rows = -(-q_len // program.block_q)
        first = offset + program.block_q * np.arange(rows, dtype=np.int64)
        last = np.minimum(first + program.block_q, offset + q_len) - 1
        return rows, {**env, "q_first": first, "q_last": last}
    rows = -(-kv_len // program.block_k)
    tile = np.arange(rows, dtype=np.int64)
    last = np.minimum(program.block_k * (tile + 1), kv_len) - 1
    return rows, {**env, "k_tile": tile, "k_last": last}


Extent = tuple[Sweep, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def extents(program: BlockProgram, env: Env, direction: Direction = "forward") -> Iterator[Extent]:
    """The loops that visit anything, for lengths at which a list of tiles is too long; what the
    program lists by tables is not looked at.

    Yields:
        A sweep (one residue class of it) and per row of tiles, int64 `[rows]`: its first counter,
        its trip count and its phase, so that row `i` visits the tiles
        `sweep.stride * (first[i] + n) + phase[i]` for `n < count[i]`.
    """
    rows, scope = _rows(program, env, direction)
    if rows:
        yield from _extents(program, direction, rows, scope)


def _extents(program: BlockProgram, direction: Direction, rows: int, env: Env) -> Iterator[Extent]:
    """For each loop: its sweep, and per row of tiles its first counter, trip count and phase."""
    if int(env["q_len"]) == 0 or int(env["kv_len"]) == 0:
        return
    if not bool(np.all(evaluate(program.assume, env))):
        raise ConfigError(
            "this program was lowered for rows that end within the keys, and these do not"
        )

    def per_row(value: Any) -> npt.NDArray[np.int64]:
        return np.broadcast_to(np.asarray(value, np.int64), (rows,))

    for sweep in program.sweeps(direction):
        for residue in range(sweep.classes):
            scope = {**env, "residue": residue}
            guard = evaluate(sweep.guard, scope)
            if not np.any(guard):  # most residue classes of a periodic pattern are empty
                continue
            low, high = per_row(evaluate(sweep.lo, scope)), per_row(evaluate(sweep.hi, scope))
            count = np.where(guard, np.maximum(high - low, 0), 0)
            phase = per_row(evaluate(sweep.phase, scope))
            for runs, shift in _repeated(sweep, scope, rows):
                yield sweep, low, per_row(np.where(runs, count, 0)), phase + shift


def _repeated(
    sweep: Sweep, env: Env, rows: int
) -> Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]]:
    """How often a sweep is repeated: in which rows of tiles a repetition runs, and what it adds to
    the numbers of tiles there."""
    found = [(np.ones(rows, np.bool_), np.zeros(rows, np.int64))]
    for repeat in sweep.repeats:
        low, high = (
            np.broadcast_to(np.asarray(evaluate(end, env), np.int64), (rows,))
            for end in (repeat.lo, repeat.hi)
        )
        found = [
            (runs & (low + turn < high), shift + repeat.step * (low + turn))
            for turn in range(int(np.max(high - low, initial=0)))
            for runs, shift in found
        ]
    yield from found


def _lists(program: BlockProgram, env: Env, direction: Direction) -> TileLists:
    rows, scope = _rows(program, env, direction)
    tests = TileTests(program.listed, env) if program.listed else None
    row_parts, tile_parts, full_parts = [], [], []
    for sweep, low, count, phase in _extents(program, direction, rows, scope):
        for start, end in _chunks(count, _LOOKED_AT_ONCE if tests else None):
            some = count[start:end]
            total = int(some.sum())
            if total == 0:
                continue
            row = np.repeat(np.arange(start, end), some)
            step = np.arange(total) - np.repeat(np.cumsum(some) - some, some)
            tile = sweep.stride * (low[row] + step) + phase[row]
            full = np.full(total, sweep.kind == "full")
            if tests is not None:
                some_true, all_true = tests.of(_ends(program, env, direction, row, tile))
                row, tile = row[some_true], tile[some_true]
                full = (full & all_true)[some_true]
            row_parts.append(row)
            tile_parts.append(tile)
            full_parts.append(full)
    if not row_parts:
        return TileLists(np.zeros(rows + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    row, tile = np.concatenate(row_parts), np.concatenate(tile_parts)
    order = np.lexsort((tile, row))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))]).astype(np.int64)
    return TileLists(indptr, tile[order], np.concatenate(full_parts)[order])


def _chunks(count: npt.NDArray[np.int64], most: int | None) -> Iterator[tuple[int, int]]:
    """Ranges of rows with about `most` tiles each."""
    if most is None:
        yield 0, len(count)
        return
    ends = np.cumsum(count)
    start = 0
    while start < len(count):
        before = int(ends[start - 1]) if start else 0
        end = max(int(np.searchsorted(ends, before + most)), start + 1)
        yield start, end
        start = end


def _ends(
    program: BlockProgram,
    env: Env,
    direction: Direction,
    row: npt.NDArray[np.int64],
    tile: npt.NDArray[np.int64],
) -> dict[str, npt.NDArray[np.int64]]:
    """First and last row and key of tiles."""
    q_tile, k_tile = (row, tile) if direction == "forward" else (tile, row)
    offset = int(env["q_offset"])
    q_first, k_first = offset + program.block_q * q_tile, program.block_k * k_tile
    return {
        "q_first": q_first,
        "q_last": np.minimum(q_first + program.block_q, offset + int(env["q_len"])) - 1,
        "k_first": k_first,
        "k_last": np.minimum(k_first + program.block_k, int(env["kv_len"])) - 1,
    }


class TileTests:
    """What tables say of tiles at a call, found from sums over the tables.

    Args:
        listed: The clauses of a program.
        env: The numbers and tables of the call.
    """

    def __init__(self, listed: Clauses, env: Env) -> None:
        self._listed = listed
        self._env = env
        self._sums: dict[str, npt.NDArray[np.int64]] = {}

    def of(
        self, ends: Mapping[str, npt.NDArray[np.int64]]
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Whether each clause may hold somewhere in each tile, and whether each holds throughout.

        Args:
            ends: `q_first`, `q_last`, `k_first`, `k_last` of the tiles.
        """
        size = len(ends["q_first"])
        some_true, all_true = np.ones(size, np.bool_), np.ones(size, np.bool_)
        for clause in self._listed:
            any_some, any_all = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
            for literal in clause:
                scope = {**self._env, **ends}
                if isinstance(literal, Comparison):
                    any_some |= evaluate(literal.some, scope)
                    any_all |= evaluate(literal.every, scope)
                    continue
                count, area = self._true(literal, scope)
                any_some |= count > 0
                any_all |= count == area
            some_true &= any_some
            all_true &= any_all
        return some_true, all_true

    def _true(
        self, entries: Entries, scope: Env
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """How many entries in the ranges are true, and how many places the ranges have."""
        sums = self._prefix(entries.table)
        lows, highs = [], []
        area: Any = 1
        for bounds, axis in zip(entries.ranges, sums.shape, strict=True):
            low, high = evaluate(bounds.lo, scope), evaluate(bounds.hi, scope) + 1
            area = area * (high - low)
            lows.append(np.clip(low, 0, axis - 1))
            highs.append(np.clip(high, 0, axis - 1))
        total: Any = 0
        for corner in np.ndindex(*([2] * len(lows))):  # inclusion and exclusion
            place = [high if up else low for low, high, up in zip(lows, highs, corner, strict=True)]
            sign = (-1) ** (len(corner) - sum(corner))
            total = total + sign * sums[tuple(place)]
        return total, area

    def _prefix(self, table: str) -> npt.NDArray[np.int64]:
        """`sums[i, j, ...]`: how many entries before `i`, `j`, ... are true."""
        if table not in self._sums:
            sums = np.zeros([axis + 1 for axis in self._env[table].shape], np.int64)
            sums[tuple(slice(1, None) for _ in sums.shape)] = self._env[table]
            for axis in range(sums.ndim):
                np.cumsum(sums, axis=axis, out=sums)
            self._sums[table] = sums
        return self._sums[table]
