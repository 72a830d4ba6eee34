"""DuoAttention's published head files: `full_attention_heads.tsv` and `config.json`."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch

from patterncc.dsl.errors import ArgumentError
from patterncc.importers.imported import Imported

HEADS, CONFIG = "full_attention_heads.tsv", "config.json"

_TEXT = """\
# Retrieval heads are causal, the others have sinks and a window.
# retrieval[l, h]: is key/value head h of layer l a retrieval head?
# Source: DuoAttention, arXiv:2410.10819, {name}.
pattern duo(retrieval: bool[layer, kv_head], sinks = {sinks}, window = {window}):
    if retrieval[layer, kv_head] then causal else streaming(sinks, window)
"""


def duo_attention(
    folder: str | os.PathLike[str],
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
    layers: int | None = None,
    kv_heads: int | None = None,
) -> Imported:
    """The pattern of a folder that DuoAttention has written, such as those of its `attn_patterns`.

    As its own code does (mit-han-lab/duo-attention, `duo_attn/utils.py`), scores are clipped to
    0 .. 1, and a head is a retrieval head if its score is at least the threshold, or the
    `sparsity` quantile of all scores. That code adds random noise below 1e-6 so that equal scores
    fall on both sides of a quantile; here, of equal scores those of the first layers and heads
    count as larger, so that the same file is always the same pattern.

    The window is the configuration's `recent_size`, the query's own key among it, as in its
    training mask; its caches for decoding hold one key more.

    Args:
        folder: Holds `full_attention_heads.tsv`, a line for each layer with a score for each
            key/value head, and `config.json` with `sink_size` and `recent_size`.
        sparsity: Share of heads that get a window; 0.5 if neither this nor `threshold` is given.
        threshold: Least score of a retrieval head.
        layers, kv_heads: Of the model, where the file is to be checked against it.

    Returns:
        A pattern with the table `retrieval`, bool `[layers, kv_heads]`.

    Raises:
        ArgumentError: A file is not what it should be; the message says where.
        OSError: A file cannot be read.
    """
    if sparsity is not None and threshold is not None:
        raise ArgumentError("`sparsity` and `threshold` were both given; give one")
    for name, share in (("sparsity", sparsity), ("threshold", threshold)):
        if share is not None and not 0 <= share <= 1:
            raise ArgumentError(f"`{name}` is {share}; it must be in 0 .. 1")
    folder = Path(folder)
    scores = _scores(folder / HEADS, layers, kv_heads)
    sinks, window = _sizes(folder / CONFIG)
    if threshold is not None:
        retrieval = [[score >= threshold for score in row] for row in scores]
    else:
        retrieval = _most(scores, 0.5 if sparsity is None else sparsity)
    text = _TEXT.format(name=f"{folder.name}/{HEADS}", sinks=sinks, window=window)
    return Imported(text, {"retrieval": torch.tensor(retrieval)})


def _most(scores: list[list[float]], sparsity: float) -> list[list[bool]]:
    """Which heads are not below the quantile, were all scores different."""
    places = [(layer, head) for layer, row in enumerate(scores) for head in range(len(row))]
    places.sort(key=lambda place: -scores[place[0]][place[1]])  # stable: the first of equal ones
    count = len(places) - math.ceil((len(places) - 1) * sparsity)
    if sparsity >= 1:
        count = 0
    chosen = set(places[:count])
    return [
        [(layer, head) in chosen for head in range(len(row))] for layer, row in enumerate(scores)
    ]


def _scores(path: Path, layers: int | None, kv_heads: int | None) -> list[list[float]]:
    """The scores `[layers][kv_heads]` of a file, clipped."""
    rows: list[list[float]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        row = []
        for head, word in enumerate(line.rstrip().split("\t")):
            try:
                score = float(word)
            except ValueError:
                score = math.nan
            if not math.isfinite(score):
                raise ArgumentError(f"{path}, line {number}: the score of head {head} is {word!r}")
            row.append(min(max(score, 0.0), 1.0))
        wanted = len(rows[0]) if rows else kv_heads
        if wanted is not None and len(row) != wanted:
            whose = "the lines before have" if rows else "the model has"
            raise ArgumentError(
                f"{path}, line {number} has scores of {len(row)} heads; {whose} {wanted}"
            )
        rows.append(row)
    if not rows:
        raise ArgumentError(f"{path} has no scores")
    if layers is not None and len(rows) != layers:
        raise ArgumentError(f"{path} has scores of {len(rows)} layers; the model has {layers}")
    return rows


def _sizes(path: Path) -> tuple[int, int]:
    """The sinks and the window of a configuration."""
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ArgumentError(f"{path} is not JSON: {error}") from error
    sizes = []
    for name, least in (("sink_size", 0), ("recent_size", 1)):
        size = config.get(name) if isinstance(config, dict) else None
        if not isinstance(size, int) or isinstance(size, bool) or size < least:
            raise ArgumentError(
                f"{path}: `{name}` is {size!r}; it must be an integer from {least} on"
            )
        sizes.append(size)
    return sizes[0], sizes[1]
