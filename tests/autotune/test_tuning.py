"""A tuning run on the CPU for real, and one compiled for a device that is not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from patterncc.autotune import tuning
from patterncc.autotune.cost import H200
from patterncc.autotune.device import Device
from patterncc.autotune.job import Job
from patterncc.autotune.measurement import Measurement, Resources
from patterncc.autotune.prune import compile_all, survivors
from patterncc.autotune.records import StoreWarning
from patterncc.autotune.search import Limits
from patterncc.autotune.space import FORWARD
from patterncc.autotune.store import TunedStore
from patterncc.autotune.tuning import Options, Progress, config_words, tune
from patterncc.autotune.worker import Maker
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from tests.autotune import fake_device
from tests.autotune.jobs import job


def test_tune_on_the_cpu(tmp_path: Path) -> None:
    store = TunedStore(tmp_path, None)
    told: list[Progress] = []
    options = Options(Limits(trials=5, timeout=60, gain=0.0))
    result = tune(job(), FORWARD, "cpu", store, options=options, report=told.append)
    entry = result.entry
    assert entry.trials == 5
    assert entry.legal == 25
    assert set(entry.config) == {"block_q", "block_k"}
    assert entry.default_seconds is not None
    assert entry.seconds <= entry.default_seconds
    assert entry.speedup is not None
    assert result.found.entry is None
    assert {trial.state for trial in result.search.trials} <= {"timed", "slow"}
    assert result.search.trials[0].config == result.default
    assert [each.stage for each in told[:2]] == ["starting", "predicting"]
    assert told[-1].stage == "comparing the best"
    measuring = [each for each in told if each.stage == "measuring"]
    assert [each.done for each in measuring] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(each.default) for each in measuring)
    assert not list((store.folder / "studies").glob("*"))  # it is done
    again = TunedStore(tmp_path, None).lookup(entry.key)
    assert again.exact
    assert again.entry == entry
    # Another length finds it as a neighbour and starts from it.
    longer = tune(job(q_len=700), FORWARD, "cpu", store, options=Options(Limits(3, 60, 0.0)))
    assert longer.found.entry == entry
    assert longer.found.differences[0] == "q_len: 512 wanted, 256 tuned"


def test_compile_without_a_device(tmp_path: Path) -> None:
    one = job("causal", problem=Problem("bfloat16", 64, 64))
    configs = [
        KernelConfig(64, 64, 4, 2, "descriptor"),
        KernelConfig(128, 128, 4, 2, "descriptor", max_registers=128),  # spills
        KernelConfig(128, 128, 8, 8, "descriptor"),  # exceeds shared memory
    ]
    counted: list[int] = []
    found = compile_all(
        one,
        "forward",
        configs,
        "cuda:90",
        processes=2,
        timeout=120,
        folder=tmp_path,
        report=counted.append,
    )
    assert sorted(counted) == [1, 2, 3]
    good, spills, large = (found[config] for config in configs)
    assert good.state == spills.state == "compiled"
    assert good.resources is not None
    assert spills.resources is not None
    assert good.resources.spilled == 0 < spills.resources.spilled
    assert 64 <= good.resources.registers <= 255
    assert 0 < good.resources.shared < 232448
    assert large.state == "refused"
    assert "shared memory" in large.reason
    assert survivors(found) == (configs[0],)
    assert survivors({configs[1]: spills, configs[2]: large}) == (configs[1],)
    assert compile_all(one, "forward", configs, "cuda:90", processes=1, timeout=-1) == {}


def test_constants(tmp_path: Path) -> None:
    store = TunedStore(tmp_path, None)
    assert store.constants("NVIDIA H200") is None
    path = store.put_constants("NVIDIA H200", H200)
    assert store.constants("NVIDIA H200") == H200
    assert store.constants("NVIDIA H100") is None
    path.write_text(path.read_text().replace("132.0", "133.0"))
    with pytest.warns(StoreWarning, match="does not match its digest"):
        assert store.constants("NVIDIA H200") is None


def test_words() -> None:
    assert config_words({"block_q": 64, "block_k": 32}) == "64x32"
    values = {"block_q": 64, "block_k": 32, "num_warps": 4, "num_stages": 3, "load": "pointer"}
    values |= {"order": "reverse", "max_registers": 128}
    words = "64x32, 4 warps, 3 stages, pointer, reverse, at most 128 registers"
    assert config_words(values) == words


class FakeWorker:
    """In place of a child process: an H200 that is a formula."""

    asked: list[KernelConfig] = []  # noqa: RUF012  (one for the test that looks at it)

    def __init__(self, maker: Maker, limit: float) -> None:
        assert maker.function == "DeviceMeasurer"

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *error: object) -> None:
        return

    def ask(self, method: str) -> Device:
        assert method == "describe"
        return Device("NVIDIA H200", "cuda:90", "triton 3.6.0", 132)

    def measure(self, config: KernelConfig, best: float) -> Measurement:
        self.asked.append(config)
        return Measurement("timed", (fake_device.seconds(config),))

    def race(self, configs: Sequence[KernelConfig]) -> tuple[Measurement, ...]:
        return tuple(Measurement("timed", (fake_device.seconds(config),)) for config in configs)


def test_the_path_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps but the device: what spills never runs, what was not compiled may."""
    spilling = replace(fake_device.BEST, num_stages=4)
    batches: list[int] = []

    def compile_some(
        job: Job, phase: str, configs: Sequence[KernelConfig], target: str, **options: object
    ) -> dict[KernelConfig, Measurement]:
        batches.append(len(configs))
        assert target == "cuda:90"
        return {
            config: Measurement(
                "compiled", resources=Resources(168, 8 * (config == spilling), 65536)
            )
            for config in [*configs[:40], spilling]
        }

    FakeWorker.asked = []
    monkeypatch.setattr(tuning, "Worker", FakeWorker)
    monkeypatch.setattr(tuning, "compile_all", compile_some)
    store = TunedStore(tmp_path, None)
    one = job("causal", problem=Problem("bfloat16", 128, 128), q_len=4096, heads=16, kv_heads=16)
    options = Options(Limits(trials=60, timeout=60))
    result = tune(one, FORWARD, "cuda:0", store, options=options)
    assert batches == [180]
    assert FakeWorker.asked[0] == result.default
    assert spilling not in FakeWorker.asked
    assert spilling not in result.predicted
    assert len(result.predicted) > 1000
    assert set(FakeWorker.asked) - set(result.compiled)  # some that were not compiled before
    assert result.entry.seconds <= 1.05 * fake_device.seconds(fake_device.BEST)
    assert store.lookup(result.entry.key).exact
    assert result.entry.config["load"] == "descriptor"
    odd = job("causal", problem=Problem("bfloat16", 100, 100), q_len=512)
    FakeWorker.asked = []
    tune(odd, FORWARD, "cuda:0", store, options=Options(Limits(trials=4, timeout=60)))
    assert {config.load for config in FakeWorker.asked} == {"pointer"}  # rows of 200 bytes
