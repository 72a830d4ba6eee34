"""The delta kernel: one number for each row, which the kernels of all gradients subtract.

`delta = sum(grad_out * out) - grad_lse`, in float32, is what a row's weights hand back through the
softmax: with it `grad_scores = weights * (grad_out . value - delta)` needs no second look at the
row (Dao et al., FlashAttention, 2022, appendix B; the term of the logarithm follows from
`d lse / d scores = weights`). It depends on the problem alone, never on the pattern.

For the kernel of keys and values, to which rows pass by, it also writes what each tile of rows
needs, ready for use: `row_lse`, the base-2 logarithm of the row's sum, plus infinity for rows
without keys, and `row_delta`. Both go on after the last row, where weights are 0 as well, so that
no load of a tile of them needs a mask. For the kernel of all gradients it also sets to 0 the sums
of the query's gradient (`query_sum_source`), and how many programs have added to them; or these
counts alone, where the first program stores what it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from patterncc.codegen.gpu.access_source import TYPES
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.head_dim import parts
from patterncc.codegen.gpu.kernel_source import KernelParameter, KernelSource
from patterncc.codegen.gpu.kernel_text import header_text, module_text
from patterncc.codegen.gpu.query_sum_source import ADDED_SHARES, COUNTED_ROWS, QUERY_SUMS
from patterncc.codegen.gpu.tile_source import check_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.problem import Problem

EMITTER = 1
"""Version of the generated text; it is part of the text."""

ROWS = COUNTED_ROWS
"""Rows of one program: with head dimension 128 each of its 128 threads has 32 elements."""


PADDED_TO = 256
"""The rows of `row_lse` and `row_delta` are a multiple of this, the most rows of a tile."""

ROW_NUMBERS = ("row_lse", "row_delta")
"""float32 `[batch, heads, row_length]`."""


Cleared: TypeAlias = Literal["sums", "counts"]
"""Sums of the query's gradient and the counts of what was added to them, or the counts alone."""


def row_length(q_len: int) -> int:
    """The length of a head's row numbers."""
    return -(-q_len // PADDED_TO) * PADDED_TO


def emit_delta(
    problem: Problem, *, with_lse: bool, with_rows: bool = False, clears: Cleared | None = None
) -> KernelSource:
    """Writes the delta kernel of a shape class, for a grid of `ROWS` rows, heads, batch entries.

    Args:
        problem: The shape class; its group does not matter, nor its query's head dimension without
            sums.
        with_lse: There is a gradient of the lse.
        with_rows: The row numbers are written too; the grid then has all `row_length` rows.
        clears: What is set to 0, besides the row numbers.

    Raises:
        UnsupportedError: The dtype or head dimension has no kernel.
    """
    check_dtype(problem)
    config = KernelConfig(ROWS, ROWS, num_warps=4, num_stages=1)
    parameters = tuple(_parameters(problem, with_lse, with_rows, clears))
    header = header_text(
        "Attention backward: delta",
        {
            "problem": f"{problem.dtype}, value_head_dim {problem.value_head_dim}",
            "emitter": str(EMITTER),
        },
    )
    text = module_text(header, "delta", parameters, _lines(problem, with_lse, with_rows, clears))
    return KernelSource("delta", text, parameters, problem, config)


def _parameters(
    problem: Problem, with_lse: bool, with_rows: bool, clears: Cleared | None
) -> Iterator[KernelParameter]:
    element = TYPES[problem.dtype]
    yield KernelParameter("grad_out_ptr", f"*{element}", 16)
    yield KernelParameter("out_ptr", f"*{element}", 16)
    if with_lse:
        yield KernelParameter("grad_lse_ptr", "*fp32", 4)
    yield KernelParameter("delta_ptr", "*fp32", 16)
    if with_rows:
        yield KernelParameter("lse_ptr", "*fp32", 4)
        for name in ROW_NUMBERS:
            yield KernelParameter(f"{name}_ptr", "*fp32", 16)
    if clears == "sums":
        yield QUERY_SUMS
    if clears is not None:
        yield ADDED_SHARES
    yield KernelParameter("q_len", "i32")
    if with_rows:
        yield KernelParameter("row_length", "i32")
    line = 4 if problem.dtype == "float32" else 8  # elements in 16 bytes
    for name in ("grad_out", "out", *(["grad_lse"] if with_lse else [])):
        for axis in ("batch", "head", "row"):
            multiple = 1 if name == "grad_lse" else line
            yield KernelParameter(f"{name}_stride_{axis}", "i64", multiple)


def _lines(
    problem: Problem, with_lse: bool, with_rows: bool, clears: Cleared | None
) -> Iterator[str]:
    yield f"rows = tl.program_id(0) * {ROWS} + tl.arange(0, {ROWS})"
    yield "row_exists = rows < q_len"
    yield "head = tl.program_id(1)"
    yield "batch = tl.program_id(2)"
    yield f"delta = tl.zeros([{ROWS}], tl.float32)"
    for name in ("grad_out", "out"):
        yield f"{name}_rows = {_place(name)}"
    for part in parts(problem.value_head_dim):
        columns = f"({part.start} + tl.arange(0, {part.width})[None, :])"
        mask = "row_exists[:, None]"
        if part.padded:
            mask += f" & ({columns} < {problem.value_head_dim})"
        for name in ("grad_out", "out"):
            place = f"{name}_rows[:, None] + {columns}"
            yield f"{name} = tl.load({place}, mask={mask}, other=0.0).to(tl.float32)"
        yield "delta += tl.sum(grad_out * out, 1)"
    if with_lse:
        yield f"delta -= tl.load({_place('grad_lse')}, mask=row_exists, other=0.0)"
    first = "(batch.to(tl.int64) * tl.num_programs(1) + head)"
    yield f"tl.store(delta_ptr + {first} * q_len + rows, delta, mask=row_exists)"
    if with_rows:
        none = 'float("-inf")'
        yield f"lse = tl.load(lse_ptr + {first} * q_len + rows, mask=row_exists, other={none})"
        yield f'lse = tl.where(lse == {none}, float("inf"), lse * 1.4426950408889634)'
        yield f"tl.store(row_lse_ptr + {first} * row_length + rows, lse)"
        yield f"tl.store(row_delta_ptr + {first} * row_length + rows, delta)"
    if clears == "sums":
        width = problem.head_dim
        rows = f"{first} * row_length + tl.program_id(0) * {ROWS}"
        yield f"sums = query_sums_ptr + ({rows}) * {width}"
        count = ROWS * width
        yield f"tl.store(sums + tl.arange(0, {count}), tl.zeros([{count}], tl.float32))"
    if clears is not None:
        yield f"tl.store(added_shares_ptr + {first} * (row_length // {ROWS}) + tl.program_id(0), 0)"


def _place(name: str) -> str:
    """The address of each row of a tensor; in 64 bits, for it may hold more than 2**31 elements."""
    return (
        f"{name}_ptr + batch.to(tl.int64) * {name}_stride_batch + "
        f"head.to(tl.int64) * {name}_stride_head + rows.to(tl.int64) * {name}_stride_row"
    )
