"""Generated kernels compiled for devices that are not here: they compile, and to good code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu import launch
from patterncc.codegen.gpu.config import (
    KernelConfig,
    Load,
    default_config,
    shared_bytes,
    shared_limit,
)
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.forward_source import emit_forward
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launch import CompiledKernel, compile_for, kernel_count
from patterncc.codegen.gpu.list_source import emit_lists
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import Problem
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError, UnsupportedError
from tests.codegen.attention import lowered
from tests.codegen.crossing import each_with_one
from tests.codegen.library_programs import NAMES, PLACES, SIZES, TARGETS, library_program

WIDE = Problem("bfloat16", 128, 128)


def _source(
    text: str, problem: Problem, target: str, within: bool = True, **change: object
) -> KernelSource:
    config = dataclasses.replace(default_config(problem, target), **change)  # type: ignore[arg-type]
    program = lower(load(text), config.block_q, config.block_k, sizes=SIZES, within=within)
    return emit_forward(program, problem, config)


def _compiled(text: str, problem: Problem, target: str, folder: Path) -> CompiledKernel:
    return compile_for(_source(text, problem, target), target, folder=folder)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target(target: str, tmp_path: Path) -> None:
    kernel = _compiled("streaming", WIDE, target, tmp_path)
    assert kernel.spilled == 0
    assert kernel.shared <= (shared_limit(target) or 65536)
    assert ("hsaco" if target.startswith("hip") else "cubin") in kernel.stages


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("text", ["causal", "streaming"])
def test_hopper(text: str, head_dim: int, tmp_path: Path) -> None:
    """Loads are asynchronous bulk copies, products are wgmma on shared memory, nothing spills."""
    problem = Problem("bfloat16", head_dim, head_dim)
    kernel = _compiled(text, problem, "cuda:90", tmp_path)
    assert kernel.spilled == 0
    assert 0 <= kernel.shared - shared_bytes(kernel.source.config, problem) <= 2048
    assert kernel.shared <= (shared_limit("cuda:90") or 0)
    layouts = str(kernel.stages["ttgir"])
    loops = layouts[layouts.index("scf.for") :]
    assert loops.count("ttng.warp_group_dot ") == 4
    assert loops.count("isAsync = true") == 4
    assert "local_load" not in loops  # keys and values go from shared memory into the products
    stages = kernel.source.config.num_stages
    copies = layouts.count("ttng.async_tma_copy_global_to_local")
    # The query once; for each of two loops keys and values, in the loop and ahead of it.
    assert copies == 1 + 2 * 2 * stages


@pytest.mark.parametrize("kind", ["descriptor", "pointer"])
def test_classes_on_hopper(kind: Load, tmp_path: Path) -> None:
    """Rows that lie apart are loaded as deep ahead, and multiplied from shared memory as well."""
    config = KernelConfig(64, 64, 4, 3, kind)
    tiling = residue_tiling(8)
    program = lower(load("dilated(512, 8)"), 64, 64, within=True, tiling=tiling)
    kernel = compile_for(emit_forward(program, WIDE, config), "cuda:90", folder=tmp_path)
    assert kernel.spilled == 0
    layouts = str(kernel.stages["ttgir"])
    loops = layouts[layouts.index("scf.for") :]
    assert loops.count("isAsync = true") == 4
    assert "local_load" not in loops
    copy = {"descriptor": "ttng.async_tma_copy_global_to_local", "pointer": "ttg.async_copy"}[kind]
    assert layouts.count(f"{copy}") >= 4 * config.num_stages


def test_passes_do_not_spill(tmp_path: Path) -> None:
    config = default_config(WIDE, "cuda:90")
    passes = lower_passes(load("window(512) or dilated(512, 8)"), 64, 64, within=True)
    assert len(passes) == 2
    for first, program in zip((True, False), passes, strict=True):
        source = emit_forward(program, WIDE, config, resumes=not first, hands_on=first)
        assert compile_for(source, "cuda:90", folder=tmp_path).spilled == 0


TABLES = (
    "pattern p(w: int[head]): window(w[head])",
    "pattern p(doc: segments): causal and doc[q] == doc[k]",
    "pattern p(doc: segments): start(doc, k) <= q",
    "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 64, k // 64]",
    "pattern p(image: int[token]): causal or image[q] == image[k]",
    # Documents are looked up before the loop and, pair by pair, in it.
    "pattern p(doc: segments, n): start(doc, n) <= k and start(doc, abs(k - q)) <= q",
)


@pytest.mark.parametrize(("text", "target"), each_with_one(TABLES, TARGETS, always=["cuda:90"]))
def test_tables(text: str, target: str, tmp_path: Path) -> None:
    _compiled(text, WIDE, target, tmp_path)


def test_packed_documents_on_hopper(tmp_path: Path) -> None:
    """Their masks are as cheap as a window's: no truth values change their layout in the loop."""
    kernel = _compiled(TABLES[1], WIDE, "cuda:90", tmp_path)
    assert kernel.spilled == 0
    layouts = str(kernel.stages["ttgir"])
    loops = layouts[layouts.index("scf.for") :]
    assert not re.search(r"convert_layout [^\n]*tensor<64x64xi1", loops)


