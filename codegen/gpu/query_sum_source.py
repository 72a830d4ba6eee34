"""The sums of the query's gradient that all programs of a one-pass backward add to, and the kernel
that makes the gradient of them.

They lie as the threads of a warpgroup hold a product of 64 rows, so that the 32 threads of a warp
leave 512 bytes that follow each other in shared memory, from where the copy engine adds them as
they are. With the bits of a row of the product, `w w h r r r`, and of a column, `j ... j t t c`,
the place within the half of a tile is `w w j ... j r r r t t h c`: warp, step, thread, and the four
numbers of a thread.

A tile has two halves, one of each warpgroup: of its columns, or of its rows where the product is
transposed (`computes_transposed`), whose rows are then columns of the tile.
"""

from __future__ import annotations

from collections.abc import Iterator

from patterncc.codegen.gpu.access_source import TYPES
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.kernel_source import KernelParameter, KernelSource
from patterncc.codegen.gpu.kernel_text import header_text, module_text
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.problem import Problem

EMITTER = 1
"""Version of the generated text; it is part of the text."""

TILE_ROWS = 64
"""Rows of a tile of the sums."""

HALVES = 2
"""Warpgroups that share a tile."""

LINE = 256
"""Numbers of a line of the sums, as the copy engine sees them: what its boxes hold at most."""

QUERY_SUMS = KernelParameter("query_sums_ptr", "*fp32", 16)
"""float32 `[batch, heads, row_length, head_dim]`, tiles of `TILE_ROWS` rows one after the other."""

COUNTED_ROWS = 32
"""Rows of a program that clears the sums. Each clears one count, of which a tile uses the first."""

ADDED_SHARES = KernelParameter("added_shares_ptr", "*i32", 16)
"""int32 `[batch, heads, row_length / COUNTED_ROWS]`: how many key tiles have added to a tile."""


def half_lines(head_dim: int) -> int:
    """Lines of what one warpgroup computes of a tile."""
    return TILE_ROWS * head_dim // HALVES // LINE


def computes_transposed(head_dim: int) -> bool:
    """Is what a warpgroup computes of a tile the product of transposed keys, all columns of half of
    the rows? As many columns as a product has rows, and keys that registers have room for."""
    return head_dim == TILE_ROWS


def sum_layout(rows: int, head_dim: int) -> Layout:
    """The sums of so many rows of all heads, as the copy engine sees them: lines."""
    count = rows * head_dim
    return Layout("query_sums", 0, (1, 1, count // LINE, LINE), (count, count, LINE, 1), 4)


def emit_round_query(problem: Problem, *, counted: bool = False) -> KernelSource:
    """Writes the kernel that scales and rounds the sums to the query's gradient, for a grid of
    tiles of `TILE_ROWS` rows, heads, batch entries.

    Args:
        problem: The shape class; its values' head dimension and its group do not matter.
        counted: Sums to which nothing was added were never written, and are 0.
    """
    config = KernelConfig(TILE_ROWS, TILE_ROWS, num_warps=4, num_stages=1)
    parameters = (
        QUERY_SUMS,
        *((ADDED_SHARES,) if counted else ()),
        KernelParameter("grad_query_ptr", f"*{TYPES[problem.dtype]}", 16),
        KernelParameter("scale", "fp32"),
        KernelParameter("q_len", "i32"),
        KernelParameter("row_length", "i32"),
    )
    fields = {
        "problem": f"{problem.dtype}, head_dim {problem.head_dim}",
        "emitter": str(EMITTER),
    }
    header = header_text("Gradient of the query from sums", fields)
    text = module_text(header, "round_query", parameters, _lines(problem, counted))
    return KernelSource("round_query", text, parameters, problem, config)


def _lines(problem: Problem, counted: bool) -> Iterator[str]:
    width = problem.head_dim
    steps = half_lines(width) * LINE // TILE_ROWS // 8
    yield "row_first = tl.program_id(0) * 64"
    yield "head = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)"
    yield f"sums = query_sums_ptr + (head * row_length + row_first) * {width}"
    places = f"sums + tl.arange(0, {TILE_ROWS * width})"
    if counted:
        count = f"(head * row_length + row_first) // {COUNTED_ROWS}"
        yield f"written = tl.load(added_shares_ptr + {count}) > 0"
        yield f"tile = tl.load({places}, mask=written, other=0.0)"
    else:
        yield f"tile = tl.load({places})"
    yield "# Half, warp, step, row in eight, pair of columns, eight of rows, column of the pair."
    yield f"tile = tile.reshape({HALVES}, 4, {steps}, 8, 4, 2, 2)"
    order = (0, 2, 4, 6, 1, 5, 3) if computes_transposed(width) else (1, 5, 3, 0, 2, 4, 6)
    yield f"tile = tile.permute{order}.reshape({TILE_ROWS}, {width})"
    yield f"rows = row_first + tl.arange(0, {TILE_ROWS})[:, None]"
    yield f"place = (head * q_len + rows) * {width} + tl.arange(0, {width})[None, :]"
    yield f"rounded = (tile * scale).to(tl.{problem.dtype})"
    yield "tl.store(grad_query_ptr + place, rounded, mask=rows < q_len)"
