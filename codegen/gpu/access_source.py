"""How a kernel reaches its tensors, as Triton text: parameters, addresses, loads and stores.

Keys and values come by tensor descriptors or by pointers, dense or in classes of rows that lie
apart; rows go out by pointers. A descriptor of classes views the length as `[groups, k_step]`, and
a tile is a box of one class. The last group may be incomplete, and past it lies the memory of
another head, or nobody's. So the box of a tile that hangs over the last key of its class is moved
back until it ends there; the mask leaves out what the move brings in again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.class_source import rows_of_call
from patterncc.codegen.gpu.head_dim import query_key_value_parts
from patterncc.codegen.gpu.isolation_source import column_mask
from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.patch_source import passing_elements, passing_inside, patch_box
from patterncc.codegen.ir import DENSE

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.head_dim import Part
    from patterncc.codegen.ir import Patches, Tiling
    from patterncc.codegen.problem import Problem

TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}


class Access:
    """The texts for one kernel.

    Args:
        problem: Dtype and head dimensions.
        config: Tile shape and the way to load.
        tiling: The classes of rows and keys.
        rows: The tensors of which a query tile is loaded: `query`, or `query` and `grad_out`.
        strided_results: The tensors of rows that are stored with strides of their own.
        gathered: Key tiles are gathered.
        patches: Tiles are patches of a raster. Their rows are loaded by pointers, and their keys
            are, too, unless they are the box of a descriptor (`patch_box`).
        boxes: Tiles lie as descriptors would have them, however they are loaded.
    """

    def __init__(
        self,
        problem: Problem,
        config: KernelConfig,
        tiling: Tiling,
        rows: tuple[str, ...] = ("query",),
        strided_results: tuple[str, ...] = ("out",),
        gathered: bool = False,
        patches: Patches | None = None,
        *,
        boxes: bool = False,
    ) -> None:
        self._problem = problem
        self._config = config
        self._tiling = tiling
        self._element = TYPES[problem.dtype]
        self.key_parts, self.value_parts = query_key_value_parts(problem)
        described = config.load == "descriptor"
        self._gathered = gathered
        self._patches = patches
        self._patch_box = None if patches is None else patch_box(patches, "k")
        boxed = patches is None or self._patch_box is not None
        self._described = described and not gathered and boxed
        self._boxes = self._described or boxes
        # Rows of a class are loaded once, by pointers, which need no complete group of them.
        self._query_described = described and tiling == DENSE and patches is None
        self._strided = tiling.k_step > 1
        self._rows = rows_of_call(tiling)
        self._row_tensors = rows
        self._strided_results = strided_results

    @property
    def moves_boxes(self) -> bool:
        """Are boxes moved back that hang over the last key? Masks must then ask `k_first <= k`."""
        return self._boxes and self._strided

    @property
    def tests_inside(self) -> bool:
        """May a masked tile have elements that are no keys of the raster? Masks must then ask
        `key_inside`."""
        return bool(self._inside)

    @property
    def _inside(self) -> str:
        """Which elements of a tile are keys of the raster; empty where all are."""
        if self._patches is None:
            return ""
        return passing_inside(self._patches, "k", "k_first", self._config.block_k)

    # -------------------------------------------------------------------------------- signature

    def descriptors(self) -> Iterator[KernelParameter]:
        """The descriptor parameters."""
        classes = (1,) if self._strided else ()
        rows_described = self._row_tensors if self._query_described else ()
        for name in (*rows_described, *(("key", "value") if self._described else ())):
            rows = self._config.block_q if name in self._row_tensors else self._config.block_k
            for number, part in enumerate(self.parts_of(name)):
                box = (1, 1, *(self._patch_box or (rows, *classes)), part.width)
                kind = f"tensordesc<{self._element}[{', '.join(map(str, box))}]>"
                yield KernelParameter(f"{name}_desc_{number}", kind, box=box)

    @property
    def strided(self) -> tuple[str, ...]:
        """The tensors that are reached by pointers and strides."""
        rows = () if self._query_described else self._row_tensors
        keys = () if self._described else ("key", "value")
        return (*rows, *keys, *self._strided_results)

    def pointers(self) -> Iterator[KernelParameter]:
        """The pointer parameters to those."""
        for name in self.strided:
            yield KernelParameter(f"{name}_ptr", f"*{self._element}", 16)

    def strides(self) -> Iterator[KernelParameter]:
        """Their strides."""
        line = 4 if self._problem.dtype == "float32" else 8  # elements in 16 bytes
        for name in self.strided:
            for axis in ("batch", "head", "row"):
                yield KernelParameter(f"{name}_stride_{axis}", "i64", line)

    # -------------------------------------------------------------------------------- rows

    def parts_of(self, name: str) -> tuple[Part, ...]:
        """How the head dimension of an input is cut."""
        return self.key_parts if name in ("query", "key") else self.value_parts

    def row_tile_lines(self) -> Iterator[str]:
        """Loads the query tile of each tensor of rows."""
        for name in self._row_tensors:
            if not self._query_described:
                yield self._base(name, "head")
                yield self._row_offsets(name)
            for number, part in enumerate(self.parts_of(name)):
                if self._query_described:
                    place = f"[batch, head, row_first, {part.start}]"
                    shape = f"(BLOCK_Q, {part.width})"
                    load = f"{name}_desc_{number}.load({place}).reshape{shape}"
                else:
                    place = f"{name}_base + {name}_rows + {_columns(part)}"
                    mask = _mask("row_exists[:, None]", part)
                    load = f"tl.load({place}, mask={mask}, other=0.0)"
                yield f"{name}_{number} = {load}"

    def out_address(self) -> Iterator[str]:
        """What `store_out` adds to."""
        yield self._base("out", "head")
        yield self._row_offsets("out")

    def store_out(self, number: int, part: Part) -> str:
        """Stores a part of the output, rounded to its dtype."""
        place = f"out_base + out_rows + {_columns(part)}"
        value = f"out_{number}.to(tl.{self._problem.dtype})"
        return f"tl.store({place}, {value}, mask={_mask('row_exists[:, None]', part)})"

    def packed_address(self, name: str, width: int) -> str:
        """Where the rows of a tensor `[batch, heads, q_len, width]` without gaps lie."""
        first = f"((batch.to(tl.int64) * tl.num_programs(1) + head) * {self._call_q_len}"
        place = f"{name}_ptr + {first} + {self._rows}[:, None]) * {width}"
        return f"{name}_rows = {place}"

    def load_packed(self, name: str, target: str, part: Part) -> str:
        """Loads a part of such a tensor, by its rows' name."""
        mask = _mask("row_exists[:, None]", part)
        return f"{target} = tl.load({name}_rows + {_columns(part)}, mask={mask}, other=0.0)"

    def store_packed(self, name: str, value: str, part: Part) -> str:
        """Stores a part of such a tensor."""
        mask = _mask("row_exists[:, None]", part)
        return f"tl.store({name}_rows + {_columns(part)}, {value}, mask={mask})"

    def row_numbers_address(self, name: str) -> str:
        """Where the head's numbers start in a tensor `[batch, heads, q_len]` without gaps."""
        head = "batch.to(tl.int64) * tl.num_programs(1) + head"
        return f"{name}_base = {name}_ptr + ({head}) * {self._call_q_len}"

    def store_row_numbers(self, name: str) -> str:
        """Stores a number for each row."""
        return f"tl.store({name}_base + {self._rows}, {name}, mask=row_exists)"

    def load_row_numbers(self, name: str, other: str) -> str:
        """Loads a number for each row; rows past the end have `other`."""
        return f"tl.load({name}_base + {self._rows}, mask=row_exists, other={other})"

    # -------------------------------------------------------------------------------- keys

    def key_lines(self) -> Iterator[str]:
        """What the loads of key and value tiles need, before the loops."""
        if self._described:
            return
        if self._gathered:
            yield from (self._base(name, "kv_head") for name in ("key", "value"))
            return
        yield f"key_rows = {self._elements()}"
        if self._patches is not None:
            yield "key_rows = key_rows[:, None]"
        for name in ("key", "value"):
            yield self._base(name, "kv_head", "k_class" if self._strided else "")
            if self._strided:
                yield f"{name}_step = {name}_stride_row * {self._tiling.k_step}"
            for number, part in enumerate(self.parts_of(name)):
                offsets = f"key_rows.to(tl.int64) * {self._step(name)} + {_columns(part)}"
                yield f"{name}_offsets_{number} = {offsets}"

    def tile_first_lines(self, tile: str) -> Iterator[str]:
        """The first key of a tile of that number."""
        if self._patches is None:
            yield f"k_first = ({tile}) * BLOCK_K"
            return
        yield f"k_first = {tile}"

    def tile_start(self, masked: bool) -> Iterator[str]:
        """Where the box of a key tile starts, and which of its keys exist."""
        if self._gathered:
            yield "key_rows = gathered[:, None].to(tl.int64)"
            if masked:
                yield "key_exists = gathered[:, None] < kv_len"
            return
        if not masked:
            return
        if self.moves_boxes:
            yield "k_box = tl.minimum(k_first, kv_len - BLOCK_K)"
        if self._inside:
            yield f"key_inside = ({self._inside})[None, :]"
        if not self._described:
            exists = f"{self._tile_first(masked)} + key_rows < kv_len"
            if self._inside:
                exists = f"({exists}) & ({self._inside})[:, None]"
            yield f"key_exists = {exists}"

    def tile_keys(self, masked: bool) -> str:
        """The numbers of a tile's keys."""
        if self._gathered:
            return "k = gathered[None, :]"
        if self._patches is not None:
            return f"k = k_first + ({passing_elements(self._patches, 'k')})[None, :]"
        return f"k = {self._tile_first(masked)} + tl.arange(0, BLOCK_K)[None, :]"

    def tile_loads(self, name: str, masked: bool) -> Iterator[str]:
        """Loads a tile of keys or values; past the last key it is 0, for 0 * NaN would be NaN."""
        first = self._tile_first(masked)
        if not (self._described or self._gathered):
            yield f"{name}_first = {name}_base + {first}.to(tl.int64) * {self._step(name)}"
        for number, part in enumerate(self.parts_of(name)):
            if self._described:
                classes = "k_class, " if self._strided else ""
                place = f"[batch, kv_head, {first}, {classes}{part.start}]"
                if self._patches is not None:
                    (width,) = self._patches.sizes
                    coordinates = f"k_first // {width}, k_first % {width}"
                    place = f"[batch, kv_head, {coordinates}, {part.start}]"
                load = f"{name}_desc_{number}.load({place}).reshape(BLOCK_K, {part.width})"
            else:
                mask = _mask("key_exists" if masked else "", part)
                guard = f", mask={mask}, other=0.0" if mask else ""
                place = f"{name}_first + {name}_offsets_{number}"
                if self._gathered:
                    place = f"{name}_base + key_rows * {name}_stride_row + {_columns(part)}"
                load = f"tl.load({place}{guard})"
            yield f"{name}_{number} = {load}"

    def _elements(self) -> str:
        """How far the keys of a tile are from its first one."""
        if self._patches is not None:
            return passing_elements(self._patches, "k")
        return "tl.arange(0, BLOCK_K)[:, None]"

    def _tile_first(self, masked: bool) -> str:
        """The first key of a tile as it is loaded."""
        return "k_box" if masked and self.moves_boxes else "k_first"

    # -------------------------------------------------------------------------------- columns

    def load_columns(self, name: str, target: str) -> Iterator[str]:
        """Loads `columns` of a masked tile of keys or values; 0 past the last key."""
        if self._gathered:
            place = f"{name}_base + key_rows * {name}_stride_row + columns"
        else:
            first = self._tile_first(masked=True)
            yield f"{name}_first = {name}_base + {first}.to(tl.int64) * {self._step(name)}"
            place = f"{name}_first + key_rows.to(tl.int64) * {self._step(name)} + columns"
        mask = column_mask("key_exists", self.width_of(name))
        yield f"{target} = tl.load({place}, mask={mask}, other=0.0)"

    def store_out_columns(self, value: str) -> str:
        """Stores `columns` of the output, rounded to its dtype."""
        mask = column_mask("row_exists[:, None]", self.width_of("out"))
        value = f"{value}.to(tl.{self._problem.dtype})"
        return f"tl.store(out_base + out_rows + columns, {value}, mask={mask})"

    def load_packed_columns(self, name: str, target: str, like: str) -> str:
        """Loads `columns` of a tensor without gaps that is as wide as `like`."""
        mask = column_mask("row_exists[:, None]", self.width_of(like))
        return f"{target} = tl.load({name}_rows + columns, mask={mask}, other=0.0)"

    def store_packed_columns(self, name: str, value: str, like: str) -> str:
        """Stores `columns` of such a tensor."""
        mask = column_mask("row_exists[:, None]", self.width_of(like))
        return f"tl.store({name}_rows + columns, {value}, mask={mask})"

    def width_of(self, name: str) -> int:
        """How many columns a tensor of the call has."""
        problem = self._problem
        return problem.head_dim if name in ("query", "key") else problem.value_head_dim

    # -------------------------------------------------------------------------------- addresses

    @property
    def _call_q_len(self) -> str:
        return "q_len" if self._tiling == DENSE else "call_q_len"

    def _step(self, name: str) -> str:
        """From one key of the class to the next."""
        return f"{name}_step" if self._strided else f"{name}_stride_row"

    def _base(self, name: str, head: str, row: str = "") -> str:
        """Where a head starts; in 64 bits, for a tensor may hold more than 2**31 elements."""
        batch_offset = f"batch.to(tl.int64) * {name}_stride_batch"
        head_offset = f"{head}.to(tl.int64) * {name}_stride_head"
        row_offset = f" + {row}.to(tl.int64) * {name}_stride_row" if row else ""
        return f"{name}_base = {name}_ptr + {batch_offset} + {head_offset}{row_offset}"

    def _row_offsets(self, name: str) -> str:
        return f"{name}_rows = {self._rows}[:, None].to(tl.int64) * {name}_stride_row"


def _columns(part: Part) -> str:
    """The columns of a part, `[1, width]`."""
    columns = f"tl.arange(0, {part.width})[None, :]"
    return f"({part.start} + {columns})" if part.start else columns


def _mask(rows: str, part: Part) -> str:
    """What to load or store: the rows' mask and, where the part is padded, the columns'."""
    tests = [rows] if rows else []
    if part.padded:
        tests.append(f"(tl.arange(0, {part.width})[None, :] < {part.size})")
    return " & ".join(tests)
