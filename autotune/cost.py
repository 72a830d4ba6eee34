"""The cost model: seconds of a call with a config, from exact tile counts and a few constants of
the device. It orders the search and names the config to start from. Loads no torch.

One multiprocessor does `4 * block_q * block_k * head_dim` operations for a tile of the forward on
its matrix units (6 for the query's gradient, 8 for those of key and value), the softmax of the
tile's scores on its other units, and, in a partial tile, the mask. The softmax of one warp group
hides under the products of another, so how much of it counts depends on how many warp groups reside
there. On top come what a program does once, and the tail: at the end of a launch some
multiprocessors have nothing left to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from patterncc.autotune.job import Job
from patterncc.autotune.measurement import Resources
from patterncc.autotune.space import (
    CPU,
    FORWARD,
    GRAD_KEY_VALUE,
    GRAD_QUERY,
    Phase,
    programs_by_registers,
)
from patterncc.autotune.tile_facts import PassFacts, tile_facts
from patterncc.codegen.gpu.config import KernelConfig, shared_limit, visits_patches
from patterncc.codegen.gpu.gluon.warps import warps_of
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError

_KEPT = 1024  # bytes of shared memory that the device keeps of each program
_EXTRA = 1024  # bytes of barriers and of the exchange of layouts at the end
_FILE_REGISTERS = 65536
_MOST_WARPS = 64
WIDE_ROWS = 64
"""Of the widest matrix instructions, for each warp group."""
_OTHER_REGISTERS = 60
"""Registers of a thread besides its shares of the accumulators: 58 to 64 in kernels that were
compiled for `cuda:90`."""


@dataclass(frozen=True, slots=True)
class GpuConstants:
    """What the model has to know of a GPU. Fitted to measured times by `calibrate`, except for the
    first and the last.

    Attributes:
        multiprocessors: How many there are.
        products: Operations per second of one multiprocessor's matrix units.
        softmax: Scores per second of its other units.
        rows: Rows per second and tile of its other units: maxima, sums, rescaling.
        mask: Masked scores per second, on top.
        lookup: Scores per second whose mask reads a table.
        hidden_one, hidden_within, hidden_two, hidden_more: Share of the softmax that hides under
            products where one warp group resides on a multiprocessor, two of one program, two of
            two programs, or more.
        load: Bytes per second that a multiprocessor gets of keys and values.
        pointer: Seconds per byte that loads by pointers take of its other units.
        small: Share of the products' speed that is left below 64 rows or 64 per warp group, where
            the matrix units' widest instructions do not apply.
        exposed_one, exposed_two: Seconds that a program waits for each tile with one or two stages.
        start: Seconds of a program besides its tiles.
        drain: Seconds that filling and draining the pipeline of a loop takes.
        launch: Seconds of a launch.
        gluon_products: What the products of a tile take in a Gluon kernel, in units of what they
            take in one of Triton's.
        gluon_softmax, gluon_rows, gluon_mask: Scores, rows and masked scores per second, as above,
            of what such a kernel does not hide under products. Its loads hide.
        gluon_kept: The share of that, but of masks, which is left where full tiles keep the peak.
        gluon_ends: Bytes per second of the rows that a program of it reads first and writes last.
        gluon_drain: Seconds that filling and draining the pipeline of a loop takes there.
    """

    multiprocessors: float
    products: float
    softmax: float
    rows: float
    mask: float
    lookup: float
    hidden_one: float
    hidden_within: float
    hidden_two: float
    hidden_more: float
    load: float
    pointer: float
    small: float
    exposed_one: float
    exposed_two: float
    start: float
    drain: float
    launch: float
    gluon_products: float
    gluon_softmax: float
    gluon_rows: float
    gluon_mask: float
    gluon_kept: float
    gluon_ends: float
    gluon_drain: float


@dataclass(frozen=True, slots=True)
class CpuConstants:
    """What the model has to know of a CPU and its threads.

    Attributes:
        products: Operations per second.
        row: Seconds per row and tile, of a visited tile.
        mask: Seconds per score of a partial tile.
        tile: Seconds per visited tile.
        launch: Seconds of a call.
    """

    products: float
    row: float
    mask: float
    tile: float
    launch: float


Constants = GpuConstants | CpuConstants

H200 = GpuConstants(
    multiprocessors=132.0,
    products=4.55e12,
    softmax=2.1e11,
    rows=2.42e8,
    mask=3.2e10,
    lookup=2.0e10,
    hidden_one=0.175,
    hidden_within=0.575,
    hidden_two=0.73,
    hidden_more=0.75,
    load=6.1e10,
    pointer=6.6e-13,
    small=0.495,
    exposed_one=2.9e-7,
    exposed_two=7.3e-8,
    start=1.8e-6,
    drain=1.1e-6,
    launch=6.0e-6,
    gluon_products=0.501,
    gluon_softmax=3.49e10,
    gluon_rows=6.3e8,
    gluon_mask=1.01e11,
    gluon_kept=0.858,
    gluon_ends=2.33e10,
    gluon_drain=6.03e-7,
)
"""The forward's on an H200; a guess for other GPUs until `patterncc tune --calibrate` has run
there."""

GRADIENTS_H200: Mapping[str, GpuConstants] = {GRAD_QUERY.name: H200, GRAD_KEY_VALUE.name: H200}
"""Those of the gradients there, by the name of the phase."""

USUAL_CPU = CpuConstants(products=1.0e11, row=1.0e-8, mask=5.0e-10, tile=2.0e-6, launch=1.0e-4)


def constants_from(document: Mapping[str, Any]) -> Constants:
    """The constants of a JSON object.

    Raises:
        ConfigError: A constant is missing, unknown or no positive number.
    """
    kind = GpuConstants if "multiprocessors" in document else CpuConstants
    names = {each.name for each in fields(kind)}
    if set(document) != names:
        raise ConfigError(
            f"the constant {sorted(names ^ set(document))[0]!r} is missing or unknown"
        )
    for name, value in document.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
            raise ConfigError(f"the constant {name} is {value!r}")
    return kind(**document)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of a config.

    Attributes:
        seconds: Of a call.
        parts: Its parts by name, in seconds; they add up to it.
        programs: How many reside on a multiprocessor at a time.
    """

    seconds: float
    parts: Mapping[str, float]
    programs: int


