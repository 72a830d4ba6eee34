"""A tuning run from call to store: predict, prune, search, compare once more, keep.

The device is touched by child processes alone.
"""

from __future__ import annotations

import datetime
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patterncc.autotune import records
from patterncc.autotune.cost import CostModel, usual_constants
from patterncc.autotune.device import Device
from patterncc.autotune.job import Job
from patterncc.autotune.key import ConfigKey, key_of
from patterncc.autotune.measurement import Measurement
from patterncc.autotune.prune import compile_all, survivors
from patterncc.autotune.search import Limits, Place, Sampler, SearchResult, Trial, search
from patterncc.autotune.space import CPU, Phase, SearchSpace, config_values
from patterncc.autotune.store import Entry, Found, TunedStore
from patterncc.autotune.worker import Maker, Worker
from patterncc.codegen import cpu
from patterncc.codegen.gpu.config import KernelConfig, default_config
from patterncc.dsl.errors import TuningError

_MODEL_SEEDS = 5  # of the cost model's favourites
_FINALISTS = 4  # compared once more, in turn, with the default
_COMPILED_FOR_EACH = 3  # candidates that are compiled for each trial
_COMPILE_SHARE = 0.4  # of the timeout
_UNSEEN = 1.03
_ALIGNMENT = 16  # bytes that a row of a tensor with a descriptor is a multiple of


def _default_forward(job: Job, device: Device) -> KernelConfig:
    if device.target == CPU:
        return cpu.default_config()
    first = default_config(job.problem, device.target)
    program = job.passes(first.block_q, first.block_k, gather=True)[0]
    return default_config(
        job.problem, device.target, program, descriptors=descriptors_possible(job)
    )


