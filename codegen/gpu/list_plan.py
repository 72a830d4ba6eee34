"""What lists tiles and runs of keys that tables decide: launches, their memory, and how many query
tiles are listed at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from patterncc.codegen.classes import row_classes
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.launches import Buffer, Call, Launch, ceildiv, planned_launch
from patterncc.codegen.gpu.list_source import list_axes
from patterncc.codegen.gpu.pass_plan import Sources
from patterncc.codegen.gpu.run_list_source import RUNS_AT_ONCE, emit_run_lists
from patterncc.codegen.gpu.table_sum_source import (
    PLACES_AT_ONCE,
    emit_table_sums,
    sum_name,
    summed_tables,
)
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import extents
from patterncc.dsl.errors import UnsupportedError

MOST_LISTED = 2 << 30
"""Most bytes of lists of tiles at once."""

MOST_GATHERED = 3 << 29
"""Bytes of lists of runs that are made at once, for some of the query tiles, where those of all
would take more."""


def sum_launches(
    program: BlockProgram, config: KernelConfig, call: Call, sources: Sources
) -> Iterator[Launch]:
    """The launches that count the true entries of the tables whose counts listing reads."""
    for name in summed_tables(program):
        source = sources.get(emit_table_sums, program, call.problem, config, name=name)
        *front, last = call.shapes.get(name, (0,))  # a missing one is named when arguments are
        rows = prod(front)
        grid = (rows * (last // PLACES_AT_ONCE + 1), 1, 1)
        room = (Buffer(sum_name(name), (rows, last + 1)),)
        yield planned_launch(source, grid, call, shaped_by=(name,), buffers=room)


def run_list_launch(
    program: BlockProgram, problem: Problem, config: KernelConfig, call: Call, sources: Sources
) -> Launch:
    """The launch that lists the runs of a program, once for all query tiles."""
    runs = ceildiv(call.kv_len, program.block_k)
    by_head, by_batch = list_axes(program).grid(call.heads, problem.group, call.batch)
    rows = by_head * by_batch
    check_lists(rows, runs + 1)
    source = sources.get(emit_run_lists, program, problem, config)
    grid = (ceildiv(runs + 1, RUNS_AT_ONCE), by_head, by_batch)
    room = (Buffer("runs", (rows, runs)), Buffer("run_ranks", (rows, runs + 1)))
    return planned_launch(source, grid, call, buffers=room)


def list_turns(
    program: BlockProgram, config: KernelConfig, tiles: int, size: int
) -> list[tuple[int, int]]:
    """The first of the query tiles that are launched together, and their number. Runs of keys are
    many: the lists of all query tiles at once could take more memory than there is.

    Args:
        program: What is listed.
        config: How to build its kernel.
        tiles: All query tiles.
        size: Bytes of the lists of each.
    """
    count = tiles
    if program.gathered > 1:
        most = max(MOST_GATHERED // size, 1)
        count = ceildiv(tiles, ceildiv(tiles, most))  # a short turn would leave the device idle
    turns = [(first, min(count, tiles - first)) for first in range(0, tiles, count)]
    return turns if config.order == "forward" else turns[::-1]


def check_lists(rows: int, capacity: int) -> None:
    """Refuses lists of tiles that take more memory than `MOST_LISTED`."""
    size = 4 * rows * capacity
    if size > MOST_LISTED:
        raise UnsupportedError(
            f"lists of {capacity - 1} tiles for each of {rows} query tiles take "
            f"{size / 2**30:.1f} GiB",
            f"at most {MOST_LISTED // 2**30} GiB: split the call, or take larger tiles",
        )


def most_key_tiles(program: BlockProgram, call: Call) -> int:
    """A bound of the tiles that the sweeps visit for one query tile: the most at this call, or all
    tiles where that depends on what only the device knows, such as the head or a table."""
    heads = call.heads
    env = {**call.env, "heads": heads, "kv_heads": heads // call.problem.group}
    try:
        return max(_longest(program, part.env) for part in row_classes(program, env))
    except KeyError:
        return ceildiv(ceildiv(call.kv_len, program.tiling.k_step), program.block_k)


def _longest(program: BlockProgram, env: Mapping[str, int]) -> int:
    """The most tiles that the sweeps visit for one query tile of a class of rows.

    Raises:
        KeyError: They read what `env` does not have.
    """
    counts: Any = sum(count for _, _, count, _ in extents(program, env))
    return int(np.max(counts))
