"""Whether a backward computes all gradients in one pass, in which order, and why.

By what is known of a call on the host: the pattern, the shape class, and how many tiles of rows key
tiles see on average, from closed forms. What the limits rest on is in docs/gluon.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.backward_config import suited_grad_key_value
from patterncc.codegen.gpu.balance import key_tile_steps
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.emitter_choice import costly_mask
from patterncc.codegen.gpu.gluon.reasons import HOPPER, one_pass_reason, problem_reason
from patterncc.codegen.gpu.launches import ceildiv
from patterncc.codegen.gpu.turn_choice import choose_turns
from patterncc.codegen.listing import kernel_mask
from patterncc.codegen.turns import turns_reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patterncc.codegen.gpu.chunk_source import Progression
    from patterncc.codegen.ir import BlockProgram, Passes
    from patterncc.codegen.problem import Problem
    from patterncc.codegen.turns import Turns

ONE_PASS = KernelConfig(64, 128, 8, 2, "descriptor", emitter="gluon")
"""Two warpgroups hold 64 keys each while 64 rows at a time pass by: what registers suffice for."""

LEAST_STEPS = 16
"""Tiles of rows that a key tile sees from where on one pass is clearly faster: its programs are
long to start, and clearing and rounding the sums takes as long however few there are. Where one
wave of programs does it all, as under `causal` at 1024 tokens, nine would do (docs/gluon.md)."""

LEAST_FASTER = 1.03
"""How much faster than two kernels one pass in turn must be by count."""

LEAST_FASTER_UNEVEN = math.inf
"""The same where some key tiles are seen by far more rows than others: all are left to two
kernels. There the count is less sure, 1.03 of an earlier form under sinks of 64 and a window of
1024 that was 0.81 on an H200, and what is counted now, right on that device, is not timed."""

FIRST_STORES = 16.0
"""Turns of a tile of rows, on average, up to which the key tile whose turn is first stores its
share of the query's gradient, where others add. Then `delta` need not clear the sums: 3% of a call
with 9 turns, while the branch that it takes costs as much as it saves from about 33 turns on."""

MULTIPROCESSORS = 132
"""Of an H100 or H200, where no device is at hand."""


@dataclass(frozen=True, slots=True)
class OnePassChoice:
    """How a backward computes its gradients.

    Attributes:
        program: The pass that one kernel computes all gradients of; None: kernels of their own for
            the query, and for key and value.
        config: Of that kernel.
        reason: Why, in words.
        turns: The order in which key tiles add to the query's gradient; None: any.
        split: The key tiles that are split where they take turns.
        first_stores: Does the one whose turn is first store? Then nothing clears the sums.
    """

    program: BlockProgram | None
    config: KernelConfig
    reason: str
    turns: Turns | None = None
    split: tuple[Progression, ...] = ()
    first_stores: bool = False


def choose_one_pass(
    passes: Passes,
    problem: Problem,
    target: str,
    env: Mapping[str, int],
    heads: int,
    *,
    in_turn: bool = False,
    batch: int = 1,
    multiprocessors: int = MULTIPROCESSORS,
) -> OnePassChoice:
    """Chooses for one call.

    Args:
        passes: The pattern in the tiles of `ONE_PASS`, both directions of each pass.
        problem: The shape class.
        target: As in `check_config`.
        env: `q_len`, `kv_len`, `q_offset` of the call, and the other scalars that the pattern
            reads, by name.
        heads: Heads of the query.
        in_turn: Must repeated calls give the same bits?
        batch: Batch entries.
        multiprocessors: Of the device.
    """
    if target != HOPPER:
        return _apart(f"its kernel is written for {HOPPER} alone")
    if len(passes) > 1:
        return _apart(f"the pattern is computed in {len(passes)} passes over disjoint pairs")
    (program,) = passes
    reason = problem_reason(problem) or one_pass_reason(program, problem)
    if reason is None:
        reason = costly_mask(kernel_mask(program))
    if reason is not None:
        return _apart(f"no kernel does it: {reason}")
    try:
        steps = key_tile_steps(program, env, heads, problem.group, strict=True)
    except KeyError:
        return _apart("how many rows see a key is known to the device alone")
    mean = float(steps.mean()) / problem.group if steps.size else 0.0
    seen = (
        f"a tile of {ONE_PASS.block_k} keys is seen by {mean:.0f} tiles of {ONE_PASS.block_q} rows"
    )
    if mean < LEAST_STEPS:
        return _apart(f"{seen} on average, and one pass is faster from {LEAST_STEPS} on")
    config = suited_grad_key_value(ONE_PASS, problem, target, program)
    if not in_turn:
        return OnePassChoice(program, config, f"{seen} on average")
    obstacle = turns_reason(program)
    if obstacle is not None:
        return _apart(f"key tiles do not take turns: {obstacle}")
    choice = choose_turns(program, steps, env, heads, problem.group, batch, multiprocessors)
    if choice is None:
        return _apart("there are more key tiles than a grid has places beside heads")
    counted = f"{choice.faster:.2f} times as fast as two kernels, by count"
    if choice.faster < (LEAST_FASTER_UNEVEN if choice.uneven else LEAST_FASTER):
        unsure = ", unsure where some are seen by far more rows" if choice.uneven else ""
        return _apart(f"key tiles that take turns are {counted}{unsure}")
    config = replace(config, order="forward", neighbours=choice.neighbours)
    words = f"{seen} on average; key tiles take turns, {choice.turns}"
    if choice.split:
        tall = sum(one.count for one in choice.split)
        chunks = sum(one.programs for one in choice.split)
        words += f", {tall} that far more rows see as {chunks} chunks at their places"
    words += f", {counted}"
    row_tiles = problem.group * ceildiv(env["q_len"], ONE_PASS.block_q)
    stores = float(steps.sum()) <= FIRST_STORES * row_tiles
    if stores:
        words += "; the first one stores"
    return OnePassChoice(program, config, words, choice.turns, choice.split, stores)


def _apart(reason: str) -> OnePassChoice:
    return OnePassChoice(None, ONE_PASS, reason)
