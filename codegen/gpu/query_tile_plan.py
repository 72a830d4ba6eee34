"""What a pass launches whose kernel runs a program for each query tile: lists of tiles where tables
decide them, the kernel, and the one that repairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launches import Buffer, Call, Launch, ceildiv, planned_launch
from patterncc.codegen.gpu.list_plan import (
    check_lists,
    list_turns,
    most_key_tiles,
    run_list_launch,
    sum_launches,
)
from patterncc.codegen.gpu.list_source import emit_lists, list_axes
from patterncc.codegen.gpu.pass_plan import Pass, Sources
from patterncc.codegen.gpu.patch_source import patch_box
from patterncc.codegen.gpu.repair_plan import (
    may_spoil,
    noting,
    repair_launch,
    spoiled_buffer,
)
from patterncc.codegen.ir import DENSE, Passes, Patches
from patterncc.codegen.listing import ranked
from patterncc.codegen.patches import tile_count


def query_tile_launches(
    emit: Callable[..., KernelSource],
    repair: Callable[..., KernelSource],
    one: Pass,
    call: Call,
    sources: Sources,
    buffers: tuple[Buffer, ...] = (),
) -> Iterator[Launch]:
    """The launches of a pass whose kernel runs a program for each query tile: the one that lists
    its tiles, where tables decide them, the kernel, and the one that repairs.

    Args:
        emit: Writes the kernel.
        repair: Writes the one that repairs what it has spoiled.
        one: The pass.
        call: The call.
        sources: Kernels that are written already.
        buffers: Memory that the kernel is the first to need.
    """
    program, problem, config = one.program, call.problem, one.config
    step = program.tiling.q_step
    tiles = step * ceildiv(ceildiv(call.q_len, step), config.block_q)
    patches = program.patches
    if patches is not None:
        tiles = tile_count(patches, "q", call.env)
    between = {"resumes": one.resumes, "hands_on": one.hands_on}
    source = sources.get(emit, program, problem, config, **between)
    # How far apart groups are in the view that key tiles are boxes of.
    k_step = program.tiling.k_step if patches is None else patches.sizes[-1]

    def kernel(tiles: int, numbers: Mapping[str, int]) -> Iterator[Launch]:
        grid = (tiles, call.heads, call.batch)
        room = (*buffers, *spoiled_buffer(source, grid))
        first = noting(source, call)
        yield planned_launch(first, grid, call, step=k_step, numbers=numbers, buffers=room)
        if may_spoil(source):
            repairing = sources.get(repair, program, problem, config, **between)
            yield repair_launch(repairing, grid, call, numbers)

    yield from sum_launches(program, config, call, sources)
    if ranked(program):
        yield run_list_launch(program, problem, config, call, sources)
        yield from kernel(tiles, {})
    elif program.gathered > 1 or program.listed:
        lists = sources.get(emit_lists, program, problem, config)
        capacity = 1 + most_key_tiles(program, call)
        by_head, by_batch = list_axes(program).grid(call.heads, problem.group, call.batch)
        turns = list_turns(program, config, tiles, 4 * capacity * by_head * by_batch)
        rows = max(count for _, count in turns) * by_head * by_batch
        check_lists(rows, capacity)
        room: tuple[Buffer, ...]
        room = (Buffer("tiles", (rows, capacity)), Buffer("tile_counts", (rows, 2)))
        for first, count in turns:
            numbers = {"tile_capacity": capacity, "first_tile": first}
            grid = (count, by_head, by_batch)
            yield planned_launch(lists, grid, call, numbers=numbers, buffers=room)
            yield from kernel(count, numbers)
            room, buffers = (), ()  # the first turn's are there
    else:
        yield from kernel(tiles, {})


def query_tile_obstacle(rows: Sequence[str], passes: Passes, call: Call) -> str | None:
    """Why tensor descriptors are impossible for some pass of such a kernel, or None.

    Args:
        rows: The tensors of which it loads query tiles.
        passes: The passes.
        call: Its tensors and numbers.
    """
    layouts = call.layouts
    for program in passes:
        tiling = program.tiling
        if program.patches is not None:
            obstacle = patch_obstacle(program.patches, "k", ("key", "value"), call)
            if obstacle is not None:
                return obstacle
            continue
        # Rows of a class are loaded once, by pointers.
        for name in (*(rows if tiling == DENSE else ()), "key", "value"):
            obstacle = layouts[name].descriptor_obstacle(tiling.k_step)
            if obstacle is not None:
                return obstacle
        kv_len = layouts["key"].sizes[2]
        least = kv_len // tiling.k_step
        if tiling.k_step > 1 and least < program.block_k:
            return (
                f"of {kv_len} keys every {tiling.k_step}th are {least}, "
                f"less than a tile of {program.block_k}"
            )
    return None


def patch_obstacle(
    patches: Patches, side: Literal["q", "k"], names: Sequence[str], call: Call
) -> str | None:
    """Why no descriptor loads passing patches, or None.

    Args:
        patches: The patches.
        side: Those of queries or of keys.
        names: The tensors that they are tiles of.
        call: Their layouts, and the offset.
    """
    if patch_box(patches, side) is None:
        shape = " x ".join(map(str, patches.passing(side)))
        return f"patches of {shape} places are no boxes of a descriptor"
    (width,) = patches.sizes
    for name in names:
        obstacle = call.layouts[name].descriptor_obstacle(width)
        if obstacle is not None:
            return obstacle
    length = call.layouts[names[0]].sizes[2]
    what = "rows" if side == "q" else "keys"
    if length % width:
        return f"{length} {what} are no whole lines of a raster {width} wide"
    offset = call.env["q_offset"] if side == "q" else 0
    return f"position {offset} begins no line of a raster {width} wide" if offset % width else None


def state_buffer(name: str, one: Pass, call: Call, like: str) -> tuple[Buffer, ...]:
    """The float32 rows `[batch, heads, q_len, width]` that the first of several passes leaves, as
    wide as those of the tensor `like`; a float32 result holds them itself."""
    if one.resumes or not one.hands_on or call.problem.dtype == "float32":
        return ()
    width = call.layouts[like].sizes[3]
    return (Buffer(name, (call.batch, call.heads, call.q_len, width), "float32"),)
