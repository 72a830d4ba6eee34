"""What the gradients of keys and values launch for each pass: lists of tiles where tables decide
them, the kernel, and the sums of the chunks of key tiles that it splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.backward_config import (
    default_grad_key_value_config,
    grad_key_value_shared_bytes,
    suited_grad_key_value,
)
from patterncc.codegen.gpu.balance import key_tile_steps, most_query_tiles, split_tiles
from patterncc.codegen.gpu.chunk_source import chunk_values
from patterncc.codegen.gpu.chunk_sum_source import KEYS_TOGETHER, emit_sum_chunks
from patterncc.codegen.gpu.class_source import classes_seen
from patterncc.codegen.gpu.delta_source import ROW_NUMBERS, row_length
from patterncc.codegen.gpu.gluon.gradient_source import emit_gluon_gradients
from patterncc.codegen.gpu.gluon.turn_source import launch_grid
from patterncc.codegen.gpu.grad_key_value_source import (
    emit_grad_key_value,
    emit_grad_key_value_repair,
)
from patterncc.codegen.gpu.key_access_source import HELD, PASSING, RESULTS, KeyAccess
from patterncc.codegen.gpu.launches import Buffer, Launch, ceildiv, planned_launch
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.gpu.list_plan import check_lists, sum_launches
from patterncc.codegen.gpu.list_source import emit_lists, list_axes
from patterncc.codegen.gpu.pass_plan import Kind
from patterncc.codegen.gpu.query_sum_source import sum_layout
from patterncc.codegen.gpu.query_tile_plan import patch_obstacle
from patterncc.codegen.gpu.repair_plan import (
    may_spoil,
    noting,
    repair_launch,
    spoiled_buffer,
)
from patterncc.codegen.patches import tile_count
from patterncc.dsl.errors import UnsupportedError

if TYPE_CHECKING:
    from patterncc.codegen.gpu.chunk_source import Progression
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.launches import Call
    from patterncc.codegen.gpu.pass_plan import Pass, Sources
    from patterncc.codegen.ir import BlockProgram, Passes
    from patterncc.codegen.turns import Turns

_MOST_STEPS = 2**31
_WARPS = 8
"""Warps of the programs that a multiprocessor has registers for: each thread takes nearly all that
it can have."""


def key_tile_launches(
    one: Pass,
    call: Call,
    sources: Sources,
    *,
    turns: Turns | None = None,
    split_in_turn: tuple[Progression, ...] = (),
    first_stores: bool = False,
) -> Iterator[Launch]:
    """The launches of a pass whose kernel runs a program for each key tile; in Gluon it computes
    the query's gradient as well.

    Args:
        one: The pass; in Gluon the only one.
        call: The call, with the numbers of its rows on the device.
        sources: Kernels that are written already.
        turns: In which order a kernel in Gluon adds to the query's gradient; None: in any.
        split_in_turn: The key tiles to split where they take turns, progressions that follow each
            other.
        first_stores: Where they take turns, does the first one store?

    Raises:
        UnsupportedError: There are too many rows, or lists of tiles are too large.
        ConfigError: The pattern reads a scalar or a table that the call does not give.
    """
    program, problem, config = one.program, call.problem, one.config
    tiling, group = program.tiling, problem.group
    kv_heads = call.heads // group
    if group * ceildiv(call.q_len, config.block_q) >= _MOST_STEPS:
        raise UnsupportedError(
            f"{call.q_len} rows of {group} heads are too many for one head of the keys",
            "split the call",
        )
    places = tiling.k_step * ceildiv(ceildiv(call.kv_len, tiling.k_step), config.block_k)
    if program.patches is not None:
        places = tile_count(program.patches, "k", call.env)
    split = split_in_turn if turns is not None else _split(program, config, call)
    chunks = sum(progression.programs for progression in split)
    tall = sum(progression.count for progression in split)
    numbers = chunk_values(split) | {"row_length": row_length(call.q_len)}
    call = replace(call, layouts={**call.layouts, **_row_layouts(call)})
    if program.listed:
        capacity = 1 + most_query_tiles(program, call.env, call.heads, group)
        numbers["tile_capacity"] = capacity
        axes = list_axes(program, "transposed")
        rows = places * classes_seen(tiling)
        grid = (rows, *axes.grid(call.heads, group, call.batch))
        check_lists(prod(grid), capacity)
        lists = (Buffer("tiles", (prod(grid), capacity)), Buffer("tile_counts", (prod(grid), 2)))
        yield from sum_launches(program, config, call, sources)
        source = sources.get(emit_lists, program, problem, config, direction="transposed")
        yield planned_launch(source, grid, call, numbers=numbers, buffers=lists)
    passes: dict[str, bool | str | None]
    if config.emitter == "gluon":
        passes = {}
        call = replace(call, layouts={**call.layouts, **_sum_layout(call)})
        source = sources.get(
            emit_gluon_gradients,
            program,
            problem,
            config,
            turns=turns,
            first_stores=first_stores,
            split=bool(split_in_turn),
        )
    else:
        passes = {"resumes": one.resumes, "hands_on": one.hands_on}
        source = sources.get(emit_grad_key_value, program, problem, config, **passes)
    columns = KeyAccess(problem, config, tiling, program.patches).columns
    sums = (call.batch, kv_heads, chunks, config.block_k, columns) if chunks else (1,)
    buffers = (*_state_buffers(one, call), Buffer("sums", sums, "float32"))
    # In any order, and in Triton, programs of split tiles are idle.
    whole = places - tall if turns is not None else places
    grid = (chunks + whole, kv_heads, call.batch)
    buffers += spoiled_buffer(source, grid)
    # How far apart groups are in the view that tiles of rows are boxes of.
    step = tiling.q_step if program.patches is None else program.patches.sizes[-1]
    first = noting(source, call)
    started = launch_grid(grid, config.neighbours) if config.emitter == "gluon" else grid
    yield planned_launch(first, started, call, step=step, numbers=numbers, buffers=buffers)
    if may_spoil(source):
        source = sources.get(emit_grad_key_value_repair, program, problem, config, **passes)
        yield repair_launch(source, grid, call, numbers)
    if chunks:
        source = sources.get(emit_sum_chunks, program, problem, config, **passes)
        grid = (tall * (config.block_k // KEYS_TOGETHER), kv_heads, call.batch)
        yield planned_launch(source, grid, call, numbers=numbers)


def _split(program: BlockProgram, config: KernelConfig, call: Call) -> tuple[Progression, ...]:
    """The key tiles to split."""
    group = call.problem.group
    if program.listed:  # lists say how many tiles there are to visit, which the host does not know
        return ()
    try:
        steps = key_tile_steps(program, call.env, call.heads, group)
    except KeyError:  # a number that the call does not give: named when arguments are collected
        return ()
    return split_tiles(steps, call.heads // group * call.batch, _at_once(call, config))


def _row_layouts(call: Call) -> dict[str, Layout]:
    """Where the numbers of rows lie that the delta kernel leaves; allocated, so aligned."""
    length = row_length(call.q_len)
    sizes = (call.batch, call.heads, 1, length)
    strides = (call.heads * length, length, length, 1)
    return {name: Layout(name, 0, sizes, strides, 4) for name in ROW_NUMBERS}


def _sum_layout(call: Call) -> dict[str, Layout]:
    """Where the sums of the query's gradient lie, of a call whose kernel adds to them."""
    rows = call.batch * call.heads * row_length(call.q_len)
    return {"query_sums": sum_layout(rows, call.problem.head_dim)}


