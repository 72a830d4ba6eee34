"""Tensors and the right answer for the tests of the front."""

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
    **arguments: int,
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
