"""What may be tried: the knobs of each phase, and every config of them that is legal for a problem
on a target.

Loads no torch. A phase is a value of `PHASES`; what runs it is in `measure`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import product
from typing import Any

from patterncc.codegen.gpu.backward_config import (
    grad_key_value_shared_bytes,
    grad_query_shared_bytes,
)
from patterncc.codegen.gpu.config import (
    KernelConfig,
    SharedBytes,
    check_config,
    has_tensor_memory,
    loads,
    shared_bytes,
)
from patterncc.codegen.gpu.gluon.reasons import HOPPER
from patterncc.codegen.gpu.gluon.warps import Warps, warps_of
from patterncc.codegen.gpu.head_dim import query_key_value_parts
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError

CPU = "cpu"
"""The target of the CPU executor, beside those of `codegen.gpu.config`."""

_THREAD_REGISTERS = 255
_FILE_REGISTERS = 65536  # of one multiprocessor
_OTHER_REGISTERS = 24
"""Fewest that a thread needs besides its shares of the accumulators: offsets, row sums and maxima,
bounds of loops. A lower bound, so that it never excludes a config that could be fast."""

_OTHER_OF_GLUON = 48
"""The same of a thread that computes in a Gluon kernel: with 48, tiles of 64x64 at head dimension
64 spill 40 bytes (compiled by Triton 3.6.0)."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One choice of a config.

    Attributes:
        name: Field of `KernelConfig`.
        choices: Its values; rising where they are `ordered`.
        ordered: Whether neighbouring values can be expected to do alike.
        tensor_memory: Further values where accumulators lie in tensor memory.
    """

    name: str
    choices: tuple[Any, ...]
    ordered: bool = True
    tensor_memory: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of attention that is tuned on its own.

    Attributes:
        name: As in `patterncc tune --phase` and in the store.
        gpu: Knobs of its kernel.
        cpu: Knobs of the CPU executor; empty where it has none for this phase.
        shared_bytes: Bytes of shared memory of a config.
        accumulators: How many float32 sums of tiles a program of a config holds at once, at least.
        why_not_cpu: Why there are no knobs on a CPU.
    """

    name: str
    gpu: tuple[Knob, ...]
    cpu: tuple[Knob, ...]
    shared_bytes: SharedBytes
    accumulators: Callable[[KernelConfig, Problem], int]
    why_not_cpu: str = ""

    def knobs(self, target: str) -> tuple[Knob, ...]:
        """The knobs that the phase has on a target.

        Raises:
            ConfigError: It has none there.
        """
        if target == CPU and not self.cpu:
            raise ConfigError(
                f"the phase {self.name} has nothing to tune on cpu: {self.why_not_cpu}"
            )
        found = self.cpu if target == CPU else self.gpu
        return tuple(Knob(knob.name, _choices(knob, target), knob.ordered) for knob in found)


def _choices(knob: Knob, target: str) -> tuple[Any, ...]:
    """The choices of a knob that differ on a target."""
    if knob.name == "load":
        return loads(target)
    if knob.name == "emitter" and target != HOPPER:
        return ("triton",)
    if knob.name == "peaks" and target != HOPPER:
        return knob.choices[:1]  # the others are Gluon's
    if knob.name == "max_registers" and not target.startswith("cuda"):
        return (None,)  # nobody else's compiler is told
    return (*knob.choices, *(knob.tensor_memory if has_tensor_memory(target) else ()))


def _widths(problem: Problem) -> tuple[int, int]:
    """Columns of a tile of queries or keys, and of one of values, as kernels cut them."""
    keys, values = query_key_value_parts(problem)
    return sum(part.width for part in keys), sum(part.width for part in values)


def _forward_accumulators(config: KernelConfig, problem: Problem) -> int:
    """Scores `[block_q, block_k]` and output `[block_q, value_head_dim]`."""
    return config.block_q * (config.block_k + _widths(problem)[1])


def _grad_query_accumulators(config: KernelConfig, problem: Problem) -> int:
    """Weights and their gradients `[block_q, block_k]`, and the query's gradient."""
    return config.block_q * (2 * config.block_k + _widths(problem)[0])


def _grad_key_value_accumulators(config: KernelConfig, problem: Problem) -> int:
    """Weights and their gradients `[block_k, block_q]`, and the gradients of key and value."""
    return config.block_k * (2 * config.block_q + sum(_widths(problem)))


_TILES = (16, 32, 64, 128, 256)
_LOAD = Knob("load", ("descriptor", "pointer"), ordered=False)
_ORDER = Knob("order", ("forward", "reverse"), ordered=False)
_NEIGHBOURS = Knob("neighbours", ("tiles", "heads"), ordered=False)
_TOGETHER = "the CPU executor computes all gradients together, in the tiles of the forward"

