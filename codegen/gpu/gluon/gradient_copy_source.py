"""The warps of the Gluon kernel of all gradients that compute nothing: one copies tiles into shared
memory, two add shares of the query's gradient in turn (`turn_source`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.gluon.gradient_access_source import ADDED
from patterncc.codegen.gpu.gluon.gradient_tiles import RINGS, STAGE, LoadedKeyTile
from patterncc.codegen.gpu.gluon.turn_source import turn_lines
from patterncc.codegen.gpu.gluon.warps import ROWS
from patterncc.codegen.gpu.kernel_text import INDENT
from patterncc.codegen.gpu.key_access_source import HELD
from patterncc.codegen.gpu.query_sum_source import COUNTED_ROWS, LINE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.gluon.gradient_access_source import GradientAccess
    from patterncc.codegen.gpu.sweep_source import TileLoop
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem
    from patterncc.codegen.turns import Turns


class CopyingWarps:
    """Writes what they do with the tiles of a program.

    The key tile whose turn is first may store its share, so that nobody need clear the sums before.

    Args:
        program: The pattern, with its transposed sweeps.
        problem: The shape class.
        config: Of the kernel.
        access: To what is in memory.
        turns: In which order key tiles add to the query's gradient; None: in any.
        first_stores: Does the first of them store instead?
        split: Are some of them split?
        parts: How many warpgroups compute.
        lanes: The layout of vectors of residue classes, where bounds are such.
    """

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        access: GradientAccess,
        turns: Turns | None,
        first_stores: bool,
        split: bool,
        parts: int,
        lanes: Iterable[str],
    ) -> None:
        self._program = program
        self._problem = problem
        self._access = access
        self._first_stores = first_stores
        self._parts = parts
        self._lanes = tuple(lanes)
        self._tile = LoadedKeyTile(program, problem, config, access, turns, split)

    def load_tiles(self) -> Iterator[str]:
        """The warp that copies tiles into shared memory."""
        access, parts = self._access, self._parts
        yield from self._lanes
        yield from self._tile.setup()
        count = parts * sum(access.box_bytes(name) for name in HELD)
        yield f"expect_bytes(held_ready.index(0), {count})"
        yield f"for part in tl.static_range({parts}):"
        for name in HELD:
            place = f"[batch, kv_head, k_first + part * {ROWS}, 0]"
            into = f"held_ready.index(0), {name}_tiles.index(part)"
            yield f"{INDENT}copy_in({name}_desc_0, {place}, {into})"
        yield "visited = 0"
        yield from self._tile.body(self._copy)
        yield ""
        yield "# Scores are asked for a tile ahead: after the last one of what the stage holds."
        yield from STAGE
        yield "wait(rows_free.index(stage), phase ^ 1)"
        yield "arrive(query_ready.index(stage))"

    def _copy(self, loop: TileLoop) -> Iterator[str]:
        """Copies a tile of rows into its stage; at first all are free, as to wait for the phase
        before says."""
        access = self._access
        yield from STAGE
        yield "wait(rows_free.index(stage), phase ^ 1)"
        for name, numbers in RINGS.items():
            ready = f"{name}_ready.index(stage)"
            yield f"expect_bytes({ready}, {access.box_bytes(name) + access.box_bytes(numbers)})"
            for one, place in ((name, "row_first, 0"), (numbers, "0, row_first")):
                tile = f"{one}_tiles.index(stage)"
                yield f"copy_in({one}_desc_0, [batch, head, {place}], {ready}, {tile})"
        yield "visited += 1"

    def add_shares(self, turns: Turns) -> Iterator[str]:
        """A warp that adds what the warpgroups leave, in turn: it, or the other one, every second
        share. So there are two steps for what one waits for in memory."""
        yield from self._lanes
        yield from self._tile.setup()
        yield "# What they leave first is of no tile."
        yield "if which == 0:"
        yield f"{INDENT}wait(share_ready.index(0), 0)"
        yield f"{INDENT}arrive(share_free.index(0))"
        yield "visited = 1"
        yield from self._tile.body(lambda _: self._add_in_turn(turns))

    def _add_in_turn(self, turns: Turns) -> Iterator[str]:
        """Adds the share of a tile of rows, if it is this warp's."""
        width, parts = self._problem.head_dim, self._parts
        lines = self._access.box(ADDED)[2]
        yield "if (visited & 1) == which:"
        inner = [
            *turn_lines(self._program, turns),
            f"line = head_line + row_first // {LINE // width}",
            f"counter = added_shares_ptr + line // {COUNTED_ROWS * width // LINE}",
            "wait_for_turn(counter, turn)",
            "wait(share_ready.index(which), (visited >> 1) & 1)",
        ]
        places = [f"[0, 0, line + {part * lines}, 0]" for part in range(parts)]
        tiles = [f"share_tiles.index(which * {parts} + {part})" for part in range(parts)]
        shares = [f"{ADDED}_desc_0, {', '.join(both)}" for both in zip(places, tiles, strict=True)]
        add = [f"add_out({share})" for share in shares]
        if self._first_stores:
            inner += ["if turn == 0:", *(f"{INDENT}copy_out({share})" for share in shares)]
            inner += ["else:", *(f"{INDENT}{line}" for line in add)]
        else:
            inner += add
        inner += ["copied_out(0)", "arrive(share_free.index(which))", "pass_turn(counter)"]
        yield from (f"{INDENT}{line}" for line in inner)
        yield "visited += 1"
