"""Visible pairs counted one by one in partial tiles, for patterns whose loops say too little.

Loops take no notice of terms that read a table at a position, and of terms that are too intricate;
the mask decides there. `facts.visible_keys` counts the others without looking at a pair.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patterncc.codegen import schedule
from patterncc.codegen.ir import DENSE, BlockProgram
from patterncc.codegen.schedule import Env
from patterncc.dsl.mask import Entry, Member, Segment, walk

_CHUNK = 1 << 20  # pairs that are looked at together


def is_needed(program: BlockProgram) -> bool:
    """Whether the loops of a program do not say which pairs are visible."""
    tables = (Entry, Member, Segment)
    return bool(program.ignored) or any(isinstance(node, tables) for node in walk(program.mask))


def partial_pairs(program: BlockProgram, env: Env) -> int:
    """How many pairs `visible_keys` would have to look at."""
    _, partial = schedule.tile_counts(program, env)
    return int(partial.sum()) * program.block_q * program.block_k


def visible_keys(program: BlockProgram, env: Env) -> npt.NDArray[np.int64]:
    """How many keys each row attends to, int64 `[q_len]`.

    Args:
        program: In the positions of the call (`tiling` is `DENSE`).
        env: As `schedule.forward_tiles` takes it, tables among it.
    """
    assert program.tiling == DENSE, "counted in the positions of the call"
    block_q, block_k = program.block_q, program.block_k
    q_len, kv_len, offset = int(env["q_len"]), int(env["kv_len"]), int(env["q_offset"])
    lists = schedule.forward_tiles(program, env)
    tile_rows = len(lists.indptr) - 1
    row_of = np.repeat(np.arange(tile_rows), np.diff(lists.indptr))
    counts = np.zeros((tile_rows, block_q), np.int64)
    widths = np.minimum(kv_len - block_k * lists.tiles, block_k)
    whole = np.bincount(row_of[lists.full], widths[lists.full], minlength=tile_rows)
    counts += whole.astype(np.int64)[:, None]
    rows, tiles = row_of[~lists.full], lists.tiles[~lists.full]
    step = max(1, _CHUNK // (block_q * block_k))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        q = offset + block_q * rows[part, None, None] + np.arange(block_q)[:, None]
        k = block_k * tiles[part, None, None] + np.arange(block_k)
        seen = allowed(program, {**env, "q": q, "k": k}) & (k < kv_len)
        np.add.at(counts, rows[part], np.broadcast_to(seen, (len(q), block_q, block_k)).sum(-1))
    return counts.reshape(-1)[:q_len]


def allowed(program: BlockProgram, env: Env) -> npt.NDArray[np.bool_]:
    """The mask at the pairs that `env` binds `q` and `k` to."""
    return np.asarray(schedule.evaluate(program.mask, env), np.bool_)
