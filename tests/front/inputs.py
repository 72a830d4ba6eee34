"""Tensors and the right answer for the tests of the front."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patterncc import Attention
from patterncc.codegen.reference import dense_attention


def tensors(
    q_len: int = 40,
    kv_len: int | None = None,
    *,
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    value_head_dim: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, the same at every run."""
    kv_len = q_len if kv_len is None else kv_len
    value_head_dim = head_dim if value_head_dim is None else value_head_dim
    generator = torch.Generator().manual_seed(q_len * 1009 + kv_len)
    shapes = (
        (batch, heads, q_len, head_dim),
        (batch, kv_heads, kv_len, head_dim),
        (batch, kv_heads, kv_len, value_head_dim),
    )
    query, key, value = (
        torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes
    )
    return query, key, value


def expected(
    attn: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, Tensor]:
    """The output and the log-sum-exp in float64, from the mask of every head."""
    batch, heads, q_len, head_dim = query.shape
    masks = [
        [
            attn.mask(
                q_len,
                key.shape[2],
                head,
                heads=heads,
                kv_heads=key.shape[1],
                batch=index,
                **arguments,
            )
            for head in range(heads)
        ]
        for index in range(batch)
    ]
    mask = torch.stack([torch.stack(row) for row in masks]) if batch else torch.empty(0)
    scale = head_dim**-0.5 if scale is None else scale
    return dense_attention(query.cpu(), key.cpu(), value.cpu(), mask, scale)


def assert_right(
    results: tuple[Tensor, Tensor], answer: tuple[Tensor, Tensor], query: Tensor
) -> None:
    """Compares with the answer, as closely as the dtype allows."""
    out, lse = results
    near = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}
    tolerance = near[query.dtype]
    assert out.dtype == query.dtype
    assert lse.dtype == (torch.float64 if query.dtype == torch.float64 else torch.float32)
    assert out.shape == answer[0].shape
    torch.testing.assert_close(out.double().cpu(), answer[0], rtol=tolerance, atol=tolerance)
    lse_near = 1e-12 if query.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(lse.double().cpu(), answer[1], rtol=lse_near, atol=lse_near)


def expected_gradients(
    attn: Attention,
    inputs: tuple[Tensor, Tensor, Tensor],
    grad_out: Tensor,
    grad_lse: Tensor | None = None,
    **arguments: Any,
) -> tuple[Tensor, ...]:
    """The gradients of query, key and value, from autograd through dense attention in float64.

    The lse of a row without keys is a constant, -inf, whatever its gradient.
    """
    leaves = [tensor.detach().cpu().double().requires_grad_() for tensor in inputs]
    out, lse = expected(attn, leaves[0], leaves[1], leaves[2], **arguments)
    results, grads = [out], [grad_out.detach().cpu().double()]
    if grad_lse is not None:
        dead = lse.detach() == -torch.inf
        results.append(lse.masked_fill(dead, 0))
        grads.append(grad_lse.detach().cpu().double())
    return torch.autograd.grad(results, leaves, grads)


def assert_right_gradients(
    grads: Sequence[Tensor | None],
    answers: Sequence[Tensor],
    inputs: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Compares with the answers, as closely as the dtype allows in units of the largest entry."""
    near = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-5, torch.float64: 1e-12}
    names = ("query", "key", "value")
    for name, grad, answer, tensor in zip(names, grads, answers, inputs, strict=True):
        assert grad is not None, name
        assert grad.dtype == tensor.dtype and grad.shape == tensor.shape, name
        tolerance = near[tensor.dtype]
        largest = max(1.0, float(answer.abs().max())) if answer.numel() else 1.0
        torch.testing.assert_close(
            grad.double().cpu(),
            answer,
            rtol=0,
            atol=tolerance * largest,
            msg=partial("grad_{}: {}".format, name),
        )
