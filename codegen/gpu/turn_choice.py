"""In which order the programs of a one-pass backward take turns, and whether that is faster than
two kernels: by what is known of a call on the host.

A program can add to a row tile about a step, the time of a tile, after the one whose turn comes
before. So where neighbouring programs of a head run at a time, each is as far behind the other as
the tiles are that it does not visit, and one more. That is counted program by program, in steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from patterncc.codegen.evaluation import evaluate
from patterncc.codegen.gpu.interval import MOST_PROGRAMS
from patterncc.codegen.gpu.launches import ceildiv
from patterncc.codegen.ir import K_LAST, K_TILE

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import Neighbours
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.turns import Turns

BEHIND = 1.0
"""Steps that a program is behind the one whose turn comes before."""

START = 2.0
"""Steps that the start and the end of a program take."""

DEARER = 1.1
"""A step in turn, beside one whose share is added in any order."""

TWO_KERNELS = 1.46
"""Steps that two kernels take for a tile, beside the same."""

ROW = 1.6e-4
"""Steps that clearing and rounding the sums of a row take."""

MOST_COUNTED = 1 << 17
"""Programs that are counted, 0.2 s of the host's time at a call of a new shape: of more, those of
some heads and batch entries alone."""


AHEAD = {False: 1.0, True: 1.05}
"""Where `falling` must be beside `rising`, by whether query heads share one of the keys: there it
is slower than counted."""


@dataclass(frozen=True, slots=True)
class TurnChoice:
    """How programs of one call take turns.

    Attributes:
        turns: From the first key tile on, or from the last.
        neighbours: Which programs start side by side: key tiles of a head, or heads.
        faster: How many times as fast as two kernels.
    """

    turns: Turns
    neighbours: Neighbours
    faster: float


ORDERS: tuple[tuple[Turns, Neighbours], ...] = (("rising", "heads"), ("falling", "tiles"))
"""Heavy key tiles first, as under `causal`, and their chains short; or from the last key tile on,
where a window visits a row tile before the key tile below it does."""


def choose_turns(
    program: BlockProgram,
    steps: npt.NDArray[np.int64],
    env: Mapping[str, int],
    heads: int,
    group: int,
    batch: int,
    multiprocessors: int,
) -> TurnChoice:
    """Chooses for one call, in which no key tile is split.

    Args:
        program: The pattern, with its transposed sweeps.
        steps: Of `key_tile_steps`, which knew all bounds.
        env: As it was given to that.
        heads: Heads of the query.
        group: Of them for each head of the keys.
        batch: Batch entries.
        multiprocessors: Of the device; each runs a program at a time.
    """
    first = group * _first_tiles(program, env, heads, group)
    copies = min(heads // group * batch, max(MOST_COUNTED // max(len(steps), 1), 1))
    programs = np.count_nonzero(steps) * copies / multiprocessors
    share = float(steps.sum()) * copies / multiprocessors
    two = TWO_KERNELS * max(share, float(steps.max(initial=0))) + START * programs
    rows = ROW * copies * group * env["q_len"]
    found = []
    many = len(steps) > MOST_PROGRAMS  # along the second axis of a grid
    for turns, neighbours in ORDERS[many:]:
        ends = _end(steps, first, copies, multiprocessors, turns, neighbours)
        found.append(TurnChoice(turns, neighbours, two / (DEARER * ends + rows)))
    rising, falling = found[0], found[-1]
    return falling if falling.faster > AHEAD[group > 1] * rising.faster else rising


def _end(
    steps: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    copies: int,
    multiprocessors: int,
    turns: Turns,
    neighbours: Neighbours,
) -> float:
    """When the last program ends, in steps: each starts where one has ended, in the order of the
    launch, and no earlier than the one before it in its head allows."""
    tiles = [int(tile) for tile in np.flatnonzero(steps)]
    if turns == "falling":
        tiles.reverse()
    lengths, firsts = steps.tolist(), first.tolist()
    free = [0.0] * multiprocessors
    # By head: when the program before started its first tile, and which tiles it visits.
    before: list[tuple[float, int, int]] = [(-np.inf, 0, 0)] * copies
    order = (
        ((tile, head) for tile in tiles for head in range(copies))
        if neighbours == "heads"
        else ((tile, head) for head in range(copies) for tile in tiles)
    )
    for tile, head in order:
        start = heapq.heappop(free) + START
        low, high = firsts[tile], firsts[tile] + lengths[tile]
        other, other_low, other_high = before[head]
        if low < other_high and other_low < high:
            start = max(start, other + low - other_low + BEHIND)
        before[head] = start, low, high
        heapq.heappush(free, start + lengths[tile])
    return max(free)


def _first_tiles(
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
