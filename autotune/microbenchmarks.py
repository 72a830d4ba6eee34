"""Calibrates the cost model on a device: times a few configs of a few calls and fits its constants.

The calls differ in what dominates them: products, the masks of partial tiles, what a program does
once.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from patterncc.autotune.calibrate import Observation, Quality, fit, quality
from patterncc.autotune.candidates import space_for
from patterncc.autotune.cost import Constants, CostModel, GpuConstants, usual_constants
from patterncc.autotune.job import Job
from patterncc.autotune.key import Device
from patterncc.autotune.measurement import Measurement
from patterncc.autotune.options import Progress, Report, silent
from patterncc.autotune.prune import CompilePool
from patterncc.autotune.space import CPU, FORWARD, Phase
from patterncc.autotune.worker import Maker, Worker
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import TuningError

_PATTERNS = ("causal", "window(1024)", "window(256)")
_GPU_CONFIGS = (
    KernelConfig(128, 128, 8, 2, "descriptor"),
    KernelConfig(128, 128, 8, 3, "descriptor"),
    KernelConfig(128, 64, 8, 3, "descriptor"),
    KernelConfig(128, 64, 4, 2, "descriptor"),
    KernelConfig(64, 128, 4, 1, "descriptor"),
    KernelConfig(64, 64, 4, 1, "descriptor"),
    KernelConfig(64, 64, 4, 2, "descriptor"),
    KernelConfig(64, 64, 4, 3, "descriptor"),
    KernelConfig(64, 32, 4, 3, "descriptor"),
    KernelConfig(32, 64, 4, 2, "descriptor"),
    KernelConfig(128, 128, 8, 2, "pointer"),
    KernelConfig(64, 64, 4, 2, "pointer"),
    KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon"),
    KernelConfig(128, 64, 8, 3, "descriptor", emitter="gluon"),
    KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon"),
    KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon"),
)
_GRADIENT_CONFIGS = (
    KernelConfig(64, 64, 4, 1, "descriptor", max_registers=255),
    KernelConfig(64, 64, 4, 2, "descriptor", max_registers=255),
    KernelConfig(64, 64, 4, 3, "descriptor", max_registers=255),
    KernelConfig(32, 64, 4, 2, "descriptor", max_registers=255),
    KernelConfig(64, 32, 4, 2, "descriptor", max_registers=255),
    KernelConfig(64, 32, 4, 3, "descriptor", max_registers=255),
    KernelConfig(32, 32, 4, 2, "descriptor", max_registers=255),
    KernelConfig(128, 64, 8, 2, "descriptor", max_registers=255),
    KernelConfig(64, 128, 8, 2, "descriptor", max_registers=255),
    KernelConfig(128, 128, 8, 2, "descriptor", max_registers=255),
    KernelConfig(64, 64, 4, 2, "pointer", max_registers=255),
    KernelConfig(32, 64, 4, 2, "pointer", max_registers=255),
)
_CPU_CONFIGS = tuple(KernelConfig(q, k) for q in (16, 64, 256) for k in (16, 64, 256))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What calibrating found.

    Attributes:
        device: Where it ran.
        constants: Of the device.
        before, after: How well the model orders each call's configs, with the constants for devices
            that were not calibrated and with these; by the call, in words.
        measured: Configs that were timed.
        seconds: Of the whole run.
    """

    device: Device
    constants: Constants
    before: dict[str, Quality]
    after: dict[str, Quality]
    measured: int
    seconds: float


def calibrate(
    device_name: str,
    phase: Phase = FORWARD,
    *,
    processes: int,
    folder: Path | None = None,
    report: Report = silent,
) -> Calibration:
    """Fits the cost model's constants of a phase to a device.

    Args:
        device_name: `cpu`, `cuda:0`.
        phase: What is timed.
        processes: How many compile at a time.
        folder: Where generated sources are written; the user's cache by default.
        report: Told what is being done.

    Raises:
        TuningError: Too little worked to fit anything, or processes cannot measure here at all.
        ConfigError: There is no such device, or the phase has nothing to tune there.
    """
    start = time.monotonic()
    calls = _calls(device_name == CPU)
    seen: dict[str, list[Observation]] = {}
    with ExitStack() as stack:
        maker = Maker("patterncc.autotune.measure", "DeviceMeasurer", (device_name, folder))
        worker = stack.enter_context(Worker(maker))
        device: Device = worker.ask("describe")
        pool = None
        if device.target != CPU:
            pool = stack.enter_context(
                CompilePool(device.target, device.multiprocessors, processes, folder)
            )
        for number, (label, job) in enumerate(calls.items()):
            report(Progress(f"calibrating on {label}", number, len(calls)))
            model = CostModel(job, device.target, _start(device, phase), phase)
            seen[label] = _observe(job, phase, device, model, worker, pool)
    everything = [one for observations in seen.values() for one in observations]
    if len(everything) < len(calls) * 3:
        raise TuningError(f"only {len(everything)} configs could be timed on {device_name}")
    before = _judge(seen, _start(device, phase))
    constants = fit(everything, _start(device, phase))
    return Calibration(
        device,
        constants,
        before,
        _judge(seen, constants),
        len(everything),
        time.monotonic() - start,
    )


def _calls(on_cpu: bool) -> dict[str, Job]:
    found: dict[str, Job] = {}
    for head_dim in (64,) if on_cpu else (64, 128):
        problem = Problem("float32" if on_cpu else "bfloat16", head_dim, head_dim)
        heads, length = (4, 1024) if on_cpu else (16, 8192)
        for text in _PATTERNS:
            pattern = load(text)
            found[f"{text}, D{head_dim}"] = Job(
                pattern.structure,
                problem,
                1,
                heads,
                heads,
                length,
                length,
                numbers=pattern.defaults,
            )
    return found


def _start(device: Device, phase: Phase) -> Constants:
    """Where the fit starts: the usual constants, with what is known of the device."""
    usual = usual_constants(device.target, phase)
    if isinstance(usual, GpuConstants):
        return replace(usual, multiprocessors=float(device.multiprocessors))
    return usual


def _observe(
    job: Job,
    phase: Phase,
    device: Device,
    model: CostModel,
    worker: Worker,
    pool: CompilePool | None,
) -> list[Observation]:
    """Times the configs that are legal for a call."""
    space = space_for(job, phase, device)
    wanted = _GPU_CONFIGS if phase == FORWARD else _GRADIENT_CONFIGS
    configs = [config for config in (wanted if pool else _CPU_CONFIGS) if config in space]
    compiled: dict[KernelConfig, Measurement] = {}
    if pool is not None:
        compiled = pool.compile(job, phase, configs, timeout=120.0)
    worker.set_up("turn_to", job, phase.name)
    found = []
    for config in configs:
        static = compiled.get(config)
        measured = worker.measure(config)
        if measured.state == "timed":
            resources = static.resources if static is not None else None
            found.append(Observation(model, config, measured.median, resources))
    return found


def _judge(seen: dict[str, list[Observation]], constants: Constants) -> dict[str, Quality]:
    """How well some constants order the configs of each call."""
    found = {}
    for label, observations in seen.items():
        for one in observations:
            one.model.constants = constants
        if len(observations) > 1:
            found[label] = quality(observations)
    return found
