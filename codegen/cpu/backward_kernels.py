"""What computes the gradients of one call of a plan."""

from typing import NamedTuple

import torch
from torch import Tensor

_MAX_SCORES = 1 << 20  # held at a time


def few_blocks(scores: int) -> int:
    """How many blocks of so many scores to give to a kernel at a time."""
    return max(1, _MAX_SCORES // scores)


class OfRows(NamedTuple):
    """What the rows of blocks bring, all float32 or float64.

    Shapes: query `[outer, heads, rows, dim]`, grad_out `[outer, heads, rows, value_dim]`, lse and
    delta `[outer, heads, rows, 1]`.
    """

    query: Tensor
    grad_out: Tensor
    lse: Tensor
    delta: Tensor


class OfKeys(NamedTuple):
    """What the keys bring: `[outer, kv_heads, keys, dim]` and `[outer, kv_heads, keys, value_dim]`.

    `kv_heads` divides the heads of the rows.
    """

    key: Tensor
    value: Tensor


class Gradients(NamedTuple):
    """Of query, key and value, of their shapes: what some pairs contribute."""

    query: Tensor
    key: Tensor
    value: Tensor


def matmul(rows: OfRows, keys: OfKeys, hidden: Tensor | None, scale: float) -> Gradients:
    """Five matrix products, some rows at a time.

    Nothing passes between a row and a key that the mask hides from it.

    Args:
        rows, keys: The operands.
        hidden: bool `[rows, keys]`, the pairs that do not count; None if all do.
        scale: Factor of the scores.
    """
    outer, heads, length, _ = rows.query.shape
    grads = Gradients(
        torch.empty_like(rows.query, memory_format=torch.contiguous_format),
        torch.zeros_like(keys.key, memory_format=torch.contiguous_format),
        torch.zeros_like(keys.value, memory_format=torch.contiguous_format),
    )
    few = max(1, min(length, _MAX_SCORES // (outer * heads * keys.key.shape[2])))
    for low in range(0, length, few):
        some = slice(low, low + few)
        part = _products(
            OfRows(*(x[:, :, some] for x in rows)),
            keys,
            None if hidden is None else hidden[some],
            scale,
        )
        grads.query[:, :, some] = part.query
        grads.key.add_(part.key)
        grads.value.add_(part.value)
    return grads


def _products(rows: OfRows, keys: OfKeys, hidden: Tensor | None, scale: float) -> Gradients:
    outer, heads, length, _ = rows.query.shape
    kv_heads = keys.key.shape[1]
    group = heads // kv_heads
    # The heads that share a key head are more rows.
    query, grad_out, lse, delta = (
        x.reshape(outer, kv_heads, group * length, x.shape[-1]) for x in rows
    )
    unseen = None if hidden is None else hidden.repeat(group, 1)
    by_keys = None if unseen is None else unseen.mT
    weights = (query @ keys.key.mT).mul_(scale).sub_(lse).exp_()
    if unseen is not None:
        weights.masked_fill_(unseen, 0)
    grad_value = seen_products(weights.mT, grad_out, by_keys)
    grad_scores = (grad_out @ keys.value.mT).sub_(delta).mul_(weights).mul_(scale)
    if unseen is not None:
        grad_scores.masked_fill_(unseen, 0)  # 0 times what is not finite
    return Gradients(
        seen_products(grad_scores, keys.key, unseen).view(outer, heads, length, -1),
        seen_products(grad_scores.mT, query, by_keys),
        grad_value,
    )


def seen_products(weights: Tensor, numbers: Tensor, hidden: Tensor | None) -> Tensor:
    """`weights @ numbers`, where what is hidden has no influence, finite or not.

    Args:
        weights: `[..., rows, columns]`, 0 where hidden.
        numbers: `[..., columns, dim]`.
        hidden: bool `[rows, columns]`, or None.
    """
    if hidden is None:
        return weights @ numbers
    wild = ~numbers.isfinite()  # 0 times these is not 0
    if not bool(wild.any()):
        return weights @ numbers
    clean = weights @ numbers.masked_fill(wild, 0)
    touched = (~hidden).to(weights.dtype) @ wild.to(weights.dtype) > 0
    return torch.where(touched, weights @ numbers, clean)
