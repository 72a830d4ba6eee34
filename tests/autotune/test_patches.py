"""Tuning a pattern about a raster: Triton's configs visit patches, Gluon's consecutive tiles, and
the CPU's, too."""

from __future__ import annotations

import pytest

from patterncc.autotune.candidates import default_of, space_for
from patterncc.autotune.cost import H200, USUAL_CPU, CostModel
from patterncc.autotune.job import Job
from patterncc.autotune.key import Device
from patterncc.autotune.phase_launches import planned
from patterncc.autotune.space import CPU, FORWARD, GRAD_KEY_VALUE, GRAD_QUERY, Phase
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from tests.autotune.jobs import job

DEVICE = Device("NVIDIA H200", "cuda:90", "triton 3.6.0", 132)
TRITON = KernelConfig(64, 64, 4, 3, "descriptor")
GLUON = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")


def image(patches: bool = True) -> Job:
    problem = Problem("bfloat16", 128, 128)
    sizes = {"heads": 16, "kv_heads": 16, "q_len": 4096, "patches": patches}
    return job("neighborhood", problem=problem, **sizes)


def test_both_emitters_are_open() -> None:
    emitters = {config.emitter for config in space_for(image(), FORWARD, DEVICE).configs}
    assert emitters == {"triton", "gluon"}
    assert default_of(image(), FORWARD, DEVICE).emitter == "triton"


@pytest.mark.parametrize(
    ("config", "in_patches"), [(None, True), (TRITON, True), (GLUON, False)], ids=str
)
def test_what_kernels_of_a_config_visit(config: KernelConfig | None, in_patches: bool) -> None:
    (launch,) = planned(image(), FORWARD, "cuda:90", config)
    assert ("# patches:" in launch.source.text) == in_patches
    (plain,) = planned(image(patches=False), FORWARD, "cuda:90", config)
    assert "# patches:" not in plain.source.text


@pytest.mark.parametrize("phase", [GRAD_QUERY, GRAD_KEY_VALUE], ids=lambda phase: str(phase.name))
def test_gradients_visit_patches(phase: Phase) -> None:
    launches = planned(image(), phase, "cuda:90")
    (kernel,) = (each for each in launches if each.source.name == phase.name)
    assert "# patches:" in kernel.source.text


def test_predictions_count_what_is_visited() -> None:
    model = CostModel(image(), "cuda:90", H200)
    (patches,), (lines,) = model.facts(TRITON), model.facts(GLUON)
    area = 64 * 64 / (128 * 128)
    assert patches.visited * area < 0.6 * lines.visited
    on_cpu = CostModel(image(), CPU, USUAL_CPU)
    assert len(on_cpu.facts(TRITON)) == 1
    assert on_cpu.facts(TRITON)[0].visited > 1.5 * patches.visited


def test_jobs_are_lowered_with_their_numbers() -> None:
    far = job("neighborhood(kernel = 63)", q_len=4096, patches=True)
    assert all(program.patches is None for program in far.passes(64, 64, patches=True))
    assert len(far.alternatives(64, 64)) == 1
    assert len(image().alternatives(64, 64)) == 2
