"""What a backward call launches: `delta`, then for each pass the kernels of the gradients.

Every kernel works from the final output and lse of the forward, so the gradients of passes add up,
and those of the query and of key and value are computed apart, each in its own tile shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.backward_config import (
    BackwardConfig,
    default_grad_position_config,
    default_grad_query_config,
    grad_query_shared_bytes,
    suited_grad_query,
)
from patterncc.codegen.gpu.delta_source import ROW_NUMBERS, ROWS, emit_delta, row_length
from patterncc.codegen.gpu.grad_position_source import (
    Reach,
    emit_grad_distance_entries,
    emit_grad_key_entries,
    position_entries,
)
from patterncc.codegen.gpu.grad_query_source import (
    ROW_TENSORS,
    STATE,
    emit_grad_query,
    emit_grad_query_entries,
    emit_grad_query_repair,
)
from patterncc.codegen.gpu.kernel_terms import SCALE, row_entries
from patterncc.codegen.gpu.key_tile_plan import GRAD_KEY_VALUE
from patterncc.codegen.gpu.launches import Buffer, Launch, call_of, ceildiv, planned_launch
from patterncc.codegen.gpu.one_pass_plan import OnePass
from patterncc.codegen.gpu.pass_plan import Kind, PassPlanner
from patterncc.codegen.gpu.query_tile_plan import (
    query_tile_launches,
    query_tile_obstacle,
    state_buffer,
)

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.kernel_source import KernelSource
    from patterncc.codegen.gpu.launches import Call
    from patterncc.codegen.gpu.layout import Layout
    from patterncc.codegen.gpu.pass_plan import Lowered, Pass, Sources, Tuned
    from patterncc.codegen.ir import BlockProgram, Passes
    from patterncc.codegen.problem import Problem


def _grad_query_launches(one: Pass, call: Call, sources: Sources) -> Iterator[Launch]:
    buffers = state_buffer(STATE, one, call, "query")
    return query_tile_launches(emit_grad_query, emit_grad_query_repair, one, call, sources, buffers)


def _grad_query_obstacle(passes: Passes, call: Call) -> str | None:
    return query_tile_obstacle(ROW_TENSORS, passes, call)


def _grad_query_entries_launches(one: Pass, call: Call, sources: Sources) -> Iterator[Launch]:
    buffers = state_buffer(STATE, one, call, "query")
    if not one.resumes:
        shape = (call.batch, call.heads, call.q_len)
        entries = row_entries(call.problem.terms, one.program.tiling)
        buffers += tuple(Buffer(entry.name, shape, "float32") for entry in entries)
    return query_tile_launches(
        emit_grad_query_entries, emit_grad_query_repair, one, call, sources, buffers
    )


GRAD_QUERY = Kind(
    default_grad_query_config,
    suited_grad_query,
    grad_query_shared_bytes,
    _grad_query_obstacle,
    _grad_query_launches,
)


GRAD_QUERY_ENTRIES = replace(GRAD_QUERY, launches=_grad_query_entries_launches)
"""With sums of the gradients of tables."""


def _position_launches(
    reach: Reach, emit: Callable[..., KernelSource], one: Pass, call: Call, sources: Sources
) -> Iterator[Launch]:
    """The launch that sums gradients of tables by key or by distance, over one pass."""
    block = one.config.block_k
    tiles = ceildiv(call.kv_len, block)
    parts = 1
    if reach == "distance":
        tiles, parts = tiles + ceildiv(call.q_len, block) - 1, 2
    source = sources.get(emit, one.program, call.problem, one.config, resumes=one.resumes)
    entries = position_entries(call.problem.terms, reach)
    shape = (call.batch, call.heads, tiles, parts, block)
    buffers = () if one.resumes else tuple(Buffer(e.name, shape, "float32") for e in entries)
    yield planned_launch(source, (tiles, call.heads, call.batch), call, buffers=buffers)


def _no_obstacle(passes: Passes, call: Call) -> str | None:
    return None


def _as_it_is(
    config: KernelConfig, problem: Problem, target: str, program: BlockProgram
) -> KernelConfig:
    return config


def _by(reach: Reach, emit: Callable[..., KernelSource]) -> Kind:
    return Kind(
        default_grad_position_config,
        _as_it_is,
        grad_query_shared_bytes,
        _no_obstacle,
        partial(_position_launches, reach, emit),
    )


GRAD_BY: Mapping[Reach, Kind] = {
    "key": _by("key", emit_grad_key_entries),
    "distance": _by("distance", emit_grad_distance_entries),
}
"""Sums of the gradients of tables that are read at keys' positions."""


