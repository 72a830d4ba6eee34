"""Calls of patterns whose tables decide key by key, tables drawn and masks written by hand: what
`gpu_gathered.py` measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.pass_plan import Lowered
from patterncc.codegen.ir import Passes
from patterncc.dsl import load
from patterncc.dsl.library import source

Tables = dict[str, torch.Tensor]
DEVICE, DTYPE = "cuda", torch.bfloat16
WIDE = KernelConfig(128, 64, 8, 3, "descriptor")
DEEP = KernelConfig(64, 64, 4, 3, "descriptor")


@dataclass(frozen=True)
class Case:
    """A call.

    Attributes:
        name: In the results.
        pattern: Of the library.
        length, rows, heads: Keys, queries (the last positions) and heads.
        tables: Makes its tables.
        allowed: Its mask, written by hand: of tables, head, positions of rows and of keys.
        numbers: Its run-time numbers.
        config: Of all kernels; None for the default.
    """

    name: str
    pattern: str
    length: int
    rows: int
    heads: int
    tables: Callable[[Case], Tables]
    allowed: Callable[[Tables, int, torch.Tensor, torch.Tensor], torch.Tensor]
    numbers: Mapping[str, int] = field(default_factory=dict)
    config: KernelConfig | None = None


def generator(seed: int) -> torch.Generator:
    """Of random numbers on the GPU."""
    return torch.Generator(DEVICE).manual_seed(seed)


def chosen(case: Case, count: int, length: int, seed: int = 0) -> torch.Tensor:
    """So many places of each head, bool `[heads, length]`."""
    scores = torch.rand(case.heads, length, device=DEVICE, generator=generator(seed))
    kept = torch.zeros(case.heads, length, dtype=torch.bool, device=DEVICE)
    return kept.scatter_(1, scores.topk(count, 1).indices, True)


def random_lines(case: Case) -> Tables:
    """1% of all keys and distances, each alone."""
    count = case.length // 100
    return {
        "verticals": chosen(case, count, case.length, 1),
        "slashes": chosen(case, count, case.length, 2),
    }


def minference_lines(case: Case) -> Tables:
    """MInference's published counts: 1000 keys, the first 30 among them; 6096 distances, the first
    1024 and 50 clusters of about 101 others."""
    verticals = chosen(case, 970, case.length, 1)
    verticals[:, :30] = True
    slashes = torch.zeros_like(verticals)
    slashes[:, :1024] = True
    draw = torch.rand(case.heads, 50, device=DEVICE, generator=generator(2))
    first = (1024 + draw * (case.length - 1200)).long()
    places = first[:, :, None] + torch.arange(101, device=DEVICE)
    slashes.scatter_(1, places.flatten(1), True)
    return {"verticals": verticals, "slashes": slashes}


def minference_blocks(case: Case) -> Tables:
    """The keys that each block of 64 rows loads for those: of every distance the 64 keys that its
    rows see, and all listed keys."""
    lines = minference_lines(case)
    verticals, slashes = lines["verticals"], lines["slashes"]
    length = case.length
    counts = slashes.int().cumsum(1)
    before = torch.cat([torch.zeros_like(counts[:, :64]), counts[:, :-64]], 1)
    wide = counts > before  # some distance in (d - 64, d]
    keep = torch.empty((case.heads, length // 64, length), dtype=torch.bool, device=DEVICE)
    key = torch.arange(length, device=DEVICE)
    for block in range(length // 64):
        last = 64 * block + 63 - key
        keep[:, block] = verticals | (wide[:, last.clamp(min=0)] & (last >= 0))
    return {"keep": keep}


def heavy(case: Case) -> Tables:
    """A tenth of the keys."""
    return {"heavy": chosen(case, case.length // 10, case.length)[None]}


def context(case: Case) -> Tables:
    """A tenth of the context."""
    return {"kept": chosen(case, case.numbers["context"] // 10, case.numbers["context"])}


def prompt(case: Case) -> Tables:
    """2048 keys of a prompt."""
    length = case.length - case.rows // 2
    return {
        "prompt": torch.tensor([length], dtype=torch.int32, device=DEVICE),
        "kept": chosen(case, 2048, length)[None],
    }


def lives(case: Case) -> Tables:
    """A tenth of the keys stay, the others for 256 positions."""
    key = torch.arange(case.length, device=DEVICE, dtype=torch.int32)
    stays = chosen(case, case.length // 10, case.length)[0]
    return {"until": torch.where(stays, case.length, key + 256)}


def at(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Entries of a table of one axis; false outside of it."""
    inside = (index >= 0) & (index < len(table))
    return inside & table[index.clamp(0, len(table) - 1)]


