"""What a forward call launches: config, programs, sources, grids and arguments, from sizes and
strides.

Knows neither torch nor triton; `launch` compiles and runs what is planned here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from patterncc.codegen.classes import row_classes
from patterncc.codegen.gpu.config import KernelConfig, check_config, default_config, suited
from patterncc.codegen.gpu.forward_source import emit_forward
from patterncc.codegen.gpu.interval import LIMIT, MOST_PROGRAMS
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.gpu.list_source import emit_lists, list_axes
from patterncc.codegen.ir import DENSE, BlockProgram, Passes
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import evaluate, extents
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import TRUE

Lowered: TypeAlias = Callable[[int, int], Sequence[Passes]]
"""Lowers for a tile shape `(block_q, block_k)`: alternatives, the most special one first, one that
assumes nothing last."""

MOST_LISTED = 2 << 30
"""Most bytes of lists of tiles at once."""

_LEAST_SCALE = 1.0e-35
"""Stands for 0: so small that scaled scores vanish beside the logarithm of a count of keys."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel over one grid, with all arguments but the tensors.

    Attributes:
        source: The kernel.
        aligned: Whether its variant for 16-byte aligned tensors may run.
        grid: Programs along each axis: query tiles of every class of rows, heads, batch entries.
        described: For each descriptor argument: which of query, key, value (0, 1, 2), and the
            sizes, strides and box to describe it with.
        pointers: What the pointer arguments after them point to: `query`, `out`, `table_NAME`, ...
        rest: The arguments after the pointers.
        buffers: Names and shapes of int32 memory that this launch fills for the next one; they too
            are pointed to by name.
    """

    source: KernelSource
    aligned: bool
    grid: tuple[int, int, int]
    described: tuple[tuple[int, list[int], list[int], list[int]], ...]
    pointers: tuple[str, ...]
    rest: tuple[float | int, ...]
    buffers: tuple[tuple[str, tuple[int, ...]], ...] = ()


class Planner:
    """Plans the forward calls of one pattern.

    Args:
        lower: Gives the pattern's passes for a tile shape.
        config: Of every kernel; None takes the default for each problem and target, which loads by
            descriptors where the target has them and the layout of the tensors allows them.
    """

    def __init__(self, lower: Lowered, config: KernelConfig | None = None) -> None:
        self._lower = lower
        self._config = config
        self._alternatives: dict[tuple[int, int], Sequence[Passes]] = {}
        self._sources: dict[
            tuple[int, Problem, KernelConfig, bool, bool, bool], tuple[BlockProgram, KernelSource]
        ] = {}

    def plan(
        self,
        problem: Problem,
        target: str,
        layouts: Sequence[Layout],
        env: Mapping[str, int],
        scale: float,
        shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> tuple[Launch, ...]:
        """Plans one call: a launch for each pass, in the order in which they must run.

        Args:
            problem: The shape class.
            target: `cuda:90`, `hip:gfx942`, or the interpreter's.
            layouts: Of query, key, value and output, in this order.
            env: `q_offset`, and the other scalars that the pattern reads, by name.
            scale: Of the scores; not negative.
            shapes: Of the tables that the pattern reads, by name.

        Raises:
            UnsupportedError: A size or a number is beyond what kernels compute with, or no kernel
                does this problem.
            ConfigError: The config is illegal for the problem, the target or the layout, or the
                pattern reads a scalar or a table that the call does not give.
        """
        query, key, *_ = layouts
        batch, heads, q_len, _ = query.sizes
        env = {**env, "q_len": q_len, "kv_len": key.sizes[2]}
        _check_limits(env, batch, heads)
        config, passes = self._choose(problem, target, layouts, env)
        check_config(config, problem, target)
        launches: list[Launch] = []
        for number, program in enumerate(passes):
            resumes, hands_on = number > 0, number < len(passes) - 1
            source = self._source(program, problem, target, config, resumes, hands_on)
            step = program.tiling.q_step
            tiles = step * _ceildiv(_ceildiv(q_len, step), source.config.block_q)
            grid = (tiles, heads, batch)
            numbers = dict(env)
            if program.listed:
                capacity = 1 + _most_tiles(program, numbers, heads, problem.group)
                numbers["tile_capacity"] = capacity
                lists = self._source(program, problem, target, config, lists=True)
                list_grid = (tiles, *list_axes(program).grid(heads, problem.group, batch))
                _check_lists(prod(list_grid), capacity)
                launches.append(
                    Launch(
                        lists,
                        True,
                        list_grid,
                        (),
                        _pointers(lists),
                        _arguments(lists, layouts, numbers, scale, shapes),
                        (
                            ("tiles", (prod(list_grid), capacity)),
                            ("tile_counts", (prod(list_grid), 2)),
                        ),
                    )
                )
            launches.append(
                Launch(
                    source,
                    all(layout.aligned for layout in layouts),
                    grid,
                    tuple(_described(source, layouts, program.tiling.k_step)),
                    _pointers(source),
                    _arguments(source, layouts, numbers, scale, shapes),
                )
            )
        return tuple(launches)

    def _choose(
        self, problem: Problem, target: str, layouts: Sequence[Layout], env: Mapping[str, int]
    ) -> tuple[KernelConfig, Passes]:
        """Config and passes of a call: by descriptors if nothing stands against them."""
        config = self._config or default_config(problem, target)
        passes = self._passes(config, env)
        obstacle = _obstacle(passes, layouts) if config.load == "descriptor" else None
        if obstacle is None:
            return config, passes
        if self._config is not None:
            raise ConfigError(f"load='descriptor' is impossible: {obstacle}", ("pointer",))
        config = default_config(problem, target, descriptors=False)
        return config, self._passes(config, env)

    def _passes(self, config: KernelConfig, env: Mapping[str, int]) -> Passes:
        """The first alternative whose assumptions the call meets."""
        tile = (config.block_q, config.block_k)
        if tile not in self._alternatives:
            self._alternatives[tile] = self._lower(*tile)
        for passes in self._alternatives[tile]:
            if all(_holds(program, env) for program in passes):
                return passes
        raise ConfigError("no program of the pattern was lowered for a call like this one")

    def _source(
        self,
        program: BlockProgram,
        problem: Problem,
        target: str,
        config: KernelConfig,
        resumes: bool = False,
        hands_on: bool = False,
        *,
        lists: bool = False,
    ) -> KernelSource:
        """The kernel of a pass, or the one that lists its tiles, written once; without a config of
        the caller's it starts with the longest tiles."""
        if self._config is None:
            config = suited(config, problem, target, program)
        # By identity, for a program is slow to hash; kept beside the source, so that no other
        # program can come to have its identity.
        place = (id(program), problem, config, resumes, hands_on, lists)
        if place not in self._sources:
            source = (
                emit_lists(program, problem, config)
                if lists
                else emit_forward(program, problem, config, resumes=resumes, hands_on=hands_on)
            )
            self._sources[place] = program, source
        return self._sources[place][1]


