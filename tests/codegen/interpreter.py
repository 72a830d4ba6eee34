"""Runs kernels in Triton's interpreter, in a process of its own.

TRITON_INTERPRET must be set before triton is imported and turns compiling off, so the tests that
interpret kernels send their cases to one worker process, the fixture `worker` that all of them
share: to start one takes seconds. Its functions are below.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from patterncc.codegen.gpu.bound_source import scalars_read, wide_name
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.mask_source import emit_mask, scalar_name
from patterncc.codegen.gpu.pass_plan import Lowered
from patterncc.codegen.gpu.scalar_source import HELPERS, ExpressionWriter, Text
from patterncc.codegen.gpu.sweep_source import emit_loops
from patterncc.codegen.ir import BlockProgram, Passes, Patches, Tiling
from patterncc.dsl.mask import Expr, IntExpr, Param, Predicate, Var, walk
from tests.codegen.attention import Errors

if TYPE_CHECKING:
    import torch

    from patterncc.dsl.pattern import Pattern


@contextmanager
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A worker process in which kernels are interpreted."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with patch.dict(os.environ, TRITON_INTERPRET="1"):  # of the process that starts here
            assert pool.submit(_interprets).result(), "the worker compiles kernels"
        yield pool


def _interprets() -> bool:
    """Does this process interpret kernels? From now on without what costs half of the time.

    Triton's interpreter computes all sums and products of integers a second time, to assert that
    they fit, and then asserts nothing: that is for kernels compiled with `debug`. And it replaces
    the functions of the language again at every call of one function by another.

    Products are summed in float64 and rounded once. A CPU's library sums columns of a product in
    another order where there are more of them, which matrix instructions do not, and tests compare
    the bits of what is computed at once with those of what is computed in parts.
    """
    from triton import language
    from triton.runtime import interpreter

    from patterncc.codegen.gpu.launch import interpreting

    if not interpreting():
        return False
    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = replace(builder.options, sanitize_overflow=False)
    builder.create_dot = _dot
    patch_language = interpreter._patch_lang

    def patch_once(function: Any) -> Any:
        languages = [
            module
            for module in function.__globals__.values()
            if module is language or module is language.core
        ]
        if not languages or any(language.core.is_builtin(module.load) for module in languages):
            return patch_language(function)
        return interpreter._LangPatchScope()  # nothing is to be restored

    interpreter._patch_lang = patch_once
    return True


def _dot(a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """`a @ b + d` of tensors as the interpreter holds them."""
    from triton.runtime.interpreter import TensorHandle

    product = np.matmul(a.data, b.data, dtype=np.float64).astype(d.data.dtype)
    return TensorHandle(product + d.data, d.dtype.scalar)


# ------------------------------------------------------------------------------------ attention


@dataclass(frozen=True)
class Call:
    """One attention call; `offset` None aligns the last row with the last key.

    With `passes`, texts and their variables, these are run instead of the text; with `every_tile`,
    all tiles are visited and masked; `chosen` takes the passes that counting tiles chooses, in both
    directions if `transposed`. With `patches` tiles are these, and with `fills` full ones are told
    apart. With `lists_at_once` lists of runs take no more bytes than that.
    """

    text: str
    q_len: int
    kv_len: int
    values: Mapping[str, int] = field(default_factory=dict)
    offset: int | None = None
    heads: tuple[int, int] = (2, 1)
    head_dim: int = 16
    value_head_dim: int | None = None
    dtype: str = "float32"
    batch: int = 1
    scale: float = 0.25
    config: KernelConfig | None = None
    passes: tuple[tuple[str, Tiling], ...] = ()
    tables: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    every_tile: bool = False
    chosen: bool = False
    transposed: bool = False
    patches: Patches | None = None
    fills: bool = False
    lists_at_once: int | None = None


@dataclass(frozen=True)
class Prepared:
    """The tensors and numbers of a call, made in the worker; memory past the rows is poisoned, and
    from here on so is all new memory.

    `scope` is what the pattern's mask reads, `lower` what a caller of the kernels gives.
    """

    pattern: Pattern
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    env: Mapping[str, int]
    scope: Mapping[str, int]
    tables: Mapping[str, torch.Tensor]
    lower: Lowered
    lower_rows: Lowered | None = None


def prepared(call: Call) -> Prepared:
    """What a call stands for."""
    from patterncc.codegen.choice import lower_passes
    from patterncc.dsl import load
    from tests.codegen.attention import all_partial, in_passes, lowered

    pattern = load(call.text)
    heads, kv_heads = call.heads
    query, key, value = random_tensors(call)
    offset = call.kv_len - call.q_len if call.offset is None else call.offset
    numbers = {p.name: p.value for p in pattern.numbers if p.value is not None}
    env = {"q_offset": offset, "layer": 0, **numbers, **call.values}
    sizes = {"heads": heads, "kv_heads": kv_heads, "layers": env.get("layers", 4)}
    tables = {name: _table(rows) for name, rows in call.tables.items()}
    lower: Lowered
    lower_rows: Lowered | None = None
    if call.chosen:

        def chosen(block_q: int, block_k: int) -> Sequence[Passes]:
            return [
                lower_passes(pattern, block_q, block_k, sizes=sizes, transposed=call.transposed)
            ]

        def gathered(block_q: int, block_k: int) -> Sequence[Passes]:
            return [lower_passes(pattern, block_q, block_k, sizes=sizes, transposed=False)]

        lower, lower_rows = chosen, gathered
    elif call.patches is not None:
        lower = _in_patches(pattern, call.patches, call.fills)
    elif call.passes:
        lower = in_passes([(load(text), tiling) for text, tiling in call.passes], sizes)
    else:
        lower = all_partial(pattern.body) if call.every_tile else lowered(pattern, sizes)
    scope = {**env, **sizes}
    return Prepared(pattern, query, key, value, env, scope, tables, lower, lower_rows)


def _in_patches(pattern: Pattern, patches: Patches, fills: bool) -> Lowered:
    """Lowers for patches of a raster, both directions."""
    from patterncc.codegen.lower import specialise, with_transposed
    from patterncc.codegen.passes import run_passes
    from patterncc.codegen.patches import patch_program
    from patterncc.codegen.raster import raster_of

    body = specialise(pattern.body, {})
    raster = raster_of(body, patches.sizes)

    def lower(block_q: int, block_k: int) -> Sequence[Passes]:
        tile = block_q, block_k
        program = patch_program(pattern.structure, body, raster, patches, tile, fills=fills)
        return [(with_transposed(run_passes(program, check=True), check=True),)]

    return lower


def random_tensors(call: Call) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value of a call; memory past their rows and all new memory is poisoned."""
    import torch

    from tests.codegen.attention import poisoned

    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # among others, new memory is filled with NaN
    like = torch.empty(0, dtype=getattr(torch, call.dtype))
    (heads, kv_heads), width = call.heads, call.value_head_dim or call.head_dim
    return (
        poisoned((call.batch, heads, call.q_len, call.head_dim), like),
        poisoned((call.batch, kv_heads, call.kv_len, call.head_dim), like),
        poisoned((call.batch, kv_heads, call.kv_len, width), like),
    )