MINFERENCE = Case(
    "minference, 32K",
    "minference",
    1 << 15,
    1 << 15,
    16,
    minference_blocks,
    lambda t, h, q, k: (k <= q) & t["keep"][h, (q // 64).flatten()][:, k.flatten()],
)
H2O = Case(
    "h2o, 32K",
    "h2o",
    1 << 15,
    1 << 15,
    16,
    heavy,
    lambda t, h, q, k: (k <= q) & ((q - k < 3277) | at(t["heavy"][0, h], k)),
    {"recent": 3277},
)

CASES = (
    MINFERENCE,
    Case(
        "vertical_slash, 32K",
        "vertical_slash",
        1 << 15,
        1 << 15,
        16,
        minference_lines,
        lambda t, h, q, k: (k <= q) & (at(t["verticals"][h], k) | at(t["slashes"][h], q - k)),
    ),
    Case(
        "vertical_slash, 16K, random lines",
        "vertical_slash",
        1 << 14,
        1 << 14,
        16,
        random_lines,
        lambda t, h, q, k: (k <= q) & (at(t["verticals"][h], k) | at(t["slashes"][h], q - k)),
    ),
    H2O,
    Case(
        "vertical_slash, 128K",
        "vertical_slash",
        1 << 17,
        1 << 17,
        8,
        minference_lines,
        lambda t, h, q, k: (k <= q) & (at(t["verticals"][h], k) | at(t["slashes"][h], q - k)),
    ),
    replace(MINFERENCE, name="minference, 128K", length=1 << 17, rows=1 << 17, heads=4),
    Case(
        "eviction, 32K",
        "eviction",
        1 << 15,
        1 << 15,
        16,
        lives,
        lambda t, h, q, k: (k <= q) & (q < t["until"][k]),
    ),
    Case(
        "squeezed, 4K rows of 32K",
        "squeezed",
        1 << 15,
        1 << 12,
        16,
        context,
        lambda t, h, q, k: (k <= q) & ((k >= 28672) | at(t["kept"][h], k)),
        {"context": 28672},
    ),
    Case(
        "snapkv, 4K rows of 32K",
        "snapkv",
        1 << 15,
        1 << 12,
        16,
        prompt,
        lambda t, h, q, k: (k <= q) & ((q < 30720) | (k >= 30720 - 32) | at(t["kept"][0, h], k)),
        {"window": 32},
    ),
    replace(MINFERENCE, name="three stages: minference, 32K", config=DEEP),
    replace(MINFERENCE, name="minference, 32K, 128x64 w8", config=WIDE),
    replace(H2O, name="h2o, 32K, 128x64 w8", config=WIDE),
)
_LOWERED: dict[tuple[str, int, int, bool], Passes] = {}


def lowered(case: Case, gather: bool) -> Lowered:
    """The passes of a case for a tile shape."""

    def passes(block_q: int, block_k: int) -> tuple[Passes]:
        place = (case.pattern, block_q, block_k, gather)
        if place not in _LOWERED:
            pattern = load(source(case.pattern).text)
            _LOWERED[place] = lower_passes(
                pattern, block_q, block_k, within=True, transposed=False, gather=gather
            )
        return (_LOWERED[place],)

    return passes


def table_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """The shapes of a case's tables, for plans without them."""
    length, heads = case.length, case.heads
    return {
        "minference": {"keep": (heads, length // 64, length)},
        "vertical_slash": {"verticals": (heads, length), "slashes": (heads, length)},
        "h2o": {"heavy": (1, heads, length)},
        "eviction": {"until": (length,)},
        "squeezed": {"kept": (heads, case.numbers.get("context", 1))},
        "snapkv": {"prompt": (1,), "kept": (1, heads, length - case.rows // 2)},
    }[case.pattern]
