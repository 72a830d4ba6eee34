"""How the passes of a pattern become launches, whatever kernels they need: which config, which
program, which sources.

A `PassPlanner` plans one kind of kernel, one pass of the pattern after another. Knows neither torch
nor triton.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from patterncc.codegen.classes import row_classes
from patterncc.codegen.gpu.config import (
    Emitter,
    KernelConfig,
    SharedBytes,
    check_config,
    narrowed,
    visits_patches,
)
from patterncc.codegen.gpu.gluon.reasons import reason_against
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launches import Call, Launch
from patterncc.codegen.ir import BlockProgram, Passes
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import evaluate
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.mask import TRUE, variables

Lowered: TypeAlias = Callable[[int, int], Sequence[Passes]]
"""Lowers for a tile shape `(block_q, block_k)`: alternatives, the most special one first, one that
assumes nothing last. After one in patches of a raster comes the same in consecutive tiles, for
emitters whose kernels visit no patches."""

KeyWidth: TypeAlias = Callable[[int, int], int]
"""How wide key tiles start out, for the `(block_q, block_k)` of a default: what
`codegen.key_width` counts."""

Special: TypeAlias = Callable[[Call], KernelConfig | None]
"""The config of a kernel for one target that goes before the default of a call there; None where it
does not pay, or cannot be."""

Tuned: TypeAlias = Callable[[Call], KernelConfig | None]
"""The config that was tuned for a call, or for one like it; None where there is none."""


class Sources:
    """Kernels of one pattern, each written once."""

    def __init__(self) -> None:
        self._written: dict[tuple[Any, ...], tuple[BlockProgram, KernelSource]] = {}

    def get(
        self,
        emit: Callable[..., KernelSource],
        program: BlockProgram,
        problem: Problem,
        config: KernelConfig,
        **options: bool | str | None,
    ) -> KernelSource:
        """What an emitter writes for a program, with its further options."""
        # By identity, for a program is slow to hash; kept beside the source, so that no other
        # program can come to have its identity.
        place = (emit, id(program), problem, config, *options.items())
        if place not in self._written:
            self._written[place] = program, emit(program, problem, config, **options)
        return self._written[place][1]


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of a call.

    Attributes:
        program: The pass.
        config: How to build its kernel.
        resumes: It starts from what an earlier pass left.
        hands_on: It leaves its result for a later pass.
    """

    program: BlockProgram
    config: KernelConfig
    resumes: bool
    hands_on: bool


class _Default(Protocol):
    def __call__(
        self, problem: Problem, target: str, *, descriptors: bool = True
    ) -> KernelConfig: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """What a planner must know of a kind of kernel.

    Attributes:
        default: The config to start from, by problem and target; `descriptors` says whether the
            layout of the tensors allows them.
        suited: The default config of one program.
        shared_bytes: Shared memory of a config.
        obstacle: Why tensor descriptors are impossible for some pass, or None.
        launches: The launches of one pass, in order.
        emitters: What can write its kernels.
    """

    default: _Default
    suited: Callable[[KernelConfig, Problem, str, BlockProgram], KernelConfig]
    shared_bytes: SharedBytes
    obstacle: Callable[[Passes, Call], str | None]
    launches: Callable[[Pass, Call, Sources], Iterator[Launch]]
    emitters: tuple[Emitter, ...] = ("triton",)


