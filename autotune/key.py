"""`ConfigKey`: what a tuned config is for, field by field, and how far two of them are apart.

Loads no torch. Lengths and densities are in buckets of powers of two, so that calls which differ
little share a config.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from patterncc.codegen.choice import lower_passes, pass_name
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.codegen.gpu.config import tile_order
from patterncc.codegen.ir import BlockProgram, Passes
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import Entry, Member, variables, walk

GROWING = "growing"
"""In the class of a pattern whose later rows see more keys."""

BY_HEAD = "by head"
"""In the class of a pattern whose heads may visit different tiles."""

_CLASS_TILE = 64  # the tile shape whose sweeps name a pattern's class
_DENSITIES_KEPT = 4096
_MOST_COUNTED_HEADS = 8  # of a pattern whose heads differ, evenly spread, for its density bucket


@dataclass(frozen=True, slots=True)
class Device:
    """A device that configs are tuned for.

    Attributes:
        name: In words: `NVIDIA H200`; of a CPU with the threads that torch uses.
        target: `cuda:90`, `hip:gfx942`, `cpu`.
        compiler: `triton 3.6.0`; on a CPU `torch 2.13.0`.
        multiprocessors: Of a GPU; threads of a CPU.
    """

    name: str
    target: str
    compiler: str
    multiprocessors: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tuned, or looked up, whatever the device: a phase of a call.

    Attributes:
        structure: Canonical text of the pattern without run-time defaults.
        problem: Shape class.
        phase: Name of a `space.Phase`.
        numbers: Run-time numbers by name, in the order of names.
        q_len, kv_len, heads, kv_heads, layers: Of the call.
    """

    structure: str
    problem: Problem
    phase: str
    numbers: tuple[tuple[str, int], ...]
    q_len: int
    kv_len: int
    heads: int
    kv_heads: int
    layers: int = 1

    @property
    def bucketed(self) -> Subject:
        """The same with lengths that stand for all of their buckets."""
        return replace(self, q_len=length_bucket(self.q_len), kv_len=length_bucket(self.kv_len))

    @property
    def sizes(self) -> dict[str, int]:
        """What a pattern may divide by."""
        return {"heads": self.heads, "kv_heads": self.kv_heads, "layers": self.layers}


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """What a config was tuned for, or is wanted for.

    Attributes:
        device: Its name in words, `NVIDIA H200`; of a CPU with the threads that torch uses.
        target: `cuda:90`, `hip:gfx942`, `cpu`.
        compiler: Whose code runs: `triton 3.6.0`; on a CPU `torch 2.13.0`.
        pattern: Canonical text without run-time defaults.
        pattern_class: How it falls into loops, `pattern_class`.
        phase: Name of a `space.Phase`.
        dtype, head_dim, value_head_dim, group: The problem.
        q_len, kv_len: Buckets of the lengths.
        density: Bucket of the share of visible pairs; None where a table decides it.
    """

    device: str
    target: str
    compiler: str
    pattern: str
    pattern_class: str
    phase: str
    dtype: str
    head_dim: int
    value_head_dim: int
    group: int
    q_len: int
    kv_len: int
    density: float | None

    def as_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> ConfigKey:
        """The key of fields by name.

        Raises:
            ConfigError: A field is missing, unknown or of another type.
        """
        names = {each.name for each in fields(ConfigKey)}
        if set(document) != names:
            wrong = sorted(names ^ set(document))[0]
            raise ConfigError(f"the field {wrong!r} of a key is missing or unknown", tuple(names))
        for name, value in document.items():
            wanted = _TYPES[name]
            if isinstance(value, bool) or not isinstance(value, wanted):
                raise ConfigError(f"the field {name} of a key is {value!r}")
        return ConfigKey(**document)

    @property
    def family(self) -> tuple[Any, ...]:
        """What must agree for a config to be of any use: the fields that no neighbour may differ
        in."""
        return self.phase, self.target, self.dtype, self.head_dim, self.value_head_dim


_NUMBERS = {"head_dim", "value_head_dim", "group", "q_len", "kv_len"}
_TYPES: dict[str, tuple[type, ...]] = {
    each.name: (int,)
    if each.name in _NUMBERS
    else (float, int, type(None))
    if each.name == "density"
    else (str,)
    for each in fields(ConfigKey)
}

FAMILY_FIELDS = ("phase", "target", "dtype", "head_dim", "value_head_dim")

# What a differing field costs; of lengths and densities, each factor of two. A config travels well
# between lengths, worse between patterns, and hardly between classes of them: a window and a causal
# mask of one density want other tiles.
_COSTS: tuple[tuple[str, float], ...] = (
    ("compiler", 1.0),
    ("group", 0.5),
    ("q_len", 1.0),
    ("kv_len", 0.5),
    ("density", 2.0),
    ("device", 4.0),
    ("pattern", 3.0),
    ("pattern_class", 8.0),
)
_HALVINGS = {"q_len", "kv_len", "density"}
_UNKNOWN_DENSITY = 2.0  # halvings that one unknown density stands for

FARTHEST = 16.0
"""Neighbours farther away than this are of no use: the cost model knows better."""