DEFAULTS: Mapping[str, Callable[[Job, Device], KernelConfig]] = {"forward": _default_forward}
"""What a call runs with where nothing was tuned, by the name of the phase."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to tune.

    Attributes:
        limits: When the search ends.
        sampler: What proposes configs.
        storage: As in `search.Place`; None keeps the study beside the store until it is done, so
            that a run which was killed goes on where it was.
        measure_limit: Seconds that one config may take.
        processes: How many compile at a time.
        folder: Where generated sources are written; the user's cache by default.
    """

    limits: Limits = field(default_factory=Limits)
    sampler: Sampler = "model"
    storage: str | None = None
    measure_limit: float = 60.0
    processes: int = field(default_factory=lambda: max(1, (os.cpu_count() or 2) - 1))
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What a tuning run is at.

    Attributes:
        stage: In a few words.
        done, total: Of the stage; 0 where there is nothing to count.
        trial: The last one.
        best: The best config so far, and its time in seconds.
        default: The default's time in seconds; infinite until it was timed.
    """

    stage: str
    done: int = 0
    total: int = 0
    trial: Trial | None = None
    best: tuple[KernelConfig, float] | None = None
    default: float = math.inf


@dataclass(frozen=True)
class TuneResult:
    """What a tuning run found.

    Attributes:
        entry: What was kept.
        path: Its file; None where it was not kept.
        device: Where it ran.
        found: What the store had before.
        search: All trials.
        predicted: What the cost model said, in seconds, of configs that were open to the search.
        compiled: What static pruning found of those that were compiled before it.
        finals: The last comparison: config and time in seconds, the fastest first.
        default: The config of untuned calls.
        seconds: Of the whole run.
    """

    entry: Entry
    path: Path | None
    device: Device
    found: Found
    search: SearchResult
    predicted: Mapping[KernelConfig, float]
    compiled: Mapping[KernelConfig, Measurement]
    finals: tuple[tuple[KernelConfig, float], ...]
    default: KernelConfig
    seconds: float


def descriptors_possible(job: Job) -> bool:
    """Whether contiguous tensors of the call can be loaded by descriptors."""
    item = {"float32": 4, "float64": 8}.get(job.problem.dtype, 2)
    dims = (job.problem.head_dim, job.problem.value_head_dim)
    return all(dim * item % _ALIGNMENT == 0 for dim in dims)


def space_for(job: Job, phase: Phase, device: Device) -> SearchSpace:
    """The legal configs of a call."""
    fixed: dict[str, Any] = {}
    if device.target != CPU and not descriptors_possible(job):
        fixed["load"] = "pointer"
    return SearchSpace(phase, job.problem, device.target, fixed)


def key_for(job: Job, phase: Phase, device: Device) -> ConfigKey:
    """The key of a call in the store."""
    return key_of(
        job.structure,
        job.problem,
        phase=phase.name,
        device=device.name,
        target=device.target,
        compiler=device.compiler,
        numbers=tuple(job.numbers.items()),
        q_len=job.q_len,
        kv_len=job.kv_len,
        heads=job.heads,
        kv_heads=job.kv_heads,
        layers=job.layers,
    )


def tune(
    job: Job,
    phase: Phase,
    device_name: str,
    store: TunedStore,
    *,
    options: Options = Options(),
    report: Callable[[Progress], None] = lambda progress: None,
    written_by: str = "patterncc",
) -> TuneResult:
    """Finds the fastest config of a call and keeps it.

    Ctrl-C ends the search; what was found until then is compared and kept.

    Args:
        job: The call.
        phase: What is tuned.
        device_name: `cpu`, `cuda:0`.
        store: Where neighbours are found and the result is kept.
        options: How to tune.
        report: Told what is being done.
        written_by: Name and version of the program, for the entry.

    Raises:
        TuningError: No config worked; it lists why. Or processes cannot measure here at all.
        UnsupportedError: The call cannot be run there.
        ConfigError: There is no such device.
    """
    start = time.monotonic()
    report(Progress("starting"))
    maker = Maker(
        "patterncc.autotune.measure",
        "DeviceMeasurer",
        (job, phase.name, device_name, options.folder),
    )
    with Worker(maker, options.measure_limit) as worker:
        device: Device = worker.ask("describe")
        space = space_for(job, phase, device)
        key = key_for(job, phase, device)
        found = store.lookup(key)
        report(Progress("predicting"))
        constants = store.constants(device.name) or usual_constants(device.target)
        model = CostModel(job, device.target, constants)
        default = DEFAULTS[phase.name](job, device)
        predicted = _predict(model, space.configs, default, {})
        seeds = _seeds(default, found, predicted, space)
        compiled: dict[KernelConfig, Measurement] = {}
        if device.target != CPU:
            compiled = _compile(job, phase, device, seeds, predicted, options, report, start)
            # What there was no time to compile stays open: the measuring process compiles it too.
            bad = set(compiled) - {default, *survivors(compiled)}
            left = [config for config in space.configs if config not in bad]
            predicted = _predict(model, left, default, compiled)
        limits = options.limits
        spent = time.monotonic() - start
        place, journal = _place(key, job, options, store)
        searched = search(
            space,
            worker.measure,
            predicted,
            seeds=seeds,
            limits=Limits(limits.trials, max(limits.timeout - spent, 0.0), limits.gain),
            sampler=options.sampler,
            place=place,
            report=lambda trial, so_far: report(_progress(trial, so_far, limits, default)),
        )
        if not searched.ranked():
            raise TuningError(
                f"no config of {phase.name} worked on {device.name}",
                tuple((_words(trial.config, space), trial.reason) for trial in searched.trials),
            )
        report(Progress("comparing the best"))
        finals = _finals(worker, searched, default)
    best, seconds = finals[0]
    times = dict(finals)
    entry = Entry(
        key,
        config_values(best, phase, device.target),
        seconds,
        times.get(default),
        len(searched.trials),
        len(space.configs),
        {
            "batch": job.batch,
            "heads": job.heads,
            "kv_heads": job.kv_heads,
            "q_len": job.q_len,
            "kv_len": job.kv_len,
            **job.numbers,
        },
        written_by,
        datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
    path = store.put(entry)
    if journal is not None and searched.stopped != "interrupted":
        journal.unlink(missing_ok=True)
    return TuneResult(
        entry,
        path,
        device,
        found,
        searched,
        predicted,
        compiled,
        finals,
        default,
        time.monotonic() - start,
    )


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A config that was compiled for a device that is not here.

    Attributes:
        config: What was compiled.
        compiled: What came of it.
        predicted: Seconds of a call, by the cost model with the registers and the shared memory
            that the compiler reports; infinite for what is not worth running.
    """

    config: KernelConfig
    compiled: Measurement
    predicted: float


def survey(
    job: Job,
    phase: Phase,
    target: str,
    count: int,
    *,
    options: Options = Options(),
    report: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Surveyed, ...]:
    """Compiles the most promising configs for a target, present or not, and orders them.

    Args:
        job: The call.
        phase: What would be tuned.
        target: Such as `cuda:90`.
        count: How many configs to compile.
        options: Of these the limit of time, the processes and the folder.
        report: Told what is being done.

    Returns:
        What was compiled: the fastest by prediction first, what is not worth running last.

    Raises:
        ConfigError: The target is none.
        UnsupportedError: The call has no kernel there.
    """
    device = Device(target, target, "", 0)
    space = space_for(job, phase, device)
    default = DEFAULTS[phase.name](job, device)
    model = CostModel(job, target, usual_constants(target))
    chosen = list(dict.fromkeys([default, *_predict(model, space.configs, default, {})]))[:count]
    report(Progress("compiling", 0, len(chosen)))
    compiled = compile_all(
        job,
        phase.name,
        chosen,
        target,
        processes=options.processes,
        timeout=options.limits.timeout,
        folder=options.folder,
        report=lambda done: report(Progress("compiling", done, len(chosen))),
    )
    predicted = _predict(model, survivors(compiled), default, compiled)
    found = [
        Surveyed(config, measurement, predicted.get(config, math.inf))
        for config, measurement in compiled.items()
    ]
    return tuple(sorted(found, key=lambda one: one.predicted))


