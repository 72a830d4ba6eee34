"""Lists of tiles, as Triton text: where tables decide which tiles are visited, a kernel writes each
query tile's lists down and the kernels that compute query tiles run over them; in the transposed
direction each key tile's, for the kernel that computes key tiles.

A row of `tiles` belongs to one query tile (or key tile, for each class of rows that it may see).
Its partial tiles start at the front and its full ones at the back, in the order of the sweeps;
`tile_counts` has how many there are of each. A row is one longer than there are tiles to visit, so
the entry after the last may be read ahead: kernels load a tile's number a whole step before it is
needed, which keeps their loads as deep ahead as arithmetic would.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from patterncc.codegen.gpu.bound_source import expressions, wide_name, widened
from patterncc.codegen.gpu.chunk_source import KEY_PLACES
from patterncc.codegen.gpu.class_source import (
    CLASS_NAMES,
    class_lines,
    classes_seen,
    in_pairs,
    key_class_lines,
    key_lines,
    length_parameters,
    row_class_lines,
    row_lines,
    tile_lines,
)
from patterncc.codegen.gpu.clause_source import LANE_ENDS, clause_lines
from patterncc.codegen.gpu.kernel_source import KernelParameter, KernelSource
from patterncc.codegen.gpu.kernel_text import module_text
from patterncc.codegen.gpu.mask_source import scalar_name
from patterncc.codegen.gpu.separate import ROWS, keys_of_tiles
from patterncc.codegen.gpu.sweep_source import (
    LoopNest,
    TileLoop,
    emit_loops,
)
from patterncc.codegen.gpu.table_source import tables_read
from patterncc.codegen.gpu.table_sum_source import sum_parameter, summed_tables
from patterncc.codegen.ir import (
    DENSE,
    K_FIRST,
    K_LAST,
    K_TILE,
    Q_FIRST,
    Q_LAST,
    RESIDUE,
)
from patterncc.codegen.listing import asked, ranked
from patterncc.dsl.mask import Expr, Param, Var, walk

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.table_source import Table
    from patterncc.codegen.ir import BlockProgram, Direction
    from patterncc.codegen.problem import Problem

LIST_PARAMETERS = (
    KernelParameter("tiles_ptr", "*i32", 4),
    KernelParameter("tile_counts_ptr", "*i32", 4),
)
CAPACITY = KernelParameter("tile_capacity", "i32")
"""The length of a row of `tiles`."""
FIRST_TILE = KernelParameter("first_tile", "i32")
"""The first query tile of a launch, of the lists of gathered programs, which may be launched for
some query tiles at a time."""

_LANES = 128  # tiles that are looked at together
_LANES_OF_RUNS = 1024  # or runs of keys, of which there are many more
_GIVEN = frozenset({"q_len", "kv_len", "q_offset", "head", "kv_head", "batch", "heads", "kv_heads"})
_OF_TILE = frozenset(leaf.name for leaf in (Q_FIRST, Q_LAST, K_FIRST, K_LAST, K_TILE, RESIDUE))


@dataclass(frozen=True, slots=True)
class ListAxes:
    """What the lists of a program differ by.

    Attributes:
        head: Each head, each head of the keys, or neither has its own.
        batch: Each batch entry has its own.
    """

    head: Literal["head", "kv_head"] | None
    batch: bool

    def grid(self, heads: int, group: int, batch: int) -> tuple[int, int]:
        """How many lists a query tile has by head, and by batch entry."""
        by_head = {"head": heads, "kv_head": heads // group, None: 1}[self.head]
        return by_head, batch if self.batch else 1

    def place(self, by_head: str) -> str:
        """The number of a head's and batch entry's lists, as text; `by_head` as in `grid`."""
        head = f"{self.head}.to(tl.int64)" if self.head else ""
        entry = f"batch.to(tl.int64) * ({by_head})" if self.head else "batch.to(tl.int64)"
        terms = [*([entry] if self.batch else []), *([head] if head else [])]
        return " + ".join(terms) or "tl.cast(0, tl.int64)"


def list_axes(program: BlockProgram, direction: Direction = "forward") -> ListAxes:
    """Which heads and batch entries share their lists."""
    names = {
        leaf.name
        for expr in _expressions(program, direction)
        for leaf in walk(expr)
        if isinstance(leaf, Var)
    }
    head: Literal["head", "kv_head"] | None = None
    if "head" in names:
        head = "head"
    elif names & {"kv_head", "heads", "kv_heads"}:
        head = "kv_head"
    return ListAxes(head, "batch" in names)


def _row(program: BlockProgram, direction: Direction, by_head: str, places: str) -> str:
    """The number of a tile's row in the lists, as text.

    Args:
        program, direction: Whose lists.
        by_head: How many lists a tile has by head.
        places: How many tiles have lists, classes counted.
    """
    tiling = program.tiling
    axes = list_axes(program, direction)
    if direction == "forward":
        tile = "q_tile" if tiling.q_step == 1 else f"q_tile * {tiling.q_step} + row_class"
        if program.gathered > 1:
            tile = "q_tile - first_tile"
    else:
        classes = classes_seen(tiling)
        tile = "key_place" if classes == 1 else f"key_place * {classes} + row_class"
    return f"({axes.place(by_head)}) * {places} + {tile}"


def query_list_row(program: BlockProgram, group: int) -> str:
    """The number of the row of a query tile's lists, in a kernel that has a program for each tile
    of each head."""
    heads = {"head": "tl.num_programs(1)", "kv_head": f"tl.num_programs(1) // {group}"}
    by_head = heads.get(list_axes(program).head or "", "")
    return _row(program, "forward", by_head, "tl.num_programs(0)")


def listed_loops(program: BlockProgram, group: int, direction: Direction = "forward") -> LoopNest:
    """The loops over what `list_tiles` wrote down."""
    if direction == "forward":
        row = query_list_row(program, group)
        start, following = ("", " + step + 1"), (" - 1", " - 2 - step")
    else:
        heads = {"head": "heads", "kv_head": "tl.num_programs(1)"}
        axes = list_axes(program, direction)
        classes = classes_seen(program.tiling)
        places = KEY_PLACES if classes == 1 else f"({KEY_PLACES} * {classes})"
        row = _row(program, direction, heads.get(axes.head or "", ""), places)
        start, following = (" + step", " + next_step"), (" - 1 - step", " - 1 - next_step")
    last = "tiles + tile_capacity"
    partial = TileLoop(
        "partial",
        (),
        "partial_count",
        "tile",
        first=(f"tile = tl.load(tiles{start[0]})",),
        following=(f"tile = tl.load(tiles{start[1]})",),
        place="step",
    )
    full = TileLoop(
        "full",
        (),
        "full_count",
        "tile",
        first=(f"tile = tl.load({last}{following[0]})",),
        following=(f"tile = tl.load({last}{following[1]})",),
        place="tile_capacity - 1 - step",
    )
    some_full = any(sweep.kind == "full" for sweep in program.sweeps(direction))
    common = (
        f"list_row = {row}",
        "tiles = tiles_ptr + list_row * tile_capacity",
        "partial_count = tl.load(tile_counts_ptr + list_row * 2)",
        *(["full_count = tl.load(tile_counts_ptr + list_row * 2 + 1)"] * some_full),
    )
    return LoopNest(common, (partial, full) if some_full else (partial,), {})


def emit_lists(
    program: BlockProgram,
    problem: Problem,
    config: KernelConfig,
    *,
    direction: Direction = "forward",
) -> KernelSource:
    """Writes the kernel that lists the tiles of a program, for a grid of as many tiles of every
    class as have lists and of what else its lists differ by (`ListAxes.grid`)."""
    warps = 4 if program.gathered == 1 else 8
    config = replace(config, num_warps=warps, num_stages=1, load="pointer", max_registers=None)
    held = ROWS if direction == "forward" else keys_of_tiles(program.block_k)
    nest = emit_loops(program.sweeps(direction), lanes=False, held=held)
    tiling = program.tiling
    leaves = list_leaves(program, direction)
    tables = list_tables(program, direction)
    by_name = {table.name: table for table in tables}
    lengths = length_parameters(tiling)
    known = {*_GIVEN, *_OF_TILE, *CLASS_NAMES, *lengths}
    parameters = (
        *LIST_PARAMETERS,
        *map(sum_parameter, summed_tables(program)),
        *(table.pointer for table in tables),
        *(KernelParameter(name, "i32") for name in lengths),
        CAPACITY,
        *([FIRST_TILE] * (program.gathered > 1)),
        *(size for table in tables for size in table.sizes),
        *(KernelParameter(n, "i32") for n in sorted({scalar_name(v) for v in leaves} - known)),
    )
    names = {scalar_name(leaf) for leaf in leaves}
    own = _rows_of_program if direction == "forward" else _keys_of_program
    lines = [
        f"BLOCK_Q: tl.constexpr = {config.block_q}",
        f"BLOCK_K: tl.constexpr = {program.block_k}",
        f"LANES: tl.constexpr = {_LANES if program.gathered == 1 else _LANES_OF_RUNS}",
        "",
        *own(
            program,
            config,
            list(head_lines(program, problem.group, names, direction)),
        ),
        f"list_row = {_row(program, direction, 'tl.num_programs(1)', 'tl.num_programs(0)')}",
        "tiles = tiles_ptr + list_row * tile_capacity",
        "",
        "# Bounds of the sweeps, in 64 bits so that no sum of numbers wraps.",
        *(
            f"{wide_name(leaf)} = {widened(leaf)}"
            for leaf in leaves
            if leaf not in LANE_ENDS[direction]
        ),
        *nest.common,
        *(line for loop in nest.loops if loop.classes == 1 for line in loop.setup),
        "",
        "partial_count = tl.cast(0, tl.int32)",
        "full_count = tl.cast(0, tl.int32)",
    ]
    for loop in nest.loops:
        lines += ["", f"# Tiles that the sweeps call {loop.kind}."]
        lines += _walk(program, direction, loop, by_name)
    lines += [
        "tl.store(tile_counts_ptr + list_row * 2, partial_count)",
        "tl.store(tile_counts_ptr + list_row * 2 + 1, full_count)",
    ]
    head = "# Lists of tiles, generated by patterncc: changes here are overwritten."
    structure = "\n".join(f"#   {line}" for line in program.structure.splitlines())
    text = module_text(f"{head}\n# pattern:\n{structure}", "list_tiles", parameters, lines)
    return KernelSource("list_tiles", text, parameters, problem, config, tables)


def head_lines(
    program: BlockProgram, group: int, names: Collection[str], direction: Direction = "forward"
) -> Iterator[str]:
    """The head and batch entry whose lists a program of the kernel writes down.

    Args:
        program, direction: What is listed.
        group: Query heads that share a head of the keys.
        names: What the listing reads.
    """
    by_kv_head = list_axes(program, direction).head == "kv_head"
    yield f"{'kv_head' if by_kv_head else 'head'} = tl.program_id(1)"
    yield "batch = tl.program_id(2)"
    if not by_kv_head:
        yield f"kv_head = head // {group}"
    if "heads" in names:
        yield _size("heads", group if by_kv_head else 1)
    if "kv_heads" in names:
        yield _size("kv_heads", 1 if by_kv_head else -group)


def _rows_of_program(program: BlockProgram, config: KernelConfig, grid: list[str]) -> Iterator[str]:
    """The rows whose lists a program of the kernel writes down."""
    tiling = program.tiling
    yield from tile_lines(tiling, config.order)
    if program.gathered > 1:
        yield "q_tile += first_tile"
    yield from grid
    yield from class_lines(tiling)
    yield from row_lines(tiling)


def _keys_of_program(program: BlockProgram, config: KernelConfig, grid: list[str]) -> Iterator[str]:
    """The keys, and the class of rows, whose lists a program of the kernel writes down."""
    tiling = program.tiling
    classes = classes_seen(tiling)
    yield "# One program: a key tile of a head of a batch entry."
    if classes == 1:
        yield "key_place = tl.program_id(0)"
    else:
        yield f"key_place = tl.program_id(0) // {classes}"
        yield f"row_class = tl.program_id(0) % {classes}"
    yield from grid
    yield from key_class_lines(tiling)
    yield from key_lines(tiling)
    work = "has_work = (k_first < kv_len) & (q_len > 0)"
    if not in_pairs(tiling):
        yield from row_class_lines(tiling)
        work += " & sees"
    if tiling != DENSE:
        yield work


def _size(name: str, factor: int) -> str:
    """A number of heads from that of programs; a negative factor divides."""
    scaled = {1: "", -1: ""}.get(factor, f" * {factor}" if factor > 0 else f" // {-factor}")
    return f"{name} = tl.num_programs(1){scaled}"


def _walk(
    program: BlockProgram, direction: Direction, loop: TileLoop, tables: Mapping[str, Table]
) -> Iterator[str]:
    """Walks the tiles of a loop, of one residue class after the other where it has many."""
    indent = ""
    if loop.classes > 1:
        yield f"for residue in range(0, {loop.classes}):"
        indent = "    "
        yield f"{indent}residue_wide = tl.cast(residue, tl.int64)"
        yield from (f"{indent}{line}" for line in loop.setup)
    count = loop.count if program.tiling == DENSE else f"tl.where(has_work, {loop.count}, 0)"
    yield f"{indent}for start in range(0, {count}, LANES):"
    yield from (f"{indent}    {line}" for line in _look(program, direction, loop, count, tables))


def _look(
    program: BlockProgram,
    direction: Direction,
    loop: TileLoop,
    count: str,
    tables: Mapping[str, Table],
) -> Iterator[str]:
    """Looks at tiles, one in each lane, and writes those that are visited down."""
    yield "step = start + tl.arange(0, LANES)"
    yield f"visited = step < {count}"
    yield f"tile = {loop.tile}"
    first, last = map(wide_name, LANE_ENDS[direction])
    if direction == "forward":
        yield f"{first} = tile.to(tl.int64) * BLOCK_K"
        yield f"{last} = tl.minimum({first} + BLOCK_K, kv_len) - 1"
    else:
        yield f"{first} = q_offset + tile.to(tl.int64) * BLOCK_Q"
        yield f"{last} = tl.minimum({first} + BLOCK_Q, q_offset.to(tl.int64) + q_len) - 1"
    yield f"whole = visited & {loop.kind == 'full'}"
    yield from clause_lines(program, direction, tables)
    yield "masked = (visited & (whole == 0)).to(tl.int32)"
    yield "place = tiles + partial_count + tl.cumsum(masked, 0) - 1"
    yield "tl.store(place, tile, mask=masked != 0)"
    yield "partial_count += tl.sum(masked, 0)"
    if loop.kind == "full":
        yield "plain = (visited & whole).to(tl.int32)"
        yield "place = tiles + tile_capacity - full_count - tl.cumsum(plain, 0)"
        yield "tl.store(place, tile, mask=plain != 0)"
        yield "full_count += tl.sum(plain, 0)"


def _expressions(program: BlockProgram, direction: Direction) -> Iterator[Expr]:
    """What the listing computes of a program."""
    if not ranked(program):
        yield from expressions(program.sweeps(direction))
    yield program.tiling.k_class
    for clause in program.listed:
        for literal in clause:
            yield from asked(literal)


def list_tables(program: BlockProgram, direction: Direction = "forward") -> tuple[Table, ...]:
    """The tables that the listing reads."""
    return tables_read(_expressions(program, direction))


def list_leaves(program: BlockProgram, direction: Direction = "forward") -> list[Var | Param]:
    """The scalars of what the listing computes, by name."""
    found = {
        leaf
        for expr in _expressions(program, direction)
        for leaf in walk(expr)
        if isinstance(leaf, (Var, Param)) and leaf != RESIDUE
    }
    return sorted(found, key=lambda leaf: leaf.name)
