"""Kernels whose tiles are patches of a raster, compiled for devices that are not here, with the
configs that a launcher starts from: to good code."""

from __future__ import annotations

from pathlib import Path

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.backward_config import (
    default_grad_key_value_config,
    default_grad_query_config,
)
from patterncc.codegen.gpu.config import default_config, shared_limit
from patterncc.codegen.gpu.forward_source import emit_forward
from patterncc.codegen.gpu.gluon.reasons import reason_against
from patterncc.codegen.gpu.grad_key_value_source import emit_grad_key_value
from patterncc.codegen.gpu.grad_query_source import emit_grad_query
from patterncc.codegen.gpu.launch import CompiledKernel, compile_for
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from tests.codegen.library_programs import TARGETS

KERNELS = {
    "forward": (emit_forward, default_config),
    "grad_query": (emit_grad_query, default_grad_query_config),
    "grad_key_value": (emit_grad_key_value, default_grad_key_value_config),
}
PATTERNS = ("neighborhood", "swin", "neighborhood_3d")
WIDE = Problem("bfloat16", 128, 128)


def in_patches(text: str, block_q: int, block_k: int, *, transposed: bool) -> BlockProgram:
    (program,) = lower_passes(
        load(text), block_q, block_k, within=True, transposed=transposed, patches=True
    )
    assert program.patches is not None
    return program


def compiled(kernel: str, text: str, target: str, folder: Path) -> CompiledKernel:
    emit, default = KERNELS[kernel]
    config = default(WIDE, target, descriptors=text != "neighborhood_3d")
    transposed = kernel == "grad_key_value"
    program = in_patches(text, config.block_q, config.block_k, transposed=transposed)
    return compile_for(emit(program, WIDE, config), target, folder=folder)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_target(kernel: str, target: str, tmp_path: Path) -> None:
    found = compiled(kernel, "neighborhood", target, tmp_path)
    assert found.spilled == 0
    assert found.shared <= (shared_limit(target) or 65536)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_hopper(kernel: str, text: str, tmp_path: Path) -> None:
    """Tiles of two axes are boxes of descriptors; products are wgmma. Kernels in consecutive tiles
    spill up to 48 bytes of these patterns; patches that the edge cuts off, 24 more than others."""
    found = compiled(kernel, text, "cuda:90", tmp_path)
    cut = kernel == "grad_key_value" and text == "swin"
    assert found.spilled <= (0 if kernel == "forward" else 96 if cut else 72)
    layouts = str(found.stages["ttgir"])
    assert "ttng.warp_group_dot " in layouts
    copies = layouts.count("ttng.async_tma_copy_global_to_local")
    assert (copies > 0) == (text != "neighborhood_3d")


def test_gluon_refuses_in_words() -> None:
    program = in_patches("neighborhood", 64, 64, transposed=False)
    assert reason_against(program, WIDE) == "it knows no tiles that are patches of a raster"
