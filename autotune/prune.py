"""Static pruning: candidates are compiled in parallel, on the CPU, and those that cannot be fast
never run. Needs no device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType

from patterncc.autotune.job import Job
from patterncc.autotune.measurement import Measurement, Resources
from patterncc.autotune.phase_launches import planned
from patterncc.autotune.space import Phase, phase_named
from patterncc.autotune.worker import Maker, Worker
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.launch import CompiledKernel, compile_for
from patterncc.codegen.gpu.launches import Launch
from patterncc.dsl.errors import TuningError, UnsupportedError

_HARMLESS = 32
"""Bytes of local memory per thread. Gluon's kernels keep 8 to 24 there, stored once before their
warps part (docs/gluon.md), and are the fastest."""

LIMIT = 60.0
"""Seconds that compiling one config may take."""


class Compiler:
    """Compiles configs of the call, for the target, that it was last told.

    Args:
        folder: Where generated sources are written; the user's cache by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._target, self._multiprocessors = "", 0
        self._call: tuple[Job, Phase] | None = None
        self._rest: dict[str, CompiledKernel] = {}  # kernels that no config changes

    def turn_to(self, job: Job, phase: str, target: str, multiprocessors: int) -> None:
        """Compiles kernels of a phase of a call from now on.

        Args:
            job: The call.
            phase: Name of the phase.
            target: Such as `cuda:90`; no such device need be there.
            multiprocessors: Of the device.
        """
        if target != self._target:
            self._rest = {}
        self._call, self._target = (job, phase_named(phase)), target
        self._multiprocessors = multiprocessors

    def measure(self, config: KernelConfig, best: float) -> Measurement:
        """Compiles the kernels of a config; what the compiler refuses is raised."""
        if self._call is None:
            raise TuningError("nothing was given to compile")
        job, phase = self._call
        launches = planned(job, phase, self._target, config, multiprocessors=self._multiprocessors)
        # What repairs is not on the way of finite numbers, whatever it takes.
        kernels = [self._compiled(each) for each in launches if not each.source.repairs]
        own = [kernel for kernel in kernels if kernel.source.name == phase.name]
        resources = Resources(
            max(kernel.registers for kernel in own),
            max(kernel.spilled for kernel in own),
            max(kernel.shared for kernel in own),
        )
        return Measurement("compiled", resources=resources)

    def race(self, configs: Sequence[KernelConfig]) -> tuple[Measurement, ...]:
        """Not to be had without a device."""
        raise UnsupportedError("configs cannot be timed without a device")

    def _compiled(self, launch: Launch) -> CompiledKernel:
        digest = launch.source.digest
        if digest not in self._rest:
            kernel = compile_for(
                launch.source, self._target, aligned=launch.aligned, folder=self._folder
            )
            if launch.source.name != "delta":
                return kernel
            self._rest[digest] = kernel
        return self._rest[digest]


class CompilePool:
    """Processes that compile, started when they are needed and kept from one call to the next. To
    be used with `with`.

    Args:
        target: Such as `cuda:90`; no such device need be there. None where it is not known yet: the
            processes can start before.
        multiprocessors: Of the device.
        processes: How many there are at most.
        folder: Where generated sources are written; the user's cache by default.
    """

    def __init__(
        self, target: str | None, multiprocessors: int, processes: int, folder: Path | None = None
    ) -> None:
        self._target, self._multiprocessors = target, multiprocessors
        maker = Maker(__name__, "Compiler", (folder,))
        self._workers = [Worker(maker, LIMIT) for _ in range(max(1, processes))]
        self._closed = False

    def aim(self, target: str, multiprocessors: int) -> None:
        """Tells what to compile for from now on."""
        self._target, self._multiprocessors = target, multiprocessors

    @property
    def processes(self) -> int:
        """How many there are at most."""
        return len(self._workers)

    def __enter__(self) -> CompilePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Starts the processes, which takes as long as loading torch does."""
        with ThreadPoolExecutor(len(self._workers)) as pool:
            for future in [pool.submit(worker.start) for worker in self._workers]:
                future.result()

    def close(self) -> None:
        """Ends the processes, and what other threads compile with them."""
        self._closed = True
        for worker in self._workers:
            worker.close()

    def compile(
        self,
        job: Job,
        phase: Phase,
        configs: Sequence[KernelConfig],
        *,
        timeout: float,
        report: Callable[[int], None] = lambda done: None,
    ) -> dict[KernelConfig, Measurement]:
        """Compiles configs, in the order given.

        The kernels stay in Triton's cache, where the measuring process finds them.

        Args:
            job: The call.
            phase: The phase.
            configs: What to compile, the most promising first.
            timeout: Seconds after which no more are begun, from when a process is ready.
            report: Told how many are done.

        Returns:
            What came of those that were begun.

        Raises:
            TuningError: There is no target yet, or a process cannot start.
        """
        target, multiprocessors = self._target, self._multiprocessors
        if target is None:
            raise TuningError("nobody has said what to compile for")
        waiting: SimpleQueue[KernelConfig] = SimpleQueue()
        for config in configs:
            waiting.put(config)
        done: dict[KernelConfig, Measurement] = {}

        def work(worker: Worker) -> None:
            if timeout <= 0 or self._closed:
                return
            worker.set_up("turn_to", job, phase.name, target, multiprocessors)
            end = time.monotonic() + timeout
            while time.monotonic() < end and not self._closed:
                try:
                    config = waiting.get_nowait()
                except Empty:
                    return
                done[config] = worker.measure(config)
                report(len(done))

        workers = self._workers[: max(1, len(configs))]
        with ThreadPoolExecutor(len(workers)) as pool:
            for future in [pool.submit(work, worker) for worker in workers]:
                future.result()
        return done


def survivors(compiled: Mapping[KernelConfig, Measurement]) -> tuple[KernelConfig, ...]:
    """The configs worth running: those that compiled and spill at most a few numbers of a thread,
    outside of loops. Where all spill more, those that spill least."""
    spilled = {
        config: found.resources.spilled
        for config, found in compiled.items()
        if found.resources is not None
    }
    least = min(spilled.values(), default=0)
    most = max(least, _HARMLESS)
    return tuple(config for config, count in spilled.items() if count <= most)
