"""Every config of a space is legal, the defaults are in it, and what cannot work is not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc.autotune.candidates import default_of, space_for
from patterncc.autotune.key import Device
from patterncc.autotune.space import (
    CPU,
    FORWARD,
    PHASES,
    SearchSpace,
    config_from,
    config_values,
    phase_named,
)
from patterncc.codegen.gpu.config import KernelConfig, check_config, default_config, shared_bytes
from patterncc.codegen.problem import DType, Problem
from patterncc.dsl.errors import ConfigError
from tests.autotune.jobs import job

TARGETS = ("cuda:80", "cuda:86", "cuda:90", "cuda:100", "hip:gfx942")
DTYPES: tuple[DType, ...] = ("float16", "bfloat16", "float32")


@given(
    st.sampled_from(TARGETS),
    st.sampled_from(DTYPES),
    st.sampled_from((16, 64, 80, 96, 128, 192, 256)),
    st.sampled_from((64, 128)),
)
def test_configs_are_legal(target: str, dtype: DType, head_dim: int, value_head_dim: int) -> None:
    problem = Problem(dtype, head_dim, value_head_dim)
    space = SearchSpace(FORWARD, problem, target)
    assert space.configs
    assert len(set(space.configs)) == len(space.configs)
    for config in space.configs[:: max(1, len(space.configs) // 50)]:
        check_config(config, problem, target)
        assert config in space
        assert space.config(space.values(config)) == config
        assert space.nearest(config) == config


@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "cuda:100", "hip:gfx942"])
@pytest.mark.parametrize("head_dim", [64, 80, 128, 192, 256])
def test_defaults_are_in_the_space(target: str, head_dim: int) -> None:
    problem = Problem("bfloat16", head_dim, head_dim)
    assert default_config(problem, target) in SearchSpace(FORWARD, problem, target)


def test_accumulators_must_fit_the_registers() -> None:
    space = SearchSpace(FORWARD, Problem("bfloat16", 128, 128), "cuda:90")
    refusal = space.refusal(KernelConfig(128, 128, 4, 2))
    assert refusal is not None
    assert "280 registers of each thread of 4 warps, which may have 255" in refusal
    assert KernelConfig(128, 128, 8, 2) in space
    tensor_memory = SearchSpace(FORWARD, Problem("bfloat16", 128, 128), "cuda:100")
    assert KernelConfig(128, 128, 4, 2) in tensor_memory
    capped = space.refusal(KernelConfig(128, 128, 8, 2, max_registers=128))
    assert capped is not None
    assert "may have 128" in capped


def test_shared_memory() -> None:
    problem = Problem("bfloat16", 128, 128)
    space = SearchSpace(FORWARD, problem, "cuda:80")
    assert all(shared_bytes(config, problem) <= 166912 for config in space.configs)
    refusal = space.refusal(KernelConfig(64, 128, 8, 5))
    assert refusal is not None
    assert "shared memory" in refusal


def test_knobs_by_target() -> None:
    problem = Problem("bfloat16", 64, 64)
    choices = {
        target: {knob.name: knob.choices for knob in SearchSpace(FORWARD, problem, target).knobs}
        for target in TARGETS
    }
    registers = {target: found["max_registers"] for target, found in choices.items()}
    assert registers["cuda:90"] == (None, 128, 168)
    assert registers["cuda:100"] == (None, 128, 168, 255)
    assert registers["hip:gfx942"] == (None,)
    assert {t for t in TARGETS if choices[t]["emitter"] == ("triton", "gluon")} == {"cuda:90"}
    assert {t for t in TARGETS if choices[t]["peaks"] == ("each", "kept")} == {"cuda:90"}
    assert {config.load for config in SearchSpace(FORWARD, problem, "cuda:80").configs} == {
        "pointer"
    }


def test_cpu() -> None:
    space = SearchSpace(FORWARD, Problem("float64", 300, 7), CPU)
    assert len(space.configs) == 25
    assert KernelConfig(64, 64) in space
    assert config_values(KernelConfig(32, 16), FORWARD, CPU) == {"block_q": 32, "block_k": 16}
    assert space.nearest(KernelConfig(512, 64)) == KernelConfig(16, 64)  # 512 is no choice at all


def test_fixed_knobs() -> None:
    fixed = {"load": "pointer", "order": "reverse"}
    space = SearchSpace(FORWARD, Problem("bfloat16", 128, 128), "cuda:90", fixed)
    assert {(config.load, config.order) for config in space.configs} == {("pointer", "reverse")}
    near = space.nearest(KernelConfig(64, 64, 4, 3, "descriptor", "reverse"))
    assert near == KernelConfig(64, 64, 4, 3, "pointer", "reverse")


def test_phases() -> None:
    assert phase_named("forward") is FORWARD
    assert all(name == phase.name for name, phase in PHASES.items())
    with pytest.raises(ConfigError, match="no phase 'backwards'"):
        phase_named("backwards")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_r": 64}, "no knob 'block_r'"),
        ({"block_q": "64"}, "block_q is '64'"),
        ({"block_q": True}, "block_q is True"),
        ({"load": 3}, "load is 3"),
        ({"max_registers": 1.5}, "max_registers is 1.5"),
    ],
)
def test_stored_values_are_checked(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from(values)


def test_gluon() -> None:
    """Of what it has kernels for alone."""
    space = SearchSpace(FORWARD, Problem("bfloat16", 128, 128), "cuda:90")
    gluon = [config for config in space.configs if config.emitter == "gluon"]
    assert {(c.load, c.num_warps, c.block_q) for c in gluon} == {
        ("descriptor", 4, 64),
        ("descriptor", 8, 128),
    }
    for problem in (Problem("float32", 128, 128), Problem("bfloat16", 192, 192)):
        configs = SearchSpace(FORWARD, problem, "cuda:90").configs
        assert {config.emitter for config in configs} == {"triton"}


@pytest.mark.parametrize(
    ("text", "dtype", "choices"),
    [
        ("causal", "bfloat16", {"each", "kept"}),
        ("causal", "float16", {"each"}),
        ("longformer", "bfloat16", {"each", "kept"}),  # untuned it goes by Triton
        ("causal and keep[q // 64, k // 64]", "bfloat16", {"each"}),
    ],
)
def test_peaks_are_a_choice_where_they_can_be_kept(
    text: str, dtype: DType, choices: set[str]
) -> None:
    tables = {"keep": np.ones((64, 64), bool)} if "keep" in text else {}
    text = f"pattern p(keep: bool[*, *]): {text}" if tables else text
    problem = Problem(dtype, 128, 128)
    call = job(text, problem=problem, heads=16, kv_heads=16, q_len=4096, tables=tables)
    device = Device("NVIDIA H200", "cuda:90", "triton 3.6.0", 132)
    space = space_for(call, FORWARD, device)
    assert {config.peaks for config in space.configs} == choices
    assert default_of(call, FORWARD, device) in space


def test_few_rows_by_descriptors_are_a_choice() -> None:
    """Sixteen rows at a time, whose numbers are no box: they come by pointers."""
    space = SearchSpace(phase_named("grad_key_value"), Problem("bfloat16", 128, 128), "cuda:90")
    assert KernelConfig(16, 64, 4, 3, "descriptor") in space


def test_registers_of_gluon() -> None:
    """Caps are choices only where they make room for another program, and what is known to spill is
    none: of 38 configs of either order and peaks, 14 remain at a head dimension of 128."""
    space = SearchSpace(FORWARD, Problem("bfloat16", 128, 128), "cuda:90", {"neighbours": "tiles"})
    gluon = [config for config in space.configs if config.emitter == "gluon"]
    assert len(gluon) == 56
    assert {config.max_registers for config in gluon} == {None}
    small = KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon")
    narrow = SearchSpace(FORWARD, Problem("bfloat16", 64, 64), "cuda:90")
    assert replace(small, max_registers=128) in narrow
    useless = narrow.refusal(replace(small, max_registers=168))
    assert useless == "max_registers=168 makes room for no further program"
    spills = space.refusal(replace(small, max_registers=128))
    assert spills is not None
    assert "at least 160 registers of each thread that computes, which may have 128" in spills
