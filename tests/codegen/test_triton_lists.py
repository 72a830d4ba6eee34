"""Tiles that tables list: attention against float64, what is listed, how much memory it takes."""

from __future__ import annotations

import itertools
import re
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.gpu.list_source import ListAxes, list_axes
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import forward_tiles
from patterncc.dsl import load
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.library import source
from patterncc.dsl.pattern import TableType
from tests.codegen.attention import lowered
from tests.codegen.interpreter import Call, attend, lists

KEEP = "pattern p(keep: bool[head, *, *]): keep[head, q // {a}, k // {b}]"
CAUSAL = "pattern p(keep: bool[head, *, *]): causal and keep[head, q // {a}, k // {b}]"
BACKWARDS = "pattern p(keep: bool[*, *]): keep[(400 - q) // {a}, (3 - k) // {b} + 9]"
EITHER = "pattern p(s: bool[*], v: bool[*]): causal and (v[k // {b}] or s[(q - k) // {a}])"
BOTH = "pattern p(s: bool[*], v: bool[*]): v[k // {b}] and s[q // {a}] and window(90)"
BY_BATCH = "pattern p(keep: bool[batch, *, *]): causal and keep[batch, q // {a}, k // {b}]"
ROWS = "pattern p(keep: bool[batch, kv_head, *, *]): keep[batch, kv_head, q, k // {b}]"
PAIRS = "pattern p(keep: bool[*, *]): keep[q - {a}, k]"  # an entry for each pair
TOKENS = "pattern p(v: bool[head, *], s: bool[*]): causal and (v[head, k] or s[q - k + {a}])"
RUNGS = "pattern p(keep: bool[*, *]): (q - k) % 37 < {a} and keep[q // {a}, k // {b}]"
DILATED = "pattern p(keep: bool[head, *, *]): dilated(9, 3) and keep[head, q // {a}, k // {b}]"
TEXTS = (KEEP, CAUSAL, BACKWARDS, EITHER, BOTH, BY_BATCH, ROWS, PAIRS, TOKENS, RUNGS, DILATED)
SMALL = KernelConfig(16, 16, 4, 1)
DESCRIPTOR = KernelConfig(16, 32, 4, 1, "descriptor", "reverse")


def _tables(text: str, most: int, share: float, seed: int) -> dict[str, Any]:
    """Random tables with fewer entries along an axis than `most`; some end before the last
    position."""
    random = np.random.default_rng(seed)
    tables = {}
    for table in load(text).tables:
        size = random.integers(2, most, len(table.type.axes))  # type: ignore[union-attr]
        tables[table.name] = (random.random(size) < share).tolist()
    return tables


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.sampled_from(TEXTS),
    a=st.sampled_from([5, 16, 24]),
    b=st.sampled_from([7, 16, 64]),
    lengths=st.tuples(st.integers(1, 70), st.integers(1, 90)),
    offset=st.one_of(st.none(), st.integers(-20, 90)),
    share=st.sampled_from([0.05, 0.5, 0.97]),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    seed=st.integers(0, 1 << 16),
    config=st.sampled_from([SMALL, DESCRIPTOR]),
)
def test_attention(
    worker: ProcessPoolExecutor,
    text: str,
    a: int,
    b: int,
    lengths: tuple[int, int],
    offset: int | None,
    share: float,
    heads: tuple[int, int],
    seed: int,
    config: KernelConfig,
) -> None:
    text = text.format(a=a, b=b)
    most = 80 if "k]" in text or "- k" in text or " q," in text else 9
    tables = _tables(text, most, share, seed)
    _attends(
        worker,
        Call(text, *lengths, offset=offset, batch=2, heads=heads, config=config, tables=tables),
    )


