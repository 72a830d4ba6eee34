"""What kernels share that run a program for each query tile: the forward one and the one of the
query's gradient.

Which rows the program has, the bounds of its loops over key tiles, what the mask asks of the rows,
the mask of a tile, the parameters of all that. What a kernel computes from a tile is its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.access_source import Access
from patterncc.codegen.gpu.bound_source import scalars_read, wide_name, widened
from patterncc.codegen.gpu.class_source import (
    class_lines,
    head_and_tile_lines,
    row_lines,
)
from patterncc.codegen.gpu.gather_source import any_gathered_runs, gathered_keys, gathered_loops
from patterncc.codegen.gpu.isolation_source import all_tiles_lines, step_text, tile_text
from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.list_source import listed_loops
from patterncc.codegen.gpu.mask_source import emit_mask, scalar_name
from patterncc.codegen.gpu.patch_source import row_patch_lines
from patterncc.codegen.gpu.sweep_source import emit_loops
from patterncc.codegen.gpu.tile_source import Computed
from patterncc.codegen.ir import DENSE, Q_FIRST, Q_LAST
from patterncc.codegen.listing import kernel_mask, ranked
from patterncc.dsl.mask import walk
from patterncc.dsl.score.nodes import coordinates_read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.sweep_source import TileLoop
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem
    from patterncc.dsl.score.nodes import Real


class QueryTile:
    """The shared texts of one kernel.

    Args:
        program: The pattern, or one pass of it.
        problem: The shape class.
        config: How to build the kernel.
        access: How it reaches its tensors.
        tile_terms: What the kernel computes of the score terms in its tiles, as `in_classes` gives
            it.
        row_terms: What it computes of them for its rows.

    Attributes:
        loops: Its loops over key tiles, partial ones first.
        tables: The pattern's tables that it reads.

    Raises:
        UnsupportedError: The pattern has a cover.
    """

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        access: Access,
        tile_terms: Sequence[Real] = (),
        row_terms: Sequence[Real] = (),
    ) -> None:
        self._program = program
        reads = frozenset().union(*map(coordinates_read, tile_terms))
        self._reads_row, self._reads_key = "q" in reads, "k" in reads
        self._config = config
        self._group = problem.group
        self._isolates = bool(problem.isolates)
        self._access = access
        self._gathered = program.gathered > 1
        self._listed = (bool(program.listed) or self._gathered) and not ranked(program)
        if self._gathered:
            self._nest = gathered_loops(program, problem.group)
        elif self._listed:
            self._nest = listed_loops(program, problem.group)
        else:
            self._nest = emit_loops(program.forward)
        self.loops = self._nest.loops
        mask = kernel_mask(program)
        self._row_ends = [leaf for leaf in (Q_FIRST, Q_LAST) if leaf in walk(mask)]
        self._mask = emit_mask(mask, self._nest.documents)
        self._masked = any(loop.kind == "partial" for loop in self.loops)
        self._bounds = () if self._listed else scalars_read(program.forward)
        terms = (*tile_terms, *row_terms)
        self._computed = Computed(program, "forward", self._masked, terms)
        self.tables = self._computed.tables

    def parameters(
        self, pointers: Iterable[KernelParameter], scalars: Iterable[KernelParameter]
    ) -> Iterator[KernelParameter]:
        """All parameters of the kernel, `pointers` and `scalars` being its own."""
        return self._computed.parameters(self._access, pointers, scalars)

    @property
    def notes(self) -> bool:
        """Does the kernel note which programs may have spoiled their rows? Only tiles with hidden
        pairs can."""
        return self._isolates and self._masked

    # -------------------------------------------------------------------------------- before loops

    def blocks(self) -> Iterator[str]:
        """The sizes of a tile."""
        yield f"BLOCK_Q: tl.constexpr = {self._config.block_q}"
        yield f"BLOCK_K: tl.constexpr = {self._config.block_k}"

    def setup(self) -> Iterator[str]:
        """Which rows and keys the program has, and the bounds of its loops; after `blocks`."""
        config, group, tiling = self._config, self._group, self._program.tiling
        patches = self._program.patches
        yield ""
        yield from head_and_tile_lines(tiling, config.order, config.neighbours)
        if self._gathered and self._listed:
            yield "q_tile += first_tile"
        yield "batch = tl.program_id(2)"
        yield "kv_head = head" if group == 1 else f"kv_head = head // {group}"
        names = {scalar_name(leaf) for leaf in self._computed.leaves}
        if "heads" in names:
            yield "heads = tl.num_programs(1)"
        if "kv_heads" in names:
            yield f"kv_heads = tl.num_programs(1) // {group}"
        yield from class_lines(tiling)
        if patches is None:
            yield from row_lines(tiling)
        else:
            yield from row_patch_lines(patches, config.block_q)
        yield ""
        if self._listed:
            what = "runs of keys" if self._gathered else "key tiles"
            yield f"# Where the lists of the tile's {what} are."
        else:
            yield "# Bounds of the sweeps, in 64 bits so that no sum of numbers wraps."
        yield from (f"{wide_name(leaf)} = {widened(leaf)}" for leaf in self._bounds)
        yield from self._nest.common
        yield from (line for loop in self.loops for line in loop.setup)
        if self._masked:
            yield ""
            yield "# What the mask asks of the row alone."
        if self._masked or self._reads_row:
            yield "q = q_offset + rows[:, None]"
        if self._masked:
            yield from (f"{leaf.name} = ({widened(leaf)}).to(tl.int32)" for leaf in self._row_ends)
            yield from self._mask.row_lines

    # -------------------------------------------------------------------------------- in the loops

    def loop_head(self, loop: TileLoop) -> Iterator[str]:
        """A loop's first lines, down to the one that its body is indented under."""
        yield ""
        yield "# Partial tiles, with the mask." if loop.kind == "partial" else "# Full tiles."
        yield from loop.first
        yield f"for {'turn' if self._gathered else 'step'} in range(0, {self._count(loop)}):"

    def _count(self, loop: TileLoop) -> str:
        """The number of a loop's tiles."""
        some_idle = self._program.tiling != DENSE or self._program.patches is not None
        if some_idle and not self._listed:
            return f"tl.where(has_work, {loop.count}, 0)"
        return loop.count

    def tile_start(self, loop: TileLoop) -> Iterator[str]:
        """Where a tile starts and, if it is masked, which of its keys exist."""
        if self._gathered:
            yield from gathered_keys(self._program)
        else:
            yield from self._access.tile_first_lines(loop.tile)
        yield from loop.following
        yield from self._access.tile_start(loop.kind == "partial")

    def counter(self) -> Iterator[str]:
        """What `any_tile_start` needs, before all tiles."""
        yield from all_tiles_lines(map(self._count, self.loops))

    def any_tile_start(self) -> Iterator[str]:
        """As `tile_start`, for the tile at `turn` of all loops one after another; with the mask."""
        if self._gathered:
            yield from any_gathered_runs(self.loops, "turn")
            yield from gathered_keys(self._program)
        else:
            yield f"step = {step_text(self.loops, 'turn')}"
            yield from self._access.tile_first_lines(tile_text(self.loops, "turn"))
        yield from self._access.tile_start(True)

    def tile_keys(self, masked: bool) -> Iterator[str]:
        """`k`, the keys of a tile, where its mask or the score terms read them."""
        if masked or self._reads_key:
            yield self._access.tile_keys(masked)

    def allowed(self) -> Iterator[str]:
        """`allowed`, the pairs of a masked tile that the pattern allows; after `tile_keys`."""
        yield from self._mask.key_lines
        again = " & (k_first <= k)" if self._access.moves_boxes else ""
        inside = " & key_inside" if self._access.tests_inside else ""
        yield f"allowed = {self._mask.expression}{again}{inside}"
