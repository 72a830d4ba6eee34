"""Gradients of attention: what float64 autograd says they are, and what the executor gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from patterncc.codegen import cpu
from patterncc.codegen.ir import Passes
from patterncc.dsl.mask import Predicate
from tests.codegen.cpu_calls import random
from tests.codegen.test_cpu_passes import Tables, mask_of

SCALE = 0.2

# Of gradients, relative to the largest of a tensor. They are the derivatives of an output that is
# rounded to its type.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}


class Gradients(NamedTuple):
    """Of query, key and value."""

    query: Tensor
    key: Tensor
    value: Tensor


def dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float = SCALE
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
    return softmax_of(scores, value.repeat_interleave(group, 1), mask)


def softmax_of(scores: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`dense` from the scores on, as many heads of values as of scores."""
    live = mask.any(-1, keepdim=True)
    hidden = scores.masked_fill(~mask, -1e300)
    largest = hidden.detach().amax(-1, keepdim=True)
    weights = torch.where(mask, (hidden - largest).exp(), 0)
    total = weights.sum(-1, keepdim=True) + ~live
    lse = torch.where(live, total.log() + largest, 0).squeeze(-1)
    return weights / total @ value, lse


def expected_gradients(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """What a backward must give, in float64; of shapes as in `dense`."""
    q, k, v = (x.detach().double().requires_grad_() for x in (query, key, value))
    out, lse = dense(q, k, v, mask)
    total = (out * grad_out.double()).sum()
    if grad_lse is not None:
        total = total + (lse * grad_lse.double()).sum()
    return Gradients(*torch.autograd.grad(total, (q, k, v)))


def gradients(
    passes: Passes,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None = None,
    env: Mapping[str, int] | None = None,
    tables: Tables | None = None,
) -> Gradients:
    """Forward and backward of the executor."""
    out, lse = cpu.attention(passes, query, key, value, env=env, tables=tables, scale=SCALE)
    saved = (query, key, value, out, lse)
    return Gradients(
        *cpu.attention_backward(
            passes, grad_out, grad_lse, *saved, env=env, tables=tables, scale=SCALE
        )
    )


def grads_of_results(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Some numbers for the gradients of output and log-sum-exp."""
    shape = query.shape[:3]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    grad_out = random(*shape, value.shape[3], seed=11, dtype=query.dtype)
    return grad_out, random(*shape, seed=12, dtype=wide)


def check(
    passes: Passes,
    body: Predicate,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    env: dict[str, int] | None = None,
    tables: Tables | None = None,
    with_lse: bool = True,
) -> Gradients:
    """Holds the gradients of a call against dense autograd and returns them."""
    grad_out, some_lse = grads_of_results(query, value)
    grad_lse = some_lse if with_lse else None
    found = gradients(passes, query, key, value, grad_out, grad_lse, env, tables)
    mask = mask_of(body, query, key, env or {}, tables or {})
    assert_close(found, expected_gradients(query, key, value, mask, grad_out, grad_lse), query)
    assert not found.query[~mask.any(-1)].any()
    unseen = ~mask.any(2).view(key.shape[0], key.shape[1], -1, key.shape[2]).any(2)
    assert not found.key[unseen].any()
    assert not found.value[unseen].any()
    return found


def assert_close(found: Gradients, expected: Gradients, query: Tensor) -> None:
    """Compares gradients, relative to the largest of each tensor."""
    tolerance = TOLERANCE[query.dtype]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == query.dtype
        assert one.is_contiguous()
        largest = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * largest)
