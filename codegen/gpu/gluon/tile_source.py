"""What the loading warp and the computing warpgroups of a Gluon kernel both compute: which query
tile the program has, and which key tiles it visits in which order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.bound_source import scalars_read, wide_name, widened
from patterncc.codegen.gpu.class_source import class_lines, head_and_tile_lines
from patterncc.codegen.gpu.mask_source import scalar_name
from patterncc.codegen.ir import DENSE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.sweep_source import LoopNest
    from patterncc.codegen.ir import BlockProgram
    from patterncc.dsl.mask import Param, Var


class VisitedTiles:
    """The texts about the tiles of one kernel.

    Args:
        program: The pattern, or one pass of it.
        config: Tile shape and order.
        nest: The program's loops.
        leaves: The scalars that the kernel reads.
        group: Query heads per head of the keys.
    """

    def __init__(
        self,
        program: BlockProgram,
        config: KernelConfig,
        nest: LoopNest,
        leaves: Iterable[Var | Param],
        group: int,
    ) -> None:
        self._program = program
        self._config = config
        self._nest = nest
        self._names = {scalar_name(leaf) for leaf in leaves}
        self._group = group
        self.loops = nest.loops

    def bounds(self) -> Iterator[str]:
        """The query tile, and how many key tiles each loop visits: `count_0` and so on."""
        tiling, group = self._program.tiling, self._group
        heads = "tl.num_programs(1)"
        yield from head_and_tile_lines(tiling, self._config.order, self._config.neighbours)
        yield "batch = tl.program_id(2)"
        yield "kv_head = head" if group == 1 else f"kv_head = head // {group}"
        if "heads" in self._names:
            yield f"heads = {heads}"
        if "kv_heads" in self._names:
            yield f"kv_heads = {heads} // {group}"
        yield from class_lines(tiling)
        yield "row_first = q_tile * BLOCK_Q"
        if tiling != DENSE:
            yield "has_work = (row_first < q_len) & (kv_len > 0)"
        yield ""
        yield "# Bounds of the sweeps, in 64 bits so that no sum of numbers wraps."
        setup = [line for loop in self.loops for line in loop.setup]
        if any(line.startswith("residue_wide = ") for line in setup):
            yield "LANES: tl.constexpr = tl.BlockedLayout([1], [32], [tl.num_warps()], [0])"
        bounds = scalars_read(self._program.forward)
        yield from (f"{wide_name(leaf)} = {widened(leaf)}" for leaf in bounds)
        yield from self._nest.common
        yield from setup
        for number, loop in enumerate(self.loops):
            # Classes differ in length, and a call may lack some.
            count = loop.count if tiling == DENSE else f"tl.where(has_work, {loop.count}, 0)"
            yield f"count_{number} = {count}"

    def first(self) -> str:
        """The first key of the first tile; of tile 0 where the query tile visits none."""
        tile = "0"
        for number in reversed(range(len(self.loops))):
            # The first of the loop's tiles: its counter is 0.
            at_start = re.sub(r"\bstep\b", "0", self.loops[number].tile)
            tile = f"tl.where(count_{number} > 0, {at_start}, {tile})"
        return f"k_first = ({tile}) * BLOCK_K"

    def rest(self, number: int) -> str:
        """The head of a loop over its tiles without the very first one."""
        return f"for step in range({self._begin(number)}, count_{number}):"

    def beginning(self, number: int) -> str:
        """The head of a loop over the first of its tiles, or over none where that is the very first
        one or there are none."""
        return f"for step in range({self._begin(number)}, tl.minimum(count_{number}, 1)):"

    def _begin(self, number: int) -> str:
        """The first step of a loop that is not the very first tile."""
        return f"tl.where({self._before(number)} > 0, 0, 1)" if number else "1"

    @staticmethod
    def _before(number: int) -> str:
        """How many tiles the loops before one visit."""
        return " + ".join(f"count_{earlier}" for earlier in range(number))

    def all(self) -> str:
        """The head of one loop over all tiles."""
        return f"for step in range(0, {self._before(len(self.loops))}):"

    def start_of_all(self) -> str:
        """The first key of the tile of a step of that loop."""
        last = len(self.loops) - 1
        tile = ""
        for number in reversed(range(last + 1)):
            own = f"(step - ({self._before(number)}))" if number else "step"
            at_step = re.sub(r"\bstep\b", own, self.loops[number].tile)
            inside = f"step < {self._before(number + 1)}"
            tile = at_step if number == last else f"tl.where({inside}, {at_step}, {tile})"
        return f"k_first = ({tile}) * BLOCK_K"

    def after_first(self, number: int) -> str:
        """Is the tile of a step of all one of a loop, and not its first one?"""
        before = self._before(number) or "0"
        return f"(step > {before}) & (step < {self._before(number + 1)})"

    def start(self, number: int) -> str:
        """The first key of the tile of a step of a loop."""
        return f"k_first = ({self.loops[number].tile}) * BLOCK_K"