class CostModel:
    """Predicts times of one call.

    Args:
        job: The call.
        target: `cpu`, or as in `codegen.gpu.config.check_config`.
        constants: Of the device, for the phase.
        phase: What is computed.
    """

    def __init__(self, job: Job, target: str, constants: Constants, phase: Phase = FORWARD) -> None:
        self._job = job
        self.phase = phase
        self._target = target
        self.constants = constants
        self._facts: dict[tuple[int, int, bool], tuple[PassFacts, ...]] = {}

    def facts(self, config: KernelConfig) -> tuple[PassFacts, ...]:
        """What the call does in a config's tiles; kept for each kind and shape of tiles."""
        on_gpu = not isinstance(self.constants, CpuConstants)
        patches = on_gpu and visits_patches(config.emitter)
        tiles = (config.block_q, config.block_k, patches)
        if tiles not in self._facts:
            shape = (config.block_q, config.block_k)
            self._facts[tiles] = tile_facts(
                self._job, *shape, self.phase, gather=on_gpu, patches=patches
            )
        return self._facts[tiles]

    def predict(self, config: KernelConfig, resources: Resources | None = None) -> Prediction:
        """The time of a config.

        Args:
            config: How the kernels are built.
            resources: What they need, where they were compiled; estimated else.

        Raises:
            UnsupportedError: The pattern has a term that has no lowering.
        """
        facts = self.facts(config)
        problem, constants = self._job.problem, self.constants
        if isinstance(constants, CpuConstants):
            return predict_cpu(facts, config, problem, constants)
        resident = resident_programs(config, self.phase, problem, self._target, resources)
        return predict_gpu(facts, config, self.phase, problem, resident, constants)

    def ranked(self, configs: Iterable[KernelConfig]) -> list[tuple[float, KernelConfig]]:
        """Predicted seconds and config, the fastest first; ties as given."""
        found = [(self.predict(config).seconds, config) for config in configs]
        return sorted(found, key=lambda pair: pair[0])

    def as_json(self) -> dict[str, float]:
        """The constants by name."""
        return asdict(self.constants)


