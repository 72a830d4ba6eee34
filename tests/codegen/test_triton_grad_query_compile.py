"""The kernel of the query's gradient compiled for devices that are not here, and its text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.backward_config import (
    default_grad_query_config,
    grad_query_shared_bytes,
    suited_grad_query,
)
from patterncc.codegen.gpu.config import INTERPRETER, KernelConfig, check_config, shared_limit
from patterncc.codegen.gpu.delta_source import emit_delta
from patterncc.codegen.gpu.grad_query_source import emit_grad_query
from patterncc.codegen.gpu.launch import CompiledKernel, compile_for
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import DType, Problem
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError, UnsupportedError
from tests.codegen.crossing import each_with_one
from tests.codegen.library_programs import NAMES, PLACES, SIZES, TARGETS, library_program

WIDE = Problem("bfloat16", 128, 128)
GOLDEN = Path(__file__).parents[1] / "golden" / "triton_backward"


def _compiled(
    text: str, problem: Problem, target: str, folder: Path, within: bool = True
) -> CompiledKernel:
    config = default_grad_query_config(problem, target)
    pattern = load(text)
    program = lower(
        pattern, config.block_q, config.block_k, sizes=SIZES, within=within, transposed=False
    )
    config = suited_grad_query(config, problem, target, program)
    return compile_for(emit_grad_query(program, problem, config), target, folder=folder)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_every_target(head_dim: int, target: str, tmp_path: Path) -> None:
    problem = Problem("bfloat16", head_dim, head_dim)
    kernel = _compiled("streaming", problem, target, tmp_path)
    assert kernel.spilled == 0
    assert kernel.shared <= (shared_limit(target) or 65536)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_hopper(head_dim: int, tmp_path: Path) -> None:
    """Keys and values arrive by asynchronous bulk copies and go from shared memory into wgmma; two
    programs fit a multiprocessor."""
    problem = Problem("bfloat16", head_dim, head_dim)
    kernel = _compiled("causal", problem, "cuda:90", tmp_path)
    assert kernel.spilled == 0
    assert 0 <= kernel.shared - grad_query_shared_bytes(kernel.source.config, problem) <= 2048
    assert 2 * (kernel.shared + 1024) <= 233472
    layouts = str(kernel.stages["ttgir"])
    loops = layouts[layouts.index("scf.for") :]
    assert loops.count("ttng.warp_group_dot ") == 6
    assert "local_load" not in loops
    copies = layouts.count("ttng.async_tma_copy_global_to_local")
    # Query and grad_out once; for each of two loops keys and values, in the loop and ahead of it.
    assert copies == 2 + 2 * 2 * kernel.source.config.num_stages


PATTERNS = (
    "full",
    "window",
    "ladder(4, 64, 100, 7)",
    "pattern p(doc: segments): causal and doc[q] == doc[k]",
    "pattern p(w: int[head]): window(w[head])",
    "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 64, k // 64]",
)


@pytest.mark.parametrize("text", PATTERNS)
def test_patterns_on_hopper(text: str, tmp_path: Path) -> None:
    assert _compiled(text, WIDE, "cuda:90", tmp_path).spilled <= 64


@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942"])
def test_split_head_dims(target: str, tmp_path: Path) -> None:
    assert _compiled("causal", Problem("float16", 80, 96, 4), target, tmp_path).spilled == 0


def test_float32(tmp_path: Path) -> None:
    kernel = _compiled("causal", Problem("float32", 64, 64), "cuda:90", tmp_path)
    assert kernel.spilled == 0
    assert "tf32" not in str(kernel.stages["ptx"])


def test_passes_and_classes(tmp_path: Path) -> None:
    config = default_grad_query_config(WIDE, "cuda:90")
    passes = lower_passes(load("window(512) or dilated(512, 8)"), 64, 64, within=True)
    assert len(passes) == 2
    for first, program in zip((True, False), passes, strict=True):
        source = emit_grad_query(program, WIDE, config, resumes=not first, hands_on=first)
        assert compile_for(source, "cuda:90", folder=tmp_path).spilled == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("with_lse", [True, False])
def test_delta(with_lse: bool, target: str, tmp_path: Path) -> None:
    source = emit_delta(Problem("bfloat16", 64, 96), with_lse=with_lse, with_rows=with_lse)
    kernel = compile_for(source, target, folder=tmp_path)
    assert kernel.spilled == 0
    if target == "cuda:90":
        assert "ld.global.v4.b32" in str(kernel.stages["ptx"])  # 16 bytes at a time


# Every second name; `test_triton_compile`, which has the others, says why.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "place"),
    each_with_one(NAMES, PLACES, turns=[turn for place in PLACES for turn in (None, place)]),
    ids=str,
)
def test_library(name: str, place: tuple[str, bool], tmp_path: Path) -> None:
    target, within = place
    config = default_grad_query_config(WIDE, target)
    program = library_program(name, config, within=within)
    compile_for(emit_grad_query(program, WIDE, config), target, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("head_dim", "target"), each_with_one([16, 32, 64, 72, 80, 96, 128, 160, 192, 256], TARGETS)
)
def test_default_configs_do_not_spill(
    head_dim: int, dtype: DType, target: str, tmp_path: Path
) -> None:
    kernel = _compiled("window", Problem(dtype, head_dim, head_dim), target, tmp_path)
    assert kernel.spilled == 0
    assert kernel.shared <= (shared_limit(target) or 65536)


# ------------------------------------------------------------------------------------ configs, text


@pytest.mark.parametrize(
    "target", [*TARGETS, "cuda:86", "cuda:120", INTERPRETER], ids=lambda target: target
)
def test_defaults_are_legal(target: str) -> None:
    for dtype in ("float16", "bfloat16", "float32"):
        for head_dim in range(8, 257, 8):
            for value_head_dim in (16, head_dim, 256):
                for descriptors in (True, False):
                    problem = Problem(dtype, head_dim, value_head_dim)
                    config = default_grad_query_config(problem, target, descriptors=descriptors)
                    check_config(config, problem, target, grad_query_shared_bytes)
                    assert descriptors or config.load == "pointer"


def test_mismatched_tiles() -> None:
    program = lower(load("causal"), 64, 64, transposed=False)
    with pytest.raises(ConfigError, match="128x64"):
        emit_grad_query(program, WIDE, KernelConfig(128, 64))


def test_float64_is_refused() -> None:
    program = lower(load("causal"), 64, 64, transposed=False)
    problem = Problem("float64", 64, 64)
    with pytest.raises(UnsupportedError, match="float64"):
        emit_grad_query(program, problem, KernelConfig(64, 64))
    with pytest.raises(UnsupportedError, match="float64"):
        emit_delta(problem, with_lse=False)


def test_text(golden: Callable[[Path, str], None]) -> None:
    """The last of two passes, in classes of rows, by descriptors, with a head dimension in parts:
    what a plain causal kernel has and all that can come on top."""
    program = lower(load("dilated(512, 8)"), 64, 32, within=True, tiling=residue_tiling(8))
    config = KernelConfig(64, 32, 4, 2, "descriptor")
    problem = Problem("bfloat16", 80, 64, 4)
    source = emit_grad_query(program, problem, config, resumes=True)
    golden(GOLDEN / "grad_query.txt", source.text)


def test_text_of_delta(golden: Callable[[Path, str], None]) -> None:
    source = emit_delta(Problem("float16", 80, 72, 4), with_lse=True, with_rows=True)
    golden(GOLDEN / "delta.txt", source.text)