LISTED = (
    TABLES[3],
    "pattern p(keep: bool[batch, kv_head, *, *]): causal and keep[batch, kv_head, q, k // 64]",
    "pattern p(v: bool[head, *], s: bool[head, *]): causal and (v[head, k] or s[head, q - k])",
    "pattern p(keep: bool[*, *]): causal and keep[q, k]",
    "pattern p(keep: bool[*, *]): (q - k) % 12 < 5 and keep[q // 64, k // 48]",
)


@pytest.mark.parametrize(("text", "target"), each_with_one(LISTED, TARGETS, always=["cuda:90"]))
def test_listed_tiles(text: str, target: str, tmp_path: Path) -> None:
    config = default_config(WIDE, target)
    program = lower(load(text), config.block_q, config.block_k, within=True)
    lists = compile_for(emit_lists(program, WIDE, config), target, folder=tmp_path)
    assert lists.spilled == 0
    kernel = compile_for(emit_forward(program, WIDE, config), target, folder=tmp_path)
    if target == "cuda:90":
        copies = str(kernel.stages["ttgir"]).count("ttng.async_tma_copy_global_to_local")
        loops = len({sweep.kind for sweep in program.forward})
        # The query once; for each loop keys and values, in the loop and ahead of it: the number of
        # the next tile is there early enough to load at full depth.
        assert copies == 1 + loops * 2 * config.num_stages


def test_too_much_shared_memory_is_named(tmp_path: Path) -> None:
    """What the compiler adds for changes of layout is only known when it is done."""
    config = KernelConfig(128, 128, 8, 3, "descriptor")
    text = "pattern p(doc: segments): doc[q] == doc[k]"
    program = lower(load(text), 128, 128, within=True)
    with pytest.raises(ConfigError, match="bytes of shared memory, cuda:90 has 232448"):
        compile_for(emit_forward(program, WIDE, config), "cuda:90", folder=tmp_path)


def test_pointer_loads_are_pipelined(tmp_path: Path) -> None:
    source = _source("streaming", WIDE, "cuda:80")
    aligned = compile_for(source, "cuda:80", folder=tmp_path)
    layouts = str(aligned.stages["ttgir"])
    assert layouts.count("ttg.async_copy_global_to_local") == 4 * source.config.num_stages
    assert "cp.async.cg.shared.global [ %r" in str(aligned.stages["ptx"])  # 16 bytes each


@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx942"])
def test_split_head_dims(target: str, tmp_path: Path) -> None:
    kernel = _compiled("causal", Problem("float16", 80, 96, 4), target, tmp_path)
    assert kernel.spilled == 0


