"""Gradients of attention in float64, by autograd through dense scores."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Gradients(NamedTuple):
    """Of query, key and value."""

    query: Tensor
    key: Tensor
    value: Tensor


def dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention that autograd can differentiate any number of times; finite inputs only.

    Args:
        query: `[batch, heads, q_len, head_dim]`.
        key: `[batch, kv_heads, kv_len, head_dim]`.
        value: `[batch, kv_heads, kv_len, value_head_dim]`.
        mask: bool `[batch, heads, q_len, kv_len]`.
        scale: Factor of the scores.

    Returns:
        The output, and the log-sum-exp with 0 instead of -inf where a row sees nothing.
    """
    group = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(group, 1).mT * scale
    live = mask.any(-1, keepdim=True)
    hidden = scores.masked_fill(~mask, -1e300)
    largest = hidden.detach().amax(-1, keepdim=True) if key.shape[2] else 0
    weights = torch.where(mask, (hidden - largest).exp(), 0)
    total = weights.sum(-1, keepdim=True) + ~live
    lse = torch.where(live, total.log() + largest, 0).squeeze(-1)
    return weights / total @ value.repeat_interleave(group, 1), lse


def expected_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """What a backward must give, in float64; of shapes as in `dense`."""
    q, k, v = (x.detach().double().requires_grad_() for x in (query, key, value))
    out, lse = dense(q, k, v, mask, scale)
    total = (out * grad_out.double()).sum()
    if grad_lse is not None:
        total = total + (lse * grad_lse.double()).sum()
    return Gradients(*torch.autograd.grad(total, (q, k, v)))
