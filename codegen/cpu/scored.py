"""Attention with score terms on the CPU, forward and backward: from terms and values to what the
executor takes, and back to gradients of tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from patterncc.codegen.cpu.backward import attention_backward
from patterncc.codegen.cpu.forward import attention
from patterncc.codegen.cpu.tensors import check_inputs, wide_type
from patterncc.codegen.cpu.terms import logits_of
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.score.values import Rows, ScoreValues, add_sink_gradients, sink_logits
from patterncc.dsl.score.terms import ScoreTerms


def scored_attention(
    passes: Sequence[BlockProgram],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    terms: ScoreTerms,
    values: ScoreValues,
    *,
    env: Mapping[str, int] | None = None,
    tables: Mapping[str, Tensor] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention under a lowered pattern with score terms, without a gradient.

    Args:
        passes, query, key, value, env, tables, scale: As in `attention`.
        terms: Which logits enter the softmax.
        values: What they read; computed with in the type of the log-sum-exp.

    Returns:
        As `attention`.

    Raises:
        ArgumentError: As from `attention` and `ScoreValues.check`.
        UnsupportedError: As from `attention`.
    """
    check_inputs(query, key, value)
    values.check(terms, query.device)
    wide = wide_type(query.dtype)
    rows = _rows(query, key, env)
    like = query.new_empty(0, dtype=wide)
    with torch.no_grad():
        sink = None if terms.sink is None else sink_logits(terms, values, rows, like)
        return attention(
            passes,
            query,
            key,
            value,
            env=env,
            tables=tables,
            scale=scale,
            score=logits_of(terms, values, rows, wide),
            sink=sink,
        )


def scored_attention_backward(
    passes: Sequence[BlockProgram],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    terms: ScoreTerms,
    values: ScoreValues,
    *,
    env: Mapping[str, int] | None = None,
    tables: Mapping[str, Tensor] | None = None,
    scale: float | None = None,
    wanted: Collection[str] = (),
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Gradients of attention under a lowered pattern with score terms.

    Args:
        passes, grad_out, grad_lse, query, key, value, out, lse, env, tables, scale: As in
            `attention_backward`.
        terms, values: As in `scored_attention`.
        wanted: The tables of `values` whose gradients are asked for.

    Returns:
        The gradients of `query`, `key` and `value`, and those of tables by name, each of the
        table's shape and type.

    Raises:
        ArgumentError: As from `attention_backward` and `ScoreValues.check`.
        UnsupportedError: As from `attention_backward`.
    """
    check_inputs(query, key, value)
    values.check(terms, query.device)
    wide = wide_type(query.dtype)
    rows = _rows(query, key, env)
    names = {name: None for name in terms.tables if name in wanted}
    logits = logits_of(terms, values, rows, wide, names)
    grad_query, grad_key, grad_value, *grads = attention_backward(
        passes,
        grad_out,
        grad_lse,
        query,
        key,
        value,
        out,
        lse,
        env=env,
        tables=tables,
        scale=scale,
        score=logits,
    )
    sums = {name: torch.zeros(values.tables[name].shape, dtype=wide) for name in names}
    if logits is not None:
        sums |= dict(zip(logits.names, grads, strict=True))
    if terms.sink is not None and sums:
        delta = (grad_out.to(wide) * out).sum(-1)
        if grad_lse is not None:
            delta = delta - grad_lse
        with torch.no_grad():
            add_sink_gradients(sums, terms, values, rows, lse, delta)
    found = {name: total.to(values.tables[name].dtype) for name, total in sums.items()}
    return grad_query, grad_key, grad_value, found


def _rows(query: Tensor, key: Tensor, env: Mapping[str, int] | None) -> Rows:
    offset = key.shape[2] - query.shape[2]
    return Rows.of(query, key, {"layer": 0, "q_offset": offset, **(env or {})})