class PassPlanner:
    """Plans the kernels of one kind for the calls of one pattern.

    Args:
        lower: Gives the pattern's passes for a tile shape.
        kind: The kind of kernel.
        config: Of every kernel; None takes what `tuned` has, else the default for each problem and
            target, which loads by descriptors where the target has them and the layout of the
            tensors allows them.
        tuned: Asked where no config is given. One that loads by descriptors is not taken where the
            layout of the tensors does not allow them.
        key_width: Narrows the key tiles of a default config; None leaves them.
        special: Asked for the default before that; None has none.
    """

    def __init__(
        self,
        lower: Lowered,
        kind: Kind,
        config: KernelConfig | None = None,
        tuned: Tuned | None = None,
        key_width: KeyWidth | None = None,
        special: Special | None = None,
    ) -> None:
        self._lower = lower
        self._key_width = key_width
        self._special = special
        self._kind = kind
        self._config = config
        self._tuned = tuned
        self._alternatives: dict[tuple[int, int], Sequence[Passes]] = {}
        self._sources = Sources()
        # By identity of the program, which is kept beside: programs are slow to hash.
        self._suited: dict[tuple[Any, ...], tuple[BlockProgram, KernelConfig]] = {}

    def launches(self, call: Call) -> tuple[Launch, ...]:
        """The launches of all passes, in the order in which they must run.

        Raises:
            UnsupportedError: A table or lists of tiles are too large, or no kernel does this
                problem.
            ConfigError: The config is illegal for the problem, the target or the layout, or the
                pattern reads a scalar or a table that the call does not give.
        """
        kind = self._kind
        config, passes, adaptable = self._choose(call)
        check_config(config, call.problem, call.target, kind.shared_bytes)
        if config.emitter not in kind.emitters:
            raise ConfigError(f"emitter={config.emitter!r} writes no such kernels", kind.emitters)
        last = len(passes) - 1
        launches: list[Launch] = []
        for number, program in enumerate(passes):
            own = config
            if adaptable:
                own = self._adapted(config, call, program)
            one = Pass(program, own, number > 0, number < last)
            launches += kind.launches(one, call, self._sources)
        return tuple(launches)

    def _adapted(self, config: KernelConfig, call: Call, program: BlockProgram) -> KernelConfig:
        """A default config as it suits a program."""
        place = (id(program), config, call.problem, call.target)
        if place not in self._suited:
            own = self._kind.suited(config, call.problem, call.target, program)
            self._suited[place] = program, own
        return self._suited[place][1]

    def _choose(self, call: Call) -> tuple[KernelConfig, Passes, bool]:
        """Config and passes of a call, by descriptors if nothing stands against them; and whether
        the config is a default, which each pass may adapt."""
        tuned = self._tuned(call) if self._config is None and self._tuned is not None else None
        if tuned is not None:
            passes = self._passes(tuned, call.env)
            if self._fits(tuned, passes, call):
                return tuned, passes, False
        if self._config is None and self._special is not None:
            special = self._special(call)
            if special is not None:
                passes = self._passes(special, call.env)
                if self._fits(special, passes, call):
                    return special, passes, True
        config = self._config or self._default(call)
        passes = self._passes(config, call.env)
        obstacle = None
        if config.load == "descriptor":
            obstacle = self._kind.obstacle(passes, call)
        if obstacle is None:
            return config, passes, self._config is None
        if self._config is not None:
            raise ConfigError(f"load='descriptor' is impossible: {obstacle}", ("pointer",))
        config = self._default(call, descriptors=False)
        return config, self._passes(config, call.env), True

    def _fits(self, config: KernelConfig, passes: Passes, call: Call) -> bool:
        """Can a config that nobody asked for by name be had for a call?"""
        if config.emitter == "gluon" and any(reason_against(one, call.problem) for one in passes):
            return False
        return config.load != "descriptor" or self._kind.obstacle(passes, call) is None

    def _default(self, call: Call, *, descriptors: bool = True) -> KernelConfig:
        config = self._kind.default(call.problem, call.target, descriptors=descriptors)
        if self._key_width is None:
            return config
        return narrowed(config, self._key_width(config.block_q, config.block_k))

    def _passes(self, config: KernelConfig, env: Mapping[str, int]) -> Passes:
        """The first alternative that the config's emitter visits and whose assumptions the call
        meets."""
        tile = (config.block_q, config.block_k)
        if tile not in self._alternatives:
            self._alternatives[tile] = self._lower(*tile)
        return first_that_holds(self._alternatives[tile], env, config.emitter)


def first_that_holds(
    alternatives: Sequence[Passes], env: Mapping[str, int], emitter: Emitter
) -> Passes:
    """The first of the lowered alternatives that an emitter's kernels visit and whose assumptions a
    call meets.

    Raises:
        ConfigError: There is none.
    """
    for passes in alternatives:
        if not visits_patches(emitter) and any(one.patches is not None for one in passes):
            continue
        if all(_holds(program, env) for program in passes):
            return passes
    raise ConfigError("no program of the pattern was lowered for a call like this one")


def _holds(program: BlockProgram, env: Mapping[str, int]) -> bool:
    """Does the call, in each of its classes of rows, meet what the program takes for granted?"""
    return program.assume == TRUE or all(
        bool(evaluate(program.assume, part.env))
        for scope in _scopes(program, env)
        for part in row_classes(program, scope)
    )


def _scopes(program: BlockProgram, env: Mapping[str, int]) -> Iterator[Mapping[str, int]]:
    """The call's numbers; for each of its heads, where these have classes of their own."""
    if not variables(program.tiling.k_class) & {"head", "kv_head"}:
        yield env
        return
    group = env["heads"] // env["kv_heads"]
    for head in range(env["heads"]):
        yield {**env, "head": head, "kv_head": head // group}
