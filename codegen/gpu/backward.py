"""Attention backward on GPUs: from the tensors of a call to the launches of its kernels.

Plans are remembered, so a call like the last one costs little more than its launches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.backward_plan import BackwardPlanner
from patterncc.codegen.gpu.launch import multiprocessors_of, target_of
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
from patterncc.codegen.gpu.table_gradients import WantedSums, add_table_gradients, wanted_sums
from patterncc.codegen.score.values import NO_VALUES, Rows, ScoreValues
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.score.terms import PLAIN, ScoreTerms

if TYPE_CHECKING:
    from pathlib import Path

    from patterncc.codegen.gpu.backward_plan import TunedGradients
    from patterncc.codegen.gpu.launches import Launch
    from patterncc.codegen.gpu.plan import Lowered


class Backward:
    """Attention backward of one pattern on GPUs: compiles what a call needs once and launches it.

    Every kernel writes each of its results once and adds in a fixed order, so repeated calls give
    the same bits.

    Args:
        lower: Gives the pattern's passes for a tile shape, both directions of each, from the most
            special alternative to one that assumes nothing.
        config: Of the kernels; None takes what `tuned` has, else the defaults for each problem and
            device, which load by descriptors where the device has them and the tensors' layout
            allows them, else by pointers.
        folder: Where generated sources are written; the user's cache by default.
        tuned: The configs that were tuned for a call, asked once for each that is planned.
        terms: Which logits entered the softmax.

    Raises:
        UnsupportedError: Triton is missing.
    """

    def __init__(
        self,
        lower: Lowered,
        *,
        config: BackwardConfig | None = None,
        folder: Path | None = None,
        tuned: TunedGradients | None = None,
        terms: ScoreTerms = PLAIN,
    ) -> None:
        self._terms = terms
        self.planner = BackwardPlanner(lower, config or BackwardConfig(), tuned)
        self._steps = Steps(folder)

    def __call__(
        self,
        grad_out: torch.Tensor,
        grad_lse: torch.Tensor | None,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        *,
        env: Mapping[str, int],
        scale: float,
        tables: Mapping[str, torch.Tensor] = NO_TABLES,
        needs_query: bool = True,
        needs_key_value: bool = True,
        score_values: ScoreValues = NO_VALUES,
        table_gradients: Mapping[str, torch.Tensor] = NO_TABLES,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Runs the kernels on the current stream.

        Never waits for the device and allocates from torch alone, so a CUDA graph can capture it
        once a first call has compiled the kernels. Beside the gradients it allocates one float32
        for each row of each head, and for patterns of several passes, unless they are float32,
        the float32 sums that a pass leaves for the next.

        Args:
            grad_out: Gradient of the output, shape and dtype as `out`. It, query, key, value and
                `out` may have any strides; the last axis is copied where it is not contiguous.
            grad_lse: Gradient of the lse, float32 `[batch, heads, q_len]`, any strides; None where
                nothing depends on the lse.
            query: `[batch, heads, q_len, head_dim]`.
            key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
            value: `[batch, kv_heads, kv_len, value_head_dim]`.
            out: The forward's output, `[batch, heads, q_len, value_head_dim]`.
            lse: The forward's natural logarithms, float32 `[batch, heads, q_len]`; -inf for rows
                without keys.
            env: `q_offset`, and the other scalars that the pattern reads, by name.
            scale: Of the scores; finite.
            tables: As of the forward.
            needs_query: Is the query's gradient asked for?
            needs_key_value: Are those of key and value?
            score_values: What the score terms read.
            table_gradients: By the name of a table that the score terms read, what its gradient is
                added to: float32, contiguous, of the table's shape.

        Returns:
            The gradients of query, key and value, contiguous, of the query's dtype; None for those
            that were not asked for.

        Raises:
            ArgumentError: A tensor has not the shape, dtype or device that it must have; names it.
            UnsupportedError: The device, dtype, a size or a number has no kernel.
            ConfigError: The config given at construction is illegal for these tensors or this
                device; a number or table is missing, or a table of another kind.
        """
        _check(grad_out, grad_lse, query, value, out, lse)
        terms = self._terms
        given = term_arguments(terms, score_values, query.device)
        sums = wanted_sums(terms, table_gradients)
        results = {
            "grad_query": torch.empty(query.shape, dtype=query.dtype, device=query.device)
            if needs_query
            else None,
            "grad_key": torch.empty(key.shape, dtype=key.dtype, device=key.device)
            if needs_key_value
            else None,
            "grad_value": torch.empty(value.shape, dtype=value.dtype, device=value.device)
            if needs_key_value
            else None,
        }
        wanted = {name: result for name, result in results.items() if result is not None}
        if out.numel() == 0 or key.shape[2] == 0:
            for result in wanted.values():
                result.zero_()
            delta = torch.zeros_like(lse) if grad_lse is None else -grad_lse
            rows = {"lse": lse, "delta": delta}
            add_table_gradients(
                table_gradients, WantedSums(), terms, score_values, Rows.of(query, key, env), rows
            )
        elif wanted or table_gradients:
            if sums.rows and "grad_query" not in wanted:
                wanted["grad_query"] = torch.empty_like(query)  # the kernel's, of no further use
            tensors = with_contiguous_rows((query, grad_out, key, value, out))
            names = ("query", "grad_out", "key", "value", "out")
            operands = dict(zip(names, tensors, strict=True))
            if grad_lse is not None:
                operands["grad_lse"] = grad_lse.unsqueeze(3)

            def plan() -> Sequence[Launch]:
                return self.planner.plan(
                    problem_of(query, key, value, terms),
                    target_of(query.device),
                    [layout_of(name, tensor) for name, tensor in operands.items()],
                    env,
                    scale,
                    shapes_of(tables),
                    multiprocessors=multiprocessors_of(query.device),
                    needs_query=needs_query,
                    needs_key_value=needs_key_value,
                    needs_entries=bool(sums.rows),
                    reaches=sums.reaches,
                    real_values=given.values,
                )

            signature = (
                *call_signature([*operands.values()], env, scale, tables),
                grad_lse is None,
                needs_query,
                needs_key_value,
                bool(sums.rows),
                sums.reaches,
                *given.values.items(),
            )
            steps = self._steps.of(signature, plan, tables, query.device)
            operands |= {**wanted, **given.tensors}
            operands["lse"] = lse.contiguous()
            operands["delta"] = torch.empty(lse.shape, dtype=torch.float32, device=lse.device)
            # What passes hand on: float32 gradients can hold it themselves.
            operands |= {f"{name}_state": result for name, result in wanted.items()}
            run(steps, operands, tables, query.device)
            add_table_gradients(
                table_gradients,
                sums,
                terms,
                score_values,
                Rows.of(query, key, env),
                operands,
            )
        return results["grad_query"], results["grad_key"], results["grad_value"]


def _check(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    query: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    """Refuses what the kernels would misread.

    Raises:
        ArgumentError: Names the tensor, what it is and what it must be.
    """
    rows = tuple(query.shape[:3])
    checks = [
        ("grad_out", grad_out, (*rows, value.shape[3]), query.dtype),
        ("out", out, (*rows, value.shape[3]), query.dtype),
        ("lse", lse, rows, torch.float32),
    ]
    if grad_lse is not None:
        checks.append(("grad_lse", grad_lse, rows, torch.float32))
    for name, tensor, shape, dtype in checks:
        given = (tuple(tensor.shape), tensor.dtype, tensor.device)
        if given != (shape, dtype, query.device):
            raise ArgumentError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}; it must be "
                f"{dtype} {list(shape)} on {query.device}"
            )
