"""Turns as Gluon text: the warp that adds shares of the query's gradient to the sums in one order,
whatever program is faster, so that they have the same bits in every run.

Each tile of rows has a count of the key tiles that have added to it. What comes before a key tile
is known in closed form (`patterncc.codegen.turns`). The warp waits until the count says so, adds
what the warpgroups have left, and counts on when the sums are in memory.

A program may wait only for programs that were started before it, or it keeps the place that those
need. Blocks start in the order of their numbers (what FlashAttention's and stream-K's programs wait
for rests on the same), so turns follow that order: `rising`, key tiles from the first on, those of
all heads side by side; `falling`, from the last on, head after head.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.bound_source import scalars_read, share_bounds, wide_name, widened
from patterncc.codegen.gpu.separate import ROWS, separate
from patterncc.codegen.ir import Q_FIRST, Q_LAST
from patterncc.codegen.turns import earlier_tiles
from patterncc.dsl.mask import TRUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import Neighbours
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.turns import Turns

TURN_FUNCTIONS = '''\
@gluon.jit
def wait_for_turn(counter, turn):
    """Waits until a count is that of the turn. One that does not come for a minute is an error of
    ours, at which the kernel stops."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred p;
        .reg .u32 n, left;
        mov.u32 left, 0x4000000;
        again:
        ld.acquire.gpu.global.u32 n, [$1];
        setp.eq.u32 p, n, $2;
        @p bra reached;
        sub.u32 left, left, 1;
        setp.ne.u32 p, left, 0;
        @p bra again;
        trap;
        reached:
        fence.proxy.async.global;
        mov.u32 $0, n;
        }""",
        "=r,l,r",
        [counter.to(tl.int64), turn],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def pass_turn(counter):
    """Counts one more, by one thread, when all that the warp has added is in memory."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred p;
        .reg .u32 lane;
        cp.async.bulk.wait_group 0;
        fence.proxy.async.global;
        bar.warp.sync 0xffffffff;
        mov.u32 lane, %laneid;
        setp.eq.u32 p, lane, 0;
        @p red.release.gpu.global.add.u32 [$1], 1;
        mov.u32 $0, lane;
        }""",
        "=r,l",
        [counter.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
'''
"""Source of what the warp that adds does. Sums are written by the copy engine, counts by threads:
between both stands a fence of proxies, on either side (PTX ISA, memory consistency model)."""


def turn_lines(program: BlockProgram, turns: Turns) -> Iterator[str]:
    """`turn`, the number of the program's key tile among those that add to the tile of rows.

    It reads `k_tile`, `row_first`, and the scalars of the forward sweeps.
    """
    sweeps = earlier_tiles(program, turns)
    bounds = share_bounds(sweeps, ROWS)
    lines = [f"{wide_name(leaf)} = {widened(leaf)}" for leaf in scalars_read(sweeps)]
    lines += bounds.lines
    numbers = []
    for sweep in sweeps:
        number = bounds.writer.integer(sweep.hi).operand()
        guard = separate(sweep.guard)
        if guard != TRUE:
            number = f"tl.where({bounds.writer.predicate(guard)}, {number}, 0)"
        numbers.append(number)
    lines.append(f"turn = tl.cast({' + '.join(numbers) or '0'}, tl.int32)")
    # Bounds of the loops have these names, too.
    own = "|".join(["bound", wide_name(Q_FIRST), wide_name(Q_LAST)])
    for line in lines:
        yield re.sub(rf"\b({own})(?=\b|_\d)", r"turn_\1", line)


def in_launch_order(text: str, turns: Turns | None, neighbours: Neighbours) -> str:
    """The text of a function in which `tl.program_id(0)` counts key tiles and their chunks, and
    `tl.program_id(1)` heads, for a grid in the order of turns (`launch_grid`)."""
    if turns == "falling":
        text = text.replace("tl.program_id(0)", "(tl.num_programs(0) - 1 - tl.program_id(0))")
    if neighbours == "tiles":
        return text
    return re.sub(
        r"tl\.(program_id|num_programs)\(([01])\)",
        lambda found: f"tl.{found[1]}({1 - int(found[2])})",
        text,
    )


def launch_grid(grid: tuple[int, int, int], neighbours: Neighbours) -> tuple[int, int, int]:
    """The grid of programs in that order, from that of tiles, heads, batch entries."""
    tiles, heads, batch = grid
    return (heads, tiles, batch) if neighbours == "heads" else grid
