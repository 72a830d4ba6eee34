"""What a call launches: config, programs, sources and grids, from sizes and strides.

A `Planner` plans one kind of kernel, one pass of the pattern after another; `FORWARD` is the kind
of the forward kernels. Knows neither torch nor triton; `launch` compiles and runs what is planned
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import numpy as np

from patterncc.codegen.classes import row_classes
from patterncc.codegen.gpu.config import (
    Emitter,
    KernelConfig,
    SharedBytes,
    check_config,
    default_config,
    narrowed,
    shared_bytes,
    suited,
)
from patterncc.codegen.gpu.emitter_choice import emitter_of
from patterncc.codegen.gpu.forward_source import emit_forward_repair
from patterncc.codegen.gpu.gluon.reasons import reason_against
from patterncc.codegen.gpu.isolation_source import SPOILED, grid_values, repair_grid
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.kernel_terms import SCALE
from patterncc.codegen.gpu.launches import (
    Buffer,
    Call,
    Launch,
    call_of,
    ceildiv,
    planned_launch,
)
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.gpu.list_source import emit_lists, list_axes
from patterncc.codegen.gpu.run_list_source import RUNS_AT_ONCE, emit_run_lists
from patterncc.codegen.gpu.table_sum_source import (
    PLACES_AT_ONCE,
    emit_table_sums,
    sum_name,
    summed_tables,
)
from patterncc.codegen.ir import DENSE, BlockProgram, Passes
from patterncc.codegen.listing import ranked
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import evaluate, extents
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import TRUE

Lowered: TypeAlias = Callable[[int, int], Sequence[Passes]]
"""Lowers for a tile shape `(block_q, block_k)`: alternatives, the most special one first, one that
assumes nothing last."""

MOST_LISTED = 2 << 30
"""Most bytes of lists of tiles at once."""

MOST_GATHERED = 3 << 29
"""Bytes of lists of runs that are made at once, for some of the query tiles, where those of all
would take more."""

_LEAST_SCALE = 1.0e-35
"""Stands for 0: so small that scaled scores vanish beside the logarithm of a count of keys."""


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
        **options: bool | str,
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
    obstacle: Callable[[Passes, Mapping[str, Layout]], str | None]
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
            if tuned.load != "descriptor" or self._kind.obstacle(passes, call.layouts) is None:
                return tuned, passes, False
        if self._config is None and self._special is not None:
            special = self._special(call)
            if special is not None:
                passes = self._passes(special, call.env)
                able = all(reason_against(program, call.problem) is None for program in passes)
                if able and self._kind.obstacle(passes, call.layouts) is None:
                    return special, passes, True
        config = self._config or self._default(call)
        passes = self._passes(config, call.env)
        obstacle = None
        if config.load == "descriptor":
            obstacle = self._kind.obstacle(passes, call.layouts)
        if obstacle is None:
            return config, passes, self._config is None
        if self._config is not None:
            raise ConfigError(f"load='descriptor' is impossible: {obstacle}", ("pointer",))
        config = self._default(call, descriptors=False)
        return config, self._passes(config, call.env), True

    def _default(self, call: Call, *, descriptors: bool = True) -> KernelConfig:
        config = self._kind.default(call.problem, call.target, descriptors=descriptors)
        if self._key_width is None:
            return config
        return narrowed(config, self._key_width(config.block_q, config.block_k))

    def _passes(self, config: KernelConfig, env: Mapping[str, int]) -> Passes:
        """The first alternative whose assumptions the call meets."""
        tile = (config.block_q, config.block_k)
        if tile not in self._alternatives:
            self._alternatives[tile] = self._lower(*tile)
        for passes in self._alternatives[tile]:
            if all(_holds(program, env) for program in passes):
                return passes
        raise ConfigError("no program of the pattern was lowered for a call like this one")


def _holds(program: BlockProgram, env: Mapping[str, int]) -> bool:
    """Does the call, in each of its classes of rows, meet what the program takes for granted?"""
    return program.assume == TRUE or all(
        bool(evaluate(program.assume, part.env)) for part in row_classes(program, env)
    )


# ------------------------------------------------------------------------------------ query tiles


def query_tile_launches(
    emit: Callable[..., KernelSource],
    repair: Callable[..., KernelSource],
    one: Pass,
    call: Call,
    sources: Sources,
    buffers: tuple[Buffer, ...] = (),
) -> Iterator[Launch]:
    """The launches of a pass whose kernel runs a program for each query tile: the one that lists
    its tiles, where tables decide them, the kernel, and the one that repairs.

    Args:
        emit: Writes the kernel.
        repair: Writes the one that repairs what it has spoiled.
        one: The pass.
        call: The call.
        sources: Kernels that are written already.
        buffers: Memory that the kernel is the first to need.
    """
    program, problem, config = one.program, call.problem, one.config
    step = program.tiling.q_step
    tiles = step * ceildiv(ceildiv(call.q_len, step), config.block_q)
    between = {"resumes": one.resumes, "hands_on": one.hands_on}
    source = sources.get(emit, program, problem, config, **between)
    k_step = program.tiling.k_step

    def kernel(tiles: int, numbers: Mapping[str, int]) -> Iterator[Launch]:
        grid = (tiles, call.heads, call.batch)
        room = (*buffers, *spoiled_buffer(source, grid))
        yield planned_launch(source, grid, call, step=k_step, numbers=numbers, buffers=room)
        if may_spoil(source):
            repairing = sources.get(repair, program, problem, config, **between)
            yield repair_launch(repairing, grid, call, numbers)

    yield from sum_launches(program, config, call, sources)
    if ranked(program):
        yield _run_lists(program, problem, config, call, sources)
        yield from kernel(tiles, {})
    elif program.gathered > 1 or program.listed:
        lists = sources.get(emit_lists, program, problem, config)
        capacity = 1 + _most_tiles(program, call)
        by_head, by_batch = list_axes(program).grid(call.heads, problem.group, call.batch)
        turns = _turns(program, config, tiles, 4 * capacity * by_head * by_batch)
        rows = max(count for _, count in turns) * by_head * by_batch
        check_lists(rows, capacity)
        room: tuple[Buffer, ...]
        room = (Buffer("tiles", (rows, capacity)), Buffer("tile_counts", (rows, 2)))
        for first, count in turns:
            numbers = {"tile_capacity": capacity, "first_tile": first}
            grid = (count, by_head, by_batch)
            yield planned_launch(lists, grid, call, numbers=numbers, buffers=room)
            yield from kernel(count, numbers)
            room, buffers = (), ()  # the first turn's are there
    else:
        yield from kernel(tiles, {})


def spoiled_buffer(source: KernelSource, grid: tuple[int, int, int]) -> tuple[Buffer, ...]:
    """Where the programs of a kernel leave whether their sums are spoiled, if they can be."""
    return (Buffer("spoiled", (prod(grid),)),) if may_spoil(source) else ()


def may_spoil(source: KernelSource) -> bool:
    """Is there a kernel that repairs what this one may spoil?"""
    return SPOILED in source.parameters


def repair_launch(
    source: KernelSource, grid: tuple[int, int, int], call: Call, numbers: Mapping[str, int]
) -> Launch:
    """The launch that repairs what a kernel over `grid` has spoiled.

    Args:
        source: The kernel that repairs.
        grid: Of the one before it.
        call: The call.
        numbers: Values of parameters that the call does not have.
    """
    numbers = {**numbers, **grid_values(grid)}
    return planned_launch(source, repair_grid(grid), call, numbers=numbers)


def sum_launches(
    program: BlockProgram, config: KernelConfig, call: Call, sources: Sources
) -> Iterator[Launch]:
    """The launches that count the true entries of the tables whose counts listing reads."""
    for name in summed_tables(program):
        source = sources.get(emit_table_sums, program, call.problem, config, name=name)
        *front, last = call.shapes.get(name, (0,))  # a missing one is named when arguments are
        rows = prod(front)
        grid = (rows * (last // PLACES_AT_ONCE + 1), 1, 1)
        room = (Buffer(sum_name(name), (rows, last + 1)),)
        yield planned_launch(source, grid, call, buffers=room)


def _run_lists(
    program: BlockProgram, problem: Problem, config: KernelConfig, call: Call, sources: Sources
) -> Launch:
    """The launch that lists the runs of a program, once for all query tiles."""
    runs = ceildiv(call.kv_len, program.block_k)
    by_head, by_batch = list_axes(program).grid(call.heads, problem.group, call.batch)
    rows = by_head * by_batch
    check_lists(rows, runs + 1)
    source = sources.get(emit_run_lists, program, problem, config)
    grid = (ceildiv(runs + 1, RUNS_AT_ONCE), by_head, by_batch)
    room = (Buffer("runs", (rows, runs)), Buffer("run_ranks", (rows, runs + 1)))
    return planned_launch(source, grid, call, buffers=room)


def _turns(
    program: BlockProgram, config: KernelConfig, tiles: int, size: int
) -> list[tuple[int, int]]:
    """The first of the query tiles that are launched together, and their number. Runs of keys are
    many: the lists of all query tiles at once could take more memory than there is.

    Args:
        program: What is listed.
        config: How to build its kernel.
        tiles: All query tiles.
        size: Bytes of the lists of each.
    """
    count = tiles
    if program.gathered > 1:
        most = max(MOST_GATHERED // size, 1)
        count = ceildiv(tiles, ceildiv(tiles, most))  # a short turn would leave the device idle
    turns = [(first, min(count, tiles - first)) for first in range(0, tiles, count)]
    return turns if config.order == "forward" else turns[::-1]


def query_tile_obstacle(
    rows: Sequence[str], passes: Passes, layouts: Mapping[str, Layout]
) -> str | None:
    """Why tensor descriptors are impossible for some pass of such a kernel, or None.

    Args:
        rows: The tensors of which it loads query tiles.
        passes: The passes.
        layouts: Of the call's tensors.
    """
    for program in passes:
        tiling = program.tiling
        # Rows of a class are loaded once, by pointers.
        for name in (*(rows if tiling == DENSE else ()), "key", "value"):
            obstacle = layouts[name].descriptor_obstacle(tiling.k_step)
            if obstacle is not None:
                return obstacle
        kv_len = layouts["key"].sizes[2]
        least = kv_len // tiling.k_step
        if tiling.k_step > 1 and least < program.block_k:
            return (
                f"of {kv_len} keys every {tiling.k_step}th are {least}, "
                f"less than a tile of {program.block_k}"
            )
    return None


def check_lists(rows: int, capacity: int) -> None:
    """Refuses lists of tiles that take more memory than `MOST_LISTED`."""
    size = 4 * rows * capacity
    if size > MOST_LISTED:
        raise UnsupportedError(
            f"lists of {capacity - 1} tiles for each of {rows} query tiles take "
            f"{size / 2**30:.1f} GiB",
            f"at most {MOST_LISTED // 2**30} GiB: split the call, or take larger tiles",
        )


def _most_tiles(program: BlockProgram, call: Call) -> int:
    """A bound of the tiles that the sweeps visit for one query tile: the most at this call, or all
    tiles where that depends on what only the device knows, such as the head or a table."""
    heads = call.heads
    env = {**call.env, "heads": heads, "kv_heads": heads // call.problem.group}
    try:
        return max(_longest(program, part.env) for part in row_classes(program, env))
    except KeyError:
        return ceildiv(ceildiv(call.kv_len, program.tiling.k_step), program.block_k)


def _longest(program: BlockProgram, env: Mapping[str, int]) -> int:
    """The most tiles that the sweeps visit for one query tile of a class of rows.

    Raises:
        KeyError: They read what `env` does not have.
    """
    counts: Any = sum(count for _, _, count, _ in extents(program, env))
    return int(np.max(counts))


# ------------------------------------------------------------------------------------ forward


def _forward_launches(one: Pass, call: Call, sources: Sources) -> Iterator[Launch]:
    obstacle = call.layouts["out"].descriptor_obstacle()
    if one.config.emitter == "gluon" and obstacle is not None:
        raise ConfigError(f"emitter='gluon' is impossible: {obstacle}", ("triton",))
    return query_tile_launches(
        emitter_of(one.config),
        emit_forward_repair,
        one,
        call,
        sources,
        state_buffer("state", one, call, "value"),
    )


def state_buffer(name: str, one: Pass, call: Call, like: str) -> tuple[Buffer, ...]:
    """The float32 rows `[batch, heads, q_len, width]` that the first of several passes leaves, as
    wide as those of the tensor `like`; a float32 result holds them itself."""
    if one.resumes or not one.hands_on or call.problem.dtype == "float32":
        return ()
    width = call.layouts[like].sizes[3]
    return (Buffer(name, (call.batch, call.heads, call.q_len, width), "float32"),)


def _forward_obstacle(passes: Passes, layouts: Mapping[str, Layout]) -> str | None:
    return query_tile_obstacle(("query",), passes, layouts)


FORWARD = Kind(
    default_config,
    suited,
    shared_bytes,
    _forward_obstacle,
    _forward_launches,
    ("triton", "gluon"),
)


class Planner:
    """Plans the forward calls of one pattern.

    Args:
        lower, config, tuned, key_width, special: As of `PassPlanner`.
    """

    def __init__(
        self,
        lower: Lowered,
        config: KernelConfig | None = None,
        tuned: Tuned | None = None,
        key_width: KeyWidth | None = None,
        special: Special | None = None,
    ) -> None:
        self._kernels = PassPlanner(lower, FORWARD, config, tuned, key_width, special)

    def plan(
        self,
        problem: Problem,
        target: str,
        layouts: Sequence[Layout],
        env: Mapping[str, int],
        scale: float,
        shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
        real_values: Mapping[str, float] = MappingProxyType({}),
    ) -> tuple[Launch, ...]:
        """Plans one call: a launch for each pass, in the order in which they must run.

        Args:
            problem: The shape class.
            target: `cuda:90`, `hip:gfx942`, or the interpreter's.
            layouts: Of query, key, value and output.
            env: `q_offset`, and the other scalars that the pattern reads, by name.
            scale: Of the scores; not negative.
            shapes: Of the tables that the pattern reads, by name.
            real_values: Of the parameters that score terms add, by name.

        Raises:
            UnsupportedError: A size or a number is beyond what kernels compute with, or no kernel
                does this problem.
            ConfigError: As from `PassPlanner.launches`.
        """
        # Kernels compute powers of two. They multiply masked scores, -inf, by the scale: never by
        # 0.
        factors = {"scale": max(scale * math.log2(math.e), _LEAST_SCALE), SCALE.name: scale}
        factors |= real_values
        return self._kernels.launches(call_of(problem, target, layouts, env, factors, shapes))
