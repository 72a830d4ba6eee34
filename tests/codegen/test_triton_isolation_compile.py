"""The kernels that repair, compiled for devices that are not here; what noting costs the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.backward_config import (
    default_grad_key_value_config,
    default_grad_query_config,
)
from patterncc.codegen.gpu.config import KernelConfig, default_config, shared_limit
from patterncc.codegen.gpu.forward_source import emit_forward, emit_forward_repair
from patterncc.codegen.gpu.grad_key_value_source import (
    emit_grad_key_value,
    emit_grad_key_value_repair,
)
from patterncc.codegen.gpu.grad_query_source import emit_grad_query, emit_grad_query_repair
from patterncc.codegen.gpu.isolation_source import SPOILED
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launch import compile_for
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.score.terms import load_terms
from tests.codegen.crossing import each_with_one
from tests.codegen.machine_code import disassemble
from tests.codegen.machine_flow import unwritten_registers

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942")
SIZES = {"heads": 8, "kv_heads": 2, "layers": 4}
WIDE = Problem("bfloat16", 128, 128, isolates=True)

Emit = Callable[..., KernelSource]
Default = Callable[..., KernelConfig]
KINDS: dict[str, tuple[Emit, Default]] = {
    "forward": (emit_forward_repair, default_config),
    "grad_query": (emit_grad_query_repair, default_grad_query_config),
    "grad_key_value": (emit_grad_key_value_repair, default_grad_key_value_config),
}
CASES: dict[str, tuple[str, Problem]] = {
    "streaming": ("streaming", WIDE),
    "ladder, lanes": ("ladder(4, 1024, 100, 7)", Problem("bfloat16", 64, 64, 4, isolates=True)),
    "by head": (
        "if head % 2 == 0 then causal else window(100)",
        Problem("float16", 64, 64, 4, isolates=True),
    ),
    "documents": ("pattern p(doc: segments): causal and doc[q] == doc[k]", WIDE),
    "lists": (
        "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 64, k // 64]",
        Problem("bfloat16", 64, 64, 2, isolates=True),
    ),
    "uneven": ("window(100)", Problem("bfloat16", 192, 72, isolates=True)),
    "float32": ("causal", Problem("float32", 64, 64, isolates=True)),
    "terms": (
        "causal",
        Problem("bfloat16", 64, 64, 2, load_terms("softcap(score, 30) + bias[head, k]"), True),
    ),
}


@pytest.mark.parametrize(("name", "target"), each_with_one(CASES, TARGETS))
@pytest.mark.parametrize("kind", KINDS)
def test_they_compile(kind: str, name: str, target: str, tmp_path: Path) -> None:
    (text, problem), (emit, default) = CASES[name], KINDS[kind]
    config = default(problem, target)
    program = lower(load(text), config.block_q, config.block_k, sizes=SIZES, within=True)
    kernel = compile_for(emit(program, problem, config), target, folder=tmp_path)
    assert kernel.shared <= (shared_limit(target) or 65536)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_and_passes(kind: str, tmp_path: Path) -> None:
    """Boxes of classes are placed as descriptors would, and what passes hand on is read again."""
    emit, default = KINDS[kind]
    config = default(WIDE, "cuda:90")
    passes = lower_passes(load("window(512) or dilated(512, 8)"), config.block_q, config.block_k)
    assert len(passes) == 2
    for first, program in zip((True, False), passes, strict=True):
        source = emit(program, WIDE, config, resumes=not first, hands_on=first)
        compile_for(source, "cuda:90", folder=tmp_path)


@pytest.mark.parametrize(("kind", "products"), [("forward", 3), *((k, 4) for k in list(KINDS)[1:])])
def test_products_are_those_of_the_kernel_that_is_repaired(
    kind: str, products: int, tmp_path: Path
) -> None:
    """By the same instructions, 16 numbers after another: else bits could differ."""
    emit, default = KINDS[kind]
    config = default(WIDE, "cuda:90")
    program = lower(load("causal"), config.block_q, config.block_k, within=True)
    layouts = str(
        compile_for(emit(program, WIDE, config), "cuda:90", folder=tmp_path).stages["ttgir"]
    )
    assert layouts.count("ttng.warp_group_dot ") == products


def test_nothing_is_noted_where_nothing_is_hidden() -> None:
    """A tile without hidden pairs cannot spoil a row; of a key tile there may be rows past the last
    one, which no mask knows."""
    config = default_config(WIDE, "cuda:90")
    program = lower(load("full"), config.block_q, config.block_k)
    noted = [
        SPOILED in emit(program, WIDE, config).parameters
        for emit in (emit_forward, emit_grad_query, emit_grad_key_value)
    ]
    masked = any(sweep.kind == "partial" for sweep in program.forward)
    assert noted == [masked, masked, True]


@pytest.mark.parametrize(("kind", "name"), each_with_one(list(KINDS), ("by head", "uneven")))
def test_machine_code_reads_what_was_written(kind: str, name: str, tmp_path: Path) -> None:
    """Tiles of other widths than those of the other operands made ptxas 12.8 lose a register."""
    (text, problem), (emit, default) = CASES[name], KINDS[kind]
    config = default(problem, "cuda:90")
    program = lower(load(text), config.block_q, config.block_k, sizes=SIZES, within=True)
    kernel = compile_for(emit(program, problem, config), "cuda:90", folder=tmp_path)
    assert unwritten_registers(disassemble(kernel.stages["cubin"], tmp_path)) == []


def test_unwritten_registers_are_found() -> None:
    lines = """\
        /*0010*/                   ULDC.64 UR4, c[0x0][0x258] ;
        /*0020*/                   UIADD3 UR6, UP0, UR5, 0x40, URZ ;
        /*0030*/              @!P0 UIADD3 UR13, UP0, UR13, 0x40, URZ ;
        /*0040*/                   HGMMA.64x32x16.F32 R24, R40, gdesc[UR20].tnspB, RZ, !UPT ;
        /*0050*/                   IMAD R0, R2, UR6, R9 ;
        /*0060*/                   STS.128 [R3+UR53+0x4000], R24 ;
    """
    found = unwritten_registers(lines)
    assert len(found) == 2
    assert "UR13, UP0, UR13" in found[0]
    assert "UR53" in found[1]
