"""Before anything runs: what may be tried for a call, what is expected of it, what is compiled.

Touches no device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patterncc.autotune.cost import Constants, CostModel, usual_constants
from patterncc.autotune.job import Job
from patterncc.autotune.key import ConfigKey, Device, key_of, reads_head
from patterncc.autotune.measurement import Measurement
from patterncc.autotune.opened import OpenConfigs, predict
from patterncc.autotune.options import USUAL, Options, Progress, Report, silent
from patterncc.autotune.phase_launches import untuned_config
from patterncc.autotune.prune import CompilePool, survivors
from patterncc.autotune.space import CPU, Phase, SearchSpace
from patterncc.autotune.store import Found, TunedStore
from patterncc.codegen import cpu
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.gluon.reasons import reason_against
from patterncc.codegen.gpu.gluon.steady_writer import keeps_peak

_MODEL_SEEDS = 5  # of the cost model's favourites
_COMPILED_FOR_EACH = 3  # candidates that are compiled at most for each trial
_FIRST_BATCHES = 2
"""One for each process: what is compiled before the search begins. It knows better what to compile
once it has timed some, and what is announced shares the processes with the search under way."""
_COMPILE_SHARE = 0.4  # of the timeout
_ALIGNMENT = 16  # bytes that a row of a tensor with a descriptor is a multiple of
ABSENT_MULTIPROCESSORS = 132
"""Of a device that is not here."""


@dataclass(frozen=True)
class Candidates:
    """What a search of one phase of a call starts from.

    Attributes:
        job: The call.
        phase: What is tuned.
        space: What is legal.
        key: Of the result in the store.
        found: What the store has for it.
        default: The config of untuned calls.
        seeds: What is tried first, in this order.
        opened: What the search may try.
        seconds: That all of this took.
    """

    job: Job
    phase: Phase
    space: SearchSpace
    key: ConfigKey
    found: Found
    default: KernelConfig
    seeds: tuple[KernelConfig, ...]
    opened: OpenConfigs
    seconds: float


def default_of(job: Job, phase: Phase, device: Device) -> KernelConfig:
    """What a call runs with where nothing was tuned.

    Raises:
        UnsupportedError: The call has no kernel there.
    """
    if device.target == CPU:
        return cpu.default_config()
    return untuned_config(job, phase, device.target, device.multiprocessors)


def descriptors_possible(job: Job) -> bool:
    """Whether contiguous tensors of the call can be loaded by descriptors."""
    item = {"float32": 4, "float64": 8}.get(job.problem.dtype, 2)
    dims = (job.problem.head_dim, job.problem.value_head_dim)
    return all(dim * item % _ALIGNMENT == 0 for dim in dims)


def space_for(job: Job, phase: Phase, device: Device) -> SearchSpace:
    """The legal configs of a call: by pointers alone where descriptors are impossible, with a
    choice of which programs are neighbours where heads may visit different tiles, of the emitter
    where there are two that can write the kernels, and of peaks where some pass can
    keep them."""
    fixed: dict[str, Any] = {}
    if device.target != CPU:
        default = default_of(job, phase, device)
        if not descriptors_possible(job):
            fixed["load"] = "pointer"
        passes = job.passes(default.block_q, default.block_k)  # in tiles that all emitters visit
        if not any(map(reads_head, passes)):
            fixed["neighbours"] = default.neighbours
        if any(reason_against(program, job.problem) for program in passes):
            fixed["emitter"] = "triton"
        if "emitter" in fixed or not any(keeps_peak(each, job.problem) for each in passes):
            fixed["peaks"] = "each"
    return SearchSpace(phase, job.problem, device.target, fixed)


def key_for(job: Job, phase: Phase, device: Device) -> ConfigKey:
    """The key of a phase of a call in the store."""
    return key_of(job.subject(phase.name), device)


def model_of(job: Job, phase: Phase, device: Device, store: TunedStore) -> CostModel:
    """The cost model of a phase of a call, with the constants that are known of the device."""
    return CostModel(job, device.target, constants_of(device, phase, store), phase)


def constants_of(device: Device, phase: Phase, store: TunedStore) -> Constants:
    """The cost model's constants: as calibrated, else the usual ones."""
    return store.constants(device.name, phase) or usual_constants(device.target, phase)


def find_candidates(
    job: Job,
    phase: Phase,
    device: Device,
    store: TunedStore,
    pool: CompilePool | None,
    options: Options,
    report: Report = silent,
) -> Candidates:
    """What a search starts from: predicted and, for a GPU, compiled.

    Args:
        job: The call.
        phase: What is tuned.
        device: Where.
        store: Where neighbours are found.
        pool: What compiles; None on a CPU.
        options: How to tune.
        report: Told what is being done.

    Raises:
        UnsupportedError: The call has no kernel there.
        ConfigError: The phase has nothing to tune there.
    """
    start = time.monotonic()
    report(Progress("predicting"))
    space = space_for(job, phase, device)
    key = key_for(job, phase, device)
    found = store.lookup(key)
    model = model_of(job, phase, device, store)
    default = default_of(job, phase, device)
    limits = options.limits
    opened = OpenConfigs(
        job,
        phase,
        model,
        default,
        space.configs,
        pool,
        most=limits.trials * _COMPILED_FOR_EACH,
        seconds=limits.timeout * _COMPILE_SHARE - (time.monotonic() - start),
    )
    seeds = _seeds(default, found, opened.predicted, space)
    if pool is not None:
        count = min(limits.trials * _COMPILED_FOR_EACH, _FIRST_BATCHES * pool.processes)
        first = list(dict.fromkeys([*seeds, *opened.predicted]))[: max(count, len(seeds))]
        report(Progress("compiling", 0, len(first)))
        opened.compile(first, lambda done: report(Progress("compiling", done, len(first))))
    spent = time.monotonic() - start
    return Candidates(job, phase, space, key, found, default, seeds, opened, spent)


def _seeds(
    default: KernelConfig,
    found: Found,
    predicted: Mapping[KernelConfig, float],
    space: SearchSpace,
) -> tuple[KernelConfig, ...]:
    """What is tried first: the default, what the store has, the model's favourites of different
    tile shapes and emitters."""
    seeds = [default]
    if found.entry is not None:
        near = space.nearest(found.entry.kernel_config)
        seeds += [near] if near is not None else []
    shapes: set[tuple[int, int, int, str]] = set()
    for config in predicted:
        shape = (config.block_q, config.block_k, config.num_warps, config.emitter)
        if shape not in shapes:
            shapes.add(shape)
            seeds.append(config)
        if len(shapes) == _MODEL_SEEDS:
            break
    return tuple(dict.fromkeys(seeds))


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
    options: Options = USUAL,
    report: Report = silent,
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
    device = Device(target, target, "", ABSENT_MULTIPROCESSORS)
    space = space_for(job, phase, device)
    default = default_of(job, phase, device)
    model = CostModel(job, target, usual_constants(target, phase), phase)
    chosen = list(dict.fromkeys([default, *predict(model, space.configs, default, {})]))[:count]
    report(Progress("compiling", 0, len(chosen)))
    processes = min(options.processes, len(chosen))
    with CompilePool(target, device.multiprocessors, processes, options.folder) as pool:
        compiled = pool.compile(
            job,
            phase,
            chosen,
            timeout=options.limits.timeout,
            report=lambda done: report(Progress("compiling", done, len(chosen))),
        )
    predicted = predict(model, survivors(compiled), default, compiled)
    found = [
        Surveyed(config, measurement, predicted.get(config, math.inf))
        for config, measurement in compiled.items()
    ]
    return tuple(sorted(found, key=lambda one: one.predicted))
