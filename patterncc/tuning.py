"""Tuning as the command line asks for it: calls of patterns as jobs, and results as documents."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from patterncc.autotune.candidates import (
    ABSENT_MULTIPROCESSORS,
    Surveyed,
    default_of,
    key_for,
    survey,
)
from patterncc.autotune.device import describe
from patterncc.autotune.job import Job
from patterncc.autotune.key import Device
from patterncc.autotune.microbenchmarks import Calibration, calibrate
from patterncc.autotune.options import Options, Progress
from patterncc.autotune.search import Limits
from patterncc.autotune.space import config_values, phase_named
from patterncc.autotune.study import Trial
from patterncc.autotune.tuning import Tuner, TuneResult
from patterncc.autotune.words import config_words
from patterncc.call import Call
from patterncc.codegen.gpu.config import Emitter, visits_patches
from patterncc.codegen.gpu.emitter_choice import EmitterChoice, choose_emitter, counted_pattern
from patterncc.codegen.ir import Passes
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError
from patterncc.programs import takes_patches
from patterncc.settings import kernel_folder, settings
from patterncc.trial import choose_device
from patterncc.tuned import WRITTEN_BY, config_of, store, why_not


def job_of(call: Call, problem: Problem, *, batch: int = 1, layer: int = 0, seed: int = 0) -> Job:
    """The job of a call: the same numbers, without the pattern's names.

    Raises:
        ConfigError: A table is missing.
    """
    call.require_tables()
    return Job(
        call.pattern.structure,
        problem,
        batch,
        call.heads,
        call.kv_heads,
        call.q_len,
        call.kv_len,
        call.q_offset,
        layer,
        call.layers,
        call.pattern.defaults,
        dict(call.tables),
        seed,
        takes_patches(problem.terms),
    )


def tuner(device: str, options: Options) -> Tuner:
    """What tunes calls on a device and keeps the results in the user's store.

    Raises:
        TuningError: Processes cannot measure here.
        ConfigError: There is no such device.
    """
    return Tuner(device, store(), options=options, written_by=WRITTEN_BY)


def survey_call(
    call: Call,
    problem: Problem,
    target: str,
    phase: str,
    count: int,
    timeout: float,
    report: Callable[[Progress], None],
) -> tuple[Surveyed, ...]:
    """Compiles the most promising configs of a call for a target that need not be here.

    Raises:
        ConfigError: There is no such phase or target, or a table is missing.
        UnsupportedError: The call has no kernel there.
    """
    check_target(target)
    return survey(
        job_of(call, problem),
        phase_named(phase),
        target,
        count,
        options=Options(Limits(timeout=timeout), folder=kernel_folder()),
        report=report,
    )


def check_target(target: str) -> None:
    """Refuses what is no target of GPU kernels.

    Raises:
        ConfigError: It is none.
    """
    if re.fullmatch(r"cuda:\d+|hip:gfx\w+", target) is None:
        raise ConfigError(f"there is no target {target!r}", ("cuda:80", "cuda:90", "hip:gfx942"))


def device_of(name: str | None, target: str | None) -> Device:
    """A device that is here, or one of a target that need not be, with as many multiprocessors as
    an H200.

    Raises:
        ConfigError: There is no such device or target, or both are named.
    """
    if target is None:
        return describe(str(choose_device(name)))
    if name is not None:
        raise ConfigError("--target is a GPU that is not here; leave out --device")
    check_target(target)
    compiler = f"triton {metadata.version('triton')}" if find_spec("triton") else ""
    return Device(target, target, compiler, ABSENT_MULTIPROCESSORS)


def survey_document(found: tuple[Surveyed, ...]) -> dict[str, Any]:
    """What `--json` prints of a survey."""
    rows = []
    for one in found:
        needs = one.compiled.resources
        reason = one.compiled.reason
        if needs is not None and needs.spilled:
            reason = "spills"
        rows.append(
            {
                "config": asdict(one.config),
                "predicted_seconds": one.predicted if math.isfinite(one.predicted) else None,
                "resources": None if needs is None else asdict(needs),
                "reason": reason,
            }
        )
    return {"configs": rows}


def calibrate_device(
    device: str, phase: str, report: Callable[[Progress], None]
) -> tuple[Calibration, Path]:
    """Fits the cost model's constants of a phase to a device and keeps them; also returns their
    file.

    Raises:
        TuningError: Too little worked to fit anything.
        ConfigError: There is no such device or phase.
    """
    wanted = phase_named(phase)
    found = calibrate(
        device, wanted, processes=Options().processes, folder=kernel_folder(), report=report
    )
    return found, store().put_constants(found.device.name, found.constants, wanted)


@dataclass(frozen=True, slots=True)
class Why:
    """Which config a call runs with, and why.

    Attributes:
        device: In words.
        call: Its sizes, in words.
        config: Values of the phase's knobs.
        tuned: Whether the store has it; else it is the default.
        reason: In one sentence.
        differences: Fields in which the nearest tuned key differs, in words.
    """

    device: str
    call: str
    config: Mapping[str, Any]
    tuned: bool
    reason: str
    differences: tuple[str, ...]

    def lines(self) -> list[str]:
        """As text."""
        origin = "tuned" if self.tuned else "default"
        head = f"{origin} config on {self.device}: {config_words(self.config)}"
        lines = [head, f"for: {self.call}", f"why: {self.reason}"]
        lines += [f"  {text}" for text in self.differences]
        if any(text.startswith("device: ") for text in self.differences):
            lines.append("`patterncc tune`, run on this device, finds configs of its own")
        return lines

    def as_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def why_config(call: Call, problem: Problem, device: Device, phase: str) -> Why:
    """Which config a call would run with on a device, here or not, and why.

    Raises:
        ConfigError: There is no such phase, or a table is missing.
        UnsupportedError: The pattern has a term that has no lowering.
    """
    job, wanted = job_of(call, problem), phase_named(phase)
    found = store().lookup(key_for(job, wanted, device))
    gluon = _gluon(job, wanted.name, device.target)
    config, not_used = config_of(found, gluon.config), why_not(found, gluon.config)
    reason = found.reason
    if found.entry is not None and not_used:
        reason += f": {not_used}"
    if not settings().tuned:
        config, reason = None, f"PATTERNCC_TUNED is off; else: {reason}"
    tuned = config is not None
    if config is None:
        config = default_of(job, wanted, device)
        if gluon.config is not None:
            reason = f"{gluon.reason}; {reason}"
    heads = f"{call.heads} heads" + f", {call.kv_heads} of keys" * (call.heads != call.kv_heads)
    sizes = f"{wanted.name}, {problem.dtype}, {call.q_len:,} rows, {call.kv_len:,} keys, {heads}"
    return Why(
        device.name,
        f"{sizes}, head_dim {problem.head_dim}",
        config_values(config, wanted, device.target),
        tuned,
        reason,
        found.differences,
    )


def _gluon(job: Job, phase: str, target: str) -> EmitterChoice:
    """The emitter of untuned calls, the forward ones of which Gluon may have."""
    if phase != "forward":
        return EmitterChoice(None, "Gluon writes forward kernels alone")

    def lowered(block_q: int, block_k: int, emitter: Emitter) -> Passes:
        return job.passes(block_q, block_k, gather=True, patches=visits_patches(emitter))

    pattern = counted_pattern(job.pattern, job.sizes, job.numbers)
    choice = choose_emitter(pattern, job.problem, target, lowered, job.sizes)
    return choice.for_rows(job.q_len)


def counts(result: TuneResult) -> dict[str, int]:
    """How many trials ended in each state."""
    found: dict[str, int] = {}
    for trial in result.search.trials:
        found[trial.state] = found.get(trial.state, 0) + 1
    return found


def importances(result: TuneResult) -> dict[str, float]:
    """How much each knob matters: the share of the variance of the logarithm of measured times
    that its values' means explain, the most important knob first.

    The search does not draw configs at random, so these are no effects in a statistician's sense.
    """
    trials = result.search.ranked()
    logs = [math.log(trial.seconds) for trial in trials]
    if len(logs) < 2:
        return {}
    mean = sum(logs) / len(logs)
    total = sum((value - mean) ** 2 for value in logs)
    found: dict[str, float] = {}
    for name in result.entry.config:
        groups: dict[Any, list[float]] = {}
        for trial, value in zip(trials, logs, strict=True):
            groups.setdefault(getattr(trial.config, name), []).append(value)
        between = sum(
            len(group) * (sum(group) / len(group) - mean) ** 2 for group in groups.values()
        )
        found[name] = between / total if total > 0 else 0.0
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def document(name: str, result: TuneResult) -> dict[str, Any]:
    """What `--json` prints of one pattern."""
    entry, found = result.entry, result.found
    return {
        "pattern": name,
        "phase": entry.key.phase,
        "key": entry.key.as_json(),
        "config": dict(entry.config),
        "seconds": entry.seconds,
        "default_seconds": entry.default_seconds,
        "speedup": entry.speedup,
        "call": dict(entry.call),
        "before": {"reason": found.reason, "differences": list(found.differences)},
        "legal": entry.legal,
        "compiled": len(result.compiled),
        "predicted": len(result.predicted),
        "stopped": result.search.stopped,
        "prepared": result.prepared,
        "elapsed": result.seconds,
        "importances": importances(result),
        "finals": [
            {"config": _values(result, config), "seconds": seconds}
            for config, seconds in result.finals
        ],
        "trials": [_trial(result, trial) for trial in result.search.trials],
        "path": None if result.path is None else str(result.path),
    }


def _trial(result: TuneResult, trial: Trial) -> dict[str, Any]:
    predicted = result.predicted.get(trial.config)
    compiled = result.compiled.get(trial.config)
    needs = None if compiled is None else compiled.resources
    return {
        "config": _values(result, trial.config),
        "state": trial.state,
        "seconds": trial.seconds if math.isfinite(trial.seconds) else None,
        "predicted_seconds": predicted,
        "resources": None if needs is None else asdict(needs),
        "reason": trial.reason,
        "proposed_by": trial.proposed_by,
        "elapsed": trial.elapsed,
    }


def _values(result: TuneResult, config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in result.entry.config}
