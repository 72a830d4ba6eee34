"""A key tile of the Gluon kernel of all gradients, as its warps see it, and rings of what passes
by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.bound_source import scalars_read
from patterncc.codegen.gpu.gluon.mask_source import TileMask
from patterncc.codegen.gpu.gluon.warps import ROWS
from patterncc.codegen.gpu.key_tile_source import KeyTile
from patterncc.codegen.gpu.separate import keys_of_tiles
from patterncc.codegen.listing import kernel_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.gluon.gradient_access_source import GradientAccess
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem
    from patterncc.codegen.turns import Turns

RINGS = {"query": "row_lse", "grad_out": "row_delta"}
"""What passes by, and the numbers of rows that come with it."""

STAGES = 2
"""Of all rings: of tiles of rows, and of the gradients of their scores. Shared memory has room for
a third one of rows, which was not faster."""

STAGE = ("stage = visited & 1", "other = stage ^ 1", "phase = (visited >> 1) & 1")
"""The stage of a tile, that of the tiles before and after, and how often its stage was used before,
whether even or odd."""


class LoadedKeyTile(KeyTile):
    """What the loading warp must know of the tiles: where they are."""

    _within = "0"  # of the keys only the first

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        access: GradientAccess,
        turns: Turns | None,
        split: bool,
    ) -> None:
        self._in_order = turns is not None
        self._chunks_in_turn = split
        super().__init__(program, problem, config, access)
        self._masked = False


class ComputedKeyTile(KeyTile):
    """What a computing warpgroup must: also the mask of its own keys."""

    _within = f"(part * {ROWS} + tl.arange(0, {ROWS}, layout=tl.SliceLayout(1, SCORES)))"

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        access: GradientAccess,
        turns: Turns | None,
        split: bool,
    ) -> None:
        self._in_order = turns is not None
        self._chunks_in_turn = split
        super().__init__(program, problem, config, access)
        if turns is not None:  # the warp that adds counts key tiles as the forward sweeps see them
            counted = scalars_read(program.sweeps("forward"))
            self._computed.leaves += counted
            self._names |= {leaf.name for leaf in counted}
        held = keys_of_tiles(program.block_k)
        self.tile_mask = TileMask(kernel_mask(program), self._nest.documents, held=held)

    def lanes(self) -> Iterator[str]:
        """The layout of vectors of residue classes, where bounds are such."""
        lines = (line for loop in self._nest.loops for line in loop.setup)
        if any(line.startswith("residue_wide = ") for line in lines):
            yield "LANES: tl.constexpr = tl.BlockedLayout([1], [32], [tl.num_warps()], [0])"

    def _held_lines(self) -> Iterator[str]:
        yield from self.tile_mask.held_lines
        yield from self.tile_mask.before_loops()
