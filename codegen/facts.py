"""Exact numbers about a pattern at a call: visible keys per row, tiles, operations, bytes. Nothing
is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patterncc.codegen import schedule
from patterncc.codegen.classes import row_classes
from patterncc.codegen.ir import BlockProgram, Passes
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import Env
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.pattern import Pattern

MOST_PAIRS = 1 << 27  # that are looked at one by one
_ROWS_AT_ONCE = 1024

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def visible_keys(
    pattern: Pattern, env: Env, pairs: BlockProgram | None = None
) -> npt.NDArray[np.int64]:
    """How many keys each row attends to, int64 `[q_len]`.

    The pattern is lowered for tiles of one query and one key, where every visited tile is a visible
    pair, so the count of a row is the sum of a few trip counts: no pair is enumerated at any
    length. Only where the loops ignore a term (one that reads a table by position) are the pairs
    they leave open looked at one by one.

    Args:
        pattern: What to count.
        env: As `schedule.forward_tiles` takes it.
        pairs: The pattern lowered for tiles of one query and one key, where it is at hand.

    Raises:
        UnsupportedError: For a pattern that cannot be lowered, or more than `MOST_PAIRS` pairs to
            look at.
    """
    if pairs is None:
        sizes = {name: int(env[name]) for name in ("heads", "kv_heads", "layers") if name in env}
        pairs = lower(pattern, 1, 1, sizes=sizes, transposed=False)
    full, partial = schedule.tile_counts(pairs, env)
    return full + _allowed(pairs, env, partial) if partial.any() else full


def _allowed(
    pairs: BlockProgram, env: Env, partial: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """How many of the pairs that the loops leave open are allowed, by row."""
    total = int(partial.sum())
    if total > MOST_PAIRS:
        raise UnsupportedError(
            f"the pattern leaves {total} pairs to look at one by one, more than {MOST_PAIRS}: "
            "ask about fewer rows"
        )
    allowed = np.zeros(len(partial), np.int64)
    for sweep, first, count, phase in schedule.extents(pairs, env):
        if sweep.kind == "full":
            continue
        for start in range(0, len(count), _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(count)))
            row = np.repeat(rows, count[rows])
            step = np.arange(len(row)) - np.repeat(
                np.cumsum(count[rows]) - count[rows], count[rows]
            )
            key = sweep.stride * (first[row] + step) + phase[row]
            scope = {**env, "q": row + int(env["q_offset"]), "k": key}
            holds = np.broadcast_to(schedule.evaluate(pairs.mask, scope), row.shape)
            allowed += np.bincount(row[holds], minlength=len(allowed))
    return allowed


@dataclass(frozen=True, slots=True)
class Work:
    """What one head of a call costs.

    Attributes:
        pairs: Visible (query, key) pairs.
        visited, full: Tiles.
        tiles: All tiles of the dense map.
        longest: Tiles of the busiest query tile of a pass.
        useful_flops: Of the two products on visible pairs: `2 * pairs * (head_dim +
            value_head_dim)`.
        computed_flops: The same on all pairs of visited tiles, what a kernel really does.
        least_bytes: Query, key, value, output and lse moved once; keys that no row sees are not
            counted, as far as the loops tell.
        tile_bytes: Key and value tiles loaded, before any reuse in a cache.
    """

    pairs: int
    visited: int
    full: int
    tiles: int
    longest: int
    useful_flops: int
    computed_flops: int
    least_bytes: int
    tile_bytes: int


@dataclass(frozen=True, slots=True)
class TileCounts:
    """Tiles of one head of a call.

    Attributes:
        visited, full: In all.
        longest: Of the busiest row of tiles.
    """

    visited: int
    full: int
    longest: int


def count_tiles(program: BlockProgram, env: Env) -> TileCounts:
    """The tiles that one pass visits, over all classes of rows.

    Args:
        program: The pass.
        env: The numbers of the call, as `schedule.forward_tiles` takes them.
    """
    visited = full = longest = 0
    for part in row_classes(program, env):
        full_tiles, partial_tiles = schedule.tile_counts(program, part.env)
        visited += int(full_tiles.sum() + partial_tiles.sum())
        full += int(full_tiles.sum())
        longest = max(longest, int((full_tiles + partial_tiles).max(initial=0)))
    return TileCounts(visited, full, longest)


def work(
    pattern: Pattern,
    passes: Passes,
    problem: Problem,
    env: Env,
    pairs: BlockProgram | None = None,
    visible: npt.NDArray[np.int64] | None = None,
) -> Work:
    """Exact work of one head of a call in the tiles of some passes.

    Args:
        pattern: What to count.
        passes: It, lowered.
        problem: Type and head sizes.
        env: As `schedule.forward_tiles` takes it.
        pairs: The pattern lowered, in both directions, for tiles of one query and one key, where
            it is at hand.
        visible: What `visible_keys` says, where it is at hand.
    """
    q_len, kv_len = int(env["q_len"]), int(env["kv_len"])
    if pairs is None:
        sizes = {name: int(env[name]) for name in ("heads", "kv_heads", "layers") if name in env}
        pairs = lower(pattern, 1, 1, sizes=sizes)
    visible = visible_keys(pattern, env, pairs) if visible is None else visible
    seen = sum(schedule.tile_counts(pairs, env, "transposed"))
    live_keys = int(np.count_nonzero(seen))
    counts = [count_tiles(program, env) for program in passes]
    visited = sum(count.visited for count in counts)
    both = problem.head_dim + problem.value_head_dim
    size = BYTES[problem.dtype]
    block_q, block_k = passes[0].block_q, passes[0].block_k
    total = int(visible.sum())
    return Work(
        pairs=total,
        visited=visited,
        full=sum(count.full for count in counts),
        tiles=-(-q_len // block_q) * -(-kv_len // block_k),
        longest=max(count.longest for count in counts),
        useful_flops=2 * total * both,
        computed_flops=2 * visited * block_q * block_k * both,
        least_bytes=size * both * (q_len + live_keys) + 4 * q_len,
        tile_bytes=size * both * visited * block_k,
    )
