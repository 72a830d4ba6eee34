"""Lists of runs of keys that serve all query tiles, as Triton text.

Where what tables say of a run hangs on no row (`verticals[head, k]`), its runs are listed once for
all query tiles of a head, not for each: `runs` has the numbers of those that tables allow, rising,
and `run_ranks[n]` how many of them come before run `n`. A sweep over the runs from `lo` to `hi` is
then one over the places from `run_ranks[lo]` to `run_ranks[hi]` of that list.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.bound_source import wide_name, widened
from patterncc.codegen.gpu.clause_source import clause_lines
from patterncc.codegen.gpu.kernel_source import KernelParameter, KernelSource
from patterncc.codegen.gpu.kernel_text import module_text
from patterncc.codegen.gpu.list_source import (
    emit_lists,
    head_lines,
    list_axes,
    list_leaves,
    list_tables,
)
from patterncc.codegen.gpu.mask_source import scalar_name
from patterncc.codegen.ir import K_FIRST, K_LAST
from patterncc.codegen.listing import ranked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem

RUN_PARAMETERS = (
    KernelParameter("runs_ptr", "*i32", 4),
    KernelParameter("run_ranks_ptr", "*i32", 4),
)
"""Lists of runs, `[lists, run_count]`, and ranks of all runs, `[lists, run_count + 1]`."""

RUNS_AT_ONCE = 4096
"""Runs that one program lists. It counts those before for itself: that needs no other program's
result, and reads of a table what the caches hold."""

_LENGTHS = ("q_len", "kv_len", "q_offset")
_OF_GRID = frozenset({"head", "kv_head", "batch", "heads", "kv_heads"})


def run_list_lines(program: BlockProgram, by_head: str) -> Iterator[str]:
    """Where the lists of a head and batch entry are; `by_head` as in `ListAxes.place`."""
    yield f"run_count = {run_count(program)}"
    yield f"list_row = {list_axes(program).place(by_head)}"
    yield "run_list = runs_ptr + list_row * run_count"
    yield "ranks = run_ranks_ptr + list_row * (run_count + 1)"


def run_count(program: BlockProgram) -> str:
    """The number of runs of the call, as text."""
    run = program.block_k
    return "kv_len" if run == 1 else f"(kv_len + {run - 1}) // {run}"


def emit_listing(program: BlockProgram, problem: Problem, config: KernelConfig) -> KernelSource:
    """Writes the kernel that lists what the query tiles of a program visit: tiles or runs, for each
    of them or for all together."""
    return (emit_run_lists if ranked(program) else emit_lists)(program, problem, config)


def emit_run_lists(program: BlockProgram, problem: Problem, config: KernelConfig) -> KernelSource:
    """Writes the kernel that lists the runs of a ranked program (`listing.ranked`), for a grid of a
    program for each `RUNS_AT_ONCE` of all runs and one more, and of what lists differ by
    (`ListAxes.grid`)."""
    config = replace(config, num_warps=4, num_stages=1, load="pointer", max_registers=None)
    leaves = list_leaves(program)
    tables = list_tables(program)
    by_name = {table.name: table for table in tables}
    lanes = {K_FIRST, K_LAST}
    names = {scalar_name(leaf) for leaf in leaves if leaf not in lanes}
    parameters = (
        *RUN_PARAMETERS,
        *(table.pointer for table in tables),
        *(KernelParameter(name, "i32") for name in _LENGTHS),
        *(size for table in tables for size in table.sizes),
        *(KernelParameter(name, "i32") for name in sorted(names - {*_LENGTHS, *_OF_GRID})),
    )

    def look(start: str) -> Iterator[str]:
        """`visited`: which of the runs from `start` on do the tables allow?"""
        yield f"tile = {start} + tl.arange(0, LANES)"
        yield "visited = tile < run_count"
        yield "whole = visited"
        yield f"{wide_name(K_FIRST)} = tile.to(tl.int64) * BLOCK_K"
        yield f"{wide_name(K_LAST)} = tl.minimum({wide_name(K_FIRST)} + BLOCK_K, kv_len) - 1"
        yield from clause_lines(program, "forward", by_name)

    lines = [
        f"BLOCK_K: tl.constexpr = {program.block_k}",
        f"LANES: tl.constexpr = {RUNS_AT_ONCE}",
        "",
        "# One program: so many runs of keys of what lists differ by.",
        *head_lines(program, problem.group, names),
        *run_list_lines(program, "tl.num_programs(1)"),
        *(f"{wide_name(leaf)} = {widened(leaf)}" for leaf in leaves if leaf not in lanes),
        "",
        "# Those before.",
        "listed = tl.zeros([LANES], tl.int32)",
        "for start in range(0, tl.program_id(0) * LANES, LANES):",
        *(f"    {line}" for line in look("start")),
        "    listed += visited.to(tl.int32)",
        "before = tl.sum(listed, 0)",
        "",
        "# Its own; after the last run comes the rank that all have who come after it.",
        *look("tl.program_id(0) * LANES"),
        "listed = visited.to(tl.int32)",
        "rank = before + tl.cumsum(listed, 0) - listed",
        "tl.store(ranks + tile, rank, mask=tile <= run_count)",
        "tl.store(run_list + rank, tile, mask=visited)",
    ]
    structure = "\n".join(f"#   {line}" for line in program.structure.splitlines())
    head = "# Lists of runs of keys, generated by patterncc: changes here are overwritten."
    text = module_text(f"{head}\n# pattern:\n{structure}", "list_runs", parameters, lines)
    return KernelSource("list_runs", text, parameters, problem, config, tables)