def _predict(
    model: CostModel,
    configs: Iterable[KernelConfig],
    default: KernelConfig,
    compiled: Mapping[KernelConfig, Measurement],
) -> dict[KernelConfig, float]:
    """Predicted seconds by config, the fastest first. What the model sees no use of, another order
    of tiles or a cap of registers that changes nothing, is expected to be slower, not equal."""
    found: dict[KernelConfig, float] = {}
    for config in configs:
        known = compiled.get(config)
        seconds = model.predict(config, known.resources if known else None).seconds
        seconds *= _UNSEEN ** (config.order != default.order)
        found[config] = seconds * _UNSEEN ** (config.max_registers != default.max_registers)
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def _seeds(
    default: KernelConfig,
    found: Found,
    predicted: Mapping[KernelConfig, float],
    space: SearchSpace,
) -> list[KernelConfig]:
    """What is tried first: the default, what the store has, the model's favourites of different
    tile shapes."""
    seeds = [default]
    if found.entry is not None:
        near = space.nearest(found.entry.kernel_config)
        seeds += [near] if near is not None else []
    shapes: set[tuple[int, int, int]] = set()
    for config in predicted:
        shape = (config.block_q, config.block_k, config.num_warps)
        if shape not in shapes:
            shapes.add(shape)
            seeds.append(config)
        if len(shapes) == _MODEL_SEEDS:
            break
    return list(dict.fromkeys(seeds))


def _compile(
    job: Job,
    phase: Phase,
    device: Device,
    seeds: list[KernelConfig],
    predicted: Mapping[KernelConfig, float],
    options: Options,
    report: Callable[[Progress], None],
    start: float,
) -> dict[KernelConfig, Measurement]:
    """Compiles the seeds and the model's favourites, the number of which follows the trials."""
    most = max(options.limits.trials * _COMPILED_FOR_EACH, len(seeds))
    chosen = list(dict.fromkeys([*seeds, *predicted]))[:most]
    left = options.limits.timeout * _COMPILE_SHARE - (time.monotonic() - start)
    report(Progress("compiling", 0, len(chosen)))
    return compile_all(
        job,
        phase.name,
        chosen,
        device.target,
        processes=options.processes,
        timeout=max(left, 1.0),
        folder=options.folder,
        report=lambda done: report(Progress("compiling", done, len(chosen))),
    )


def _place(
    key: ConfigKey, job: Job, options: Options, store: TunedStore
) -> tuple[Place, Path | None]:
    """Where the study is kept, and its file if it goes when the study is done."""
    call = {
        "key": key.as_json(),
        "sizes": [job.batch, job.heads, job.kv_heads, job.q_len, job.kv_len, job.q_offset],
        "numbers": dict(sorted(job.numbers.items())),
        "tables": {name: records.array_digest(table) for name, table in job.tables.items()},
    }
    name = f"{key.phase}-{records.digest(call)[:24]}"
    if options.storage is not None:
        return Place(name, options.storage), None
    journal = store.folder / "studies" / f"{name}.journal"
    return Place(name, str(journal)), journal


def _finals(
    worker: Worker, searched: SearchResult, default: KernelConfig
) -> tuple[tuple[KernelConfig, float], ...]:
    """The best few and the default, timed in turn; the fastest first. A single quick measurement
    picks the luckiest of equals, and clocks drift during a search."""
    ranked = searched.ranked()
    finalists = [trial.config for trial in ranked[:_FINALISTS]]
    if any(trial.config == default for trial in ranked) and default not in finalists:
        finalists.append(default)
    times = [each.median for each in worker.race(finalists)]
    return tuple(sorted(zip(finalists, times, strict=True), key=lambda pair: pair[1]))


def _progress(
    trial: Trial, so_far: SearchResult, limits: Limits, default: KernelConfig
) -> Progress:
    ranked = so_far.ranked()
    times = {each.config: each.seconds for each in ranked}
    return Progress(
        "measuring",
        len(so_far.trials),
        limits.trials,
        trial,
        (ranked[0].config, ranked[0].seconds) if ranked else None,
        times.get(default, math.inf),
    )


def _words(config: KernelConfig, space: SearchSpace) -> str:
    return config_words(space.values(config))


def config_words(values: Mapping[str, Any]) -> str:
    """A config in few words: `64x128, 4 warps, 3 stages, descriptor, reverse`."""
    words = [f"{values['block_q']}x{values['block_k']}"]
    for name, unit in (("num_warps", "warps"), ("num_stages", "stages")):
        if name in values:
            words.append(f"{values[name]} {unit}")
    words += [str(values[name]) for name in ("load", "order") if name in values]
    if values.get("max_registers") is not None:
        words.append(f"at most {values['max_registers']} registers")
    return ", ".join(words)
