"""The patterns that the scripts beside this one measure, with their masks written by hand, as
FlexAttention has them, to check kernels against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from patterncc.codegen.choice import TilingChoice, lower_passes
from patterncc.codegen.gpu.pass_plan import Lowered
from patterncc.codegen.ir import Passes
from patterncc.dsl import load
from patterncc.dsl.library import source
from patterncc.dsl.pattern import Pattern

Tables = Mapping[str, torch.Tensor]
Mask = Callable[[Any, Any, Any, Any], Any]


@dataclass(frozen=True)
class Shape:
    """Sizes of a call, without offset."""

    heads: int
    kv_heads: int
    length: int
    head_dim: int

    def tensors(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random query, key and value."""
        torch.manual_seed(0)
        query = (1, self.heads, self.length, self.head_dim)
        key = (1, self.kv_heads, self.length, self.head_dim)
        return tuple(  # type: ignore[return-value]
            torch.randn(size, dtype=torch.bfloat16, device=device) for size in (query, key, key)
        )


@dataclass(frozen=True)
class Case:
    """A pattern, what a call of it is given, and the same mask written by hand.

    Attributes:
        name: In the table of results.
        text: Of the pattern.
        flex: The mask as FlexAttention has it, given the tables.
        values: Run-time numbers and coordinates.
        tables: The tables of a call, by its length and heads.
        per_head: Do the masks of heads differ?
        tiling: How the pattern may be split into passes.
    """

    name: str
    text: str
    flex: Callable[[Tables], Mask]
    values: Mapping[str, int] = field(default_factory=dict)
    tables: Callable[[int, int], Mapping[str, Any]] | None = None
    per_head: bool = False
    tiling: TilingChoice = "auto"

    def tables_on(self, device: torch.device, length: int, heads: int) -> dict[str, torch.Tensor]:
        """The tables as kernels take them."""
        given = self.tables(length, heads) if self.tables else {}
        tables = {name: torch.as_tensor(np.asarray(t)) for name, t in given.items()}
        return {
            name: (table if table.dtype == torch.bool else table.to(torch.int32)).to(device)
            for name, table in tables.items()
        }


def _plain(mask: Mask) -> Callable[[Tables], Mask]:
    return lambda tables: mask


