"""Lists of tiles, as Triton text: where tables decide which tiles are visited, a kernel writes each
query tile's lists down and the forward kernel runs over them.

A row of `tiles` belongs to one query tile. Its partial tiles start at the front and its full ones
at the back, in the order of the sweeps; `tile_counts` has how many there are of each. A row is one
longer than there are key tiles, so the entry after the last may be read ahead: the forward kernel
loads a tile's number a whole step before it is needed, which keeps its loads of keys as deep ahead
as arithmetic would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from patterncc.codegen.class_source import (
    CLASS_NAMES,
    class_lines,
    length_parameters,
    row_lines,
    tile_lines,
)
from patterncc.codegen.ir import DENSE, K_FIRST, K_LAST, RESIDUE
from patterncc.codegen.mask_source import scalar_name
from patterncc.codegen.scalar_source import HELPERS, ExpressionWriter, Text
from patterncc.codegen.sweep_source import (
    LoopNest,
    TileLoop,
    emit_loops,
    expressions,
    wide_name,
    widened,
)
from patterncc.codegen.table_source import helpers, read_text, tables_read
from patterncc.codegen.triton_source import KernelParameter, KernelSource
from patterncc.dsl.mask import Expr, Member, Param, Var, walk

if TYPE_CHECKING:
    from patterncc.codegen.config import KernelConfig
    from patterncc.codegen.ir import BlockProgram, Entries
    from patterncc.codegen.problem import Problem

MOST_ENTRIES = 64
"""Most entries of a table that are looked at for one tile. Finer tables are left to the mask, which
reads them anyway: to list their tiles would cost as much."""

LIST_PARAMETERS = (
    KernelParameter("tiles_ptr", "*i32", 4),
    KernelParameter("tile_counts_ptr", "*i32", 4),
)
CAPACITY = KernelParameter("tile_capacity", "i32")
"""The length of a row of `tiles`."""

_LANES = 128  # tiles that are looked at together
_PER_HEAD = frozenset({"head", "kv_head", "heads", "kv_heads"})
_GIVEN = frozenset({"q_len", "kv_len", "q_offset", "head", "kv_head", "batch", "heads", "kv_heads"})
_OF_TILE = frozenset({"q_first", "q_last", K_FIRST.name, K_LAST.name, RESIDUE.name})


def lists_tiles(program: BlockProgram) -> bool:
    """Are the program's tiles listed by a kernel of their own?"""
    return (
        bool(program.listed)
        and not any(loop.vectors for loop in emit_loops(program.forward).loops)
        and all(_count(entries) <= MOST_ENTRIES for clause in program.listed for entries in clause)
    )


def list_axes(program: BlockProgram) -> tuple[bool, bool]:
    """Do the lists differ between heads, and between batch entries?"""
    names = {
        leaf.name for expr in _expressions(program) for leaf in walk(expr) if isinstance(leaf, Var)
    }
    return bool(names & _PER_HEAD), "batch" in names


def list_row(program: BlockProgram) -> str:
    """The number of a program's row in the lists, as text."""
    per_head, per_batch = list_axes(program)
    head = {
        (True, True): "batch.to(tl.int64) * tl.num_programs(1) + head",
        (True, False): "head.to(tl.int64)",
        (False, True): "batch.to(tl.int64)",
        (False, False): "tl.cast(0, tl.int64)",
    }[per_head, per_batch]
    step = program.tiling.q_step
    place = "q_tile" if step == 1 else f"q_tile * {step} + row_class"
    return f"({head}) * tl.num_programs(0) + {place}"


