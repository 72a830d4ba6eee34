"""MInference's published head files: which kind of sparsity each head of each layer has."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patterncc import selection
from patterncc.dsl.errors import ArgumentError
from patterncc.importers.imported import Imported

STREAMING, VERTICAL_SLASH, BLOCK_SPARSE = 0, 1, 2
KINDS = {
    "stream_llm": STREAMING,
    "vertical_and_slash": VERTICAL_SLASH,
    "block_sparse": BLOCK_SPARSE,
}
MISSING = ("vertical_and_slash", 1000, 6096)  # what its code takes for a head that is not listed
BLOCK = 64  # tokens of a block of its block-sparse heads
TOP = 100  # blocks that a block of queries sees there


@dataclass(frozen=True, slots=True, eq=False)
class MInferenceHeads(Imported):
    """A pattern of heads of several kinds, and how many keys, distances or blocks each has.

    `values` holds what the file says; the lists of a prompt come from `tables`, a layer at a time.

    Attributes:
        kinds: int32 `[layers, heads]`: `STREAMING`, `VERTICAL_SLASH` or `BLOCK_SPARSE`.
        sizes: int32 `[layers, heads, 2]`: sinks and window, or keys and distances.
    """

    kinds: Tensor
    sizes: Tensor

    def tables(self, query: Tensor, key: Tensor, layer: int) -> dict[str, Any]:
        """The lists of keys, distances and blocks of one layer for a prompt.

        Args:
            query: `[1, heads, length, head_dim]`.
            key: `[1, kv_heads, length, head_dim]`.
            layer: Layer number.

        Returns:
            The tables of the pattern that are not in `values`.

        Raises:
            ArgumentError: The tensors do not fit the file.
        """
        layers, heads = self.kinds.shape
        if not 0 <= layer < layers:
            raise ArgumentError(f"`layer` is {layer}; the file has layers 0 .. {layers - 1}")
        if query.dim() != 4 or query.shape[1] != heads:
            raise ArgumentError(f"`query` is {list(query.shape)}; the file has {heads} heads")
        found: dict[str, Any] = {}
        present = set(self.kinds.flatten().tolist())
        listed = (self.kinds[layer] == VERTICAL_SLASH).tolist()
        if VERTICAL_SLASH in present:
            counts = [
                [int(size) if here else 0 for here, size in zip(listed, sizes, strict=True)]
                for sizes in self.sizes[layer].T.tolist()
            ]
            found |= selection.vertical_slash(query, key, counts[0], counts[1])
        if BLOCK_SPARSE in present:
            found |= selection.block_topk(query, key, TOP, size=BLOCK)
        return found


def minference(
    source: str | os.PathLike[str] | Sequence[Any], heads: int, *, layers: int | None = None
) -> MInferenceHeads:
    """The pattern of a head file of MInference, such as those of its `minference/configs`.

    Args:
        source: Path of the JSON file, or what it holds: for each layer a dict from head to
            `[kind, size, size, score]`, where `stream_llm` has sinks and a window,
            `vertical_and_slash` keys and distances. A head that is not listed has 1000 keys and
            6096 distances.
        heads: Query heads of the model.
        layers: Layers of the model, where the file is to be checked against it.

    Raises:
        ArgumentError: The file is not what it should be; the message says where.
        OSError: It cannot be read.
    """
    name = "the head file"
    document: Any = source
    if isinstance(source, (str, os.PathLike)):
        name = str(source)
        try:
            document = json.loads(Path(source).read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ArgumentError(f"{name} is not JSON: {error}") from error
    if not isinstance(document, Sequence) or not all(isinstance(row, dict) for row in document):
        raise ArgumentError(f"{name} is not a list of one object for each layer")
    if not document or heads < 1:
        raise ArgumentError(f"{name} has {len(document)} layers, for {heads} heads")
    if layers is not None and len(document) != layers:
        raise ArgumentError(f"{name} has {len(document)} layers; the model has {layers}")
    rows = [_layer(f"{name}, layer {layer}", row, heads) for layer, row in enumerate(document)]
    kinds = torch.tensor([[kind for kind, _, _ in row] for row in rows], dtype=torch.int32)
    sizes = torch.tensor([[head[1:] for head in row] for row in rows], dtype=torch.int32)
    text, values = _pattern(Path(name).name, kinds, sizes)
    return MInferenceHeads(text, values, kinds, sizes)


def _layer(place: str, row: dict[Any, Any], heads: int) -> list[tuple[int, int, int]]:
    """The kind and the sizes of each head of a layer."""
    listed = {}
    for word, entry in row.items():
        head = int(word) if str(word).isdecimal() else -1
        if not 0 <= head < heads:
            raise ArgumentError(f"{place}: head {word!r} is not in 0 .. {heads - 1}")
        if head in listed:
            raise ArgumentError(f"{place}: head {head} is listed twice")
        if not isinstance(entry, (list, tuple)) or len(entry) < 3:
            raise ArgumentError(
                f"{place}: head {head} has {entry!r}, not [kind, size, size, score]"
            )
        if entry[0] not in KINDS:
            known = ", ".join(KINDS)
            raise ArgumentError(f"{place}: head {head} is {entry[0]!r}; the kinds are {known}")
        for size in entry[1:3]:
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= 1 << 30:
                raise ArgumentError(f"{place}: head {head} has the size {size!r}")
        listed[head] = entry[:3]
    found = [listed.get(head, MISSING) for head in range(heads)]
    return [(KINDS[kind], first, second) for kind, first, second in found]


def _pattern(name: str, kinds: Tensor, sizes: Tensor) -> tuple[str, dict[str, Any]]:
    """The text for the kinds that a file has, and its tables."""
    present = sorted(set(kinds.flatten().tolist()))
    values: dict[str, Any] = {}
    parameters, bodies = [], {}
    if len(present) > 1:
        parameters.append("kind: int[layer, head]")
        values["kind"] = kinds
    if STREAMING in present:
        parameters += ["sinks: int[layer, head]", "window: int[layer, head]"]
        streaming = kinds == STREAMING
        values["sinks"], values["window"] = (
            torch.where(streaming, sizes[..., place], 0) for place in range(2)
        )
        bodies[STREAMING] = "streaming(sinks[layer, head], window[layer, head])"
    if VERTICAL_SLASH in present:
        parameters += ["verticals: bool[head, *]", "slashes: bool[head, *]"]
        bodies[VERTICAL_SLASH] = "vertical_slash(verticals, slashes)"
    if BLOCK_SPARSE in present:
        parameters.append("keep: bool[head, *, *]")
        bodies[BLOCK_SPARSE] = f"causal_blocks(keep, {BLOCK})"
    body = bodies[present[-1]]
    for kind in reversed(present[:-1]):
        body = f"if kind[layer, head] == {kind} then {bodies[kind]} else {body}"
    text = f"# Source: MInference, arXiv:2407.02490, {name}.\n"
    text += f"pattern minference_heads({', '.join(parameters)}):\n    {body}\n"
    return text, values