def attend(call: Call) -> Errors:
    """The kernel's errors against float64; memory past the keys and of the outputs is poisoned."""
    from patterncc.codegen.gpu import list_plan
    from patterncc.codegen.gpu.forward import Forward
    from tests.codegen.attention import errors, expected

    it = prepared(call)
    tensors = (it.query, it.key, it.value)
    most = call.lists_at_once or list_plan.MOST_GATHERED
    with tempfile.TemporaryDirectory() as folder, patch.object(list_plan, "MOST_GATHERED", most):
        forward = Forward(it.lower, config=call.config, folder=Path(folder))
        got = forward(*tensors, env=it.env, scale=call.scale, tables=it.tables)
    return errors(got, expected(it.pattern, *tensors, it.scope, call.scale, call.tables))


def _table(rows: Sequence[Any]) -> Any:
    """A table as kernels take it, whatever lies behind it in memory."""
    import torch

    table = torch.tensor(rows)
    return table if table.dtype == torch.bool else table.to(torch.int32)


def lists(call: Call, head: int) -> tuple[list[list[int]], list[list[int]]]:
    """The partial and the full tiles that the kernel lists for each query tile of a head of the
    first batch entry; memory that it does not write is poisoned."""
    import torch

    from patterncc.codegen.gpu.forward_plan import Planner
    from patterncc.codegen.gpu.layout import Layout
    from patterncc.codegen.problem import Problem
    from patterncc.dsl import load
    from tests.codegen.attention import lowered

    (heads, kv_heads), width = call.heads, call.head_dim
    named = {"query": (heads, call.q_len), "key": (kv_heads, call.kv_len)}
    named |= {"value": named["key"], "out": named["query"]}
    layouts = [
        Layout(name, 0, (call.batch, n, rows, width), (n * rows * width, rows * width, width, 1), 4)
        for name, (n, rows) in named.items()
    ]
    offset = call.kv_len - call.q_len if call.offset is None else call.offset
    tables = {name: _table(rows) for name, rows in call.tables.items()}
    *sums, launch, _ = Planner(lowered(load(call.text)), call.config).plan(
        Problem("float32", width, width, heads // kv_heads),
        "interpreter",
        layouts,
        {"q_offset": offset, **call.values},
        call.scale,
        {name: tuple(table.shape) for name, table in tables.items()},
    )
    operands = {f"table_{name}": table.view(torch.uint8) for name, table in tables.items()}
    with tempfile.TemporaryDirectory() as folder:
        for one in (*sums, launch):
            for name, shape, _ in one.buffers:
                operands[name] = torch.full(shape, -7, dtype=torch.int32)
            kernel = getattr(_imported(one.source.text, Path(folder)), one.source.name)
            kernel[one.grid](*(operands[name] for name in one.pointers), *one.rest)
    query_tiles, by_head, _ = launch.grid
    place = head * by_head // heads
    rows = slice(place * query_tiles, (place + 1) * query_tiles)
    partial, full = [], []
    for tiles, (masked, plain) in zip(
        operands["tiles"][rows].tolist(), operands["tile_counts"][rows].tolist(), strict=True
    ):
        assert masked + plain < len(tiles)
        partial.append(tiles[:masked])
        full.append(tiles[len(tiles) - plain :])
        assert set(tiles[masked : len(tiles) - plain]) <= {-7}
    return partial, full


def run_lists(call: Call, head: int) -> tuple[list[int], list[int]]:
    """The runs that the kernel lists for all query tiles of a head of the first batch entry in the
    last pass, and the ranks of all runs; memory that it does not write is poisoned."""
    import torch

    from patterncc.codegen.gpu.forward_source import emit_forward, emit_forward_repair
    from patterncc.codegen.gpu.launches import call_of
    from patterncc.codegen.gpu.layout import Layout
    from patterncc.codegen.gpu.pass_plan import Pass, Sources
    from patterncc.codegen.gpu.query_tile_plan import query_tile_launches
    from patterncc.codegen.problem import Problem

    it = prepared(call)
    assert call.config is not None
    program = it.lower(call.config.block_q, call.config.block_k)[-1][-1]
    named = {"query": it.query, "key": it.key, "value": it.value, "out": it.query}
    layouts = [
        Layout(name, 0, tuple(tensor.shape), tensor.stride(), 4) for name, tensor in named.items()
    ]
    problem = Problem("float32", call.head_dim, call.head_dim, call.heads[0] // call.heads[1])
    shapes = {name: tuple(table.shape) for name, table in it.tables.items()}
    planned = call_of(problem, "interpreter", layouts, it.env, {"scale": 1.0}, shapes)
    one = Pass(program, call.config, False, False)
    launch, *_ = query_tile_launches(emit_forward, emit_forward_repair, one, planned, Sources())
    operands = {
        name: torch.full(shape, -7, dtype=torch.int32) for name, shape, _ in launch.buffers
    } | {f"table_{name}": table.view(torch.uint8) for name, table in it.tables.items()}
    with tempfile.TemporaryDirectory() as folder:
        kernel = _imported(launch.source.text, Path(folder)).list_runs
        kernel[launch.grid](*(operands[name] for name in launch.pointers), *launch.rest)
    place = head * launch.grid[1] // call.heads[0]
    return operands["runs"][place].tolist(), operands["run_ranks"][place].tolist()


# ------------------------------------------------------------------------------------ probes

_names = count()


def mask_tile(
    mask: Predicate, env: Mapping[str, int], rows: int, keys: int, k_first: int
) -> npt.NDArray[np.bool_]:
    """What the mask's text says of the tile of rows from `q_offset` and keys from `k_first`."""
    source = emit_mask(mask)
    scalars = sorted({scalar_name(leaf) for leaf in _leaves(mask)} - {"q", "k"} | {"kv_len"})
    body = [
        f"q = (q_offset + tl.arange(0, {rows}))[:, None]",
        *source.row_lines,
        f"k = (k_first + tl.arange(0, {keys}))[None, :]",
        *source.key_lines,
        f"allowed = {source.expression}",
        f"shown = tl.where(allowed & tl.full([{rows}, {keys}], 1, tl.int1), 1, 0)",
        f"place = tl.arange(0, {rows})[:, None] * {keys} + tl.arange(0, {keys})[None, :]",
        "tl.store(out + place, shown)",
    ]
    values = {**_renamed(env), "k_first": k_first}
    names = sorted({*scalars, "q_offset", "k_first"})
    return _probe(body, names, values, (rows, keys)).astype(bool)


def tiles_of_row(program: BlockProgram, env: Mapping[str, int], row: int) -> dict[str, list[int]]:
    """The tiles that the emitted loops visit for one query tile, by kind, in order."""
    nest = emit_loops(program.forward)
    bounds = scalars_read(program.forward)
    first = env["q_offset"] + row * program.block_q
    last = min(first + program.block_q, env["q_offset"] + env["q_len"]) - 1
    values = {**_renamed(env), "q_first": first, "q_last": last}
    found: dict[str, list[int]] = {"partial": [], "full": []}
    for loop in nest.loops:
        body = [
            *(f"{wide_name(leaf)} = {scalar_name(leaf)}.to(tl.int64)" for leaf in bounds),
            *nest.common,
            *(line for other in nest.loops for line in other.setup),
            f"tl.store(out, {loop.count})",
            f"for step in range(0, {loop.count}):",
            f"    tl.store(out + 1 + step, {loop.tile})",
        ]
        names = [scalar_name(leaf) for leaf in bounds]
        result = _probe(body, names, values, (1 << 14,))
        found[loop.kind] += [int(tile) for tile in result[1 : 1 + int(result[0])]]
    return found


def integers(
    expr: IntExpr, env: Mapping[str, int], positions: Sequence[int], bits: int
) -> list[int]:
    """An expression of `q` (a vector) and scalars, computed in at least so many bits."""

    def names(leaf: Expr) -> Text | None:
        if isinstance(leaf, (Var, Param)):
            return Text(scalar_name(leaf) + ("_wide" if bits == 64 else ""), bits)  # type: ignore[arg-type]
        return None

    leaves = sorted({scalar_name(leaf) for leaf in _leaves(expr)} - {"q"})
    size = 1 << (len(positions) - 1).bit_length()
    body = [
        f"q = tl.load(positions + tl.arange(0, {size}))",
        "q_wide = q.to(tl.int64)",
        *(f"{name}_wide = {name}.to(tl.int64)" for name in leaves),
        f"result = {ExpressionWriter(names, bits).integer(expr).text}",  # type: ignore[arg-type]
        f"tl.store(out + tl.arange(0, {size}), result + tl.zeros([{size}], tl.int64))",
    ]
    padded = np.zeros(size, np.int32)
    padded[: len(positions)] = positions
    found = _probe(body, leaves, _renamed(env), (size,), padded)
    return [int(value) for value in found[: len(positions)]]


def _leaves(expr: Expr) -> set[Var | Param]:
    return {leaf for leaf in walk(expr) if isinstance(leaf, (Var, Param))}


def _renamed(env: Mapping[str, int]) -> dict[str, int]:
    return {**env, **{f"number_{name}": value for name, value in env.items()}}


def _probe(
    body: Sequence[str],
    names: Sequence[str],
    values: Mapping[str, int],
    shape: tuple[int, ...],
    positions: npt.NDArray[np.int32] | None = None,
) -> npt.NDArray[Any]:
    """Runs the lines as a kernel of one program over int32 scalars; `out` is int64."""
    import torch

    text = "import triton\nimport triton.language as tl\n\n\n" + HELPERS + "\n\n@triton.jit\n"
    text += f"def probe(out, positions, {', '.join(names)}):\n"
    text += "".join(f"    {line}\n" for line in body)
    out = torch.full(shape, -7, dtype=torch.int64)
    given = torch.from_numpy(np.zeros(1, np.int32) if positions is None else positions)
    with tempfile.TemporaryDirectory() as folder:
        module = _imported(text, Path(folder))
        with np.errstate(over="raise"):
            module.probe[(1,)](out, given, *(values[name] for name in names))
    return out.numpy()


def _imported(text: str, folder: Path) -> Any:
    """A text as a module, which Triton reads from a file."""
    path = folder / f"probe_{next(_names)}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
