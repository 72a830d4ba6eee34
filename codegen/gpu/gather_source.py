"""Key tiles that are gathered from listed runs of keys, as Triton text.

The runs of a query tile are numbered: partial ones first, then full ones. As many full runs as make
whole tiles are gathered by the loop without a mask; the few that are left are gathered behind the
partial ones, by the loop with it. A lane for each key of a tile knows which run it belongs to.
The numbers of a tile's runs are loaded a whole step ahead, so loads of keys that hang on them are
issued as deep ahead as others.

Runs are listed for each query tile (`list_source`) or once for all of them (`run_list_source`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.isolation_source import indented
from patterncc.codegen.gpu.list_source import list_axes, query_list_row
from patterncc.codegen.gpu.run_list_source import run_count, run_list_lines
from patterncc.codegen.gpu.sweep_source import LoopNest, TileLoop, emit_loops
from patterncc.codegen.listing import ranked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from patterncc.codegen.ir import BlockProgram, Kind


def gathered_loops(program: BlockProgram, group: int) -> LoopNest:
    """The loops over gathered tiles, which count in `turn`.

    Args:
        program: A gathered program.
        group: Query heads that share a head of the keys.
    """
    numbers = [
        f"RUNS: tl.constexpr = {program.gathered}",
        f"lane = tl.arange(0, BLOCK_K){_part(program, '//')}",
    ]
    if program.block_k > 1:
        numbers.append(f"within = tl.arange(0, BLOCK_K){_part(program, '%')}")
    if ranked(program):
        heads = {"head": "tl.num_programs(1)", "kv_head": f"tl.num_programs(1) // {group}"}
        by_head = heads.get(list_axes(program).head or "", "")
        nest = emit_loops(program.forward, lanes=False, ranked=True)
        loops = {loop.kind: loop for loop in nest.loops}
        numbers += run_list_lines(program, by_head)
        setup = [*nest.common, *(line for loop in nest.loops for line in loop.setup)]
        for kind in ("partial", "full"):
            count = loops[kind].count if kind in loops else "tl.cast(0, tl.int32)"
            setup.append(f"{kind}_count = {count}")
        places: dict[Kind, str] = {kind: loop.tile for kind, loop in loops.items()}
        documents = nest.documents
    else:
        numbers.append(f"run_count = {run_count(program)}")
        numbers.append(f"list_row = {query_list_row(program, group)}")
        numbers.append("run_list = tiles_ptr + list_row * tile_capacity")
        setup = [
            f"{kind}_count = tl.load(tile_counts_ptr + list_row * 2{place})"
            for kind, place in (("partial", ""), ("full", " + 1"))
        ]
        places = {"partial": "step", "full": "tile_capacity - 1 - step"}
        documents = {}
    some_full = any(sweep.kind == "full" for sweep in program.forward)
    if some_full:
        setup.append("whole_count = full_count // RUNS * RUNS")
        setup.append("masked_count = partial_count + full_count - whole_count")
    else:
        places.pop("full", None)
        setup.append("masked_count = partial_count")
    loops_of: list[TileLoop] = [
        _loop("partial", "(masked_count + RUNS - 1) // RUNS", tuple(_partial_runs(places)))
    ]
    if some_full:
        loops_of.append(_loop("full", "whole_count // RUNS", tuple(_full_runs(places["full"]))))
    return LoopNest((*numbers, *setup), tuple(loops_of), documents)


def _part(program: BlockProgram, operator: str) -> str:
    """From a lane to its run's place in the tile, or to its key's place in the run."""
    if program.block_k == 1:
        return ""
    return f" {operator} {program.block_k}"


def _loop(kind: Kind, count: str, runs: tuple[str, ...]) -> TileLoop:
    return TileLoop(
        kind,
        (),
        count,
        "",
        first=("step = lane", *runs),
        following=("step = (turn + 1) * RUNS + lane", *runs),
    )


def _partial_runs(places: dict[Kind, str]) -> Iterator[str]:
    """`runs`, the numbers of a masked tile's runs; of lanes beyond the last run a number beyond all
    keys."""
    yield "inside = step < masked_count"
    yield f"place = {places.get('partial', 'step')}"
    if "full" in places:
        yield "step = step - partial_count + whole_count"
        yield f"place = tl.where(step < whole_count, place, {places['full']})"
    yield "runs = tl.load(run_list + place, mask=inside, other=run_count)"


def _full_runs(place: str) -> Iterator[str]:
    """`runs`, the numbers of a full tile's runs; no more is asked of those behind the last tile."""
    yield f"runs = tl.load(run_list + {place}, mask=step < whole_count, other=0)"


def any_gathered_runs(loops: Sequence[TileLoop], counter: str) -> Iterator[str]:
    """`runs`, those of the tile at a counter of all loops, as `all_tiles_lines` numbers them."""
    runs = [loop.first[1:] for loop in loops]
    if len(loops) == 1:
        yield f"step = {counter} * RUNS + lane"
        yield from runs[0]
        return
    yield f"if {counter} < until_0:"
    yield from indented([f"step = {counter} * RUNS + lane", *runs[0]])
    yield "else:"
    yield from indented([f"step = ({counter} - until_0) * RUNS + lane", *runs[1]])


def gathered_keys(program: BlockProgram) -> Iterator[str]:
    """`gathered`, the keys of the tile whose runs have been loaded."""
    if program.block_k == 1:
        yield "gathered = runs"
    else:
        yield f"gathered = runs * {program.block_k} + within"
