"""What a kernel is made of that runs a program for each key tile: which keys it has, the loops over
query heads and query tiles, the mask of a tile. What is computed from a tile is its writer's.

The query heads of a group and their tiles are one loop, whose counter becomes head and tile by
arithmetic, so the load pipeline drains once. Where bounds or the mask read the head, or where keys
are seen by several classes of rows, a loop over those recomputes what depends on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from patterncc.codegen.gpu.bound_source import scalars_read, wide_name, widened
from patterncc.codegen.gpu.chunk_source import CHUNK_PARAMETERS, place_lines, turn_place_lines
from patterncc.codegen.gpu.class_source import (
    classes_seen,
    in_pairs,
    key_class_lines,
    key_lines,
    row_class_lines,
)
from patterncc.codegen.gpu.isolation_source import (
    all_tiles_lines,
    all_tiles_loop,
    indented,
    step_text,
    tile_text,
)
from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.list_source import list_leaves, listed_loops
from patterncc.codegen.gpu.mask_source import emit_mask
from patterncc.codegen.gpu.patch_source import key_patch_lines
from patterncc.codegen.gpu.separate import keys_of_tiles
from patterncc.codegen.gpu.sweep_source import emit_loops
from patterncc.codegen.gpu.tile_source import Computed
from patterncc.codegen.listing import kernel_mask
from patterncc.dsl.mask import Var
from patterncc.dsl.score.nodes import coordinates_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.sweep_source import TileLoop
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.problem import Problem
    from patterncc.dsl.score.nodes import Real


class _Access(Protocol):
    """What is asked of how a kernel reaches its tensors, as `KeyAccess` describes it."""

    def descriptors(self) -> Iterator[KernelParameter]: ...
    def pointers(self) -> Iterator[KernelParameter]: ...
    def strides(self) -> Iterator[KernelParameter]: ...
    def lengths(self) -> Iterator[KernelParameter]: ...
    def passing_lines(self) -> Iterator[str]: ...
    def head_lines(self) -> Iterator[str]: ...
    def tile_first_lines(self, tile: str) -> Iterator[str]: ...
    def tile_start(self) -> Iterator[str]: ...


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

    _within = "tl.arange(0, BLOCK_K)"
    """The numbers of the keys within the tile."""

    _in_order = False
    """Are tiles of rows visited in about their order, in more loops?"""

    _chunks_in_turn = False
    """Are chunks at the places of their key tiles in the grid?"""

    def __init__(
        self,
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        access: _Access,
        terms: Sequence[Real] = (),
        term_lines: Sequence[str] = (),
    ) -> None:
        self._term_lines = term_lines
        reads = frozenset().union(*map(coordinates_read, terms))
        self._reads_row, self._reads_key = "q" in reads, "k" in reads
        self._program = program
        self._config = config
        self._group = problem.group
        self._isolates = bool(problem.isolates)
        self._access = access
        self._listed = bool(program.listed)
        sweeps, held = program.sweeps("transposed"), keys_of_tiles(program.block_k)
        self._nest = (
            listed_loops(program, problem.group, "transposed")
            if self._listed
            else emit_loops(sweeps, held=held, in_order=self._in_order)
        )
        self._mask = emit_mask(kernel_mask(program), self._nest.documents, held)
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

    def blocks(self) -> Iterator[str]:
        """The sizes of a tile."""
        yield f"BLOCK_Q: tl.constexpr = {self._config.block_q}"
        yield f"BLOCK_K: tl.constexpr = {self._config.block_k}"

    def setup(self) -> Iterator[str]:
        """Which keys the program has, and which share of their queries; after `blocks`."""
        config, group, tiling = self._config, self._group, self._program.tiling
        yield ""
        yield from turn_place_lines() if self._chunks_in_turn else place_lines(config.order)
        yield "kv_head = tl.program_id(1)"
        yield "batch = tl.program_id(2)"
        yield "heads = tl.num_programs(1)" + (f" * {group}" if group > 1 else "")
        if "kv_heads" in self._names:
            yield "kv_heads = tl.num_programs(1)"
        yield from key_class_lines(tiling)
        patches = self._program.patches
        if patches is None:
            yield from key_lines(tiling, self._within)
        else:
            yield from key_patch_lines(patches, config.block_k)

    def body(self, tile: Callable[[TileLoop], Iterator[str]]) -> Iterator[str]:
        """The loops over all tiles of rows; `tile` writes what is done for one."""

        def loops() -> Iterator[str]:
            for number, loop in enumerate(self._nest.loops):
                yield from self._loop(number, loop, tile)

        yield from self._visits(loops)

    def careful_body(self, tile: Callable[[], Iterator[str]], unsettled: str) -> Iterator[str]:
        """The same as one loop, as `all_tiles_loop` has it; `tile` writes a masked tile."""
        loops = self._nest.loops

        def one_loop() -> Iterator[str]:
            yield ""
            numbers = range(len(loops))
            yield from all_tiles_lines(f"stop_{number} - begin_{number}" for number in numbers)
            begins = [f"begin_{number}" for number in numbers]
            counter = "step" if self._shared == 1 else "position"
            lines = [f"{counter} = {step_text(loops, 'turn', begins)}"]
            lines += self._head_of("position")
            lines += self._access.tile_first_lines(tile_text(loops, "turn"))
            lines += [*self._access.tile_start(), *tile()]
            yield from all_tiles_loop(len(loops), lines, unsettled)

        yield from self._visits(one_loop)

    def _visits(self, loops: Callable[[], Iterator[str]]) -> Iterator[str]:
        """What is done for all heads at once, or for each head and class of rows."""
        yield from self._access.passing_lines()
        if not self._nested:
            if self._group == 1:
                yield "head = kv_head"
            yield from self._visit(loops)
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
        yield from indented([*lines, *self._visit(loops)])

    def _visit(self, loops: Callable[[], Iterator[str]]) -> Iterator[str]:
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
        group = self._shared
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
            yield from self._held_lines()
        yield from self._term_lines
        yield from loops()

    def _held_lines(self) -> Iterator[str]:
        """What the mask asks of the keys alone."""
        return iter(self._mask.key_lines)

    @property
    def _one_head(self) -> bool:
        """Is the query head known outside of the loops over tiles?"""
        return self._nested or self._group == 1

    @property
    def _shared(self) -> int:
        """How many query heads share a loop over tiles, one after the other for each tile."""
        return 1 if self._one_head else self._group

    def _head_of(self, counter: str) -> Iterator[str]:
        """The step and the query head, where heads share a loop."""
        if self._shared > 1:
            yield f"step = {counter} // {self._shared}"
            yield f"head = kv_head * {self._shared} + {counter} % {self._shared}"
            yield from self._access.head_lines()

    def _loop(
        self, number: int, loop: TileLoop, tile: Callable[[TileLoop], Iterator[str]]
    ) -> Iterator[str]:
        """A loop over tiles."""
        group = self._shared
        yield ""
        yield "# Partial tiles, with the mask." if loop.kind == "partial" else "# Full tiles."
        if loop.first:
            yield f"step = begin_{number}" + (f" // {group}" if group > 1 else "")
            yield from loop.first
        counter = "step" if group == 1 else "turn"
        yield f"for {counter} in range(begin_{number}, stop_{number}):"
        lines = [*self._head_of("turn")]
        lines += self._access.tile_first_lines(loop.tile)
        if loop.following:
            lines.append(f"next_step = {'step + 1' if group == 1 else f'(turn + 1) // {group}'}")
            lines += loop.following
        lines += self._access.tile_start()
        yield from indented([*lines, *tile(loop)])

    def tile_rows(self, masked: bool) -> Iterator[str]:
        """`q`, the rows of a tile, where its mask or the score terms read them."""
        if masked or self._reads_row:
            yield "q = q_offset + rows[None, :]"

    @property
    def masked(self) -> bool:
        """Has it tiles with a mask?"""
        return self._masked

    @property
    def notes(self) -> bool:
        """Does the kernel note which programs may have spoiled their sums? Rows past the last one
        are hidden without a mask, so any program may that visits tiles; under a mask that is false
        none does."""
        return self._isolates and bool(self._nest.loops)

    def allowed(self) -> Iterator[str]:
        """`allowed`, the pairs of a masked tile that the pattern allows; after `tile_rows`."""
        yield from self._mask.row_lines
        yield f"allowed = {self._mask.expression}"