def resident_programs(
    config: KernelConfig,
    phase: Phase,
    problem: Problem,
    target: str,
    resources: Resources | None = None,
) -> int:
    """How many programs of a config a multiprocessor holds, by shared memory and registers, as
    compiled or as estimated."""
    limit = shared_limit(target)
    if resources is None:
        sums = phase.accumulators(config, problem)
        registers = sums / (32 * config.num_warps) + _OTHER_REGISTERS
        resources = Resources(
            int(min(255, config.max_registers or 255, registers)),
            0,
            0 if limit is None else phase.shared_bytes(config, problem) + _EXTRA,
        )
    rounded, warps = 8 * math.ceil(max(resources.registers, 1) / 8), config.num_warps
    by_registers = _FILE_REGISTERS // (rounded * 32 * warps)
    if config.emitter == "gluon":  # which hands out registers, and has a warp group that loads
        by_registers, warps = programs_by_registers(warps_of(config)), warps + 4
    by_memory = _MOST_WARPS
    if limit is not None:
        by_memory = (limit + _KEPT) // (resources.shared + _KEPT)
    return max(1, min(by_registers, by_memory, _MOST_WARPS // warps))


@dataclass(frozen=True, slots=True)
class TileWork:
    """What one tile of a phase is.

    Attributes:
        held: Rows, or keys, that a program holds.
        passing: Those that pass by.
        operations: Of the products.
        loaded: Bytes of what passes by.
        ends: Bytes of the rows that a program of the forward reads first and writes last.
    """

    held: int
    passing: int
    operations: float
    loaded: float
    ends: float


def tile_work(config: KernelConfig, phase: Phase, problem: Problem) -> TileWork:
    """What one tile of a config is."""
    pairs = config.block_q * config.block_k
    keys, values = problem.head_dim, problem.value_head_dim
    item = 4 if problem.dtype == "float32" else 2
    held, passing, columns = config.block_q, config.block_k, keys + values
    if phase == GRAD_KEY_VALUE:
        held, passing, columns = passing, held, 2 * (keys + values)
    elif phase == GRAD_QUERY:
        columns += keys
    line = (keys + values) * item
    return TileWork(held, passing, 2.0 * pairs * columns, float(passing * line), float(held * line))


def predict_gpu(
    facts: tuple[PassFacts, ...],
    config: KernelConfig,
    phase: Phase,
    problem: Problem,
    resident: int,
    constants: GpuConstants,
) -> Prediction:
    """The time of a call on a GPU.

    Args:
        facts: Its passes in tiles of the config's shape.
        config: How the kernels are built.
        phase: What is computed.
        problem: Shape class.
        resident: Programs that a multiprocessor holds.
        constants: Of the device.
    """
    work = tile_work(config, phase, problem)
    pairs = config.block_q * config.block_k
    products = work.operations / constants.products
    if work.held < WIDE_ROWS * max(1, config.num_warps // 4):
        products /= constants.small
    _, hidden = hidden_share(resident, config.num_warps // 4, constants)
    softmax = pairs / constants.softmax + work.held / constants.rows
    visible = max(0.0, 1 - hidden) * softmax
    steady = 0.0  # the same where full tiles keep the peak
    if config.load == "pointer":
        visible += work.loaded * constants.pointer
    waiting = {1: constants.exposed_one, 2: constants.exposed_two}.get(config.num_stages, 0.0)
    waiting /= resident  # the others work meanwhile
    mask, least = pairs / constants.mask, work.loaded / constants.load
    start, drain = constants.start, constants.drain
    if config.emitter == "gluon":
        products *= constants.gluon_products
        # One warp group alone has nobody whose products hide its softmax: a guess, none was timed.
        alone = visible if resident * (config.num_warps // 4) <= 1 else 0.0
        own = pairs / constants.gluon_softmax + work.held / constants.gluon_rows
        visible, steady = alone + own, alone + constants.gluon_kept * own
        mask, waiting, least = pairs / constants.gluon_mask, 0.0, 0.0
        start, drain = work.ends / constants.gluon_ends, constants.gluon_drain
    parts = dict.fromkeys(
        ("products", "softmax", "loads", "mask", "programs", "tail", "launch"), 0.0
    )
    for one in facts:
        shown = steady if config.peaks == "kept" and one.keeps_peak else visible
        each = max(products + shown + waiting, least)
        once = (start + one.loops * drain) / resident
        masked = mask + (pairs / constants.lookup if one.looked_up else 0.0)
        tiles = one.visited * one.heads / constants.multiprocessors
        partial = one.visited_partial * one.heads / constants.multiprocessors
        programs = len(one.full) * one.heads / constants.multiprocessors
        parts["products"] += tiles * products
        parts["softmax"] += tiles * shown
        parts["loads"] += tiles * (each - products - shown)
        parts["mask"] += partial * masked
        parts["programs"] += programs * once
        parts["tail"] += _tail(one, config, resident, each, masked, once, constants)
        parts["launch"] += constants.launch * (2 if one.listed else 1)
    return Prediction(sum(parts.values()), parts, resident)


def hidden_share(resident: int, groups: int, constants: GpuConstants) -> tuple[str, float]:
    """The share of the softmax that hides, and its name among the constants.

    Args:
        resident: Programs on a multiprocessor.
        groups: Warp groups of each; less than four warps count as none.
        constants: Of the device.
    """
    if resident * groups <= 1:
        return "hidden_one", constants.hidden_one
    if resident * groups > 2:
        return "hidden_more", constants.hidden_more
    if resident == 1:
        return "hidden_within", constants.hidden_within
    return "hidden_two", constants.hidden_two


def _tail(
    one: PassFacts,
    config: KernelConfig,
    resident: int,
    each: float,
    masked: float,
    once: float,
    constants: GpuConstants,
) -> float:
    """Seconds in which some multiprocessors have nothing left to do: half of what a program of the
    last ones takes, later ones weighing more, or what is missing to the longest where there are too
    few to go round.

    A program's tiles take `resident` times as long as a multiprocessor spends on them.
    """
    cost = resident * (each * (one.full + one.partial) + masked * one.partial + once)
    last = cost[-one.per_head :]
    if config.order == "reverse":
        last = last[::-1]
    slots = int(constants.multiprocessors) * resident
    last = last[-min(slots, len(last)) :]
    half = 0.5 * float(np.average(last, weights=np.arange(1, len(last) + 1)))
    evenly = float(cost.sum()) * one.heads / slots
    return max(half, float(cost.max()) - evenly)


def predict_cpu(
    facts: tuple[PassFacts, ...],
    config: KernelConfig,
    problem: Problem,
    constants: CpuConstants,
) -> Prediction:
    """The time of a call on a CPU; arguments as in `predict_gpu`."""
    pairs = config.block_q * config.block_k
    both = problem.head_dim + problem.value_head_dim
    parts = dict.fromkeys(("products", "rows", "mask", "tiles", "launch"), 0.0)
    for one in facts:
        tiles = one.visited * one.heads
        parts["products"] += tiles * 2 * pairs * both / constants.products
        parts["rows"] += tiles * config.block_q * constants.row
        parts["mask"] += one.visited_partial * one.heads * pairs * constants.mask
        parts["tiles"] += tiles * constants.tile
        parts["launch"] += constants.launch
    return Prediction(sum(parts.values()), parts, 1)


def usual_constants(target: str, phase: Phase = FORWARD) -> Constants:
    """The constants for a device on which nothing was calibrated."""
    return USUAL_CPU if target == CPU else GRADIENTS_H200.get(phase.name, H200)
