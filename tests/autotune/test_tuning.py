"""A tuning run on the CPU for real, and one compiled for a device that is not there."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patterncc.autotune import tuning
from patterncc.autotune.cost import H200
from patterncc.autotune.job import Job
from patterncc.autotune.key import Device
from patterncc.autotune.measurement import Measurement, Resources
from patterncc.autotune.options import Options, Progress
from patterncc.autotune.prune import CompilePool, survivors
from patterncc.autotune.records import StoreWarning
from patterncc.autotune.search import Limits
from patterncc.autotune.space import FORWARD, GRAD_QUERY, PHASES, Phase, SearchSpace
from patterncc.autotune.store import TunedStore
from patterncc.autotune.tuning import Tuner, tune
from patterncc.autotune.words import config_words
from patterncc.autotune.worker import Maker
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError
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
    stages = list(dict.fromkeys(each.stage for each in told))
    assert stages == ["starting", "predicting", "measuring", "comparing the best"]
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
    with CompilePool("cuda:90", 132, 2, tmp_path) as pool:
        found = pool.compile(one, FORWARD, configs, timeout=120, report=counted.append)
        assert pool.compile(one, FORWARD, configs, timeout=-1) == {}
        pool.aim("cuda:80", 108)  # which has no descriptors
        (older,) = pool.compile(one, FORWARD, configs[:1], timeout=120).values()
        assert older.state == "refused"
        assert "load='descriptor' is no choice on cuda:80" in older.reason
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
    little = Measurement("compiled", resources=replace(spills.resources, spilled=24))
    assert survivors({configs[0]: good, configs[1]: little}) == (configs[0], configs[1])


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_compiling_ends_at_once_on_control_c(tmp_path: Path) -> None:
    one = job("causal", problem=Problem("bfloat16", 128, 128))
    configs = SearchSpace(FORWARD, one.problem, "cuda:90").configs[:300]
    timers: list[threading.Timer] = []

    def interrupt(done: int) -> None:
        if not timers:  # when the first one is compiled
            timers.append(threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)))
            timers[0].start()

    with CompilePool("cuda:90", 132, 2, tmp_path) as pool:
        with pytest.raises(KeyboardInterrupt):
            pool.compile(one, FORWARD, configs, timeout=600, report=interrupt)
        start = time.monotonic()
        assert pool.compile(one, FORWARD, configs, timeout=600) == {}
        assert time.monotonic() - start < 1


def test_constants(tmp_path: Path) -> None:
    store = TunedStore(tmp_path, None)
    assert store.constants("NVIDIA H200") is None
    path = store.put_constants("NVIDIA H200", H200)
    assert store.constants("NVIDIA H200") == H200
    assert store.constants("NVIDIA H100") is None
    assert store.constants("NVIDIA H200", GRAD_QUERY) is None
    other = replace(H200, products=1e12)
    store.put_constants("NVIDIA H200", other, GRAD_QUERY)
    assert store.constants("NVIDIA H200", GRAD_QUERY) == other
    assert store.constants("NVIDIA H200") == H200
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
    turned_to: list[str] = []  # noqa: RUF012

    def __init__(self, maker: Maker, limit: float) -> None:
        assert maker.function == "DeviceMeasurer"

    def close(self) -> None:
        return

    def ask(self, method: str) -> Device:
        assert method == "describe"
        return Device("NVIDIA H200", "cuda:90", "triton 3.6.0", 132)

    def set_up(self, method: str, job: Job, phase: str) -> None:
        assert method == "turn_to"
        self.turned_to.append(phase)

    def measure(self, config: KernelConfig, best: float) -> Measurement:
        self.asked.append(config)
        return Measurement("timed", (fake_device.seconds(config),))

    def race(self, configs: Sequence[KernelConfig]) -> tuple[Measurement, ...]:
        return tuple(Measurement("timed", (fake_device.seconds(config),)) for config in configs)


def spills(config: KernelConfig) -> bool:
    """What the fake compiler has too few registers for."""
    return config.num_stages == 4


class FakePool:
    """In place of processes that compile."""

    batches: list[tuple[str, int]] = []  # noqa: RUF012
    processes = 15

    def __init__(self, target: None, *others: object) -> None:
        assert target is None  # nobody knows the device yet

    def aim(self, target: str, multiprocessors: int) -> None:
        assert (target, multiprocessors) == ("cuda:90", 132)

    def start(self) -> None:
        return

    def close(self) -> None:
        return

    def compile(
        self, job: Job, phase: Phase, configs: Sequence[KernelConfig], **options: object
    ) -> dict[KernelConfig, Measurement]:
        self.batches.append((phase.name, len(configs)))
        return {
            config: Measurement("compiled", resources=Resources(168, 80 * spills(config), 65536))
            for config in configs
        }


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps but the device."""
    FakeWorker.asked, FakeWorker.turned_to, FakePool.batches = [], [], []
    monkeypatch.setattr(tuning, "Worker", FakeWorker)
    monkeypatch.setattr(tuning, "CompilePool", FakePool)


