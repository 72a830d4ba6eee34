"""Runs, checks and times configs on the device at hand. Used in a child process, see `worker`.

What runs a phase on a kind of device is a value of `RUNNERS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from patterncc.autotune.device import Device, describe
from patterncc.autotune.job import Job
from patterncc.autotune.measurement import Measurement
from patterncc.autotune.oracle import Oracle
from patterncc.codegen import cpu
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward import Forward
from patterncc.dsl.errors import ConfigError, UnsupportedError

Run: TypeAlias = Callable[[], tuple[Tensor, Tensor]]
Runner: TypeAlias = Callable[[Job, Mapping[str, Tensor], KernelConfig, Path | None], Run]

_LEAST, _MOST = 3, 40  # timed calls of a config
_BUDGET = {"cpu": 0.3, "cuda": 0.1}  # seconds of timed calls
_HOPELESS = 1.5  # times the best after which a config is given up
_RACE_ROUNDS, _RACE_BUDGET = 15, 3.0  # at most, for each config
_FLUSHED = 1 << 28  # bytes that are overwritten before a call, more than any cache holds


def _forward_cpu(
    job: Job, tensors: Mapping[str, Tensor], config: KernelConfig, folder: Path | None
) -> Run:
    passes = job.passes(config.block_q, config.block_k)
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    tables = {name: tensors[name] for name in job.tables}

    def run() -> tuple[Tensor, Tensor]:
        return cpu.attention(passes, query, key, value, env=job.env, tables=tables, scale=job.scale)

    return run


def _forward_gpu(
    job: Job, tensors: Mapping[str, Tensor], config: KernelConfig, folder: Path | None
) -> Run:
    forward = Forward(
        lambda block_q, block_k: (job.passes(block_q, block_k, gather=True),),
        config=config,
        folder=folder,
    )
    query, key, value = (tensors[name] for name in ("query", "key", "value"))
    tables = {name: _narrow(tensors[name]) for name in job.tables}

    def run() -> tuple[Tensor, Tensor]:
        return forward(query, key, value, env=job.env, scale=job.scale, tables=tables)

    return run


def _narrow(table: Tensor) -> Tensor:
    """What kernels read: numbers as int32."""
    return table if table.dtype == torch.bool else table.to(torch.int32)


RUNNERS: Mapping[tuple[str, str], Runner] = {
    ("forward", "cpu"): _forward_cpu,
    ("forward", "cuda"): _forward_gpu,
}
"""By the name of a phase and the kind of a device."""


class DeviceMeasurer:
    """Measures configs of one call on one device.

    Args:
        job: The call.
        phase: Name of the phase.
        device: `cpu`, `cuda:0`.
        folder: Where generated sources are written; the user's cache by default.

    Raises:
        ConfigError: The device is not there.
        UnsupportedError: The phase has no kernels there.
    """

    def __init__(self, job: Job, phase: str, device: str, folder: Path | None = None) -> None:
        self._job = job
        self._folder = folder
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"there is no {device} here", ("cpu",))
        runner = RUNNERS.get((phase, self._device.type))
        if runner is None:
            known = ", ".join(f"{name} on {kind}" for name, kind in RUNNERS)
            raise UnsupportedError(f"{phase} cannot be timed on {self._device.type}", known)
        self._runner = runner
        self._tensors = random_tensors(job, self._device)
        self._oracle = Oracle(job, self._tensors)
        self._flushed: Tensor | None = None
        if self._device.type == "cuda":
            self._flushed = torch.empty(_FLUSHED, dtype=torch.uint8, device=self._device)

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
        self._poison()
        run = self._runner(self._job, self._tensors, config, self._folder)
        error, wrong = self._oracle.judge(*run())
        if wrong:
            return Measurement("wrong", (), wrong, error)
        seconds: list[float] = []
        while len(seconds) < _LEAST or (
            len(seconds) < _MOST and sum(seconds) < _BUDGET[self._device.type]
        ):
            seconds.append(self._once(run))
            if len(seconds) > 1 and min(seconds) > _HOPELESS * best:
                return Measurement("slow", tuple(seconds), "", error)
        error, wrong = self._oracle.judge(*run())  # of repeated runs, too
        if wrong:
            return Measurement("wrong", (), f"after {len(seconds)} runs {wrong}", error)
        return Measurement("timed", tuple(seconds), "", error)

    @torch.inference_mode()
    def race(self, configs: Sequence[KernelConfig]) -> tuple[Measurement, ...]:
        """Times configs that were measured before in turn, in alternating order."""
        runs = [self._runner(self._job, self._tensors, config, self._folder) for config in configs]
        seconds: list[list[float]] = [[] for _ in runs]
        for run in runs:
            run()
        order = list(range(len(runs)))
        start = time.perf_counter()
        for number in range(_RACE_ROUNDS):
            for index in order if number % 2 else reversed(order):
                seconds[index].append(self._once(runs[index]))
            if number >= _LEAST and time.perf_counter() - start > _RACE_BUDGET * len(runs):
                break
        return tuple(Measurement("timed", tuple(each)) for each in seconds)

    def _poison(self) -> None:
        """Leaves memory full of what is not a number where the next output is likely to lie, so
        that rows nobody writes do not look right because an earlier output lay there."""
        job, problem = self._job, self._job.problem
        rows = (job.batch, job.heads, job.q_len)
        dtype = self._tensors["query"].dtype
        out = torch.empty((*rows, problem.value_head_dim), dtype=dtype, device=self._device)
        lse = torch.empty(rows, dtype=torch.float32, device=self._device)
        out.fill_(torch.nan)
        lse.fill_(torch.nan)

    def _once(self, run: Run) -> float:
        """The time of one call in seconds, on a GPU with cold caches."""
        if self._flushed is None:
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        self._flushed.zero_()  # takes longer than the host needs to launch what follows
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(self._device)
        return float(start.elapsed_time(end)) / 1000


def random_tensors(job: Job, device: torch.device) -> dict[str, Tensor]:
    """Query, key and value from a normal distribution, and the tables of the call."""
    generator = torch.Generator().manual_seed(job.seed)
    dtype = getattr(torch, job.problem.dtype)

    def draw(heads: int, length: int, dim: int) -> Tensor:
        shape = (job.batch, heads, length, dim)
        numbers = torch.randn(shape, generator=generator, dtype=torch.float32)
        return numbers.to(device, dtype)

    tensors = {
        "query": draw(job.heads, job.q_len, job.problem.head_dim),
        "key": draw(job.kv_heads, job.kv_len, job.problem.head_dim),
        "value": draw(job.kv_heads, job.kv_len, job.problem.value_head_dim),
    }
    for name, table in job.tables.items():
        tensors[name] = torch.from_numpy(table).to(device)
    return tensors