FORWARD = Phase(
    "forward",
    gpu=(
        Knob("block_q", (32, 64, 128, 256)),
        Knob("block_k", (16, 32, 64, 128, 256)),
        Knob("num_warps", (4, 8)),
        Knob("num_stages", (1, 2, 3, 4, 5, 6)),
        _LOAD,
        _ORDER,
        _NEIGHBOURS,
        # Elsewhere than in tensor memory the assembler goes up to 255 untold.
        Knob("max_registers", (None, 128, 168), ordered=False, tensor_memory=(255,)),
        Knob("emitter", ("triton", "gluon"), ordered=False),
        Knob("peaks", ("each", "kept"), ordered=False),
    ),
    cpu=(Knob("block_q", _TILES), Knob("block_k", _TILES)),
    shared_bytes=shared_bytes,
    accumulators=_forward_accumulators,
)

# Left alone, the assembler may keep gradients to few registers and spill, so 255 is a choice.
_GRADIENT_REGISTERS = Knob("max_registers", (None, 168, 255), ordered=False)

GRAD_QUERY = Phase(
    "grad_query",
    gpu=(
        Knob("block_q", (32, 64, 128)),
        Knob("block_k", (16, 32, 64, 128)),
        Knob("num_warps", (4, 8)),
        Knob("num_stages", (1, 2, 3, 4)),
        _LOAD,
        _ORDER,
        _NEIGHBOURS,
        _GRADIENT_REGISTERS,
    ),
    cpu=(),
    shared_bytes=grad_query_shared_bytes,
    accumulators=_grad_query_accumulators,
    why_not_cpu=_TOGETHER,
)

GRAD_KEY_VALUE = Phase(
    "grad_key_value",
    gpu=(
        Knob("block_q", (16, 32, 64, 128)),
        Knob("block_k", (16, 32, 64, 128)),
        Knob("num_warps", (4, 8)),
        Knob("num_stages", (1, 2, 3, 4)),
        _LOAD,
        _ORDER,
        _GRADIENT_REGISTERS,
    ),
    cpu=(),
    shared_bytes=grad_key_value_shared_bytes,
    accumulators=_grad_key_value_accumulators,
    why_not_cpu=_TOGETHER,
)

PHASES: Mapping[str, Phase] = {phase.name: phase for phase in (FORWARD, GRAD_QUERY, GRAD_KEY_VALUE)}
"""By name. A phase is added here when there are kernels to run it."""


def phase_named(name: str) -> Phase:
    """The phase of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in PHASES:
        raise ConfigError(f"there is no phase {name!r}", tuple(PHASES))
    return PHASES[name]


@dataclass(frozen=True)
class SearchSpace:
    """The legal configs of a phase for one problem on one target.

    Attributes:
        phase: What is tuned.
        problem: Shape class of the call.
        target: `cpu`, or as in `codegen.gpu.config.check_config`.
        fixed: Knobs that stay at one value: `{"load": "pointer"}` where the layout of the tensors
            allows no descriptors.
    """

    phase: Phase
    problem: Problem
    target: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        """The knobs with their choices here."""
        return tuple(
            Knob(knob.name, (self.fixed[knob.name],), knob.ordered)
            if knob.name in self.fixed
            else knob
            for knob in self.phase.knobs(self.target)
        )

    @cached_property
    def configs(self) -> tuple[KernelConfig, ...]:
        """Every legal config."""
        return tuple(config for config in self._all() if self.refusal(config) is None)

    def __contains__(self, config: object) -> bool:
        return isinstance(config, KernelConfig) and config in self._legal

    @cached_property
    def _legal(self) -> frozenset[KernelConfig]:
        return frozenset(self.configs)

    def _all(self) -> Iterator[KernelConfig]:
        names = [knob.name for knob in self.knobs]
        for values in product(*(knob.choices for knob in self.knobs)):
            yield self.config(dict(zip(names, values, strict=True)))

    def config(self, values: Mapping[str, Any]) -> KernelConfig:
        """The config of some knobs' values; what is no knob here has its default.

        Raises:
            ConfigError: There is no such knob.
        """
        unknown = set(values) - {knob.name for knob in self.knobs}
        if unknown:
            names = tuple(knob.name for knob in self.knobs)
            raise ConfigError(f"there is no knob {sorted(unknown)[0]!r} of {self._name}", names)
        return KernelConfig(**values)

    def known_config(self, values: Mapping[str, Any]) -> KernelConfig | None:
        """The config of values that another version may have written; None where it has not these
        knobs."""
        if set(values) != {knob.name for knob in self.knobs}:
            return None
        return KernelConfig(**values)

    def values(self, config: KernelConfig) -> dict[str, Any]:
        """The knobs' values of a config, by name."""
        return {knob.name: getattr(config, knob.name) for knob in self.knobs}

    def nearest(self, config: KernelConfig) -> KernelConfig | None:
        """The legal config with the fewest changes of knobs, steps of ordered ones counted; itself
        where it is legal. None where nothing is legal."""
        wanted = self.values(config)
        if config in self._legal:
            return config

        def distance(other: KernelConfig) -> float:
            total = 0.0
            for knob in self.knobs:
                value = getattr(other, knob.name)
                if value == wanted[knob.name]:
                    continue
                known = knob.ordered and wanted[knob.name] in knob.choices
                steps = knob.choices.index(value) - (
                    knob.choices.index(wanted[knob.name]) if known else 0
                )
                total += abs(steps) if known else 1.5
            return total

        return min(self.configs, key=distance, default=None)

    def refusal(self, config: KernelConfig) -> str | None:
        """Why a config is illegal here, in words; None where it is legal."""
        for knob in self.knobs:
            if getattr(config, knob.name) not in knob.choices:
                return f"{knob.name}={getattr(config, knob.name)!r} is no choice of {self._name}"
        if self.target == CPU:
            return None
        try:
            check_config(config, self.problem, self.target, self.phase.shared_bytes)
        except ConfigError as error:
            return error.message
        return _register_refusal(config, self.phase, self.problem, self.target)

    @property
    def _name(self) -> str:
        return f"{self.phase.name} on {self.target}"