def distance(wanted: ConfigKey, known: ConfigKey) -> float:
    """How little a config tuned for `known` says about `wanted`; infinite between families."""
    if wanted.family != known.family:
        return math.inf
    total = 0.0
    for name, cost in _COSTS:
        one, other = getattr(wanted, name), getattr(known, name)
        if one == other:
            continue
        if name in _HALVINGS:
            unknown = not one or not other
            cost *= _UNKNOWN_DENSITY if unknown else abs(math.log2(one / other))
        total += cost
    return total


def differences(wanted: ConfigKey, known: ConfigKey) -> tuple[str, ...]:
    """The fields that differ, in words: what was wanted, and what is known."""
    found = []
    for each in fields(ConfigKey):
        one, other = getattr(wanted, each.name), getattr(known, each.name)
        if one != other:
            found.append(f"{each.name}: {_shown(one)} wanted, {_shown(other)} tuned")
    return tuple(found)


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"1/{round(1 / value)}" if 0 < value < 1 else f"{value:g}"
    return str(value)


# ------------------------------------------------------------------------------------- the buckets


def length_bucket(length: int) -> int:
    """The power of two nearest to a length, by ratio."""
    return 1 << round(math.log2(length)) if length > 0 else 0


def density_bucket(density: float) -> float:
    """The power of two nearest to a density; what sees next to nothing is 2^-20."""
    return 2.0 ** max(-20, round(math.log2(density))) if density > 0 else 2.0**-20


@functools.lru_cache(maxsize=_DENSITIES_KEPT)
def pattern_density(subject: Subject) -> float | None:
    """The density bucket of a call whose lengths are buckets and whose rows are the last ones.

    Counted exactly, once for each such call, at layer 0; None where the pattern reads a table, or
    is too intricate to count.
    """
    pattern = load(subject.structure)
    if pattern.tables:
        return None
    heads, group = subject.heads, subject.heads // subject.kv_heads
    env: dict[str, Any] = {
        **subject.sizes,
        **dict(subject.numbers),
        "q_len": subject.q_len,
        "kv_len": subject.kv_len,
        "q_offset": subject.kv_len - subject.q_len,
        "layer": 0,
        "batch": 0,
    }
    try:
        within = subject.q_len <= subject.kv_len
        program = pair_program(pattern, subject.sizes, within=within, transposed=False)
        counted = range(heads)[:: max(1, heads // _MOST_COUNTED_HEADS)]
        if not {"head", "kv_head"} & variables(pattern.body):
            counted = range(1)
        pairs = sum(
            int(count_pairs(program, {**env, "head": head, "kv_head": head // group}).rows.sum())
            for head in counted
        )
    except UnsupportedError:
        return None
    return density_bucket(pairs / (len(counted) * subject.q_len * subject.kv_len))


@functools.lru_cache(maxsize=_DENSITIES_KEPT)
def class_of(structure: str, heads: int, kv_heads: int, layers: int) -> str:
    """The class of a pattern, of its dense or strided passes at the usual tile shape.

    Raises:
        UnsupportedError: For a term that has no lowering.
    """
    sizes = {"heads": heads, "kv_heads": kv_heads, "layers": layers}
    return pattern_class(
        lower_passes(
            load(structure), _CLASS_TILE, _CLASS_TILE, sizes=sizes, within=True, transposed=False
        )
    )


def pattern_class(passes: Passes) -> str:
    """What the passes of a pattern are like, in words that two patterns share if one config is
    likely to suit both: their variables, whether later rows see more, what tables decide."""
    return " + ".join(map(_program_class, passes))


def _program_class(program: BlockProgram) -> str:
    words = [pass_name(program)]
    words.append(GROWING if tile_order(program) == "reverse" else "even")
    if not any(sweep.kind == "full" for sweep in program.forward):
        words.append("all partial")
    if reads_head(program):
        words.append(BY_HEAD)
    if program.listed:
        words.append("listed")
    if any(
        isinstance(node, Entry | Member) and {"q", "k"} <= variables(node)
        for node in walk(program.mask)
    ):
        words.append("pairs looked up")
    return ", ".join(words)


def reads_head(program: BlockProgram) -> bool:
    """Whether heads may visit different tiles: the bounds of sweeps read which head it is."""
    bounds = (bound for sweep in program.forward for bound in sweep.bounds)
    return any({"head", "kv_head"} & variables(bound) for bound in bounds)


def key_of(subject: Subject, device: Device) -> ConfigKey:
    """The key of a phase of a call on a device.

    Raises:
        UnsupportedError: The pattern has a term that has no lowering.
    """
    problem, wanted = subject.problem, subject.bucketed
    return ConfigKey(
        device.name,
        device.target,
        device.compiler,
        subject.structure,
        class_of(subject.structure, subject.heads, subject.kv_heads, subject.layers),
        subject.phase,
        problem.dtype,
        problem.head_dim,
        problem.value_head_dim,
        problem.group,
        wanted.q_len,
        wanted.kv_len,
        pattern_density(replace(wanted, phase="")),
    )