def listed_loops(program: BlockProgram) -> LoopNest:
    """The forward kernel's loops over what `list_tiles` wrote down."""
    last = "tiles + tile_capacity"
    partial = TileLoop(
        "partial",
        (),
        "partial_count",
        "tile",
        first="tile = tl.load(tiles)",
        following="tile = tl.load(tiles + step + 1)",
    )
    full = TileLoop(
        "full",
        (),
        "full_count",
        "tile",
        first=f"tile = tl.load({last} - 1)",
        following=f"tile = tl.load({last} - 2 - step)",
    )
    some_full = any(sweep.kind == "full" for sweep in program.forward)
    common = (
        f"list_row = {list_row(program)}",
        "tiles = tiles_ptr + list_row * tile_capacity",
        "partial_count = tl.load(tile_counts_ptr + list_row * 2)",
        *(["full_count = tl.load(tile_counts_ptr + list_row * 2 + 1)"] * some_full),
    )
    return LoopNest(common, (partial, full) if some_full else (partial,), {})


def emit_lists(program: BlockProgram, problem: Problem, config: KernelConfig) -> KernelSource:
    """Writes the kernel that lists the tiles of a program, for a grid of as many query tiles as the
    forward kernel's, and of its heads and batch entries where the lists differ between those."""
    config = replace(config, num_warps=4, num_stages=1, load="pointer", max_registers=None)
    nest, tiling = emit_loops(program.forward), program.tiling
    leaves = _leaves(program)
    tables = tables_read(_expressions(program))
    lengths = length_parameters(tiling)
    known = {*_GIVEN, *_OF_TILE, *CLASS_NAMES, *lengths}
    parameters = (
        *LIST_PARAMETERS,
        *(table.pointer for table in tables),
        *(KernelParameter(name, "i32") for name in lengths),
        CAPACITY,
        *(size for table in tables for size in table.sizes),
        *(KernelParameter(n, "i32") for n in sorted({scalar_name(v) for v in leaves} - known)),
    )
    names = {scalar_name(leaf) for leaf in leaves}
    lines = [
        f"BLOCK_Q: tl.constexpr = {config.block_q}",
        f"BLOCK_K: tl.constexpr = {config.block_k}",
        f"LANES: tl.constexpr = {_LANES}",
        "",
        *tile_lines(tiling, config.order),
        "head = tl.program_id(1)",
        "batch = tl.program_id(2)",
        f"kv_head = head // {problem.group}",
        *(["heads = tl.num_programs(1)"] if "heads" in names else []),
        *([f"kv_heads = tl.num_programs(1) // {problem.group}"] if "kv_heads" in names else []),
        *class_lines(tiling),
        *row_lines(tiling),
        f"row = {list_row(program)}",
        "tiles = tiles_ptr + row * tile_capacity",
        "",
        "# Bounds of the sweeps, in 64 bits so that no sum of numbers wraps.",
        *(
            f"{wide_name(leaf)} = {widened(leaf)}"
            for leaf in leaves
            if leaf.name not in (K_FIRST.name, K_LAST.name)
        ),
        *nest.common,
        *(line for loop in nest.loops for line in loop.setup),
        "",
        "partial_count = tl.cast(0, tl.int32)",
        "full_count = tl.cast(0, tl.int32)",
    ]
    for loop in nest.loops:
        count = loop.count if tiling == DENSE else f"tl.where(has_work, {loop.count}, 0)"
        lines += ["", f"# Tiles that the sweeps call {loop.kind}."]
        lines += [f"for start in range(0, {count}, LANES):"]
        lines += [f"    {line}" for line in _look(program, loop, count)]
    lines += [
        "tl.store(tile_counts_ptr + row * 2, partial_count)",
        "tl.store(tile_counts_ptr + row * 2 + 1, full_count)",
    ]
    body = "\n".join(f"    {line}" if line else "" for line in lines)
    divides = "floor_divide(" in body or "floor_modulo(" in body
    functions = "".join(f"{f}\n\n" for f in [*([HELPERS] if divides else []), *helpers(body)])
    signature = "".join(f"    {parameter.name},\n" for parameter in parameters)
    head = "# Lists of tiles, generated by patterncc: changes here are overwritten."
    structure = "\n".join(f"#   {line}" for line in program.structure.splitlines())
    text = (
        f"{head}\n# pattern:\n{structure}\nimport triton\nimport triton.language as tl\n\n\n"
        f"{functions}@triton.jit\ndef list_tiles(\n{signature}):\n{body}\n"
    )
    return KernelSource("list_tiles", text, parameters, problem, config, tables)