def _ladder(batch: Any, head: Any, q: Any, k: Any) -> Any:
    return (q >= k) & ((k < 64) | (q - k < 1024) | ((k // 128) % 8 == 0))


def _local_strided(batch: Any, head: Any, q: Any, k: Any) -> Any:
    return (q >= k) & ((q // 64 - k // 64 < 16) | ((k // 64 + 1) % 8 == 0))


def _dilated(keys: int, step: int) -> Case:
    def mask(batch: Any, head: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (q - k < keys * step) & ((q - k) % step == 0)

    return Case(f"dilated {keys} step {step}", f"dilated({keys}, {step})", _plain(mask))


def _window_strided(batch: Any, head: Any, q: Any, k: Any) -> Any:
    return (q >= k) & ((q - k < 512) | ((q - k) % 64 == 0))


def _window_dilated(batch: Any, head: Any, q: Any, k: Any) -> Any:
    return (q >= k) & ((q - k < 512) | ((q - k < 4096) & ((q - k) % 8 == 0)))


def _dense(case: Case) -> Case:
    return replace(case, name=f"{case.name}, dense tiles", tiling="dense")


def _head_windows(tables: Tables) -> Mask:
    width = tables["w"]
    return lambda batch, head, q, k: (q >= k) & (q - k < width[head])


def _packed(tables: Tables) -> Mask:
    bounds = tables["doc"]
    places = torch.arange(int(bounds[-1]), device=bounds.device, dtype=torch.int32)
    document = torch.searchsorted(bounds, places, right=True)
    return lambda batch, head, q, k: (q >= k) & (document[q] == document[k])


def _even_documents(length: int, heads: int) -> dict[str, list[int]]:
    return {"doc": [*range(0, length, 1024), length]}


def _drawn_documents(length: int, heads: int) -> dict[str, list[int]]:
    """Lengths from a log-normal distribution, median 400: many short documents and a few long."""
    generator = np.random.default_rng(0)
    bounds = [0]
    while bounds[-1] < length:
        drawn = int(generator.lognormal(6.0, 1.0)) + 1
        bounds.append(min(bounds[-1] + drawn, length))
    return {"doc": bounds}


def _blocks(tables: Tables) -> Mask:
    keep = tables["keep"]
    return lambda batch, head, q, k: (q >= k) & keep[head, q // 64, k // 64]


def _drawn_blocks(length: int, heads: int) -> dict[str, Any]:
    """A tenth of the blocks, and those on the diagonal."""
    blocks = -(-length // 64)
    keep = np.random.default_rng(0).random((heads, blocks, blocks)) < 0.1
    return {"keep": keep | np.eye(blocks, dtype=bool)}


def _bigbird(tables: Tables) -> Mask:
    random = tables["random"]
    last = random.shape[1] - 1

    def mask(batch: Any, head: Any, q: Any, k: Any) -> Any:
        row, column = q // 64, k // 64
        ends = (row == 0) | (row == last) | (column == 0) | (column == last)
        return ends | ((row - column).abs() <= 1) | random[head, row, column]

    return mask


def _drawn_bigbird(length: int, heads: int) -> dict[str, Any]:
    """Three blocks of each row, as Hugging Face's default has them."""
    blocks = -(-length // 64)
    order = np.random.default_rng(0).random((heads, blocks, blocks)).argsort(axis=2)
    return {"random": order < 3}


def _vertical_slash(tables: Tables) -> Mask:
    verticals, slashes = tables["verticals"], tables["slashes"]
    return lambda batch, head, q, k: (q >= k) & (verticals[head, k] | slashes[head, (q - k).abs()])


def _drawn_lines(length: int, heads: int) -> dict[str, Any]:
    """The first 64 keys and near distances, and 100 other keys and distances for each head."""
    random, near = np.random.default_rng(0), np.arange(length) < 64
    drawn = [random.random((heads, length)) < 100 / length for _ in range(2)]
    return {"verticals": drawn[0] | near, "slashes": drawn[1] | near}


_STRIDED = Case(
    "window 512 or strided 64",
    "causal and (q - k < 512 or (q - k) % 64 == 0)",
    _plain(_window_strided),
)
_DILATED_UNION = Case(
    "window 512 or dilated 512 step 8",
    "window(512) or dilated(512, 8)",
    _plain(_window_dilated),
)
_PACKED_TEXT = "pattern packed(doc: segments): causal and doc[q] == doc[k]"

CASES = (
    Case("full", "full", _plain(lambda b, h, q, k: k >= 0)),
    Case("causal", "causal", _plain(lambda b, h, q, k: q >= k)),
    Case("window 4096", "window(4096)", _plain(lambda b, h, q, k: (q >= k) & (q - k < 4096))),
    Case("window 1024", "window(1024)", _plain(lambda b, h, q, k: (q >= k) & (q - k < 1024))),
    Case(
        "sinks 64 + window 4096",
        "streaming(64, 4096)",
        _plain(lambda b, h, q, k: (q >= k) & ((k < 64) | (q - k < 4096))),
    ),
    Case("local strided", "local_strided(64, 16, 8)", _plain(_local_strided)),
    Case("ladder", "ladder(64, 1024, 128, 8)", _plain(_ladder), {"layer": 0}),
    _dilated(512, 8),
    _dilated(512, 4),
    _dilated(256, 16),
    _dense(_dilated(512, 8)),
    _STRIDED,
    _dense(_STRIDED),
    _DILATED_UNION,
    _dense(_DILATED_UNION),
    Case(
        "window by head, 512 to 4096",
        "pattern by_head(w: int[head]): window(w[head])",
        _head_windows,
        tables=lambda length, heads: {"w": [512 << head % 4 for head in range(heads)]},
        per_head=True,
    ),
    Case("packed, 16 documents", _PACKED_TEXT, _packed, tables=_even_documents),
    Case("packed, drawn lengths", _PACKED_TEXT, _packed, tables=_drawn_documents),
    Case(
        "blocks of 64 by table, 1 in 10",
        "pattern blocks(keep: bool[head, *, *]): causal and keep[head, q // 64, k // 64]",
        _blocks,
        tables=_drawn_blocks,
        per_head=True,
    ),
    Case("bigbird", source("bigbird").text, _bigbird, tables=_drawn_bigbird, per_head=True),
    Case(
        "vertical_slash",
        source("vertical_slash").text,
        _vertical_slash,
        tables=_drawn_lines,
        per_head=True,
    ),
)


@cache
def pattern(text: str) -> Pattern:
    """The pattern of a text."""
    return load(text)


@cache
def passes(name: str, block_q: int, block_k: int) -> Passes:
    """The passes of a case for a tile shape."""
    (case,) = (case for case in CASES if case.name == name)
    return lower_passes(
        pattern(case.text), block_q, block_k, within=True, transposed=False, tiling=case.tiling
    )


def lowered(name: str) -> Lowered:
    """The one alternative of a case: rows that end within the keys."""
    return lambda block_q, block_k: (passes(name, block_q, block_k),)