def _ceildiv(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _most_tiles(program: BlockProgram, env: Mapping[str, int], heads: int, group: int) -> int:
    """A bound of the tiles that the sweeps visit for one query tile: the most at this call, or all
    tiles where that depends on what only the device knows, such as the head or a table."""
    env = {**env, "heads": heads, "kv_heads": heads // group}
    try:
        return max(_longest(program, part.env) for part in row_classes(program, env))
    except KeyError:
        keys = _ceildiv(env["kv_len"], program.tiling.k_step)
        return _ceildiv(keys, program.block_k)


def _longest(program: BlockProgram, env: Mapping[str, int]) -> int:
    """The most tiles that the sweeps visit for one query tile of a class of rows.

    Raises:
        KeyError: They read what `env` does not have.
    """
    counts: Any = sum(count for _, _, count, _ in extents(program, env))
    return int(np.max(counts))


def _check_lists(rows: int, capacity: int) -> None:
    """Refuses lists of tiles that take more memory than `MOST_LISTED`."""
    size = 4 * rows * capacity
    if size > MOST_LISTED:
        raise UnsupportedError(
            f"lists of {capacity - 1} tiles for each of {rows} query tiles take "
            f"{size / 2**30:.1f} GiB",
            f"at most {MOST_LISTED // 2**30} GiB: split the call, or take larger tiles",
        )


def _holds(program: BlockProgram, env: Mapping[str, int]) -> bool:
    """Does the call, in each of its classes of rows, meet what the program takes for granted?"""
    return program.assume == TRUE or all(
        bool(evaluate(program.assume, part.env)) for part in row_classes(program, env)
    )


def _obstacle(passes: Passes, layouts: Sequence[Layout]) -> str | None:
    """Why tensor descriptors are impossible for some pass, or None."""
    query, key, value, *_ = layouts
    for program in passes:
        tiling = program.tiling
        described = [key, value] if tiling != DENSE else [query, key, value]
        for layout in described:
            obstacle = layout.descriptor_obstacle(tiling.k_step)
            if obstacle is not None:
                return obstacle
        least = key.sizes[2] // tiling.k_step
        if tiling.k_step > 1 and least < program.block_k:
            return (
                f"of {key.sizes[2]} keys every {tiling.k_step}th are {least}, "
                f"less than a tile of {program.block_k}"
            )
    return None


def _described(
    source: KernelSource, layouts: Sequence[Layout], k_step: int
) -> list[tuple[int, list[int], list[int], list[int]]]:
    """How to describe the tensors of a kernel's descriptor parameters."""
    found = []
    for parameter in source.parameters:
        for which, layout in enumerate(layouts[:3]):
            if parameter.box and parameter.name.startswith(layout.name):
                grouped = len(parameter.box) == 5
                sizes, strides = (
                    layout.in_groups(k_step)
                    if grouped
                    else (list(layout.sizes), layout.descriptor_strides)
                )
                found.append((which, sizes, strides, list(parameter.box)))
    return found


def _pointers(source: KernelSource) -> tuple[str, ...]:
    """What a kernel's pointer parameters point to."""
    return tuple(
        parameter.name.removesuffix("_ptr")
        for parameter in source.parameters
        if parameter.type.startswith("*")
    )


def _arguments(
    source: KernelSource,
    layouts: Sequence[Layout],
    env: Mapping[str, int],
    scale: float,
    shapes: Mapping[str, Sequence[int]],
) -> tuple[float | int, ...]:
    """The values of a kernel's parameters that are neither descriptors nor pointers."""
    values: dict[str, float | int] = {f"number_{name}": value for name, value in env.items()}
    values |= env
    values |= {f"call_{name}": env[name] for name in ("q_len", "kv_len", "q_offset")}
    # Kernels compute powers of two. They multiply masked scores, -inf, by the scale: never by 0.
    values["scale"] = max(scale * math.log2(math.e), _LEAST_SCALE)
    for layout in layouts:
        for axis, step in zip(("batch", "head", "row"), layout.steps, strict=True):
            values[f"{layout.name}_stride_{axis}"] = step
    for table in source.tables:
        if table.name not in shapes:
            raise ConfigError(f"the pattern reads the table {table.name}, which was not given")
        if len(shapes[table.name]) != table.axes:
            raise ConfigError(
                f"the table {table.name} has {len(shapes[table.name])} axes, the pattern reads "
                f"{table.axes}"
            )
        if table.reach(shapes[table.name]) >= 2**31:
            raise UnsupportedError(
                f"the table {table.name} of {tuple(shapes[table.name])} spreads what one tile "
                "looks up over 2^31 entries or more",
                "put the axes that are indexed by head, layer or batch first",
            )
        values |= table.size_values(shapes[table.name])
    names = [p.name for p in source.parameters if not p.box and not p.type.startswith("*")]
    missing = [name.removeprefix("number_") for name in names if name not in values]
    if missing:
        raise ConfigError(f"the pattern reads {', '.join(missing)}, which the call does not give")
    return tuple(values[name] for name in names)


def _check_limits(env: Mapping[str, int], batch: int, heads: int) -> None:
    """Refuses what 32-bit positions or the grid cannot hold, by name."""
    if max(batch, heads) > MOST_PROGRAMS:
        raise UnsupportedError(
            f"{batch} batch entries of {heads} heads are too many for one launch",
            f"at most {MOST_PROGRAMS} of each: split the call",
        )
    last = {"q_offset + q_len": env["q_offset"] + env["q_len"]}
    for name, value in {**env, **last}.items():
        if not -LIMIT <= value <= LIMIT:
            raise UnsupportedError(
                f"{name} is {value}, beyond what kernels count with",
                f"at most {LIMIT} in magnitude",
            )
