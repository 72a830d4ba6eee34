"""What selectors ask of their tensors, and the choice of the largest with ties to the first."""

from __future__ import annotations

import torch
from torch import Tensor

from patterncc.arguments import shape_text
from patterncc.dsl.errors import ArgumentError


def check(query: Tensor, key: Tensor, *, square: bool = False, one: bool = False) -> None:
    """Checks the query and the key of a selector.

    Args:
        query: `[batch, heads, q_len, head_dim]`.
        key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
        square: There must be as many queries as keys.
        one: There must be one sequence, as the tables have no axis for the batch.

    Raises:
        ArgumentError: They do not fit.
    """
    for name, tensor in (("query", query), ("key", key)):
        if tensor.dim() != 4 or 0 in tensor.shape or not tensor.is_floating_point():
            raise ArgumentError(
                f"`{name}` is {tensor.dtype} {shape_text(tensor)}; "
                "it must be floating point [batch, heads, length, head_dim], and not empty"
            )
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ArgumentError(
            f"`query` is {shape_text(query)} and `key` is {shape_text(key)}; "
            "they must have one batch and one head_dim"
        )
    if query.shape[1] % key.shape[1]:
        raise ArgumentError(
            f"`query` has {query.shape[1]} heads and `key` {key.shape[1]}; "
            "the first must be a multiple of the second"
        )
    if query.shape[2] > key.shape[2] or (square and query.shape[2] != key.shape[2]):
        wanted = "as many as" if square else "no more than"
        raise ArgumentError(
            f"`query` has {query.shape[2]} positions; it needs {wanted} `key`, {key.shape[2]}"
        )
    if one and query.shape[0] != 1:
        raise ArgumentError(
            f"`query` has batch {query.shape[0]}; this selector looks at one sequence"
        )


def at_least(name: str, value: int, least: int) -> None:
    """Checks a number.

    Raises:
        ArgumentError: It is too small.
    """
    if value < least:
        raise ArgumentError(f"`{name}` is {value}; it must be {least} or more")


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def per_query_head(key: Tensor, query: Tensor) -> Tensor:
    """Keys `[batch, heads, ...]`: those of its key/value head for each query head."""
    return wide(key).repeat_interleave(query.shape[1] // key.shape[1], dim=1)


def largest(scores: Tensor, count: int) -> Tensor:
    """Where the `count` largest of the last axis are; of equal ones the first.

    An element of -inf is never chosen, so there may be fewer.

    Args:
        scores: Any shape.
        count: How many.

    Returns:
        bool, the shape of `scores`.
    """
    count = min(count, scores.shape[-1])
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    chosen.scatter_(-1, order, True)
    return chosen & (scores > -torch.inf)


def pooled(tokens: Tensor, size: int) -> Tensor:
    """Means of blocks of `size` tokens, the last of what it has: `[..., blocks, head_dim]`."""
    length = tokens.shape[-2]
    blocks = -(-length // size)
    padded = torch.nn.functional.pad(tokens, (0, 0, 0, blocks * size - length))
    sums = padded.reshape(*tokens.shape[:-2], blocks, size, tokens.shape[-1]).sum(-2)
    counts = torch.full((blocks, 1), size, device=tokens.device)
    counts[-1] = length - (blocks - 1) * size
    means: Tensor = sums / counts
    return means
