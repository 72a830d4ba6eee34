"""Attention forward on GPUs: from the tensors of a call to the launches of its kernels.

Plans are remembered, so a call like the last one costs little more than its launches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from patterncc.codegen.gpu.launch import target_of
from patterncc.codegen.gpu.plan import Planner
from patterncc.codegen.gpu.steps import (
    NO_TABLES,
    Steps,
    call_signature,
    layout_of,
    problem_of,
    run,
    shapes_of,
    term_arguments,
    with_contiguous_rows,
)
from patterncc.codegen.score.values import NO_VALUES, Rows, ScoreValues, sink_logits
from patterncc.dsl.score.terms import PLAIN, ScoreTerms

if TYPE_CHECKING:
    from pathlib import Path

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.launches import Launch
    from patterncc.codegen.gpu.plan import KeyWidth, Lowered, Special, Tuned


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
    ) -> None:
        self.planner = Planner(lower, config, tuned, key_width, special)
        self._steps = Steps(folder)
        self._terms = terms

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
        terms = self._terms
        rows = Rows.of(query, key, env)
        given = term_arguments(terms, score_values, query.device)
        if scale < 0:  # the kernel takes the largest score before it scales
            query, scale = -query, -scale
        query, key, value = with_contiguous_rows((query, key, value))
        batch, heads, q_len, _ = query.shape
        out = query.new_empty((batch, heads, q_len, value.shape[3]))
        lse = query.new_empty((batch, heads, q_len), dtype=torch.float32)
        if out.numel() == 0 or key.shape[2] == 0:
            return out.zero_(), lse.copy_(sink_logits(terms, score_values, rows, lse))
        operands = {"query": query, "key": key, "value": value, "out": out}

        def plan() -> Sequence[Launch]:
            return self.planner.plan(
                problem_of(query, key, value, terms),
                target_of(query.device),
                [layout_of(name, tensor) for name, tensor in operands.items()],
                env,
                scale,
                shapes_of(tables),
                given.values,
            )

        signature = call_signature((query, key, value), env, scale, tables)
        signature += tuple(given.values.items())
        steps = self._steps.of(signature, plan, tables, query.device)
        # What passes hand on: float32 outputs can hold it themselves.
        operands |= {**given.tensors, "lse": lse, "state": out}
        run(steps, operands, tables, query.device)
        return out, lse
