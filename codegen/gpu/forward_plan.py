"""What a forward call launches: configs, programs, sources and grids, from sizes and strides.

Knows neither torch nor triton; `launch` compiles and runs what is planned here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from patterncc.codegen.gpu.config import KernelConfig, default_config, shared_bytes, suited
from patterncc.codegen.gpu.emitter_choice import emitter_of
from patterncc.codegen.gpu.forward_source import emit_forward_repair
from patterncc.codegen.gpu.kernel_terms import SCALE
from patterncc.codegen.gpu.launches import Call, Launch, call_of
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.gpu.pass_plan import (
    KeyWidth,
    Kind,
    Lowered,
    Pass,
    PassPlanner,
    Sources,
    Special,
    Tuned,
)
from patterncc.codegen.gpu.query_tile_plan import (
    query_tile_launches,
    query_tile_obstacle,
    state_buffer,
)
from patterncc.codegen.ir import Passes
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError

_LEAST_SCALE = 1.0e-35
"""Stands for 0: so small that scaled scores vanish beside the logarithm of a count of keys."""


def _forward_launches(one: Pass, call: Call, sources: Sources) -> Iterator[Launch]:
    obstacle = call.layouts["out"].descriptor_obstacle()
    if one.config.emitter == "gluon" and obstacle is not None:
        raise ConfigError(f"emitter='gluon' is impossible: {obstacle}", ("triton",))
    buffers = state_buffer("state", one, call, "value")
    emit, repair = emitter_of(one.config), emit_forward_repair
    return query_tile_launches(emit, repair, one, call, sources, buffers)


def _forward_obstacle(passes: Passes, call: Call) -> str | None:
    return query_tile_obstacle(("query",), passes, call)


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
        call = call_of(problem, target, layouts, env, factors, shapes)
        return self._kernels.launches(call)
