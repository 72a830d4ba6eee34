"""What a forward call launches: config, program, source, grid and arguments, from sizes and
strides.

Knows neither torch nor triton; `launch` compiles and runs what is planned here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from patterncc.codegen.config import KernelConfig, check_config, default_config
from patterncc.codegen.forward_source import emit_forward
from patterncc.codegen.interval import LIMIT, MOST_PROGRAMS
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.layout import Layout
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import evaluate
from patterncc.codegen.triton_source import KernelSource
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import TRUE

Lowered = Callable[[int, int], Sequence[BlockProgram]]
"""Lowers for a tile shape `(block_q, block_k)`: the most special program first, one that assumes
nothing last."""

_LEAST_SCALE = 1.0e-35
"""Stands for 0: so small that scaled scores vanish beside the logarithm of a count of keys."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel over one grid, with all arguments but the tensors.

    Attributes:
        source: The kernel.
        aligned: Whether its variant for 16-byte aligned tensors may run.
        grid: Programs along each axis: query tiles, heads, batch entries.
        described: For each descriptor argument: which of query, key, value (0, 1, 2), and the
            sizes, strides and box to describe it with.
        rest: The arguments after the pointers.
    """

    source: KernelSource
    aligned: bool
    grid: tuple[int, int, int]
    described: tuple[tuple[int, list[int], list[int], list[int]], ...]
    rest: tuple[float | int, ...]


class Planner:
    """Plans the forward calls of one pattern.

    Args:
        lower: Gives the pattern's programs for a tile shape.
        config: Of every kernel; None takes the default for each problem and target, which loads by
            descriptors where the target has them and the layout of the tensors allows them.
    """

    def __init__(self, lower: Lowered, config: KernelConfig | None = None) -> None:
        self._lower = lower
        self._config = config
        self._programs: dict[tuple[int, int], Sequence[BlockProgram]] = {}
        self._sources: dict[tuple[int, Problem, KernelConfig], KernelSource] = {}

    def source(
        self,
        problem: Problem,
        target: str,
        env: Mapping[str, int],
        obstacles: Sequence[str] = (),
    ) -> KernelSource:
        """The kernel that a call runs.

        Args:
            problem: The shape class.
            target: `cuda:90`, `hip:gfx942`, or the interpreter's.
            env: The scalars that decide between programs: `q_offset`, `q_len`, `kv_len`.
            obstacles: Why tensor descriptors are impossible; empty where they are not.

        Raises:
            UnsupportedError: No kernel does this problem.
            ConfigError: The config is illegal for the problem, the target or the layout.
        """
        if self._config is not None and self._config.load == "descriptor" and obstacles:
            raise ConfigError(f"load='descriptor' is impossible: {obstacles[0]}", ("pointer",))
        config = self._config or self._default(problem, target, not obstacles)
        check_config(config, problem, target)
        program = self._program(config, env)
        known = (id(program), problem, config)  # programs live as long as the planner
        if known not in self._sources:
            self._sources[known] = emit_forward(program, problem, config)
        return self._sources[known]

    def plan(
        self,
        problem: Problem,
        target: str,
        layouts: Sequence[Layout],
        env: Mapping[str, int],
        scale: float,
    ) -> Launch:
        """Plans one call.

        Args:
            problem: The shape class.
            target: As in `source`.
            layouts: Of query, key, value and output, in this order.
            env: `q_offset`, and the other scalars that the pattern reads, by name.
            scale: Of the scores; not negative.

        Raises:
            UnsupportedError: A size or a number is beyond what kernels compute with.
            ConfigError: As in `source`, or the pattern reads a scalar that `env` lacks.
        """
        query, key, *_ = layouts
        batch, heads, q_len, _ = query.sizes
        env = {**env, "q_len": q_len, "kv_len": key.sizes[2]}
        _check_limits(env, batch, heads)
        obstacles = [o for layout in layouts[:3] if (o := layout.descriptor_obstacle()) is not None]
        source = self.source(problem, target, env, obstacles)
        described = tuple(
            (which, list(layout.sizes), layout.descriptor_strides, list(parameter.box))
            for parameter in source.parameters
            for which, layout in enumerate(layouts[:3])
            if parameter.box and parameter.name.startswith(layout.name)
        )
        return Launch(
            source,
            all(layout.aligned for layout in layouts),
            (-(-q_len // source.config.block_q), heads, batch),
            described,
            _arguments(source, layouts, env, scale),
        )

    def _default(self, problem: Problem, target: str, descriptors: bool) -> KernelConfig:
        config = default_config(problem, target, descriptors=descriptors)
        program = self._lowered(config)[0]
        return default_config(problem, target, program, descriptors=descriptors)

    def _lowered(self, config: KernelConfig) -> Sequence[BlockProgram]:
        tile = (config.block_q, config.block_k)
        if tile not in self._programs:
            self._programs[tile] = self._lower(*tile)
        return self._programs[tile]

    def _program(self, config: KernelConfig, env: Mapping[str, int]) -> BlockProgram:
        """The first program whose assumption the call meets."""
        for program in self._lowered(config):
            if program.assume == TRUE or bool(evaluate(program.assume, env)):
                return program
        raise ConfigError("no program of the pattern was lowered for a call like this one")


def _arguments(
    source: KernelSource, layouts: Sequence[Layout], env: Mapping[str, int], scale: float
) -> tuple[float | int, ...]:
    """The values of a kernel's parameters that are neither descriptors nor pointers."""
    values: dict[str, float | int] = {f"number_{name}": value for name, value in env.items()}
    values |= env
    # Kernels compute powers of two. They multiply masked scores, -inf, by the scale: never by 0.
    values["scale"] = max(scale * math.log2(math.e), _LEAST_SCALE)
    for layout in layouts:
        for axis, step in zip(("batch", "head", "row"), layout.steps, strict=True):
            values[f"{layout.name}_stride_{axis}"] = step
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
