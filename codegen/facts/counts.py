"""Exact numbers about a pattern at a call: tiles, operations, bytes. Nothing is sampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patterncc.codegen import schedule
from patterncc.codegen.classes import row_classes
from patterncc.codegen.facts.pair_counts import PairCounts
from patterncc.codegen.ir import BlockProgram, Passes
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import Env

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


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
            counted.
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


def work(passes: Passes, problem: Problem, env: Env, counts: PairCounts) -> Work:
    """Exact work of one head of a call in the tiles of some passes.

    Args:
        passes: The pattern, lowered.
        problem: Type and head sizes.
        env: As `schedule.forward_tiles` takes it.
        counts: Its visible pairs, keys among them.
    """
    q_len, kv_len = int(env["q_len"]), int(env["kv_len"])
    assert counts.keys is not None, "bytes are counted by keys"
    live_keys = int(np.count_nonzero(counts.keys))
    tiles = [count_tiles(program, env) for program in passes]
    visited = sum(each.visited for each in tiles)
    both = problem.head_dim + problem.value_head_dim
    size = BYTES[problem.dtype]
    block_q, block_k = passes[0].block_q, passes[0].tile_keys
    pairs = int(counts.rows.sum())
    return Work(
        pairs=pairs,
        visited=visited,
        full=sum(each.full for each in tiles),
        tiles=-(-q_len // block_q) * -(-kv_len // block_k),
        longest=max(each.longest for each in tiles),
        useful_flops=2 * pairs * both,
        computed_flops=2 * visited * block_q * block_k * both,
        least_bytes=size * both * (q_len + live_keys) + 4 * q_len,
        tile_bytes=size * both * visited * block_k,
    )
