"""Attention forward on GPUs: from the tensors of a call to the launches of its kernels.

Plans are remembered, so a call like the last one costs little more than its launches.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.launch import require_triton, target_of
from patterncc.codegen.gpu.memory import Room
from patterncc.codegen.gpu.signature import Kept, call_signature
from patterncc.codegen.gpu.steps import (
    NO_TABLES,
    all_serve,
    bind_all,
    current_device,
    index_of,
    layout_of,
    named_operands,
    problem_of,
    run_here,
    shapes_of,
    term_operands,
    term_values,
    with_contiguous_rows,
)
from patterncc.codegen.score.values import NO_VALUES, Rows, ScoreValues, sink_logits
from patterncc.dsl.score.terms import PLAIN, ScoreTerms

if TYPE_CHECKING:
    from pathlib import Path

    from patterncc.codegen.gpu.bound_launch import BoundLaunch
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.pass_plan import KeyWidth, Lowered, Special, Tuned


class Forward:
    """Attention forward of one pattern on GPUs: compiles what a call needs once and launches it.

    Args:
        lower: Gives the pattern's passes for a tile shape, from the most special alternative to
            one that assumes nothing.
        config: Of every kernel; None takes what `tuned` has, else the default for each problem and
            device, which loads by descriptors where the device has them and the tensors' layout
            allows them, else by pointers.
        folder: Where generated sources are written; the user's cache by default.
        tuned: The config that was tuned for a call, asked once for each that is planned.
        key_width: Narrows the key tiles of a default config.
        special: Asked for the default before that, for one target.
        terms: Which logits enter the softmax.
        isolates: As of `Problem`.

    Raises:
        UnsupportedError: Triton is missing.
    """

    def __init__(
        self,
        lower: Lowered,
        *,
        config: KernelConfig | None = None,
        folder: Path | None = None,
        tuned: Tuned | None = None,
        key_width: KeyWidth | None = None,
        special: Special | None = None,
        terms: ScoreTerms = PLAIN,
        isolates: bool | None = None,
    ) -> None:
        self.planner = Planner(lower, config, tuned, key_width, special)
        require_triton()
        self._folder = folder
        self._isolates = isolates
        self._terms = terms
        self._kept: Kept[ReadyForward] = Kept()

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        env: Mapping[str, int],
        scale: float,
        tables: Mapping[str, torch.Tensor] = NO_TABLES,
        score_values: ScoreValues = NO_VALUES,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the kernels of all passes on the current stream.

        Never waits for the device and allocates from torch alone, so a CUDA graph can capture it
        once a first call has compiled the kernels.

        Args:
            query: `[batch, heads, q_len, head_dim]`, any strides; the last axis is copied where it
                is not contiguous.
            key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
            value: `[batch, kv_heads, kv_len, value_head_dim]`.
            env: `q_offset`, and the other scalars that the pattern reads, by name.
            scale: Of the scores; finite.
            tables: The tables that the pattern reads, by name, contiguous and on the query's
                device: int32 for numbers and for `segments` (`cu_seqlens`: from 0, never falling),
                bool or uint8 for truth values. What they hold is not looked at here.
            score_values: What the score terms read.

        Returns:
            `out` `[batch, heads, q_len, value_head_dim]` of the query's dtype, and the natural
            logarithm of the sum of exponentials, the sink's among them, float32
            `[batch, heads, q_len]`.

        Raises:
            ArgumentError: What the score terms read is missing or does not fit; names it.
            UnsupportedError: The device, dtype, a size or a number has no kernel.
            ConfigError: The config given at construction is illegal for these tensors or this
                device; a number or table is missing, or a table of another kind.
        """
        signature = call_signature((query, key, value), env, scale, tables, score_values)
        ready = self._kept.get(signature)
        if ready is None:
            ready = self.ready(
                query, key, value, env=env, scale=scale, tables=tables, score_values=score_values
            )
            self._kept.keep(signature, ready)
        return ready(query, key, value, tables, score_values)

    def ready(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        env: Mapping[str, int],
        scale: float,
        tables: Mapping[str, torch.Tensor] = NO_TABLES,
        score_values: ScoreValues = NO_VALUES,
    ) -> ReadyForward:
        """Checks and plans a call, and compiles the kernels that it needs; arguments and errors as
        above.

        The result runs all calls whose tensors have these `layout_signature` and `table_kind`s and
        whose numbers are these. It checks nothing: whoever keeps it must know that they have.
        """
        terms = self._terms
        rows = Rows.of(query, key, env)
        given = term_values(terms, score_values, query.device)
        negated = scale < 0  # the kernel takes the largest score before it scales
        changed = negated or any(tensor.stride(3) != 1 for tensor in (query, key, value))
        query, key, value = with_contiguous_rows((-query if negated else query, key, value))
        device = query.device
        batch, heads, q_len, _ = query.shape
        out_room = Room((batch, heads, q_len, value.shape[3]), query.dtype, device)
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        lse_room = Room((batch, heads, q_len), wide, device)
        steps: tuple[BoundLaunch, ...] | None = None
        if batch * heads * q_len * value.shape[3] and key.shape[2]:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                operands = {"query": query, "key": key, "value": value, "out": out_room()}
            launches = self.planner.plan(
                problem_of(query, key, value, terms, isolates=self._isolates),
                target_of(device),
                [layout_of(name, tensor) for name, tensor in operands.items()],
                env,
                abs(scale),
                shapes_of(tables),
                given,
            )
            steps = bind_all(launches, tables, device, self._folder)
        index = index_of(device)
        return ReadyForward(steps, terms, rows, out_room, lse_room, device, index, negated, changed)


@dataclass(frozen=True, slots=True)
class ReadyForward:
    """A call that is planned: what is left is memory for its results, and its launches.

    Attributes:
        steps: Its launches in order; None where there is no row or no key.
        terms: Which logits enter the softmax.
        rows: Of the call.
        out_room, lse_room: Memory for the results.
        device: Where all tensors are.
        index: Its number, if it is a GPU; -1 if not.
        negated: Whether the kernels take the query with the other sign.
        changed: Whether that is so, or a tensor has steps in its last axis.
    """

    steps: tuple[BoundLaunch, ...] | None
    terms: ScoreTerms
    rows: Rows
    out_room: Room
    lse_room: Room
    device: torch.device
    index: int
    negated: bool
    changed: bool

    def serves(self, tables: Mapping[str, torch.Tensor]) -> bool:
        """Does it run such calls with tables of other shapes, too?

        Raises:
            UnsupportedError: A table is too large to look up in.
        """
        return all_serve(self.steps, tables)

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        tables: Mapping[str, torch.Tensor] = NO_TABLES,
        score_values: ScoreValues = NO_VALUES,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the call, as `Forward` does."""
        index = self.index
        if index >= 0 and index != current_device():
            with torch.cuda.device(index):
                return self(query, key, value, tables, score_values)
        out, lse = self.out_room(), self.lse_room()
        steps = self.steps
        if steps is None:
            logits = sink_logits(self.terms, score_values, self.rows, lse)
            return out.zero_(), lse.copy_(logits)
        if self.changed:
            query = -query if self.negated else query
            query, key, value = with_contiguous_rows((query, key, value))
        # What passes hand on: float32 outputs can hold it themselves.
        operands = {
            "query": query,
            "key": key,
            "value": value,
            "out": out,
            "lse": lse,
            "state": out,
        }
        if tables:
            operands |= named_operands(tables)
        if score_values.tables:
            operands |= term_operands(score_values)
        run_here(steps, operands, index)
        return out, lse
