"""How a kernel that computes tiles of keys reaches its tensors, as Triton text.

A program holds a tile of keys and values while tiles of queries and of the output's gradient pass
by; these come by tensor descriptors or by pointers, dense or in classes of rows that lie apart. A
descriptor of classes views the rows as `[groups, q_step]`, and a tile is a box of one class. As in
`access_source`, a box that would hang over the last row of its class is moved back until it ends
there. Rows that do not exist, or that the move brings in again, have a logarithm of the sum of plus
infinity, which makes all of their weights 0: no tile needs a mask for them.

The numbers of the rows come in the same way, as tiles of `row_lse` and `row_delta`
(`delta_source`), of which there are some after the last row. Loads of single numbers would be
replicated among the threads as the products lay them out, with an address and a mask each; so they
are where 16 rows pass by at a time, whose numbers are too few for a box.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.access_source import TYPES
from patterncc.codegen.gpu.chunk_source import SUMS
from patterncc.codegen.gpu.class_source import rows_of_call
from patterncc.codegen.gpu.delta_source import ROW_NUMBERS
from patterncc.codegen.gpu.head_dim import query_key_value_parts
from patterncc.codegen.gpu.isolation_source import columns_at_once
from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.patch_source import passing_elements, passing_inside, patch_box
from patterncc.codegen.ir import DENSE

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.head_dim import Part
    from patterncc.codegen.ir import Patches, Tiling
    from patterncc.codegen.problem import Problem

HELD = ("key", "value")
PASSING = ("query", "grad_out")
RESULTS = ("grad_key", "grad_value")

_NUMBER_BYTES = 4
_DESCRIBED_ALIGNMENT = 128
"""Bytes that a box in shared memory has to start at a multiple of. Triton lays the stages of a tile
end to end, so what is no multiple of it long misses it from the second stage on: 16 float32 numbers
are 64 bytes, and the copy ends in a misaligned address (seen on an H200)."""


class KeyAccess:
    """The texts for one kernel.

    Args:
        problem: Dtype and head dimensions.
        config: Tile shape and the way to load.
        tiling: The classes of rows and keys.
        patches: Tiles are patches of a raster. Keys are loaded by pointers, and so are queries,
            unless they are the box of a descriptor (`patch_box`).
        boxes: Tiles lie as descriptors would have them, however they are loaded.

    Attributes:
        element: Triton's name of the dtype.
    """

    def __init__(
        self,
        problem: Problem,
        config: KernelConfig,
        tiling: Tiling,
        patches: Patches | None = None,
        *,
        boxes: bool = False,
    ) -> None:
        self._problem = problem
        self._config = config
        self._tiling = tiling
        self.element = TYPES[problem.dtype]
        self._key_parts, self._value_parts = query_key_value_parts(problem)
        self._patches = patches
        self._patch_box = None if patches is None else patch_box(patches, "q")
        described = config.load == "descriptor"
        if patches is not None:
            described = described and self._patch_box is not None
        # Keys of a class are loaded once, by pointers, which need no complete group of them.
        self._held_described = described and tiling.k_step == 1 and patches is None
        self._passing_described = described
        self._rows_apart = tiling.q_step > 1
        self._boxes = described or boxes
        self._numbers_described = (
            described
            and not self._rows_apart
            and patches is None
            and config.block_q * _NUMBER_BYTES % _DESCRIBED_ALIGNMENT == 0
        )
        self._rows = rows_of_call(tiling)
        self._keys = "keys" if tiling.k_step == 1 else "call_keys"

    def parts_of(self, name: str) -> tuple[Part, ...]:
        """The parts that a tensor's columns are cut into."""
        of_keys = name in ("query", "key", "grad_key")
        return self._key_parts if of_keys else self._value_parts

    @property
    def columns(self) -> int:
        """Columns of what a chunk leaves: those of all parts of both gradients."""
        return sum(part.width for name in RESULTS for part in self.parts_of(name))

    @property
    def _moves_boxes(self) -> bool:
        return self._boxes and self._rows_apart

    # -------------------------------------------------------------------------------- signature

    def descriptors(self) -> Iterator[KernelParameter]:
        """The descriptor parameters."""
        for names, rows, described, apart in (
            (
                PASSING,
                self._config.block_q,
                self._passing_described,
                self._rows_apart or self._patch_box is not None,
            ),
            (HELD, self._config.block_k, self._held_described, False),
        ):
            classes = (1,) if apart else ()
            for name in names if described else ():
                for number, part in enumerate(self.parts_of(name)):
                    places = self._patch_box if apart and self._patch_box else (rows, *classes)
                    box = (1, 1, *places, part.width)
                    kind = f"tensordesc<{self.element}[{', '.join(map(str, box))}]>"
                    yield KernelParameter(f"{name}_desc_{number}", kind, box=box)
        if self._numbers_described:
            box = (1, 1, 1, self._config.block_q)
            kind = f"tensordesc<fp32[{', '.join(map(str, box))}]>"
            yield from (KernelParameter(f"{name}_desc_0", kind, box=box) for name in ROW_NUMBERS)

    @property
    def _strided(self) -> tuple[str, ...]:
        """The tensors that are reached by pointers and strides."""
        passing = () if self._passing_described else PASSING
        return passing if self._held_described else (*passing, *HELD)

    def pointers(self) -> Iterator[KernelParameter]:
        """The pointer parameters to those."""
        for name in self._strided:
            yield KernelParameter(f"{name}_ptr", f"*{self.element}", 16)
        if not self._numbers_described:
            yield from (KernelParameter(f"{name}_ptr", "*fp32", 16) for name in ROW_NUMBERS)

    def lengths(self) -> Iterator[KernelParameter]:
        """The length of the rows' numbers, where they are reached by pointers."""
        if not self._numbers_described:
            yield KernelParameter("row_length", "i32")

    def strides(self) -> Iterator[KernelParameter]:
        """Their strides."""
        line = 4 if self._problem.dtype == "float32" else 8  # elements in 16 bytes
        for name in self._strided:
            for axis in ("batch", "head", "row"):
                yield KernelParameter(f"{name}_stride_{axis}", "i64", line)

    # -------------------------------------------------------------------------------- keys

    def held_lines(self) -> Iterator[str]:
        """Loads the tile of keys and of values; past the last key it is 0."""
        for name in HELD:
            if not self._held_described:
                yield _base(name, "kv_head")
                yield f"{name}_rows = {self._keys}[:, None].to(tl.int64) * {name}_stride_row"
            for number, part in enumerate(self.parts_of(name)):
                if self._held_described:
                    place = f"[batch, kv_head, k_first, {part.start}]"
                    shape = f"(BLOCK_K, {part.width})"
                    load = f"{name}_desc_{number}.load({place}).reshape{shape}"
                else:
                    place = f"{name}_base + {name}_rows + {_columns(part)}"
                    mask = _mask("key_exists[:, None]", part)
                    load = f"tl.load({place}, mask={mask}, other=0.0)"
                yield f"{name}_{number} = {load}"

    # -------------------------------------------------------------------------------- queries

    def passing_lines(self) -> Iterator[str]:
        """What the loads of tiles of rows need, before the loops."""
        if self._passing_described:
            return
        for name in PASSING:
            if self._rows_apart:
                yield f"{name}_step = {name}_stride_row * {self._tiling.q_step}"
            for number, part in enumerate(self.parts_of(name)):
                yield f"{name}_offsets_{number} = {self._elements(name)} + {_columns(part)}"

    def head_lines(self) -> Iterator[str]:
        """Where the rows of a query head, and of a class of rows, start."""
        for name in () if self._passing_described else PASSING:
            yield _base(name, "head", "row_class" if self._rows_apart else "")
        if not self._numbers_described:
            yield "head_row = (batch.to(tl.int64) * heads + head) * row_length"

    def tile_first_lines(self, tile: str) -> Iterator[str]:
        """The first row of a tile of that number; of a patch it may be before the call's first."""
        if self._patches is None:
            yield f"row_first = ({tile}) * BLOCK_Q"
            return
        yield f"patch_first = {tile}"
        yield "row_first = patch_first - q_offset"

    def tile_start(self) -> Iterator[str]:
        """The rows of a tile, and which of them exist where loads must know."""
        if self._moves_boxes:
            yield "row_box = tl.minimum(row_first, q_len - BLOCK_Q)"
            yield "rows = row_box + tl.arange(0, BLOCK_Q)"
            yield "row_exists = row_first <= rows"
        elif self._patches is not None:
            yield f"rows = row_first + {passing_elements(self._patches, 'q')}"
            inside = passing_inside(self._patches, "q", "patch_first", self._config.block_q)
            yield f"row_exists = (rows >= 0) & (rows < q_len){' & ' * bool(inside)}{inside}"
        else:
            yield "rows = row_first + tl.arange(0, BLOCK_Q)"
            if not self._passing_described:
                yield "row_exists = rows < q_len"
        if self._rows_apart:
            yield f"call_rows = rows * {self._tiling.q_step} + row_class"

    def tile_loads(self, name: str) -> Iterator[str]:
        """Loads a tile of rows; past the last row it is 0, for 0 * NaN would be NaN."""
        if not self._passing_described:
            yield self._tile_first(name)
        for number, part in enumerate(self.parts_of(name)):
            if self._passing_described:
                first = "row_box, row_class" if self._rows_apart else "row_first"
                if self._patches is not None:
                    (width,) = self._patches.sizes
                    first = f"row_first // {width}, row_first % {width}"
                place = f"[batch, head, {first}, {part.start}]"
                load = f"{name}_desc_{number}.load({place}).reshape(BLOCK_Q, {part.width})"
            else:
                mask = _mask("row_exists[:, None]", part)
                load = f"tl.load({name}_first + {name}_offsets_{number}, mask={mask}, other=0.0)"
            yield f"{name}_{number} = {load}"

    def load_row_numbers(self, name: str) -> str:
        """Loads one of `ROW_NUMBERS` for a tile; where rows do not exist weights become 0."""
        if self._numbers_described:
            load = f"{name}_desc_0.load([batch, head, 0, row_first]).reshape(BLOCK_Q)"
        else:
            place = f"{name}_ptr + head_row + {self._rows}"
            other = 'float("inf")' if name == "row_lse" else "0.0"
            some = self._rows_apart or self._patches is not None
            guard = f", mask=row_exists, other={other}" if some else ""
            load = f"tl.load({place}{guard})"
        return f"{name} = {load}"

    # -------------------------------------------------------------------------------- results

    def results(self, resumes: bool, hands_on: bool) -> Iterator[KernelParameter]:
        """Pointers to what is computed.

        Args:
            resumes: An earlier pass has left sums.
            hands_on: The sums are left for a later pass, instead of the gradients.
        """
        for name in RESULTS:
            if not hands_on:
                yield KernelParameter(f"{name}_ptr", f"*{self.element}", 16)
            if resumes or hands_on:
                yield KernelParameter(f"{name}_state_ptr", "*fp32", 16)
        yield SUMS

    def result_rows(self) -> str:
        """Where the rows of the gradients lie, tensors `[batch, kv_heads, kv_len, columns]` without
        gaps."""
        length = "kv_len" if self._tiling == DENSE else "call_kv_len"
        head = "batch.to(tl.int64) * tl.num_programs(1) + kv_head"
        return f"result_rows = ({head}) * {length} + {self._keys}[:, None]"

    def load_state(self, name: str, part: Part, exists: str) -> str:
        """What earlier passes left of a part of a gradient, where `exists`."""
        mask = _mask(f"{exists}[:, None]", part)
        return f"tl.load({self._result(f'{name}_state', name, part)}, mask={mask}, other=0.0)"

    def store_results(self, exists: str, hands_on: bool, addressed: bool) -> Iterator[str]:
        """Stores the rows of both gradients where `exists`: as float32 sums for a later pass, or
        scaled and rounded.

        Args:
            exists: The vector of rows to store.
            hands_on: As in `results`.
            addressed: `result_rows` has been written already.
        """
        if not addressed:
            yield self.result_rows()
        for name in RESULTS:
            for number, part in enumerate(self.parts_of(name)):
                result = f"{name}_{number}"
                if name == "grad_key" and not hands_on:
                    yield f"{result} = {result} * scale"
                tensor = f"{name}_state" if hands_on else name
                rounded = result if hands_on else f"{result}.to(tl.{self._problem.dtype})"
                mask = _mask(f"{exists}[:, None]", part)
                yield f"tl.store({self._result(tensor, name, part)}, {rounded}, mask={mask})"

    def _result(self, tensor: str, name: str, part: Part) -> str:
        return f"{tensor}_ptr + result_rows * {self._width(name)} + {_columns(part)}"

    # -------------------------------------------------------------------------------- chunks

    def sums_base(self, row: str) -> str:
        """Where the sums of the chunk of that number start."""
        # There are fewer than 2**31 chunks, or memory would not hold them.
        chunk = f"(batch * tl.num_programs(1) + kv_head) * split_programs + {row}"
        return f"sums = sums_ptr + ({chunk}).to(tl.int64) * (BLOCK_K * {self.columns})"

    def sums_place(self, name: str, number: int, rows: str) -> str:
        """Where a part of a gradient lies in them; `rows` is the vector of the keys' numbers within
        the tile."""
        before = sum(part.width for part in self.parts_of(name)[:number])
        if name == "grad_value":
            before += sum(part.width for part in self._key_parts)
        columns = f"tl.arange(0, {self.parts_of(name)[number].width})[None, :]"
        return f"sums + {rows}[:, None] * {self.columns} + ({before} + {columns})"

    # -------------------------------------------------------------------------------- columns

    @property
    def column_parts(self) -> tuple[int, int]:
        """In how many parts the gradients of key and value are computed column by column."""
        return tuple(-(-self._width(name) // self.columns_at_once) for name in RESULTS)  # type: ignore[return-value]

    @property
    def columns_at_once(self) -> int:
        """Columns of a part, of either gradient."""
        return max(columns_at_once(self._width(name)) for name in RESULTS)

    def column_lines(self) -> Iterator[str]:
        """The columns of the part `spoiled_part`: first come those of the gradient of the key."""
        part, (of_key, _) = "spoiled_part", self.column_parts
        some, widths = self.columns_at_once, [self._width(name) for name in RESULTS]
        yield f"of_value = {part} >= {of_key}"
        yield f"columns = tl.where(of_value, {part} - {of_key}, {part}) * {some}"
        yield f"columns = columns + tl.arange(0, {some})[None, :]"
        yield f"column_exists = columns < tl.where(of_value, {widths[1]}, {widths[0]})"

    def load_columns(self, target: str) -> Iterator[str]:
        """Loads `columns` of a tile of rows of the tensor that the gradient is a sum of; 0 past the
        last row."""
        for name in PASSING:
            yield self._tile_first(name)
            rows = self._elements(name)
            mask = f"row_exists[:, None] & column_exists & {_ours(name)}"
            place = f"{name}_first + {rows} + columns"
            yield f"{name}_columns = tl.load({place}, mask={mask}, other=0.0)"
        yield f"{target} = tl.where(of_value, grad_out_columns, query_columns)"

    def load_state_columns(self, target: str, exists: str) -> Iterator[str]:
        """Loads `columns` of what earlier passes left, where `exists`."""
        for name in RESULTS:
            place = self._result_columns(f"{name}_state", name)
            mask = f"{exists}[:, None] & column_exists & {_ours(name)}"
            yield f"{name} = tl.load({place}, mask={mask}, other=0.0)"
        yield f"{target} = tl.where(of_value, grad_value, grad_key)"

    def store_columns(self, value: str, exists: str, hands_on: bool) -> Iterator[str]:
        """Stores `columns` of the gradient where `exists`; arguments as of `store_results`."""
        for name in RESULTS:
            tensor = f"{name}_state" if hands_on else name
            factor = " * scale" if name == "grad_key" and not hands_on else ""
            rounded = value if hands_on else f"({value}{factor}).to(tl.{self._problem.dtype})"
            mask = f"{exists}[:, None] & column_exists & {_ours(name)}"
            yield f"tl.store({self._result_columns(tensor, name)}, {rounded}, mask={mask})"

    def store_sums_columns(self, value: str) -> Iterator[str]:
        """Stores `columns` of what a chunk leaves, from `sums` on."""
        before = sum(part.width for part in self._key_parts)
        place = f"places_in_tile[:, None] * {self.columns} + tl.where(of_value, {before}, 0)"
        yield f"tl.store(sums + {place} + columns, {value}, mask=column_exists)"

    def _result_columns(self, tensor: str, name: str) -> str:
        return f"{tensor}_ptr + result_rows * {self._width(name)} + columns"

    def _width(self, name: str) -> int:
        problem = self._problem
        return problem.head_dim if name == "grad_key" else problem.value_head_dim

    # -------------------------------------------------------------------------------- addresses

    def _tile_first(self, name: str) -> str:
        """Where the tile of rows starts that is loaded."""
        first = "row_box" if self._moves_boxes else "row_first"
        return f"{name}_first = {name}_base + {first}.to(tl.int64) * {self._step(name)}"

    def _elements(self, name: str) -> str:
        """How far the rows of a tile are from its first one."""
        rows = "tl.arange(0, BLOCK_Q)"
        if self._patches is not None:
            rows = f"({passing_elements(self._patches, 'q')})"
        return f"{rows}[:, None].to(tl.int64) * {self._step(name)}"

    def _step(self, name: str) -> str:
        """From one row of the class to the next."""
        return f"{name}_step" if self._rows_apart else f"{name}_stride_row"


def _base(name: str, head: str, row: str = "") -> str:
    """Where a head starts; in 64 bits, for a tensor may hold more than 2**31 elements."""
    batch_offset = f"batch.to(tl.int64) * {name}_stride_batch"
    head_offset = f"{head}.to(tl.int64) * {name}_stride_head"
    row_offset = f" + {row}.to(tl.int64) * {name}_stride_row" if row else ""
    return f"{name}_base = {name}_ptr + {batch_offset} + {head_offset}{row_offset}"


def _ours(name: str) -> str:
    """Are the columns those of a gradient, or of what it is a sum of?"""
    return "of_value" if name in ("grad_value", "grad_out") else "(of_value == 0)"


def _columns(part: Part) -> str:
    """The columns of a part, `[1, width]`."""
    columns = f"tl.arange(0, {part.width})[None, :]"
    return f"({part.start} + {columns})" if part.start else columns


def _mask(rows: str, part: Part) -> str:
    """What to load or store: the rows' mask and, where the part is padded, the columns'."""
    tests = [rows]
    if part.padded:
        tests.append(f"(tl.arange(0, {part.width})[None, :] < {part.size})")
    return " & ".join(tests)
