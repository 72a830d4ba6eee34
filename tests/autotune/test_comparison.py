"""Whether a config beats the default by more than noise, and what is open to a search."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc.autotune.candidates import space_for
from patterncc.autotune.comparison import LEAST_GAIN, Comparison
from patterncc.autotune.cost import H200, CostModel
from patterncc.autotune.key import Device
from patterncc.autotune.measurement import Measurement, Resources
from patterncc.autotune.opened import OpenConfigs
from patterncc.autotune.prune import CompilePool
from patterncc.autotune.space import FORWARD
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from tests.autotune.jobs import job

DEFAULT, OTHER = KernelConfig(64, 64, 4, 3), KernelConfig(128, 128, 8, 2)


def rounds(gain: float, noise: float, drift: float = 0.0, seed: int = 0) -> Comparison:
    """Fifteen rounds in which `OTHER` takes so much less time, each time off by some noise, all of
    a round by the same drift."""
    drawn = random.Random(seed)
    clocks = [1 + drift * drawn.random() for _ in range(15)]

    def times(seconds: float) -> list[float]:
        return [seconds * clock * drawn.gauss(1.0, noise) for clock in clocks]

    return Comparison({DEFAULT: times(1e-3), OTHER: times(1e-3 * (1 - gain))}, DEFAULT)


def test_a_sure_gain() -> None:
    found = rounds(gain=0.03, noise=0.005)
    assert found.winner == OTHER
    assert found.gain(OTHER).share == pytest.approx(0.03, abs=0.005)
    assert found.ranked[0][0] == OTHER


def test_clocks_that_drift_are_no_noise() -> None:
    assert rounds(gain=0.03, noise=0.002, drift=0.3).winner == OTHER


def test_a_small_gain_is_not_worth_another_kernel() -> None:
    found = rounds(gain=0.6 * LEAST_GAIN, noise=0.0)
    assert found.gain(OTHER).error < 1e-9
    assert found.ranked[0][0] == OTHER
    assert found.winner == DEFAULT


def test_noise_hardly_ever_wins() -> None:
    """Of a hundred comparisons of equals: three standard errors of a median of fifteen."""
    wins = [rounds(gain=0.0, noise=0.02, seed=seed).winner == OTHER for seed in range(100)]
    assert sum(wins) <= 3


def test_a_default_that_does_not_work() -> None:
    assert Comparison({OTHER: [1e-3]}, None).winner == OTHER


@given(st.floats(-0.2, 0.2), st.floats(0.5, 2.0))
def test_gain_is_of_ratios(share: float, unit: float) -> None:
    times = [unit * scale for scale in (1.0, 1.5, 0.7, 1.1)]
    found = Comparison({DEFAULT: times, OTHER: [(1 - share) * each for each in times]}, DEFAULT)
    assert found.gain(OTHER).share == pytest.approx(share, abs=1e-9)
    assert found.gain(DEFAULT).share == 0.0
    assert not found.gain(DEFAULT).sure


# ------------------------------------------------------------------------------------ what is open


class Compiler:
    """In place of processes: tiles of 128 rows spill."""

    processes = 4

    def __init__(self) -> None:
        self.batches: list[tuple[KernelConfig, ...]] = []

    def compile(
        self, job: object, phase: object, configs: Sequence[KernelConfig], **options: object
    ) -> dict[KernelConfig, Measurement]:
        self.batches.append(tuple(configs))
        return {
            config: Measurement(
                "compiled", resources=Resources(168, 400 * (config.block_q == 128), 0)
            )
            for config in configs
        }


def opened(compiler: Compiler | None, most: int, seconds: float = 60.0) -> OpenConfigs:
    call = job("causal", problem=Problem("bfloat16", 128, 128), q_len=1024)
    device = Device("NVIDIA H200", "cuda:90", "triton 3.6.0", 132)
    legal = space_for(call, FORWARD, device).configs
    default = next(config for config in legal if config.block_q == 128)
    model = CostModel(call, "cuda:90", H200, FORWARD)
    pool = cast("CompilePool | None", compiler)
    return OpenConfigs(call, FORWARD, model, default, legal, pool, most=most, seconds=seconds)


def test_batches_of_the_most_promising() -> None:
    compiler = Compiler()
    found = opened(compiler, most=10)
    wanted = list(found.predicted)
    assert not found.ready(wanted[0])
    left = found.prepare(wanted)
    assert compiler.batches == [tuple(wanted[:4])]
    assert found.ready(wanted[0])
    assert list(left.values()) == sorted(left.values())
    for config in wanted[:4]:  # what spills is open no more
        assert (config in left) == (config.block_q != 128)
    assert set(wanted[4:]) <= set(left)


def test_what_is_not_compiled_is_closed_at_last() -> None:
    compiler = Compiler()
    found = opened(compiler, most=6)
    for count in (4, 6):
        found.prepare([config for config in found.predicted if config not in found.compiled])
        assert len(found.compiled) == count
    wanted = [config for config in found.predicted if config not in found.compiled]
    left = found.prepare(wanted)
    assert len(compiler.batches) == 2
    default = next(config for config in left if config not in found.compiled)
    assert set(left) - {default} <= set(found.compiled)  # the default stays, compiled or not
    assert default.block_q == 128
    assert found.ready(default)


def test_no_time_is_no_room() -> None:
    compiler = Compiler()
    found = opened(compiler, most=100, seconds=0.0)
    assert len(found.prepare(list(found.predicted))) == 1
    assert not compiler.batches


def test_nothing_is_compiled_for_a_cpu() -> None:
    found = opened(None, most=100)
    found.compile(list(found.predicted)[:5])
    assert not found.compiled
    assert all(map(found.ready, found.predicted))
