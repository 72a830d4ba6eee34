"""How a Gluon kernel reaches its tensors: parameters, coordinates of tiles, rows by pointers.

Keys and values are copied into rings of tiles by tensor descriptors, dense or in classes of keys
that lie apart. Queries and output go by descriptors where rows are dense; rows of a class, and what
passes hand on, go by pointers.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.access_source import TYPES
from patterncc.codegen.gpu.class_source import rows_of_call
from patterncc.codegen.gpu.gluon.dialect import descriptor_type
from patterncc.codegen.gpu.gluon.warps import ROWS
from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.ir import DENSE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.ir import Tiling
    from patterncc.codegen.problem import Problem

_LINE = 8
"""Elements of 16 bits in 16 bytes."""

_HEAD = "batch.to(tl.int64) * tl.num_programs(1) + head"
"""The number of a head among those of all batch entries."""


class GluonAccess:
    """The texts for one kernel.

    Args:
        problem: Dtype and head dimensions, each one part.
        config: Tile shape.
        tiling: The classes of rows and keys.
        hands_on: The kernel leaves its result for a later pass, instead of the output.
    """

    def __init__(
        self,
        problem: Problem,
        config: KernelConfig,
        tiling: Tiling,
        *,
        hands_on: bool,
    ) -> None:
        self._problem = problem
        self._config = config
        self._tiling = tiling
        self._hands_on = hands_on
        self._rows = rows_of_call(tiling)

    @property
    def describes_rows(self) -> bool:
        """Do query and output go by descriptors?"""
        return self._tiling == DENSE

    @property
    def stores_box(self) -> bool:
        """Does the output go out as a box of shared memory?"""
        return self.describes_rows and not self._hands_on

    @property
    def moves_boxes(self) -> bool:
        """Are boxes moved back that hang over the last key? Masks must then ask `k_first <= k`."""
        return self._tiling.k_step > 1

    # -------------------------------------------------------------------------------- signature

    def descriptors(self) -> Iterator[KernelParameter]:
        """The descriptor parameters."""
        for name in self._described:
            box = self.box(name)
            yield KernelParameter(
                f"{name}_desc_0", descriptor_type(self._problem.dtype, box), box=box
            )

    def pointers(self) -> Iterator[KernelParameter]:
        """The pointer parameters of tensors with strides."""
        for name in self._strided:
            yield KernelParameter(f"{name}_ptr", f"*{TYPES[self._problem.dtype]}", 16)

    def strides(self) -> Iterator[KernelParameter]:
        """Their strides."""
        for name in self._strided:
            for axis in ("batch", "head", "row"):
                yield KernelParameter(f"{name}_stride_{axis}", "i64", _LINE)

    def box(self, name: str) -> tuple[int, ...]:
        """The shape of a tile in shared memory, as its descriptor has it: of rows, those of one
        warpgroup."""
        if name in ("query", "out"):
            return (1, 1, ROWS, self._width(name))
        classes = (1,) if self._tiling.k_step > 1 else ()
        return (1, 1, self._config.block_k, *classes, self._width(name))

    def box_bytes(self, name: str) -> int:
        """Bytes of such a tile."""
        return 2 * prod(self.box(name))

    @property
    def _described(self) -> tuple[str, ...]:
        rows = ("query",) if self.describes_rows else ()
        return (*rows, "key", "value", *(("out",) if self.stores_box else ()))

    @property
    def _strided(self) -> tuple[str, ...]:
        rows = () if self.describes_rows else ("query",)
        return (*rows, *(() if self.stores_box or self._hands_on else ("out",)))

    def _width(self, name: str) -> int:
        problem = self._problem
        return problem.head_dim if name in ("query", "key") else problem.value_head_dim

    # -------------------------------------------------------------------------------- tiles

    def key_place(self) -> str:
        """The coordinates of the tile of keys or values that starts at `k_box`."""
        classes = "k_class, " if self._tiling.k_step > 1 else ""
        return f"[batch, kv_head, k_box, {classes}0]"

    def box_start(self) -> str:
        """Where the box of a tile starts."""
        if self.moves_boxes:
            return "k_box = tl.minimum(k_first, kv_len - BLOCK_K)"
        return "k_box = k_first"

    # -------------------------------------------------------------------------------- rows

    def rows_of(self, layout: str) -> Iterator[str]:
        """The warpgroup's rows again, `stored` in another layout than the scores have, and which of
        them exist; `stored_rows` are their numbers in the call.

        Args:
            layout: Of the tensor whose rows they are.
        """
        yield f"stored = row_first + part * {ROWS}"
        yield f"stored = stored + tl.arange(0, {ROWS}, layout=tl.SliceLayout(1, {layout}))"
        yield "stored_exists = stored < q_len"
        rows = "stored"
        if self._tiling.q_step > 1:
            rows = f"stored * {self._tiling.q_step} + row_class"
        yield f"stored_rows = {rows}"

    def load_query(self) -> Iterator[str]:
        """The query's rows by pointers, into the warpgroup's tile."""
        yield from self.rows_of("STORED")
        yield from self._address("query", "STORED")
        yield "loaded = tl.load(query_place, mask=stored_exists[:, None], other=0.0)"
        yield "query.store(loaded)"
        yield "show_to_copies()"
        yield "synchronize()"

    def out_place(self) -> Iterator[str]:
        """Where the output goes by pointers, 16 bytes to a thread."""
        yield from self.rows_of("STORED")
        yield from self._address("out", "STORED")

    def store_out(self) -> Iterator[str]:
        """Stores it there."""
        yield "# Through where the query was, for other threads store a row than computed it."
        yield f"query.store(out.to(tl.{self._problem.dtype}))"
        yield "synchronize()"
        yield "tl.store(out_place, query.load(STORED), mask=stored_exists[:, None])"

    def load_state(self) -> Iterator[str]:
        """`out` as an earlier pass left it."""
        yield from self.rows_of("OUT")
        yield self._packed_place()
        yield "out = tl.load(state_place, mask=stored_exists[:, None], other=0.0)"

    def state_place(self) -> Iterator[str]:
        """Where `out` is left for a later pass."""
        yield from self.rows_of("OUT")
        yield self._packed_place()

    def store_state(self) -> Iterator[str]:
        """Leaves it there."""
        yield "tl.store(state_place, out, mask=stored_exists[:, None])"

    def row_numbers_address(self, name: str) -> str:
        """Where the head's numbers start in a tensor `[batch, heads, q_len]` without gaps."""
        return f"{name}_base = {name}_ptr + ({_HEAD}) * {self._call_q_len}"

    def load_row_numbers(self, name: str, other: str) -> str:
        """Loads a number for each row; rows past the end have `other`."""
        return f"tl.load({name}_base + {self._rows}, mask=row_exists, other={other})"

    def store_row_numbers(self, name: str) -> str:
        """Stores a number for each row."""
        return f"tl.store({name}_base + {self._rows}, {name}, mask=row_exists)"

    @property
    def _call_q_len(self) -> str:
        return "q_len" if self._tiling == DENSE else "call_q_len"

    def _address(self, name: str, layout: str) -> Iterator[str]:
        batch = f"batch.to(tl.int64) * {name}_stride_batch"
        head = f"head.to(tl.int64) * {name}_stride_head"
        yield f"{name}_base = {name}_ptr + {batch} + {head}"
        rows = f"stored_rows[:, None].to(tl.int64) * {name}_stride_row"
        yield f"{name}_place = {name}_base + {rows} + {self._columns(name, layout)}"

    def _packed_place(self) -> str:
        width = self._problem.value_head_dim
        rows = f"(({_HEAD}) * {self._call_q_len} + stored_rows[:, None]) * {width}"
        return f"state_place = state_ptr + {rows} + {self._columns('out', 'OUT')}"

    def _columns(self, name: str, layout: str) -> str:
        width = self._width(name)
        return f"tl.arange(0, {width}, layout=tl.SliceLayout(0, {layout}))[None, :]"
