"""The kernels of the gradients of keys and values compiled for devices that are not here, and their
text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.backward_config import (
    default_grad_key_value_config,
    grad_key_value_shared_bytes,
)
from patterncc.codegen.gpu.chunk_sum_source import emit_sum_chunks
from patterncc.codegen.gpu.config import KernelConfig, check_config, shared_limit
from patterncc.codegen.gpu.grad_key_value_source import emit_grad_key_value
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launch import CompiledKernel, compile_for
from patterncc.codegen.gpu.list_source import emit_lists
from patterncc.codegen.gpu.mask_source import emit_mask
from patterncc.codegen.gpu.separate import keys_of_tiles
from patterncc.codegen.ir import BlockProgram, Tiling
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import DType, Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError, InternalError, UnsupportedError
from patterncc.dsl.mask import Const
from tests.codegen.crossing import each_with_one
from tests.codegen.library_programs import TARGETS

SIZES = {"heads": 8, "kv_heads": 2, "layers": 4}
FOLDER = Path(__file__).parents[1] / "golden" / "triton_grad_key_value"
WIDE = Problem("bfloat16", 128, 128)


def _source(text: str, problem: Problem, target: str) -> KernelSource:
    config = default_grad_key_value_config(problem, target)
    program = lower(load(text), config.block_q, config.block_k, sizes=SIZES, within=True)
    return emit_grad_key_value(program, problem, config)


def _compiled(text: str, problem: Problem, target: str, folder: Path) -> CompiledKernel:
    return compile_for(_source(text, problem, target), target, folder=folder)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_target(target: str, head_dim: int, tmp_path: Path) -> None:
    problem = Problem("bfloat16", head_dim, head_dim)
    kernel = _compiled("window(1024)", problem, target, tmp_path)
    assert kernel.spilled == 0
    assert kernel.shared <= (shared_limit(target) or 65536)


def test_hopper(tmp_path: Path) -> None:
    """Loads are bulk copies, row numbers among them; products are wgmma, the weights' from
    registers; nothing of that spills."""
    source = _source("causal", WIDE, "cuda:90")
    kernel = compile_for(source, "cuda:90", folder=tmp_path)
    assert kernel.spilled == 0
    buffers = grad_key_value_shared_bytes(source.config, WIDE)
    assert 0 <= kernel.shared - buffers <= 2048
    layouts = str(kernel.stages["ttgir"])
    loops = layouts[layouts.index("scf.for") :]
    assert loops.count("ttng.warp_group_dot ") == 8  # four in each loop
    assert "async_copy_global_to_local" not in layouts
    assert loops.count("ttg.local_load") == 4  # row numbers alone: nothing else leaves there
    products = [line for line in loops.splitlines() if "ttng.warp_group_dot " in line]
    assert sum("ttg.dot_op" in line for line in products) == 4


@pytest.mark.parametrize("block_q", [16, 32])
def test_boxes_are_aligned_in_every_stage(block_q: int, tmp_path: Path) -> None:
    """A bulk copy writes to multiples of 128 bytes, and stages of a tile lie end to end: the 64
    bytes of 16 row numbers are no box."""
    config = KernelConfig(block_q, 64, 4, 3, "descriptor", max_registers=255)
    source = emit_grad_key_value(lower(load("causal"), block_q, 64), WIDE, config)
    kernel = compile_for(source, "cuda:90", folder=tmp_path)
    copies = re.findall(
        r"async_tma_copy_global_to_local .*? -> !ttg.memdesc<([\dx]+)x(bf16|f32),",
        str(kernel.stages["ttgir"]),
    )
    assert {kind for _, kind in copies} == ({"bf16", "f32"} if block_q == 32 else {"bf16"})
    for sizes, kind in copies:
        elements = math.prod(map(int, sizes.split("x")))
        assert elements * {"bf16": 2, "f32": 4}[kind] % 128 == 0, (sizes, kind)


@pytest.mark.parametrize("text", ["streaming", "ladder(4, 1024, 128, 8)", "longformer(256, 64)"])
def test_a_few_scalars_spill(text: str, tmp_path: Path) -> None:
    """Ends and shifts of the pieces of the second loop, which the first has no use for."""
    kernel = _compiled(text, WIDE, "cuda:90", tmp_path)
    assert kernel.spilled <= 16


TABLES = (
    "pattern p(doc: segments): causal and doc[q] == doc[k]",
    "pattern p(w: int[head]): window(w[head])",
    "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 64, k // 64]",
    "pattern p(keep: bool[*, *]): causal and keep[q // 64, k]",
)


@pytest.mark.parametrize("text", TABLES, ids=[text.removeprefix("pattern ") for text in TABLES])
def test_tables(text: str, tmp_path: Path) -> None:
    """What the interpreter takes may not be typed: 64 bits, vectors where scalars must be."""
    problem = Problem("bfloat16", 64, 64, 4)
    config = default_grad_key_value_config(problem, "cuda:90")
    program = lower(load(text), config.block_q, config.block_k)
    compile_for(emit_grad_key_value(program, problem, config), "cuda:90", folder=tmp_path)
    if program.listed:
        lists = emit_lists(program, problem, config, direction="transposed")
        compile_for(lists, "cuda:90", folder=tmp_path)


def _strided(text: str) -> tuple[BlockProgram, ...]:
    return lower_passes(load(text), 64, 64, sizes=SIZES, tiling="strided")


PASSES = {
    "residue": _strided("dilated(512, 8)"),
    "key stride": _strided("causal and k % 8 == 3 or window(40)"),
    "rows": (lower(load("q % 5 == 2 and k <= q"), 64, 64, tiling=Tiling(5, 1, Const(0))),),
}


@pytest.mark.parametrize("load_by", ["descriptor", "pointer"])
@pytest.mark.parametrize("name", PASSES)
def test_classes(name: str, load_by: str, tmp_path: Path) -> None:
    config = KernelConfig(64, 64, 4, 2, load_by)  # type: ignore[arg-type]
    problem = Problem("float16", 64, 64, 2)
    passes = PASSES[name]
    for number, program in enumerate(passes):
        for emit in (emit_grad_key_value, emit_sum_chunks):
            between = {"resumes": number > 0, "hands_on": number < len(passes) - 1}
            compile_for(emit(program, problem, config, **between), "cuda:90", folder=tmp_path)


def test_float32(tmp_path: Path) -> None:
    kernel = _compiled("causal", Problem("float32", 64, 64), "cuda:90", tmp_path)
    assert kernel.spilled == 0
    assert "tf32" not in str(kernel.stages["ptx"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("head_dim", "target"), each_with_one([16, 32, 64, 72, 80, 96, 128, 192, 256], TARGETS)
)
def test_default_configs(head_dim: int, dtype: str, target: str, tmp_path: Path) -> None:
    """Nothing spills up to a head dimension of 128, but 16 bytes of 96 on the oldest target."""
    problem = Problem(dtype, head_dim, head_dim)  # type: ignore[arg-type]
    kernel = _compiled("window(1024)", problem, target, tmp_path)
    assert kernel.shared <= (shared_limit(target) or 65536)
    assert kernel.spilled <= (16 if head_dim == 96 else 0) or head_dim > 128


@pytest.mark.parametrize("target", ("cuda:80", "cuda:86", "cuda:90", "cuda:100", "hip:gfx942"))
def test_defaults_are_legal(target: str) -> None:
    dtypes: tuple[DType, ...] = ("float16", "bfloat16", "float32")
    for dtype in dtypes:
        for head_dim in range(16, 257, 16):
            for descriptors in (True, False):
                problem = Problem(dtype, head_dim, 256 - head_dim or 16)
                config = default_grad_key_value_config(problem, target, descriptors=descriptors)
                check_config(config, problem, target, grad_key_value_shared_bytes)


# ------------------------------------------------------------------------------------ text

CASES = {
    # The plain case: descriptors, a group of heads in one loop.
    "streaming": ("streaming", Problem("bfloat16", 128, 128, 4), KernelConfig(load="descriptor")),
    # Pointers, head dims in parts and padded, bounds that differ by head, several passes.
    "by_head": (
        "if head % 2 == 0 then causal else window(100)",
        Problem("float16", 80, 72, 2),
        KernelConfig(64, 64, 4, 3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_text(name: str, golden: Callable[[Path, str], None]) -> None:
    text, problem, config = CASES[name]
    program = lower(load(text), config.block_q, config.block_k, within=True)
    source = emit_grad_key_value(program, problem, config, resumes=name == "by_head")
    golden(FOLDER / f"{name}.txt", source.text)
    assert emit_grad_key_value(program, problem, config, resumes=name == "by_head") == source


def test_text_of_sums(golden: Callable[[Path, str], None]) -> None:
    program = lower(load("streaming"), 64, 64, within=True)
    source = emit_sum_chunks(program, Problem("bfloat16", 128, 128), KernelConfig(64, 64))
    golden(FOLDER / "sum_chunks.txt", source.text)


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {*CASES, "sum_chunks"}


def test_limits_are_about_the_keys() -> None:
    """What is compared with a query is computed once for the key tile, documents included."""
    packed = "pattern p(doc: segments): causal and doc[q] == doc[k]"
    for text in ("streaming", "window(9)", packed):
        mask = emit_mask(load(text).body, held=keys_of_tiles(64))
        assert mask.row_lines == ()
        assert mask.expression.count("q") == 2
    assert sum("find_documents" in line for line in mask.key_lines) == 1
    assert "_start" not in mask.expression  # a causal mask says that


def test_refusals() -> None:
    forward_alone = lower(load("causal"), 64, 64, transposed=False)
    with pytest.raises(InternalError, match="forward direction alone"):
        emit_grad_key_value(forward_alone, WIDE, KernelConfig(64, 64))
    program = lower(load("causal"), 64, 64)
    with pytest.raises(ConfigError, match="128x64"):
        emit_grad_key_value(program, WIDE, KernelConfig(128, 64))
    with pytest.raises(UnsupportedError, match="float64"):
        emit_grad_key_value(program, Problem("float64", 64, 64), KernelConfig(64, 64))
