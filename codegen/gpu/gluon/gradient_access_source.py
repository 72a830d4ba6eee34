"""How the Gluon kernel of all gradients reaches its tensors.

Everything that it reads comes by tensor descriptors: keys and values once, 64 rows for each
warpgroup, queries and the output's gradient in rings of tiles, with the numbers of their rows that
the delta kernel leaves (`delta_source`). By another it adds to the float32 sums of the query's
gradient, as all programs do (`query_sum_source`). The rows of its own keys go by pointers.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.access_source import TYPES
from patterncc.codegen.gpu.chunk_source import SUMS
from patterncc.codegen.gpu.delta_source import ROW_NUMBERS
from patterncc.codegen.gpu.gluon.dialect import descriptor_type, number_descriptor_type
from patterncc.codegen.gpu.gluon.warps import ROWS
from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.key_access_source import HELD, PASSING, RESULTS
from patterncc.codegen.gpu.query_sum_source import ADDED_SHARES, LINE, half_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.problem import Problem


ADDED = "query_sums"
"""What all programs add to."""


class GradientAccess:
    """The texts for one kernel.

    Args:
        problem: Dtype and head dimension, one for queries and values.
        config: Tile shape.
        counts: Are shares counted that were added?
        chunk: Which chunk of all a program is, that is one.
    """

    def __init__(
        self,
        problem: Problem,
        config: KernelConfig,
        *,
        counts: bool = False,
        chunk: str = "tl.program_id(0)",
    ) -> None:
        self._counts = counts
        self._chunk = chunk
        self._problem = problem
        self._config = config
        self._width = problem.head_dim

    # -------------------------------------------------------------------------------- signature

    def descriptors(self) -> Iterator[KernelParameter]:
        """The descriptor parameters."""
        for name in (*PASSING, *HELD):
            box = self.box(name)
            yield KernelParameter(
                f"{name}_desc_0", descriptor_type(self._problem.dtype, box), box=box
            )
        for name in (*ROW_NUMBERS, ADDED):
            box = self.box(name)
            yield KernelParameter(f"{name}_desc_0", number_descriptor_type(box), box=box)

    def pointers(self) -> Iterator[KernelParameter]:
        """The pointer parameters."""
        for name in RESULTS:
            yield KernelParameter(f"{name}_ptr", f"*{TYPES[self._problem.dtype]}", 16)
        yield SUMS
        if self._counts:
            yield ADDED_SHARES

    def strides(self) -> Iterator[KernelParameter]:
        """None: what goes by pointers has no gaps."""
        return iter(())

    def lengths(self) -> Iterator[KernelParameter]:
        """The length of the rows' numbers, and of the sums of the query's gradient."""
        yield KernelParameter("row_length", "i32")

    def box(self, name: str) -> tuple[int, ...]:
        """The shape of a tile in shared memory, as its descriptor has it: of keys and values, and
        of what is added, those of one warpgroup."""
        if name in ROW_NUMBERS:
            return (1, 1, 1, self._config.block_q)
        if name == ADDED:
            return (1, 1, half_lines(self._width), LINE)
        return (1, 1, ROWS if name in HELD else self._config.block_q, self._width)

    def box_bytes(self, name: str) -> int:
        """Bytes of such a tile."""
        return (4 if name in ROW_NUMBERS else 2) * prod(self.box(name))

    # -------------------------------------------------------------------------------- key tiles

    def passing_lines(self) -> Iterator[str]:
        """Nothing is needed before the loops."""
        return iter(())

    def head_lines(self) -> Iterator[str]:
        """Where a query head starts in the sums of the query's gradient, in lines of 1 KB: 32 bits
        count two terabytes of them."""
        lines = LINE // self._width
        yield f"head_line = (batch * heads + head) * (row_length // {lines})"

    def tile_first_lines(self, tile: str) -> Iterator[str]:
        """The first row of a tile of that number."""
        yield f"row_first = ({tile}) * BLOCK_Q"

    def tile_start(self) -> Iterator[str]:
        """Nothing: rows that do not exist have weights of 0."""
        return iter(())

    # -------------------------------------------------------------------------------- results

    def store_sums(self) -> Iterator[str]:
        """Leaves the sums of a chunk of a key tile, as `KeyAccess.sums_place` has them."""
        columns = 2 * self._width
        chunk = f"(batch * tl.num_programs(1) + kv_head) * split_programs + {self._chunk}"
        yield f"sums = sums_ptr + ({chunk}).to(tl.int64) * (BLOCK_K * {columns})"
        rows = f"part * {ROWS} + tl.arange(0, {ROWS}, layout=tl.SliceLayout(1, GRADIENT))"
        yield f"sums_row = ({rows})[:, None] * {columns}"
        for number, name in enumerate(RESULTS):
            place = f"sums + sums_row + ({number * self._width} + {self._columns('GRADIENT')})"
            yield f"tl.store({place}, {name})"

    def store_results(self) -> Iterator[str]:
        """Stores the rows of both gradients, 16 bytes to a thread: through where the warpgroup's
        values were, for other threads store a row than computed it."""
        rows = f"part * {ROWS} + tl.arange(0, {ROWS}, layout=tl.SliceLayout(1, STORED))"
        yield f"stored = k_first + {rows}"
        yield "stored_exists = (stored < kv_len) & (idle == 0)"
        head = "(batch.to(tl.int64) * tl.num_programs(1) + kv_head) * kv_len"
        yield f"result_rows = ({head} + stored[:, None]) * {self._width}"
        yield f"result_places = result_rows + {self._columns('STORED')}"
        for number, name in enumerate(RESULTS):
            if number:
                yield "synchronize()"
            factor = " * scale" if name == "grad_key" else ""
            yield f"value.store(({name}{factor}).to(tl.{self._problem.dtype}))"
            yield "synchronize()"
            place = f"{name}_ptr + result_places"
            yield f"tl.store({place}, value.load(STORED), mask=stored_exists[:, None])"

    def _columns(self, layout: str) -> str:
        return f"tl.arange(0, {self._width}, layout=tl.SliceLayout(0, {layout}))[None, :]"