def _at_once(call: Call, config: KernelConfig) -> int:
    """How many programs run at a time."""
    return call.multiprocessors * max(_WARPS // config.num_warps, 1)


def _state_buffers(one: Pass, call: Call) -> Iterator[Buffer]:
    """The float32 sums that the first of several passes leaves; float32 gradients hold them
    themselves."""
    if one.resumes or not one.hands_on or call.problem.dtype == "float32":
        return
    for name, like in zip(RESULTS, HELD, strict=True):
        yield Buffer(f"{name}_state", call.layouts[like].sizes, "float32")


def _obstacle(passes: Passes, call: Call) -> str | None:
    """Why tensor descriptors are impossible for some pass, or None."""
    layouts = call.layouts
    for program in passes:
        if program.patches is not None:
            obstacle = patch_obstacle(program.patches, "q", PASSING, call)
            if obstacle is not None:
                return obstacle
            continue
        tiling = program.tiling
        # Keys of a class are loaded once, by pointers.
        held = HELD if tiling.k_step == 1 else ()
        for name, step in (*((n, tiling.q_step) for n in PASSING), *((n, 1) for n in held)):
            obstacle = layouts[name].descriptor_obstacle(step)
            if obstacle is not None:
                return obstacle
        q_len = layouts["query"].sizes[2]
        least = q_len // tiling.q_step
        if tiling.q_step > 1 and least < program.block_q:
            return (
                f"of {q_len} rows every {tiling.q_step}th are {least}, "
                f"less than a tile of {program.block_q}"
            )
    return None


GRAD_KEY_VALUE = Kind(
    default_grad_key_value_config,
    suited_grad_key_value,
    grad_key_value_shared_bytes,
    _obstacle,
    key_tile_launches,
)
