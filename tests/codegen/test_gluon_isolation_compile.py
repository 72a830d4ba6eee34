"""Gluon's forward kernels that take care of numbers that are not finite, compiled for `cuda:90`,
and which repairs of Triton's start early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gluon_registers import loops
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import KernelConfig, Peaks
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.gluon.forward_source import emit_gluon_forward
from patterncc.codegen.gpu.launch import compile_for
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from tests.codegen.attention import lowered
from tests.codegen.machine_code import disassemble
from tests.codegen.machine_flow import doubtful_products, unwritten_registers
from tests.codegen.test_gluon_isolation import LONG, SMALL, WIDE

TRITON = KernelConfig(64, 64, 4, 2)

RESERVED = 1024
EACH_OF_TWO = 233472 // 2
"""Bytes of shared memory that a program takes besides, and those of a multiprocessor."""

COMPILED = {
    "causal, 128x128": ("causal", WIDE, 128),
    "documents, 128x128": ("pattern p(doc: segments): causal and doc[q] == doc[k]", WIDE, 128),
    "window, 64x64": ("window(1024)", SMALL, 128),
    "passes, 64x64": ("window(512) or dilated(512, 8)", SMALL, 128),
    "streaming, 64x128": ("streaming(64, 4096)", LONG, 64),
}


@pytest.mark.parametrize("peaks", ["each", "kept"])
@pytest.mark.parametrize("name", COMPILED)
def test_loops_are_those_of_kernels_that_take_no_care(
    name: str, peaks: Peaks, tmp_path: Path
) -> None:
    """Code behind the loops costs them next to nothing: ptxas gives all of a kernel its registers
    at once, so instructions differ by a few. Products say where their operands lie, in registers
    that were written."""
    text, config, width = COMPILED[name]
    config = replace(config, peaks=peaks)
    passes = lower_passes(load(text), config.block_q, config.block_k, within=True)
    for number, program in enumerate(passes):
        between = {"resumes": number > 0, "hands_on": number < len(passes) - 1}
        found = []
        for isolates in (False, True):
            problem = Problem("bfloat16", width, width, isolates=isolates)
            source = emit_gluon_forward(program, problem, config, **between)
            kernel = compile_for(source, "cuda:90", folder=tmp_path)
            code = disassemble(kernel.stages["cubin"], tmp_path)
            assert doubtful_products(code) == [] and unwritten_registers(code) == []
            found.append(loops(code, {sweep.kind for sweep in program.forward}))
            if config.block_q == 64:  # two programs fit
                assert kernel.shared + RESERVED <= EACH_OF_TWO
        before, after = found
        assert before.keys() == after.keys()
        for kind, (instructions, local) in after.items():
            # The loading warp has time to spare.
            more = 1.25 if kind == "load" else 1.08
            assert instructions <= before[kind][0] * more, (kind, found)
            assert local <= before[kind][1] + 1, (kind, found)


@pytest.mark.parametrize(
    ("target", "early"), [("cuda:80", False), ("cuda:90", True), ("hip:gfx942", False)]
)
def test_the_repair_starts_early_where_it_can(target: str, early: bool) -> None:
    problem = Problem("bfloat16", 64, 64, isolates=True)
    layouts = [
        Layout(name, 0, (1, 2, 300, 64), (38400, 19200, 64, 1), 2)
        for name in ("query", "key", "value", "out")
    ]
    first, repair = Planner(lowered(load("causal")), TRITON).plan(
        problem, target, layouts, {"q_offset": 0}, 0.125
    )
    assert (not first.source.starts_early) and repair.source.starts_early is early
    assert ("launch_dependents" in first.source.text) is early
    assert ("griddepcontrol.wait" in repair.source.text) is early