@dataclass(frozen=True, slots=True)
class TunedGradients:
    """What is asked for tuned configs of the kernels of a backward, as `plan.Tuned`.

    Attributes:
        grad_query: For the kernel that computes the query's gradient.
        grad_key_value: For the one that computes the key's and the value's.
    """

    grad_query: Tuned | None = None
    grad_key_value: Tuned | None = None


class BackwardPlanner:
    """Plans the backward calls of one pattern.

    Args:
        lower: Gives the pattern's passes for a tile shape, both directions of each.
        config: Of the kernels.
        tuned: Asked where `config` has none. Kernels that also sum gradients of tables are not
            tuned, and take their defaults.
        lower_rows: The passes of the kernels of the query's gradient, which read the forward
            direction alone and may gather; None takes those of `lower`.
        one_pass: Compute all gradients at once where `choose_one_pass` says so.
        in_turn: In an order that is the same in repeated calls; otherwise they may differ in the
            last bits of the query's gradient.
    """

    def __init__(
        self,
        lower: Lowered,
        config: BackwardConfig,
        tuned: TunedGradients | None = None,
        *,
        lower_rows: Lowered | None = None,
        one_pass: bool = False,
        in_turn: bool = False,
    ) -> None:
        self._one_pass = OnePass(lower, in_turn=in_turn) if one_pass else None
        tuned = tuned or TunedGradients()
        rows = lower_rows or lower
        self._grad_query = PassPlanner(rows, GRAD_QUERY, config.grad_query, tuned.grad_query)
        self._entries = PassPlanner(rows, GRAD_QUERY_ENTRIES, config.grad_query)
        self._grad_key_value = PassPlanner(
            lower, GRAD_KEY_VALUE, config.grad_key_value, tuned.grad_key_value
        )
        self._by = {reach: PassPlanner(lower, kind) for reach, kind in GRAD_BY.items()}
        self._deltas: dict[tuple[Problem, bool, bool], KernelSource] = {}

    def plan(
        self,
        problem: Problem,
        target: str,
        layouts: Sequence[Layout],
        env: Mapping[str, int],
        scale: float,
        shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
        *,
        multiprocessors: int = 1,
        needs_query: bool = True,
        needs_key_value: bool = True,
        needs_entries: bool = False,
        reaches: Sequence[Reach] = (),
        real_values: Mapping[str, float] = MappingProxyType({}),
    ) -> tuple[Launch, ...]:
        """Plans one call.

        Args:
            problem: The shape class.
            target: `cuda:90`, `hip:gfx942`, or the interpreter's.
            layouts: Of `grad_out`, `query`, `key`, `value` and `out`; where the lse has a gradient
                also of `grad_lse`, as `[batch, heads, q_len, 1]`.
            env: `q_offset`, and the other scalars that the pattern reads, by name.
            scale: Of the scores, of any sign.
            shapes: Of the tables that the pattern reads, by name.
            multiprocessors: Of the device.
            needs_query, needs_key_value: Which gradients are asked for.
            needs_entries: Sums of the gradients of tables by row are asked for, besides the
                query's.
            reaches: By what else they are.
            real_values: Of the parameters that score terms add, by name.

        Raises:
            UnsupportedError: A size or a number is beyond what kernels compute with, or no kernel
                does this problem.
            ConfigError: As from `PassPlanner.launches`.
        """
        factors = {"scale": scale, "score_scale": scale * math.log2(math.e), SCALE.name: scale}
        factors |= real_values
        call = call_of(problem, target, layouts, env, factors, shapes, multiprocessors)
        if self._one_pass and needs_query and needs_key_value and not (needs_entries or reaches):
            at_once = self._one_pass.launches(call)
            if at_once is not None:
                return at_once
        launches = [self._delta(call, with_rows=needs_key_value)]
        if needs_entries:
            launches += self._entries.launches(call)
        elif needs_query:
            launches += self._grad_query.launches(call)
        if needs_key_value:
            launches += self._grad_key_value.launches(call)
        for reach in reaches:
            launches += self._by[reach].launches(call)
        return tuple(launches)

    def _delta(self, call: Call, *, with_rows: bool) -> Launch:
        """The launch that all others read from."""
        place = (call.problem, "grad_lse" in call.layouts, with_rows)
        if place not in self._deltas:
            self._deltas[place] = emit_delta(call.problem, with_lse=place[1], with_rows=with_rows)
        if not with_rows:
            grid = (ceildiv(call.q_len, ROWS), call.heads, call.batch)
            return planned_launch(self._deltas[place], grid, call)
        length = row_length(call.q_len)
        shape = (call.batch, call.heads, length)
        return planned_launch(
            self._deltas[place],
            (ceildiv(length, ROWS), call.heads, call.batch),
            call,
            numbers={"row_length": length},
            buffers=tuple(Buffer(name, shape, "float32") for name in ROW_NUMBERS),
        )
