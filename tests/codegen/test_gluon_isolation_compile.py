"""The kernels that note and that repair where Gluon writes the forward kernel, compiled for
`cuda:90`, and which launches start early."""

from __future__ import annotations

from pathlib import Path

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.forward_source import emit_forward_repair
from patterncc.codegen.gpu.gluon.forward_source import emit_gluon_forward
from patterncc.codegen.gpu.isolation_source import LET_NEXT_START, WAIT_FOR_LAST
from patterncc.codegen.gpu.launch import compile_for
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from tests.codegen.attention import lowered
from tests.codegen.machine_code import disassemble
from tests.codegen.machine_flow import doubtful_products, unwritten_registers
from tests.codegen.test_gluon_isolation import LONG, SMALL, WIDE

COMPILED = {
    "causal, 128x128": ("causal", WIDE, 128),
    "documents, 128x128": ("pattern p(doc: segments): causal and doc[q] == doc[k]", WIDE, 128),
    "window, 64x64": ("window(1024)", SMALL, 128),
    "passes, 64x64": ("window(512) or dilated(512, 8)", SMALL, 128),
    "streaming, 64x128": ("streaming(64, 4096)", LONG, 64),
}


@pytest.mark.parametrize("name", COMPILED)
def test_machine_code(name: str, tmp_path: Path) -> None:
    """Of both kernels: products that say where their operands lie, registers that were written.
    Noting spills nothing more than a few numbers where warpgroups fill their registers."""
    text, config, width = COMPILED[name]
    passes = lower_passes(load(text), config.block_q, config.block_k, within=True)
    problem = Problem("bfloat16", width, width, isolates=True)
    for number, program in enumerate(passes):
        between = {"resumes": number > 0, "hands_on": number < len(passes) - 1}
        note = emit_gluon_forward(program, problem, config, **between)
        note = note.beginning_with(LET_NEXT_START)
        repair = emit_forward_repair(program, problem, config, **between)
        repair = repair.beginning_with(WAIT_FOR_LAST, starts_early=True)
        kernel = compile_for(note, "cuda:90", folder=tmp_path)
        code = disassemble(kernel.stages["cubin"], tmp_path)
        assert doubtful_products(code) == [] and unwritten_registers(code) == []
        assert "PREEXIT" in code
        assert kernel.spilled <= (24 if config is WIDE else 0)
        kernel = compile_for(repair, "cuda:90", folder=tmp_path)
        code = disassemble(kernel.stages["cubin"], tmp_path)
        assert doubtful_products(code) == [] and unwritten_registers(code) == []
        # The wait for the kernel before comes before all that is loaded from memory.
        assert "ACQBULK" in code and "LDG" not in code.partition("ACQBULK")[0]


@pytest.mark.parametrize(
    ("target", "early"), [("cuda:80", False), ("cuda:90", True), ("hip:gfx942", False)]
)
def test_the_repair_starts_early_where_it_can(target: str, early: bool) -> None:
    problem = Problem("bfloat16", 64, 64, isolates=True)
    layouts = [
        Layout(name, 0, (1, 2, 300, 64), (38400, 19200, 64, 1), 2)
        for name in ("query", "key", "value", "out")
    ]
    first, repair = Planner(lowered(load("causal"))).plan(
        problem, target, layouts, {"q_offset": 0}, 0.125
    )
    assert (not first.source.starts_early) and repair.source.starts_early is early
    assert ("launch_dependents" in first.source.text) is early
    assert ("griddepcontrol.wait" in repair.source.text) is early
