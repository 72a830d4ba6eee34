"""Example tables and numbers for library patterns that need them, drawn from a seed.

So that `patterncc run document` runs: what nobody gave is filled in with something of the usual
shape, and whoever looks at the result is told so. Not selections: those of
`patterncc.selection` look at queries and keys, these at nothing. `lacache` is the exception: its
table follows from its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.dsl.pattern import Pattern

Array = npt.NDArray[Any]
USUAL_LAYERS = {"lacache": 32}  # of a model to look at a pattern in, where it needs more than a few


@dataclass(frozen=True, slots=True)
class Example:
    """Values for the parameters of a pattern that have none.

    Attributes:
        numbers: Run-time numbers by name.
        tables: Tables by name, int64 or bool; `cu_seqlens` for segments.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    tables: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """What an example is drawn for.

    Attributes:
        sizes: `heads`, `kv_heads`, `layers`, `kv_len` and `batch` of the call.
        numbers: Fixed parameters and run-time numbers of the pattern that have a value.
        random: Where chance comes from.
    """

    sizes: Mapping[str, int]
    numbers: Mapping[str, int]
    random: np.random.Generator

    def __getitem__(self, name: str) -> int:
        return self.sizes[name] if name in self.sizes else self.numbers[name]

    def blocks(self, size: str) -> int:
        """Blocks of the keys, of a size that a parameter gives."""
        return -(-self["kv_len"] // self[size])

    def coins(self, share: float, *shape: int) -> Array:
        """Truth values, `share` of them true."""
        result: Array = self.random.random(shape) < share
        return result


def example(name: str, pattern: Pattern, sizes: Mapping[str, int], seed: int = 0) -> Example | None:
    """Values for a library pattern's tables and numbers; `None` for a pattern that needs none.

    Args:
        name: Of the library pattern.
        pattern: It, with the values that were given for it.
        sizes: `heads`, `kv_heads`, `layers`, `kv_len` and `batch`.
        seed: Of what is drawn.

    Raises:
        ArgumentError: Its parameters contradict each other.
    """
    if name not in _EXAMPLES:
        return None
    numbers = dict(pattern.fixed)
    numbers |= pattern.defaults
    values = _EXAMPLES[name](Place(sizes, numbers, np.random.default_rng(seed)))
    found = {name: value for name, value in values.items() if isinstance(value, int)}
    tables = {name: value for name, value in values.items() if name not in found}
    return Example(found, tables)


def names() -> tuple[str, ...]:
    """The library patterns that have examples."""
    return tuple(_EXAMPLES)


Values = dict[str, Any]


def _documents(place: Place, unit: int = 1) -> Array:
    """Packed documents that fill the sequence: a few long ones and some short ones."""
    units = max(1, place["kv_len"] // unit)
    cuts = place.random.integers(1, units, min(8, units - 1)) if units > 1 else np.array([])
    return np.array([0, *(unit * np.unique(cuts)), place["kv_len"]], np.int64)


def _listed(place: Place, front: tuple[int, ...], rows: int, columns: int) -> Array:
    """Blocks of the usual shape: the diagonal, the first column, and a tenth of the others."""
    table = place.coins(0.1, *front, rows, columns)
    diagonal = np.minimum(np.arange(rows) * columns // rows, columns - 1)
    table[..., np.arange(rows), diagonal] = True
    table[..., 0] = True
    return table


def _square(place: Place, size: str) -> Array:
    blocks = place.blocks(size)
    return _listed(place, (place["heads"],), blocks, blocks)


def _by_token(place: Place, axis: str, size: str) -> Array:
    """A choice of blocks for each token: one in five, at random."""
    return place.coins(0.2, place["batch"], place[axis], place["kv_len"], place.blocks(size))


def _retrieval(place: Place) -> Array:
    """Half of the key/value heads."""
    chosen = np.zeros(place["kv_heads"], np.bool_)
    chosen[place.random.permutation(len(chosen))[: (len(chosen) + 1) // 2]] = True
    return chosen


def _pages(place: Place) -> Array:
    pages = place.coins(0.1, place["batch"], place["heads"], place.blocks("page"))
    pages[..., [0, -1]] = True
    return pages


def _lists(place: Place) -> Values:
    """Keys and distances: the first ones, and a few at random."""
    length = place["kv_len"]
    verticals = place.coins(0.01, place["heads"], length)
    slashes = place.coins(0.005, place["heads"], length)
    verticals[:, : min(30, length // 16)] = True
    slashes[:, : min(100, length // 16)] = True
    return {"verticals": verticals, "slashes": slashes}


def _minference(place: Place) -> Values:
    import torch  # its selector is torch's

    from patterncc.selection import minference_kernel

    lists = {name: torch.from_numpy(table) for name, table in _lists(place).items()}
    keep = minference_kernel(lists["verticals"], lists["slashes"], block=place["block"])["keep"]
    return {"keep": keep.numpy()}


def _lacache(place: Place) -> Values:
    from patterncc.selection import lacache  # loads torch

    found = lacache(
        place["layers"], place["capacity"], place["span"], place["overlap"], place["sinks"]
    )
    return {**found, "lifetime": found["lifetime"].numpy().astype(np.int64)}


def _images(place: Place) -> Values:
    """Two images in a text, each an eighth of it."""
    length = place["kv_len"]
    image = np.full(length, -1, np.int64)
    for number in range(2):
        start = length // 8 + number * length // 2
        image[start : start + max(1, length // 8)] = number
    return {"image": image}


def _columns(place: Place) -> Values:
    blocks = place.blocks("block")
    columns, diagonals = (place.coins(0.1, place["heads"], blocks) for _ in range(2))
    columns[:, 0] = diagonals[:, 0] = True
    keep = place.coins(0.1, place["heads"], blocks, blocks)
    keep[: place["heads"] // 2] = False  # half of the heads have lists of columns and diagonals
    columns[place["heads"] // 2 :, 1:] = False
    diagonals[place["heads"] // 2 :, 1:] = False
    return {"columns": columns, "diagonals": diagonals, "keep": keep}


def _variable(place: Place) -> Values:
    blocks = place.blocks("block")
    columns = place.coins(0.05, place["heads"], blocks)
    random = place.coins(0.02, place["heads"], blocks, blocks)
    return {"windows": _documents(place, place["block"]), "columns": columns, "random": random}


def _random_blocks(place: Place, count: int = 3) -> Array:
    """BigBird's random blocks: `count` in each row that are not in its window or at an end."""
    blocks = place.blocks("block")
    table = np.zeros((place["heads"], blocks, blocks), np.bool_)
    for head in range(place["heads"]):
        for row in range(1, blocks - 1):
            near = {0, blocks - 1, row - 1, row, row + 1}
            free = [column for column in range(blocks) if column not in near]
            table[head, row, place.random.permutation(free)[:count].astype(np.int64)] = True
    return table


def _snapkv(place: Place) -> Values:
    length = place["kv_len"]
    prompt = np.full(place["batch"], max(1, 3 * length // 4), np.int64)
    return {"prompt": prompt, "kept": place.coins(0.1, place["batch"], place["heads"], length)}


def _eviction(place: Place) -> Values:
    """Keys that live for an eighth of the sequence on average; the first four for ever."""
    length = place["kv_len"]
    lived = place.random.exponential(max(1, length // 8), length).astype(np.int64) + 1
    until = np.arange(length) + lived
    until[:4] = 1 << 30
    return {"until": until}


def _tree(place: Place) -> Values:
    """A random tree for each sequence: the parent of a node is one of the nodes before it."""
    nodes = place["nodes"]
    ancestors = np.zeros((place["batch"], nodes, nodes), np.bool_)
    for each in ancestors:
        for node in range(nodes):
            if node:
                each[node] = each[place.random.integers(max(0, node - 6), node)]
            each[node, node] = True
    return {"ancestors": ancestors}


def _windows(place: Place) -> Values:
    """Heads of two kinds: long in time, and wide in space."""
    kinds = place.random.integers(0, 2, (place["layers"], place["heads"]))
    sizes = {"depth_window": (5, 1), "row_window": (3, 3), "column_window": (1, 5)}
    return {name: np.array(pair, np.int64)[kinds] for name, pair in sizes.items()}


def _globals(place: Place) -> Array:
    chosen = place.coins(0.03, place.blocks("block"))
    chosen[0] = True
    return chosen


_EXAMPLES: dict[str, Callable[[Place], Values]] = {
    "bigbird": lambda at: {"random": _random_blocks(at)},
    "blocks": lambda at: {"keep": _square(at, "size")},
    "causal_blocks": lambda at: {"keep": _square(at, "size")},
    "clustered": lambda at: {"cluster": at.random.integers(0, 8, at["kv_len"])},
    "deepspeed_bigbird": lambda at: {"random": _random_blocks(at, 1)},
    "deepspeed_longformer": lambda at: {"globals": _globals(at)},
    "deepspeed_variable": _variable,
    "document": lambda at: {"doc": _documents(at)},
    "duo": lambda at: {"retrieval": _retrieval(at)},
    "duo_chunked": lambda at: {"retrieval": _retrieval(at)},
    "eviction": _eviction,
    "flexprefill": _columns,
    "gemma3_images": _images,
    "h2o": lambda at: {"heavy": at.coins(0.1, at["batch"], at["heads"], at["kv_len"])},
    "hip": lambda at: {
        "keep": _listed(at, (at["heads"],), at.blocks("rows"), at.blocks("columns"))
    },
    "infllm_v2": lambda at: {"keep": _by_token(at, "kv_heads", "block")},
    "lacache": _lacache,
    "landmark": lambda at: {"keep": _by_token(at, "heads", "block")},
    "llama4_padded": lambda at: {
        "left_pad": at.random.integers(0, max(1, at["kv_len"] // 8), at["batch"])
    },
    "longformer_tokens": lambda at: {"seen": at.coins(0.01, at["batch"], at["kv_len"])},
    "lserve": lambda at: {"retrieval": _retrieval(at), "pages": _pages(at)},
    "minference": _minference,
    "moba": lambda at: {"keep": _by_token(at, "heads", "chunk")},
    "nsa": lambda at: {"keep": _by_token(at, "kv_heads", "block")},
    "packed": lambda at: {"doc": _documents(at)},
    "prefix": lambda at: {"n": max(1, at["kv_len"] // 8)},
    "prefix_lengths": lambda at: {
        "length": at.random.integers(0, max(1, at["kv_len"] // 2), at["batch"])
    },
    "quest": lambda at: {"pages": _pages(at)},
    "sale": lambda at: {
        "keep": _listed(at, (at["heads"],), at.blocks("rows"), at.blocks("columns"))
    },
    "sliding_tile_heads": _windows,
    "snapkv": _snapkv,
    "squeezed": lambda at: {
        "context": max(1, 3 * at["kv_len"] // 4),
        "kept": at.coins(0.1, at["heads"], at["kv_len"]),
    },
    "tree": _tree,
    "vertical_slash": _lists,
}
