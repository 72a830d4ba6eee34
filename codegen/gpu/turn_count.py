"""When programs of a one-pass backward that take turns end, counted in steps, the time of a tile.

A program can add to a row tile about a step after the one whose turn comes before. So where
neighbouring programs of a head run at a time, each is as far behind the other as the tiles are that
it does not visit, and one more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patterncc.codegen.evaluation import evaluate
from patterncc.codegen.gpu.launches import ceildiv
from patterncc.codegen.ir import K_LAST, K_TILE

if TYPE_CHECKING:
    from patterncc.codegen.gpu.chunk_source import Progression
    from patterncc.codegen.gpu.config import Neighbours
    from patterncc.codegen.ir import BlockProgram

BEHIND = 1.0
"""Steps that a program is behind the one whose turn comes before."""

START = 2.0
"""Steps that the start and the end of a program take."""

Programs: TypeAlias = Sequence[tuple[int, int, int]]
"""Of a head, as `programs_of_head` gives them."""


def programs_of_head(
    steps: npt.NDArray[np.int64], first: npt.NDArray[np.int64], split: tuple[Progression, ...]
) -> Iterator[tuple[int, int, int]]:
    """The programs of a head in the order of their key tiles: the tile's number, the first row tile
    and how many. Chunks take as many rows each, one after the other."""
    chunks = np.ones(len(steps), np.int64)
    for one in split:
        chunks[one.first : one.first + one.step * one.count : one.step] = one.chunks
    for tile, (length, low, parts) in enumerate(
        zip(steps.tolist(), first.tolist(), chunks.tolist(), strict=True)
    ):
        for chunk in range(parts):
            begin, end = length * chunk // parts, length * (chunk + 1) // parts
            if begin < end:
                yield tile, low + begin, end - begin


def _started(
    programs: Programs, copies: int, neighbours: Neighbours
) -> Iterator[tuple[int, int, int]]:
    """Programs of all heads in the order of the launch: the head, the first row tile, how many."""
    if neighbours == "heads":
        return ((head, low, count) for _, low, count in programs for head in range(copies))
    return ((head, low, count) for head in range(copies) for _, low, count in programs)


def end_by_programs(
    programs: Programs, copies: int, multiprocessors: int, neighbours: Neighbours
) -> float:
    """When the last program ends, in steps: each starts where one has ended, in the order of the
    launch, and no earlier than the one before it in its head allows."""
    free = [0.0] * multiprocessors
    # By head: when the program before started its first tile, and which tiles it visits.
    before: list[tuple[float, int, int]] = [(-np.inf, 0, 0)] * copies
    for head, low, count in _started(programs, copies, neighbours):
        start, high = heapq.heappop(free) + START, low + count
        other, other_low, other_high = before[head]
        if low < other_high and other_low < high:
            start = max(start, other + low - other_low + BEHIND)
        before[head] = start, low, high
        heapq.heappush(free, start + count)
    return max(free)


def end_in_steps(
    programs: Programs, copies: int, multiprocessors: int, neighbours: Neighbours
) -> float:
    """The same where the turn before on a row tile may be any program's: what is known is when each
    row tile was added to last."""
    free = [0.0] * multiprocessors
    size = max((low + count for _, low, count in programs), default=0)
    added = np.zeros((copies, size))
    numbers = np.arange(size)
    for head, low, count in _started(programs, copies, neighbours):
        start = heapq.heappop(free) + START
        before, after = added[head, low : low + count], numbers[:count]
        # A step takes one, and ends behind the turn before.
        ends = np.maximum.accumulate(np.maximum(before + BEHIND - after, start + 1)) + after
        added[head, low : low + count] = ends
        heapq.heappush(free, float(ends[-1]))
    return max(free)


def first_tiles(
    program: BlockProgram, env: Mapping[str, int], heads: int, group: int
) -> npt.NDArray[np.int64]:
    """The first row tile that each key tile visits, of the first head."""
    tiles = np.arange(ceildiv(env["kv_len"], program.block_k), dtype=np.int64)
    scope: dict[str, Any] = {"head": 0, "kv_head": 0, "batch": 0, **env}
    scope |= {"heads": heads, "kv_heads": heads // group, K_TILE.name: tiles}
    scope[K_LAST.name] = np.minimum(program.block_k * (tiles + 1), env["kv_len"]) - 1
    none = ceildiv(env["q_len"], program.block_q)
    first = np.full(len(tiles), none)
    for sweep in program.sweeps("transposed"):
        for residue in range(sweep.classes):
            at = {**scope, "residue": residue}
            low = evaluate(sweep.lo, at)
            visits = evaluate(sweep.guard, at) & (low < evaluate(sweep.hi, at))
            place = sweep.stride * low + evaluate(sweep.phase, at)
            first = np.minimum(first, np.where(visits, place, none))
    return first
