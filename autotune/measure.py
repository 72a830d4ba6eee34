"""Runs, checks and times configs on the device at hand. Used in a child process, see `worker`.

What runs a phase on a kind of device is a value of `BENCHES`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from platformdirs import user_cache_path
from torch import Tensor

from patterncc.autotune.device import describe
from patterncc.autotune.device_lock import device_lock
from patterncc.autotune.gradient_bench import RESULTS, gradient_bench
from patterncc.autotune.job import Job
from patterncc.autotune.key import Device
from patterncc.autotune.measurement import Measurement
from patterncc.autotune.oracle import ForwardOracle, Oracle, Run
from patterncc.autotune.tensors import narrow, random_tensors
from patterncc.codegen import cpu
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward import Forward
from patterncc.dsl.errors import ConfigError, TuningError, UnsupportedError

Runner: TypeAlias = Callable[[Job, Mapping[str, Tensor], KernelConfig, Path | None], Run]

_LEAST, _MOST = 3, 40  # timed calls of a config
_BUDGET = {"cpu": 0.3, "cuda": 0.1}  # seconds of timed calls
_QUEUED = 20  # calls at a time
_HOPELESS = 1.5  # times the best after which a config is given up
_RACE_ROUNDS, _RACE_BUDGET = 15, 3.0  # at most, for each config
_FLUSHED = 1 << 28  # bytes that are overwritten before a call, more than any cache holds


class Bench(NamedTuple):
    """One call of one phase, ready for candidates.

    Attributes:
        ready: Makes a config ready to run.
        oracle: Judges what it computes.
        results: Shapes and dtypes of that.
    """

    ready: Callable[[KernelConfig], Run]
    oracle: Oracle
    results: Sequence[tuple[tuple[int, ...], torch.dtype]]


def _forward_cpu(
    job: Job, tensors: Mapping[str, Tensor], config: KernelConfig, folder: Path | None
) -> Run:
    passes = job.passes(config.block_q, config.block_k)
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    tables = {name: tensors[name] for name in job.tables}

    def run(*, checked: bool = False) -> tuple[Tensor, ...]:
        return cpu.attention(passes, query, key, value, env=job.env, tables=tables, scale=job.scale)

    return run


def _forward_gpu(
    job: Job, tensors: Mapping[str, Tensor], config: KernelConfig, folder: Path | None
) -> Run:
    forward = Forward(
        lambda block_q, block_k: job.alternatives(block_q, block_k, gather=True),
        config=config,
        folder=folder,
    )
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    tables = {name: narrow(tensors[name]) for name in job.tables}

    def run(*, checked: bool = False) -> tuple[Tensor, ...]:
        return forward(query, key, value, env=job.env, scale=job.scale, tables=tables)

    return run


FORWARD_RUNNERS: Mapping[str, Runner] = {"cpu": _forward_cpu, "cuda": _forward_gpu}
"""By the kind of a device."""


def _forward_bench(job: Job, device: torch.device, folder: Path | None) -> Bench:
    tensors = random_tensors(job, device)
    runner = FORWARD_RUNNERS[device.type]
    rows = (job.batch, job.heads, job.q_len)
    dtype = tensors["query"].dtype
    return Bench(
        lambda config: runner(job, tensors, config, folder),
        ForwardOracle(job, tensors),
        (((*rows, job.problem.value_head_dim), dtype), (rows, torch.float32)),
    )


def _gradient_bench(phase: str) -> Callable[[Job, torch.device, Path | None], Bench]:
    def bench(job: Job, device: torch.device, folder: Path | None) -> Bench:
        ready, oracle, tensors = gradient_bench(job, phase, device, folder)
        like = [tensors[name.removeprefix("grad_")] for name in RESULTS[phase]]
        return Bench(ready, oracle, [(tuple(each.shape), each.dtype) for each in like])

    return bench


BENCHES: Mapping[tuple[str, str], Callable[[Job, torch.device, Path | None], Bench]] = {
    ("forward", "cpu"): _forward_bench,
    ("forward", "cuda"): _forward_bench,
    **{(phase, "cuda"): _gradient_bench(phase) for phase in RESULTS},
}
"""By the name of a phase and the kind of a device."""


class DeviceMeasurer:
    """Measures configs on one device, of the call that it was last told.

    Args:
        device: `cpu`, `cuda:0`.
        folder: Where generated sources are written; the user's cache by default.
        budget: Seconds of timed calls of a config; by the kind of device if not given.

    Raises:
        ConfigError: The device is not there.
    """

    def __init__(
        self, device: str, folder: Path | None = None, budget: float | None = None
    ) -> None:
        self._folder = folder
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"there is no {device} here", ("cpu",))
        self._budget = _BUDGET[self._device.type] if budget is None else budget
        self._bench: Bench | None = None
        self._lock = (folder or user_cache_path("patterncc")) / f"{_place_of(self._device)}.lock"
        self._flushed: Tensor | None = None
        if self._device.type == "cuda":
            self._flushed = torch.empty(_FLUSHED, dtype=torch.uint8, device=self._device)

    def turn_to(self, job: Job, phase: str) -> None:
        """Makes a phase of a call ready: draws its input, computes what is right.

        Raises:
            UnsupportedError: The phase has no kernels there.
            TuningError: What the phase starts from is wrong.
        """
        self._bench = None  # the memory of the last one is free before the next one is made
        make = BENCHES.get((phase, self._device.type))
        if make is None:
            known = ", ".join(f"{name} on {kind}" for name, kind in BENCHES)
            raise UnsupportedError(f"{phase} cannot be timed on {self._device.type}", known)
        self._bench = make(job, self._device, self._folder)

    def describe(self) -> Device:
        """The device."""
        return describe(str(self._device))

    @torch.inference_mode()
    def measure(self, config: KernelConfig, best: float) -> Measurement:
        """Runs a config, checks what it gives, and times it.

        Args:
            config: What to try.
            best: The least time so far, in seconds: what is much slower is given up early.
        """
        bench = self._ready_bench()
        run = bench.ready(config)
        error, wrong = bench.oracle.judge(self._poisoned(run))
        if wrong:
            return Measurement("wrong", (), wrong, error)
        with device_lock(self._lock):
            seconds = self._timed([run, run])
            if min(seconds) > _HOPELESS * best:
                return Measurement("slow", tuple(seconds), "", error)
            while len(seconds) < _LEAST or (len(seconds) < _MOST and sum(seconds) < self._budget):
                count = int(min(_QUEUED, max(1.0, self._budget / min(seconds))))
                seconds += self._timed([run] * count)
        error, wrong = bench.oracle.judge(self._poisoned(run))  # of repeated runs, too
        if wrong:
            return Measurement("wrong", (), f"after {len(seconds)} runs {wrong}", error)
        return Measurement("timed", tuple(seconds), "", error)

    @torch.inference_mode()
    def race(self, configs: Sequence[KernelConfig]) -> tuple[Measurement, ...]:
        """Times configs that were measured before in turn, in alternating order."""
        runs = [self._ready_bench().ready(config) for config in configs]
        seconds: list[list[float]] = [[] for _ in runs]
        for run in runs:
            run()
        order = list(range(len(runs)))
        with device_lock(self._lock):
            start = time.perf_counter()
            for number in range(_RACE_ROUNDS):
                turn = order if number % 2 else order[::-1]
                for index, found in zip(turn, self._timed([runs[i] for i in turn]), strict=True):
                    seconds[index].append(found)
                if number >= _LEAST and time.perf_counter() - start > _RACE_BUDGET * len(runs):
                    break
        return tuple(Measurement("timed", tuple(each)) for each in seconds)

    def _ready_bench(self) -> Bench:
        if self._bench is None:
            raise TuningError("nothing was made ready to be measured")
        return self._bench

    def _poisoned(self, run: Run) -> Run:
        """The same run, with memory full of what is not a number where its results are likely to
        lie, so that rows nobody writes do not look right because an earlier result lay there."""

        def poisoned(*, checked: bool = False) -> tuple[Tensor, ...]:
            stale = [
                torch.full(shape, torch.nan, dtype=dtype, device=self._device)
                for shape, dtype in self._ready_bench().results
            ]
            del stale
            return run(checked=checked)

        return poisoned

    def _timed(self, runs: Sequence[Run]) -> list[float]:
        """The times of calls one after another in seconds, on a GPU with cold caches.

        They are queued before the first one ends, so that no time of the host is in the later ones,
        and the clocks are those of a device that is busy.
        """
        if self._flushed is None:
            return [_seconds(run) for run in runs]
        events = []
        for run in runs:
            start, end = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            self._flushed.zero_()  # takes longer than the host needs to launch what follows
            start.record()
            run()
            end.record()
            events.append((start, end))
        torch.cuda.synchronize(self._device)
        return [float(start.elapsed_time(end)) / 1000 for start, end in events]


def _place_of(device: torch.device) -> str:
    """The very device, whatever number this process knows it by."""
    if device.type != "cuda":
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    return f"cuda-{getattr(properties, 'uuid', device.index or 0)}"  # older torch has none


def _seconds(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin
