"""The oracle of score terms: dense attention with them, in float64, differentiable by autograd.

Shares nothing with the kernels: derivatives come from autograd, not from the algebra.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from patterncc.codegen.elementwise import discrete
from patterncc.codegen.score.elementwise import RealEvaluator
from patterncc.dsl.mask import IntExpr, Predicate
from patterncc.dsl.score.terms import ScoreTerms


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    terms: ScoreTerms,
    *,
    env: Mapping[str, int] | None = None,
    numbers: Mapping[str, float] | None = None,
    tables: Mapping[str, Tensor] | None = None,
    rows: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Attention with score terms computed densely, in a wide type.

    Args:
        query: `[batch, heads, q_len, head_dim]`.
        key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
        value: `[batch, kv_heads, kv_len, value_head_dim]`.
        mask: bool, `[q_len, kv_len]`, or the same with heads, or batch and heads, in front.
        scale: Factor of the scores.
        terms: What becomes of them.
        env: `q_offset` (`kv_len - q_len` if not given), `layer` (0), `layers` where it is read; of
            a part of a call also the call's sizes, and `batch`, `head`, `kv_head` of the first.
        numbers: The numbers that the terms read, by name.
        tables: The tables that they read, by name.
        rows: Which rows of the call the query holds, int64 `[q_len]`; its first if not given.
        dtype: What is computed in and returned.

    Returns:
        The output `[batch, heads, q_len, value_head_dim]` and the natural log-sum-exp of the
        visible logits and the sink's `[batch, heads, q_len]`. A row that sees nothing gets 0, and
        the sink's logit, or -inf where there is no sink.
    """
    batch, heads, q_len, _ = query.shape
    kv_heads, kv_len = key.shape[1:3]
    mask = mask.broadcast_to(batch, heads, q_len, kv_len)
    scope = {"layer": 0, "batch": 0, "head": 0, "kv_head": 0, "q_offset": kv_len - q_len}
    scope |= {"q_len": q_len, "kv_len": kv_len, "heads": heads, "kv_heads": kv_heads}
    scope |= env or {}
    rows = torch.arange(q_len) if rows is None else rows
    q = (scope["q_offset"] + rows.to(query.device))[:, None]
    k = torch.arange(kv_len, device=query.device)[None, :]
    outs, lses = [], []
    for b in range(batch):
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            own = {
                **scope,
                "batch": scope["batch"] + b,
                "head": scope["head"] + head,
                "kv_head": scope["kv_head"] + kv_head,
            }

            def found(expr: IntExpr | Predicate, own: Mapping[str, int] = own) -> Tensor:
                return discrete(expr, q, k, own).to(query.device)

            score = query[b, head].to(dtype) @ key[b, kv_head].to(dtype).mT * scale
            evaluate = RealEvaluator(score, found, numbers or {}, tables or {}, score)
            logit = evaluate(terms.logit).broadcast_to(q_len, kv_len)
            logit = logit.masked_fill(~mask[b, head], -math.inf)
            sink = None
            if terms.sink is not None:
                sink = evaluate(terms.sink).broadcast_to(q_len, 1)
            out, lse = _softmax(logit, sink, value[b, kv_head].to(dtype), mask[b, head])
            outs.append(out)
            lses.append(lse)
    out = torch.stack(outs).view(batch, heads, q_len, value.shape[3])
    return out, torch.stack(lses).view(batch, heads, q_len)


def _softmax(
    logit: Tensor, sink: Tensor | None, value: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of one head. Gradients stay finite where a row sees nothing."""
    columns = logit if sink is None else torch.cat([logit, sink], 1)
    live = (columns.detach() > -math.inf).any(1, keepdim=True)
    lse = torch.where(live, columns, 0).logsumexp(1, keepdim=True)
    weights = torch.where(mask & live, (torch.where(mask, logit, 0) - lse).exp(), 0)
    lse = torch.where(live, lse, -math.inf)
    return weights @ value, lse[:, 0]
