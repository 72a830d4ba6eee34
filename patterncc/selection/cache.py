"""Selectors for decoding: Quest's and LServe's pages, SnapKV's keys of a prompt."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from patterncc.dsl.errors import ArgumentError
from patterncc.selection.inputs import at_least, check, largest, per_query_head, wide


def quest_pages(
    query: Tensor, key: Tensor, budget: int, *, page: int = 16, parts: int = 1
) -> dict[str, Any]:
    """The pages of the cache with the largest bounds of a query's scores, for `quest` and `lserve`.

    A page's bound is the largest product that a key within its channels' extremes could have with
    the query. The last page is always chosen; it counts (mit-han-lab/Quest, `quest/utils`).

    Args:
        query: `[batch, heads, 1, head_dim]`: one step of decoding.
        key: `[batch, kv_heads, kv_len, head_dim]`.
        budget: Pages to choose.
        page: Keys of a page.
        parts: Equal parts of a page that are bounded one by one, the largest bound counting; 4 of
            16 keys each in LServe (mit-han-lab/omniserve).

    Returns:
        `pages`, bool `[batch, heads, ceil(kv_len / page)]`.

    Raises:
        ArgumentError: An argument does not fit.
    """
    check(query, key)
    if query.shape[2] != 1:
        raise ArgumentError(f"`query` has {query.shape[2]} positions; pages are chosen for one")
    for name, number in (("budget", budget), ("page", page), ("parts", parts)):
        at_least(name, number, 1)
    if page % parts:
        raise ArgumentError(f"`parts` is {parts}; it must divide `page`, {page}")
    keys = per_query_head(key, query)
    step = page // parts
    pages = -(-keys.shape[2] // page)
    bounds = []
    for start in range(0, keys.shape[2], step):
        part = keys[:, :, start : start + step]
        least, most = part.amin(2), part.amax(2)
        row = wide(query)[:, :, 0]
        bounds.append(torch.maximum(row * least, row * most).sum(-1))
    absent = torch.full_like(bounds[0], -torch.inf)
    bounds += [absent] * (pages * parts - len(bounds))
    scores = torch.stack(bounds, -1).reshape(*query.shape[:2], pages, parts).amax(-1)
    scores[..., -1] = torch.inf
    return {"pages": largest(scores, budget)}


def snapkv(
    query: Tensor,
    key: Tensor,
    capacity: int = 2048,
    *,
    window: int = 32,
    kernel: int = 5,
    pooling: Literal["avg", "max"] = "avg",
) -> dict[str, Any]:
    """The keys of a prompt that SnapKV keeps, for the library pattern `snapkv`.

    The weights that the prompt's last queries give to each key, summed and smoothed along the keys;
    the largest are kept, and the last keys (FasterDecoding/SnapKV, `monkeypatch/snapkv_utils.py`).

    Args:
        query: `[batch, heads, prompt, head_dim]`.
        key: `[batch, kv_heads, prompt, head_dim]`.
        capacity: Keys to keep, the last ones among them; all where the prompt has no more.
        window: Last queries and keys.
        kernel: Keys that are smoothed over, odd.
        pooling: How: by their mean, zeros beyond the ends, or by the largest.

    Returns:
        `prompt`, int32 `[batch]`; `kept`, bool `[batch, heads, prompt]`; `window`.

    Raises:
        ArgumentError: An argument does not fit.
    """
    check(query, key, square=True)
    at_least("window", window, 1)
    at_least("capacity", capacity, window + 1)
    at_least("kernel", kernel, 1)
    if kernel % 2 == 0:
        raise ArgumentError(f"`kernel` is {kernel}; it must be odd")
    if pooling not in ("avg", "max"):
        raise ArgumentError(f"`pooling` is {pooling!r}; it must be 'avg' or 'max'")
    batch, heads, length, size = query.shape
    window = min(window, length)
    before = length - window
    kept = torch.zeros(batch, heads, length, dtype=torch.bool, device=query.device)
    kept[..., before:] = True
    if length <= capacity:
        kept[:] = True
    else:
        scores = wide(query)[:, :, before:] @ per_query_head(key, query).mT * size**-0.5
        places = torch.arange(length, device=query.device)
        weights = scores.masked_fill(places > places[before:, None], -torch.inf).softmax(-1)
        sums = weights[..., :before].sum(2)
        pool = avg_pool1d if pooling == "avg" else max_pool1d
        smooth = pool(sums, kernel, stride=1, padding=kernel // 2)
        kept[..., :before] = largest(smooth, capacity - window)
    prompt = torch.full((batch,), length, dtype=torch.int32, device=query.device)
    return {"prompt": prompt, "kept": kept, "window": window}