def config_values(config: KernelConfig, phase: Phase, target: str) -> dict[str, Any]:
    """The knobs' values of a config, by name, as they are stored."""
    return {knob.name: getattr(config, knob.name) for knob in phase.knobs(target)}


def config_from(values: Mapping[str, Any]) -> KernelConfig:
    """The config of stored values.

    Raises:
        ConfigError: A knob is unknown, or its value is of another type.
    """
    types = {each.name: type(each.default) for each in fields(KernelConfig)}
    for name, value in values.items():
        if name not in types:
            raise ConfigError(f"there is no knob {name!r}", tuple(types))
        wanted = (int, type(None)) if name == "max_registers" else (types[name],)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise ConfigError(f"{name} is {value!r}", tuple(kind.__name__ for kind in wanted))
    return KernelConfig(**values)


def _register_refusal(
    config: KernelConfig, phase: Phase, problem: Problem, target: str
) -> str | None:
    """Why the registers of a thread cannot hold its shares of the accumulators, or None.

    Where accumulators lie elsewhere (tensor memory of compute capability 10, the accumulation
    registers of AMD) nothing is refused.
    """
    if not target.startswith("cuda") or has_tensor_memory(target):
        return None
    if config.emitter == "gluon":
        return _gluon_register_refusal(config, problem)
    threads = 32 * config.num_warps
    needed = -(-phase.accumulators(config, problem) // threads) + _OTHER_REGISTERS
    most = min(_THREAD_REGISTERS, _FILE_REGISTERS // threads)
    if config.max_registers is not None:
        most = min(most, config.max_registers)
    if needed > most:
        return (
            f"accumulators of {config.block_q}x{config.block_k} tiles take at least {needed} "
            f"registers of each thread of {config.num_warps} warps, which may have {most}"
        )
    return None


def programs_by_registers(warps: Warps) -> int:
    """How many programs of a Gluon kernel the registers of a multiprocessor hold."""
    return _FILE_REGISTERS // (warps.at_start * 128 * (warps.computing + 1))


def _gluon_register_refusal(config: KernelConfig, problem: Problem) -> str | None:
    """Why the registers of a thread that computes in a Gluon kernel cannot hold what it has to, or
    a cap of them is of no use, or None.

    The next scores are computed while the last weights, 16 bits each, are multiplied.
    """
    scores = config.block_q * config.block_k
    held = scores + scores // 2 + config.block_q * _widths(problem)[1]
    warps = warps_of(config)
    needed = held // (32 * config.num_warps) + _OTHER_OF_GLUON
    if config.max_registers is not None:
        alone = warps_of(replace(config, max_registers=None))
        if programs_by_registers(warps) <= programs_by_registers(alone):
            return f"max_registers={config.max_registers} makes room for no further program"
    if needed > min(_THREAD_REGISTERS, warps.computing_registers):
        return (
            f"Gluon's {config.block_q}x{config.block_k} tiles take at least {needed} registers of "
            f"each thread that computes, which may have {warps.computing_registers}"
        )
    return None
