"""Selectors for prompts: MInference's vertical-slash and block-sparse heads, MoBA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from patterncc.dsl.errors import ArgumentError
from patterncc.selection.inputs import at_least, check, largest, per_query_head, pooled, wide

LEAST_VERTICALS, LEAST_SLASHES = 30, 50  # that MInference chooses however few are asked for


def vertical_slash(
    query: Tensor,
    key: Tensor,
    verticals: int | Sequence[int] = 1000,
    slashes: int | Sequence[int] = 6096,
    *,
    last: int = 64,
    first_keys: int = 30,
    first_distances: int = 100,
) -> dict[str, Any]:
    """MInference's choice of keys and distances, for the library pattern `vertical_slash`.

    From the attention of the last queries: the keys and the distances with the most weight, some
    of the first always among them (microsoft/MInference, `modules/minference_forward.py`).

    Args:
        query: `[1, heads, length, head_dim]`.
        key: `[1, kv_heads, length, head_dim]`.
        verticals: Keys to choose, at least 30 of them; one number, or one for each query head.
        slashes: Distances to choose, at least 50; likewise.
        last: Queries whose attention is looked at.
        first_keys: Keys at the start that come before all others.
        first_distances: Distances from 0 on that come before all others.

    Returns:
        `verticals` and `slashes`, each bool `[heads, length]`.

    Raises:
        ArgumentError: An argument does not fit.
    """
    check(query, key, square=True, one=True)
    heads, length, size = query.shape[1:]
    counts = {"verticals": verticals, "slashes": slashes}
    asked = {name: _per_head(name, count, heads) for name, count in counts.items()}
    at_least("last", last, 1)
    last = min(last, length)
    rows = torch.arange(length - last, length, device=query.device)
    scores = wide(query)[0, :, -last:] @ per_query_head(key, query)[0].mT * size**-0.5
    hidden = torch.arange(length, device=query.device) > rows[:, None]
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    by_key = weights.sum(1)
    by_distance = torch.zeros_like(by_key)
    for row, position in enumerate(range(length - last, length)):
        by_distance[:, : position + 1] += weights[:, row, : position + 1].flip(-1)
    by_key[:, :first_keys] = torch.inf
    by_distance[:, :first_distances] = torch.inf
    chosen = {}
    for name, sums, least in (
        ("verticals", by_key, LEAST_VERTICALS),
        ("slashes", by_distance, LEAST_SLASHES),
    ):
        rows_chosen = [largest(sums[head], max(asked[name][head], least)) for head in range(heads)]
        chosen[name] = torch.stack(rows_chosen)
    return chosen


def _per_head(name: str, counts: int | Sequence[int], heads: int) -> list[int]:
    listed = [counts] * heads if isinstance(counts, int) else list(counts)
    if len(listed) != heads:
        raise ArgumentError(f"`{name}` has {len(listed)} numbers; it needs {heads}, one each head")
    for head, count in enumerate(listed):
        if count < 0:
            raise ArgumentError(f"`{name}` is {count} for head {head}; it must be 0 or more")
    return listed


def minference_kernel(verticals: Tensor, slashes: Tensor, *, block: int = 64) -> dict[str, Any]:
    """What MInference's kernel computes for chosen keys and distances, for `minference`.

    For each block of queries, every distance asks for the `block` keys before the place where it
    leaves the block; intervals that touch are joined, and one that overlaps the last is replaced by
    a whole block at its end, so that more is computed than was chosen
    (microsoft/MInference, `csrc/vertical_slash_index.cu`).

    Args:
        verticals: bool `[heads, length]`, the keys.
        slashes: bool `[heads, length]`, the distances.
        block: Queries, and keys, of a block.

    Returns:
        `keep`, bool `[heads, ceil(length / block), length]`.

    Raises:
        ArgumentError: An argument does not fit.
    """
    for name, table in (("verticals", verticals), ("slashes", slashes)):
        if table.dtype != torch.bool or table.dim() != 2 or table.shape != verticals.shape:
            raise ArgumentError(
                f"`{name}` is {table.dtype} {list(table.shape)}; both must be bool [heads, length]"
            )
    at_least("block", block, 1)
    heads, length = verticals.shape
    rows = -(-length // block)
    keep = torch.stack(
        [
            _intervals(slashes[head].nonzero().flatten().tolist(), rows, block)
            for head in range(heads)
        ]
    )[..., :length]
    return {"keep": keep.to(verticals.device) | verticals[:, None, :]}


def _intervals(distances: list[int], rows: int, block: int) -> Tensor:
    """The intervals of one head: bool `[rows, rows * block]`."""
    ends = (torch.arange(rows) + 1) * block
    changes = torch.zeros(rows, 2 * rows * block + 2 * block, dtype=torch.int32)
    start = torch.zeros(rows, dtype=torch.int64)
    end = torch.zeros(rows, dtype=torch.int64)  # an empty interval, until there is one
    every = torch.arange(rows)

    def close(where: Tensor) -> None:
        changes[every[where], start[where]] += 1
        changes[every[where], end[where]] -= 1

    for distance in reversed(distances):
        live = distance < ends
        place = (ends - distance).clamp(min=block)
        fresh = live & ((end == 0) | (place > end + block))
        longer = live & ~fresh & (place > end)
        close(fresh & (end > 0))
        start = torch.where(fresh, place - block, start)
        end = torch.where(fresh, place, torch.where(longer, end + block, end))
    close(end > 0)
    return (changes.cumsum(-1) > 0)[:, : rows * block]


def block_topk(query: Tensor, key: Tensor, top: int = 100, *, size: int = 64) -> dict[str, Any]:
    """The key blocks that look most like each query block, for `causal_blocks(size = 64)`.

    Blocks are compared by the product of their means, unscaled, as MInference's block-sparse heads
    do (microsoft/MInference, `ops/block_sparse_flash_attention.py`).

    Args:
        query: `[1, heads, length, head_dim]`.
        key: `[1, kv_heads, length, head_dim]`.
        top: Blocks to choose, of those up to the query's own.
        size: Tokens of a block.

    Returns:
        `keep`, bool `[heads, blocks, blocks]`.

    Raises:
        ArgumentError: An argument does not fit.
    """
    check(query, key, square=True, one=True)
    at_least("top", top, 1)
    at_least("size", size, 1)
    rows = pooled(wide(query)[0], size)
    columns = pooled(per_query_head(key, query)[0], size)
    scores = rows @ columns.mT
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return {"keep": largest(scores.masked_fill(later, -torch.inf), top)}


def moba(query: Tensor, key: Tensor, top: int = 12, *, chunk: int = 4096) -> dict[str, Any]:
    """MoBA's chunks of keys for each token and head, for the library pattern `moba`.

    A token's own chunk counts among the `top`; of the chunks before it, those whose mean key has
    the largest product with the query, unscaled (MoonshotAI/MoBA, `moba/moba_naive.py`).

    Args:
        query: `[batch, heads, q_len, head_dim]`, the last positions of the sequence.
        key: `[batch, kv_heads, kv_len, head_dim]`.
        top: Chunks that a token sees, its own among them.
        chunk: Tokens of a chunk.

    Returns:
        `keep`, bool `[batch, heads, kv_len, chunks]`; the rows of positions before the queries are
        false.

    Raises:
        ArgumentError: An argument does not fit.
    """
    check(query, key)
    at_least("top", top, 1)
    at_least("chunk", chunk, 1)
    (batch, heads, q_len, _), kv_len = query.shape, key.shape[2]
    means = pooled(per_query_head(key, query), chunk)
    chunks = means.shape[2]
    own = torch.arange(kv_len - q_len, kv_len, device=query.device)[:, None] // chunk
    number = torch.arange(chunks, device=query.device)
    scores = (wide(query) @ means.mT).masked_fill(number >= own, -torch.inf)
    keep = torch.zeros(batch, heads, kv_len, chunks, dtype=torch.bool, device=query.device)
    keep[:, :, kv_len - q_len :] = largest(scores, top - 1) | (number == own)
    return {"keep": keep}