def gpu_job(text: str = "causal", head_dim: int = 128, q_len: int = 4096) -> Job:
    problem = Problem("bfloat16", head_dim, head_dim)
    return job(text, problem=problem, q_len=q_len, heads=16, kv_heads=16)


def test_the_path_of_a_gpu(tmp_path: Path, fake_gpu: None) -> None:
    """What spills never runs; nothing runs that was not compiled, and that in parallel."""
    store = TunedStore(tmp_path, None)
    options = Options(Limits(trials=60, timeout=60))
    result = tune(gpu_job(), FORWARD, "cuda:0", store, options=options)
    assert FakePool.batches[0] == ("forward", 30)
    assert {count for _, count in FakePool.batches[1:]} <= {15}
    assert FakeWorker.asked[0] == result.default
    assert any(map(spills, result.compiled))
    assert not any(map(spills, FakeWorker.asked))
    assert len(result.predicted) > 1000
    assert set(FakeWorker.asked) <= set(result.compiled)
    assert result.entry.seconds <= 1.05 * fake_device.seconds(fake_device.BEST)
    assert store.lookup(result.entry.key).exact
    assert result.entry.config["load"] == "descriptor"
    assert {config.neighbours for config in FakeWorker.asked} == {"tiles"}
    FakeWorker.asked = []
    few = Options(Limits(trials=4, timeout=60))
    tune(gpu_job(head_dim=100, q_len=512), FORWARD, "cuda:0", store, options=few)
    assert {config.load for config in FakeWorker.asked} == {"pointer"}  # rows of 200 bytes


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device here")
def test_a_device_that_is_not_here_leaves_no_processes(tmp_path: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []
    options = Options(processes=2)
    with pytest.MonkeyPatch.context() as patch:
        popen = subprocess.Popen

        def note(*arguments: Any, **named: Any) -> subprocess.Popen[bytes]:
            started.append(popen(*arguments, **named))
            return started[-1]

        patch.setattr("patterncc.autotune.worker.subprocess.Popen", note)
        with pytest.raises(ConfigError, match="there is no cuda:0 here"):
            Tuner("cuda:0", TunedStore(tmp_path, None), options=options)
    assert len(started) == 3
    assert all(process.poll() is not None for process in started)


def test_one_phase_after_another(tmp_path: Path, fake_gpu: None) -> None:
    """Each has its own key and default, and the next is compiled while one is searched."""
    store = TunedStore(tmp_path, None)
    one = gpu_job("streaming(4, 1024)")
    phases = tuple(PHASES.values())
    with Tuner("cuda:0", store, options=Options(Limits(trials=20, timeout=60))) as tuner:
        results = [
            tuner.tune(one, phase, then=(one, phases[number + 1]) if number < 2 else None)
            for number, phase in enumerate(phases)
        ]
    assert FakeWorker.turned_to == [*PHASES]
    assert list(dict.fromkeys(name for name, _ in FakePool.batches)) == [*PHASES]
    for phase, result in zip(phases, results, strict=True):
        assert result.entry.key.phase == phase.name
        assert store.lookup(result.entry.key).entry == result.entry
        assert result.search.trials[0].config == result.default
    assert results[2].default.max_registers == 255
    assert "neighbours" not in results[2].entry.config


def test_heads_one_after_another_are_tried_where_they_differ(
    tmp_path: Path, fake_gpu: None
) -> None:
    store, options = TunedStore(tmp_path, None), Options(Limits(trials=60, timeout=60, gain=0.0))
    by_head = gpu_job("pattern p(): causal and q - k < 512 * (1 + head % 4)")
    result = tune(by_head, FORWARD, "cuda:0", store, options=options)
    assert "by head" in result.entry.key.pattern_class
    assert {config.neighbours for config in result.predicted} == {"tiles", "heads"}


def test_no_gradients_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="computes all gradients together"):
        tune(job(), GRAD_QUERY, "cpu", TunedStore(tmp_path, None))