def _attends(worker: ProcessPoolExecutor, call: Call) -> None:
    found = worker.submit(attend, call).result()
    assert found.out < 3e-6, found
    assert found.lse < 1e-5, found
    assert found.empty


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.sampled_from([text for text in TEXTS if text != DILATED]),
    a=st.sampled_from([5, 16, 24]),
    b=st.sampled_from([7, 16, 64]),
    lengths=st.tuples(st.integers(1, 24), st.integers(1, 2500)),
    offset=st.one_of(st.none(), st.integers(-20, 90)),
    share=st.sampled_from([0.02, 0.5, 0.97]),
    head=st.integers(0, 1),
    seed=st.integers(0, 1 << 16),
)
def test_what_is_listed(
    worker: ProcessPoolExecutor,
    text: str,
    a: int,
    b: int,
    lengths: tuple[int, int],
    offset: int | None,
    share: float,
    head: int,
    seed: int,
) -> None:
    """Each tile that the schedule has, once and of its kind; more than one step of the kernel."""
    text = text.format(a=a, b=b)
    tables = _tables(text, 200, share, seed)
    call = Call(text, *lengths, offset=offset, config=SMALL, tables=tables)
    partial, full = worker.submit(lists, call, head).result()
    q_len, kv_len = lengths
    env = {
        "q_len": q_len,
        "kv_len": kv_len,
        "q_offset": kv_len - q_len if offset is None else offset,
    }
    env |= {"head": head, "kv_head": 0, "batch": 0}
    arrays = {name: np.asarray(rows) for name, rows in tables.items()}
    wanted = forward_tiles(lower(load(text), 16, 16), {**env, **arrays})
    for row, (start, end) in enumerate(itertools.pairwise(wanted.indptr)):
        tiles, is_full = wanted.tiles[start:end], wanted.full[start:end]
        assert sorted(partial[row]) == tiles[~is_full].tolist()
        assert sorted(full[row]) == tiles[is_full].tolist()


@pytest.mark.parametrize(
    "name", ["bigbird", "deepspeed_bigbird", "landmark", "nsa", "vertical_slash"]
)
@pytest.mark.parametrize("lengths", [(100, 100), (31, 90)])
def test_library(worker: ProcessPoolExecutor, name: str, lengths: tuple[int, int]) -> None:
    """Patterns of one and of two passes, the second from a table."""
    text = re.sub(r"block = \d+", "block = 12", source(name).text)
    random = np.random.default_rng(0)
    sizes = {"batch": 1, "head": 2, "kv_head": 1}
    tables = {
        table.name: (
            random.random([sizes.get(str(a), 100) for a in table.type.axes]) < 0.1
        ).tolist()
        for table in load(text).tables
        if isinstance(table.type, TableType)
    }
    _attends(worker, Call(text, *lengths, config=SMALL, tables=tables, chosen=True))


# ------------------------------------------------------------------------------------ plans


def test_lists_are_shared_where_they_are_equal() -> None:
    def axes(text: str) -> ListAxes:
        return list_axes(lower(load(text.format(a=16, b=16)), 16, 16))

    assert axes(KEEP) == ListAxes("head", batch=False)
    assert axes(EITHER) == ListAxes(None, batch=False)
    assert axes(BY_BATCH) == ListAxes(None, batch=True)
    assert axes(ROWS) == ListAxes("kv_head", batch=True)


def _buffers(text: str, length: int, tables: dict[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The shapes of the lists of a call with 4 heads and 2 of the keys."""
    planner = Planner(lowered(load(text)), KernelConfig(64, 64, 4, 3))
    sizes = ((2, 4, length, 64), (2, 2, length, 64), (2, 2, length, 64), (2, 4, length, 64))
    layouts = [
        Layout(name, 0, size, (size[1] * length * 64, length * 64, 64, 1), 2)
        for name, size in zip(("query", "key", "value", "out"), sizes, strict=True)
    ]
    problem = Problem("bfloat16", 64, 64, 2)
    env = {"q_offset": 0}
    launches = planner.plan(problem, "cuda:90", layouts, env, 1.0, tables)
    return [shape for launch in launches for _, shape, _ in launch.buffers]


def test_lists_are_no_longer_than_the_sweeps() -> None:
    text = "pattern p(keep: bool[batch, kv_head, *, *]): {} and keep[batch, kv_head, q, k // 64]"
    tables: dict[str, tuple[int, ...]] = {"keep": (2, 2, 6400, 100)}
    assert _buffers(text.format("causal"), 6400, tables) == [(100 * 2 * 2, 101), (400, 2)]
    assert _buffers(text.format("window(192)"), 6400, tables) == [(400, 5), (400, 2)]
    # Windows that only the device knows.
    tables["w"] = (2,)
    text = text.replace("(keep", "(w: int[kv_head], keep")
    assert _buffers(text.format("window(w[kv_head])"), 6400, tables)[0] == (400, 101)


def test_lists_that_are_too_long_are_refused() -> None:
    text = "pattern p(keep: bool[batch, head, *, *]): causal and keep[batch, head, q, k // 64]"
    with pytest.raises(UnsupportedError, match="16384 tiles for each of 131072 query tiles"):
        _buffers(text, 1 << 20, {"keep": (2, 4, 1 << 20, 1 << 14)})
