"""Exact numbers about a pattern at a call: visible keys per row, tiles, operations, bytes. Nothing
is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patterncc.codegen import schedule
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import Env
from patterncc.dsl.pattern import Pattern

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def visible_keys(
    pattern: Pattern, env: Env, pairs: BlockProgram | None = None
) -> npt.NDArray[np.int64]:
    """How many keys each row attends to, int64 `[q_len]`.

    The pattern is lowered for tiles of one query and one key, where every visited tile is a visible
    pair, so the count of a row is the sum of a few trip counts: no pair is enumerated at any
    length.

    Args:
        pattern: What to count.
        env: As `schedule.forward_tiles` takes it.
        pairs: The pattern lowered for tiles of one query and one key, where it is at hand.

    Raises:
        UnsupportedError: For a pattern that cannot be lowered.
    """
    if pairs is None:
        sizes = {name: int(env[name]) for name in ("heads", "kv_heads", "layers") if name in env}
        pairs = lower(pattern, 1, 1, sizes=sizes)
    full, partial = schedule.tile_counts(pairs, env)
    assert not partial.any(), "a pair is allowed or it is not"
    return full


@dataclass(frozen=True, slots=True)
class Work:
    """What one head of a call costs.

    Attributes:
        pairs: Visible (query, key) pairs.
        visited, full: Tiles.
        tiles: All tiles of the dense map.
        longest: Tiles of the busiest query tile.
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


def work(
    pattern: Pattern,
    program: BlockProgram,
    problem: Problem,
    env: Env,
    visible: npt.NDArray[np.int64] | None = None,
) -> Work:
    """Exact work of one head of a call in the program's tiles.

    Args:
        pattern: What to count.
        program: It, lowered.
        problem: Type and head sizes.
        env: As `schedule.forward_tiles` takes it.
        visible: What `visible_keys` says, where it is at hand.
    """
    q_len, kv_len = int(env["q_len"]), int(env["kv_len"])
    full, partial = schedule.tile_counts(program, env)
    full_below, partial_below = schedule.tile_counts(program, env, "transposed")
    live_keys = min(int(np.count_nonzero(full_below + partial_below)) * program.block_k, kv_len)
    pairs = int((visible_keys(pattern, env) if visible is None else visible).sum())
    visited = int(full.sum() + partial.sum())
    both = problem.head_dim + problem.value_head_dim
    size = BYTES[problem.dtype]
    area = program.block_q * program.block_k
    return Work(
        pairs=pairs,
        visited=visited,
        full=int(full.sum()),
        tiles=-(-q_len // program.block_q) * -(-kv_len // program.block_k),
        longest=int((full + partial).max(initial=0)),
        useful_flops=2 * pairs * both,
        computed_flops=2 * visited * area * both,
        least_bytes=size * both * (q_len + live_keys) + 4 * q_len,
        tile_bytes=size * both * visited * program.block_k,
    )
