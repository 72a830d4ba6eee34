"""What a kernel is made of that runs a program for each key tile: which keys it has, the loops over
query heads and query tiles, the mask of a tile. What is computed from a tile is its writer's.

The query heads of a group and their tiles are one loop, whose counter becomes head and tile by
arithmetic, so the load pipeline drains once. Where bounds or the mask read the head, or where keys
are seen by several classes of rows, a loop over those recomputes what depends on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patterncc.codegen.gpu.chunk_source import CHUNK_PARAMETERS, place_lines
from patterncc.codegen.gpu.class_source import (
    classes_seen,
    in_pairs,
    key_class_lines,
    key_lines,
    row_class_lines,
)
from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.kernel_text import INDENT
from patterncc.codegen.gpu.list_source import list_leaves, listed_loops
from patterncc.codegen.gpu.mask_source import emit_mask
from patterncc.codegen.gpu.separate import keys_of_tiles
from patterncc.codegen.gpu.sweep_source import (
    emit_loops,
    scalars_read,
    wide_name,
    widened,
)
from patterncc.codegen.gpu.tile_source import Computed
from patterncc.dsl.mask import Var
from patterncc.dsl.score.nodes import coordinates_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.key_access_source import KeyAccess
    from patterncc.codegen.gpu.sweep_source import TileLoop
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem
    from patterncc.dsl.score.nodes import Real


class KeyTile:
    """The texts of one kernel.

    Args:
        program: The pattern, or one pass of it, with its transposed sweeps.
        problem: The shape class.
        config: How to build the kernel.
        access: How it reaches its tensors.
        terms: What the kernel computes of the score terms, as `in_classes` gives it.
        term_lines: What that needs once the keys of the tile and the query head are known.

    Attributes:
        tables: The pattern's tables that it reads.

    Raises:
        InternalError: The program was lowered for the forward direction alone.
        UnsupportedError: The pattern has a cover.
    """

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        access: KeyAccess,
        terms: Sequence[Real] = (),
        term_lines: Sequence[str] = (),
    ) -> None:
        self._term_lines = term_lines
        reads = frozenset().union(*map(coordinates_read, terms))
        self._reads_row, self._reads_key = "q" in reads, "k" in reads
        self._program = program
        self._config = config
        self._group = problem.group
        self._access = access
        self._listed = bool(program.listed)
        sweeps, held = program.sweeps("transposed"), keys_of_tiles(program.block_k)
        self._nest = (
            listed_loops(program, problem.group, "transposed")
            if self._listed
            else emit_loops(sweeps, held=held)
        )
        self._mask = emit_mask(program.mask, self._nest.documents, held)
        self._masked = any(loop.kind == "partial" for loop in self._nest.loops)
        self._bounds = () if self._listed else scalars_read(sweeps)
        self._computed = Computed(program, "transposed", self._masked, terms)
        self.tables = self._computed.tables
        leaves = [
            *self._computed.leaves,
            *(list_leaves(program, "transposed") if self._listed else ()),
        ]
        self._names = {leaf.name for leaf in leaves if isinstance(leaf, Var)}
        self._classes = classes_seen(program.tiling)
        # Is there a loop around those over tiles?
        self._nested = self._classes > 1 or (problem.group > 1 and "head" in self._names)

    def parameters(
        self, pointers: Iterable[KernelParameter], scalars: Iterable[KernelParameter]
    ) -> Iterator[KernelParameter]:
        """All parameters of the kernel, `pointers` and `scalars` being its own."""
        return self._computed.parameters(
            self._access, pointers, scalars, self._access.lengths(), CHUNK_PARAMETERS
        )

    # -------------------------------------------------------------------------------- the text

    def setup(self) -> Iterator[str]:
        """Which keys the program has, and which share of their queries."""
        config, group, tiling = self._config, self._group, self._program.tiling
        yield f"BLOCK_Q: tl.constexpr = {config.block_q}"
        yield f"BLOCK_K: tl.constexpr = {config.block_k}"
        yield ""
        yield from place_lines(config.order)
        yield "kv_head = tl.program_id(1)"
        yield "batch = tl.program_id(2)"
        yield "heads = tl.num_programs(1)" + (f" * {group}" if group > 1 else "")
        if "kv_heads" in self._names:
            yield "kv_heads = tl.num_programs(1)"
        yield from key_class_lines(tiling)
        yield from key_lines(tiling)

    def body(self, tile: Callable[[TileLoop], Iterator[str]]) -> Iterator[str]:
        """The loops over all tiles of rows; `tile` writes what is done for one."""
        yield from self._access.passing_lines()
        if not self._nested:
            if self._group == 1:
                yield "head = kv_head"
            yield from self._visit(tile)
            return
        yield ""
        classes = " and class of rows" if self._classes > 1 else ""
        yield f"# Each query head of the group{classes} has bounds of its own."
        yield f"for visit in range(0, {self._group * self._classes}):"
        lines = [
            f"head = kv_head * {self._group} + visit"
            + (f" // {self._classes}" if self._classes > 1 else "")
        ]
        if self._classes > 1:
            lines.append(f"row_class = visit % {self._classes}")
        yield from _indented([*lines, *self._visit(tile)])

    def _visit(self, tile: Callable[[TileLoop], Iterator[str]]) -> Iterator[str]:
        """Bounds and loops, of all heads at once or of one."""
        tiling = self._program.tiling
        sees = ""
        if not in_pairs(tiling):
            yield from row_class_lines(tiling)
            sees = " & sees" if tiling.k_step > 1 else ""
        yield f"has_work = (idle == 0) & (k_first < kv_len) & (q_len > 0){sees}"
        if self._one_head:
            yield from self._access.head_lines()
        yield ""
        if self._listed:
            yield "# Where the lists of the tile's query tiles are."
        else:
            yield "# Bounds of the sweeps, in 64 bits so that no sum of numbers wraps."
        yield from (f"{wide_name(leaf)} = {widened(leaf)}" for leaf in self._bounds)
        yield from self._nest.common
        yield from (line for loop in self._nest.loops for line in loop.setup)
        group = 1 if self._one_head else self._group
        for number, loop in enumerate(self._nest.loops):
            yield f"steps = tl.where(has_work, {loop.count}, 0){f' * {group}' * (group > 1)}"
            yield f"begin_{number} = share(steps, chunk, chunks)"
            yield f"stop_{number} = share(steps, chunk + 1, chunks)"
        if self._masked:
            yield ""
            yield "# What the mask asks of the key alone."
        if self._masked or self._reads_key:
            yield "k = keys[:, None]"
        if self._masked:
            yield from self._mask.key_lines
        yield from self._term_lines
        for number, loop in enumerate(self._nest.loops):
            yield from self._loop(number, loop, group, tile)

    @property
    def _one_head(self) -> bool:
        """Is the query head known outside of the loops over tiles?"""
        return self._nested or self._group == 1

    def _loop(
        self,
        number: int,
        loop: TileLoop,
        group: int,
        tile: Callable[[TileLoop], Iterator[str]],
    ) -> Iterator[str]:
        """A loop over tiles, of so many heads one after the other for each tile."""
        yield ""
        yield "# Partial tiles, with the mask." if loop.kind == "partial" else "# Full tiles."
        if loop.first:
            yield f"step = begin_{number}" + (f" // {group}" if group > 1 else "")
            yield from loop.first
        counter = "step" if group == 1 else "turn"
        yield f"for {counter} in range(begin_{number}, stop_{number}):"
        lines = []
        if group > 1:
            lines.append(f"step = turn // {group}")
            lines.append(f"head = kv_head * {group} + turn % {group}")
            lines += self._access.head_lines()
        lines.append(f"row_first = ({loop.tile}) * BLOCK_Q")
        if loop.following:
            lines.append(f"next_step = {'step + 1' if group == 1 else f'(turn + 1) // {group}'}")
            lines += loop.following
        lines += self._access.tile_start()
        yield from _indented([*lines, *tile(loop)])

    def tile_rows(self, loop: TileLoop) -> Iterator[str]:
        """`q`, the rows of a tile, where its mask or the score terms read them."""
        if loop.kind == "partial" or self._reads_row:
            yield "q = q_offset + rows[None, :]"

    def allowed(self) -> Iterator[str]:
        """`allowed`, the pairs of a masked tile that the pattern allows; after `tile_rows`."""
        yield from self._mask.row_lines
        yield f"allowed = {self._mask.expression}"


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (INDENT + line if line else "" for line in lines)