def test_float32(tmp_path: Path) -> None:
    kernel = _compiled("causal", Problem("float32", 64, 64), "cuda:90", tmp_path)
    assert kernel.spilled == 0
    assert "tf32" not in str(kernel.stages["ptx"])


def test_shifts_and_floors_are_signed(tmp_path: Path) -> None:
    """`>>` must be the arithmetic shift, and no remainder may be taken of a negative value."""
    small = Problem("bfloat16", 16, 16)
    source = _source("chunked(64) and k % 5 != q % 7", small, "cuda:90", within=False)
    text = str(compile_for(source, "cuda:90", folder=tmp_path).stages["ttir"])
    assert "arith.shrsi" in text
    assert "arith.shrui" not in text
    assert re.search(r"arith.remsi .*tensor<1x64xi32>", text)  # of k, which is never negative
    assert not re.search(r"arith.remsi .*tensor<128x1xi32>", text)  # of q, which may be


def test_many_residue_classes_are_few_loops(tmp_path: Path) -> None:
    source = _source("ladder(4, 64, 100, 7)", WIDE, "cuda:90")
    assert source.text.count("for step in range") <= 4  # two for each kind of tile
    kernel = compile_for(source, "cuda:90", folder=tmp_path)
    assert kernel.spilled <= 64


# What untuned calls take on Hopper is compiled for every name by `test_gluon_compile`. Besides, a
# mask and its loops are written in the same words for all targets and for both kernels that go
# through a row's keys: every second name is compiled here, the others as gradients of the query
# (`test_triton_grad_query_compile`), each for one target and one kind of rows in turn.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "place"),
    each_with_one(NAMES, PLACES, turns=[turn for place in PLACES for turn in (place, None)]),
    ids=str,
)
def test_library(name: str, place: tuple[str, bool], tmp_path: Path) -> None:
    target, within = place
    config = default_config(WIDE, target)
    program = library_program(name, config, within=within)
    compile_for(emit_forward(program, WIDE, config), target, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("head_dim", "target"), each_with_one([16, 32, 64, 72, 80, 96, 128, 192, 256], TARGETS)
)
def test_default_configs_do_not_spill(
    head_dim: int, dtype: str, target: str, tmp_path: Path
) -> None:
    problem = Problem(dtype, head_dim, head_dim)  # type: ignore[arg-type]
    kernel = _compiled("window", problem, target, tmp_path)
    assert kernel.spilled == 0
    assert kernel.shared <= (shared_limit(target) or 65536)


# ------------------------------------------------------------------------------------ the launcher


def test_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no target 'tpu:4'"):
        compile_for(_source("causal", WIDE, "cuda:90"), "tpu:4", folder=tmp_path)


def test_source_file_is_repaired(tmp_path: Path) -> None:
    """A half-written file of a crashed process is replaced, and no temporary file stays."""
    source = _source("prefix(77)", WIDE, "cuda:90")
    path = tmp_path / f"{source.digest}.py"
    path.write_text(source.text[:100])
    compile_for(source, "cuda:90", folder=tmp_path)
    assert path.read_text() == source.text
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]


def test_cpu_tensors_are_refused() -> None:
    import torch

    forward = Forward(lowered(load("causal")))
    tensor = torch.zeros(1, 1, 8, 16)
    before = kernel_count()
    with pytest.raises(UnsupportedError, match="cpu tensors"):
        forward(tensor, tensor, tensor, env={"q_offset": 0}, scale=1.0)
    assert kernel_count() == before


def test_missing_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_MISSING", ImportError("no triton here"))
    with pytest.raises(UnsupportedError, match="pip install"):
        Forward(lowered(load("causal")))


def test_mismatched_tiles() -> None:
    program = lower(load("causal"), 64, 64)
    with pytest.raises(ConfigError, match="128x64"):
        emit_forward(program, WIDE, KernelConfig(128, 64))