def _look(program: BlockProgram, loop: TileLoop, count: str) -> Iterator[str]:
    """Looks at tiles, one in each lane, and writes those that are visited down."""
    yield "step = start + tl.arange(0, LANES)"
    yield f"visited = step < {count}"
    yield f"tile = {loop.tile}"
    yield f"{wide_name(K_FIRST)} = tile.to(tl.int64) * BLOCK_K"
    yield f"{wide_name(K_LAST)} = tl.minimum({wide_name(K_FIRST)} + BLOCK_K, kv_len) - 1"
    yield f"whole = visited & {loop.kind == 'full'}"
    for clause in program.listed:
        yield "any_true = tl.zeros([LANES], tl.int32)"
        yield "any_whole = tl.zeros([LANES], tl.int32)"
        for entries in clause:
            yield from _entries(entries)
            yield "any_true = tl.maximum(any_true, some)"
            yield "any_whole = tl.maximum(any_whole, every)"
        yield "visited = visited & (any_true != 0)"
        yield "whole = whole & (any_whole != 0)"
    yield "masked = (visited & (whole == 0)).to(tl.int32)"
    yield "place = tiles + partial_count + tl.cumsum(masked, 0) - 1"
    yield "tl.store(place, tile, mask=masked != 0)"
    yield "partial_count += tl.sum(masked, 0)"
    if loop.kind == "full":
        yield "plain = (visited & whole).to(tl.int32)"
        yield "place = tiles + tile_capacity - full_count - tl.cumsum(plain, 0)"
        yield "tl.store(place, tile, mask=plain != 0)"
        yield "full_count += tl.sum(plain, 0)"


def _entries(entries: Entries) -> Iterator[str]:
    """`some`, `every`: are some and are all entries true that a tile reads?"""
    writer = ExpressionWriter(_wide, least_bits=64)
    yield "some = tl.zeros([LANES], tl.int32)"
    yield "every = tl.full([LANES], 1, tl.int32)"
    indexes, inside = [], []
    left = _count(entries)
    for axis, bounds in enumerate(entries.ranges):
        yield f"low_{axis} = {writer.integer(bounds.lo).text}"
        left //= bounds.most
        if bounds.most == 1:
            indexes.append(f"low_{axis}")
            continue
        yield f"high_{axis} = {writer.integer(bounds.hi).text}"
        indexes.append(f"(low_{axis} + entry // {left} % {bounds.most})")
        inside.append(f"({indexes[-1]} <= high_{axis})")
    node = Member(entries.table, tuple(bounds.lo for bounds in entries.ranges))
    yield f"for entry in range(0, {_count(entries)}):"
    yield f"    true = {read_text(node, indexes)} != 0"
    within = " & ".join(inside) or "visited"
    yield f"    within = {within}"
    yield "    some = tl.maximum(some, tl.where(within & true, 1, 0))"
    yield "    every = tl.minimum(every, tl.where(within & (true == 0), 0, 1))"


def _count(entries: Entries) -> int:
    return prod(bounds.most for bounds in entries.ranges)


def _expressions(program: BlockProgram) -> Iterator[Expr]:
    """What the listing computes of a program."""
    yield from expressions(program.forward)
    yield program.tiling.k_class
    for clause in program.listed:
        for entries in clause:
            yield Member(entries.table, tuple(bounds.lo for bounds in entries.ranges))
            yield from (bounds.hi for bounds in entries.ranges)


def _leaves(program: BlockProgram) -> list[Var | Param]:
    """The scalars of those, by name."""
    found = {
        leaf
        for expr in _expressions(program)
        for leaf in walk(expr)
        if isinstance(leaf, (Var, Param)) and leaf != RESIDUE
    }
    return sorted(found, key=lambda leaf: leaf.name)


def _wide(expr: Expr) -> Text | None:
    return Text(wide_name(expr), 64) if isinstance(expr, (Var, Param)) else None
