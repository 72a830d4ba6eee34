"""Static pruning: candidates are compiled in parallel, on the CPU, and those that cannot be fast
never run. Needs no device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue

from patterncc.autotune.job import Job
from patterncc.autotune.measurement import Measurement, Resources
from patterncc.autotune.worker import Maker, Worker
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward_source import emit_forward
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launch import compile_for
from patterncc.codegen.gpu.run_list_source import emit_listing
from patterncc.dsl.errors import UnsupportedError

LIMIT = 60.0
"""Seconds that compiling one config may take."""


def _forward_sources(job: Job, config: KernelConfig) -> Iterator[KernelSource]:
    passes = job.passes(config.block_q, config.block_k, gather=True)
    for number, program in enumerate(passes):
        if program.listed:
            yield emit_listing(program, job.problem, config)
        yield emit_forward(
            program,
            job.problem,
            config,
            resumes=number > 0,
            hands_on=number < len(passes) - 1,
        )


EMITTERS: Mapping[str, Callable[[Job, KernelConfig], Iterator[KernelSource]]] = {
    "forward": _forward_sources
}
"""The kernels of a call, by the name of the phase."""


class Compiler:
    """Compiles configs of one call for a target.

    Args:
        job: The call.
        phase: Name of the phase.
        target: Such as `cuda:90`.
        folder: Where generated sources are written; the user's cache by default.

    Raises:
        UnsupportedError: The phase has no kernels to compile.
    """

    def __init__(self, job: Job, phase: str, target: str, folder: Path | None = None) -> None:
        if phase not in EMITTERS:
            raise UnsupportedError(f"{phase} has no kernels to compile", ", ".join(EMITTERS))
        self._job, self._emit, self._target, self._folder = job, EMITTERS[phase], target, folder

    def measure(self, config: KernelConfig, best: float) -> Measurement:
        """Compiles the kernels of a config; what the compiler refuses is raised."""
        kernels = [
            compile_for(source, self._target, folder=self._folder)
            for source in self._emit(self._job, config)
        ]
        resources = Resources(
            max(kernel.registers for kernel in kernels),
            max(kernel.spilled for kernel in kernels),
            max(kernel.shared for kernel in kernels),
        )
        return Measurement("compiled", resources=resources)

    def race(self, configs: Sequence[KernelConfig]) -> tuple[Measurement, ...]:
        """Not to be had without a device."""
        raise UnsupportedError("configs cannot be timed without a device")


def compile_all(
    job: Job,
    phase: str,
    configs: Sequence[KernelConfig],
    target: str,
    *,
    processes: int,
    timeout: float,
    folder: Path | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> dict[KernelConfig, Measurement]:
    """Compiles configs in processes of their own, in the order given.

    The kernels stay in Triton's cache, where the measuring process finds them.

    Args:
        job: The call.
        phase: Name of the phase.
        configs: What to compile, the most promising first.
        target: What for; no such device need be there.
        processes: How many at a time.
        timeout: Seconds after which no more are begun.
        folder: Where generated sources are written; the user's cache by default.
        report: Told how many are done.

    Returns:
        What came of those that were begun.
    """
    waiting: SimpleQueue[KernelConfig] = SimpleQueue()
    for config in configs:
        waiting.put(config)
    done: dict[KernelConfig, Measurement] = {}
    end = time.monotonic() + timeout
    maker = Maker(__name__, "Compiler", (job, phase, target, folder))

    def work() -> None:
        with Worker(maker, LIMIT) as worker:
            while time.monotonic() < end:
                try:
                    config = waiting.get_nowait()
                except Empty:
                    return
                done[config] = worker.measure(config)
                report(len(done))

    count = max(1, min(processes, len(configs)))
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(work) for _ in range(count)]:
            future.result()
    return done


def survivors(compiled: Mapping[KernelConfig, Measurement]) -> tuple[KernelConfig, ...]:
    """The configs worth running: those that compiled without spilling. Where all spill, those that
    spill least."""
    spilled = {
        config: found.resources.spilled
        for config, found in compiled.items()
        if found.resources is not None
    }
    least = min(spilled.values(), default=0)
    return tuple(config for config, count in spilled.items() if count <= least)
