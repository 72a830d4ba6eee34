"""Key tiles that kernels gather: attention against float64, what is listed, memory."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu import list_plan
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.grad_key_value_source import emit_grad_key_value
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.lower import with_transposed
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.library import source
from patterncc.dsl.pattern import TableType
from tests.codegen.gradients import Case, differentiate
from tests.codegen.interpreter import Call, attend, run_lists
from tests.codegen.score_calls import ScoreCall, attend_with_terms, differentiate_terms
from tests.codegen.test_gathered import NUMBERS, STRIDES, TEXTS

SMALL = KernelConfig(16, 16, 4, 1)
DESCRIPTOR = KernelConfig(16, 32, 4, 1, "descriptor", "reverse")


def _tables(text: str, most: int, share: float, seed: int) -> dict[str, object]:
    """Random tables, some of which end before the last position; two batch entries and up to four
    heads."""
    random = np.random.default_rng(seed)
    tables: dict[str, object] = {}
    for table in load(text).tables:
        assert isinstance(table.type, TableType)
        fixed = {"batch": 2, "head": 4, "kv_head": 2}
        size = [fixed.get(str(axis)) or int(random.integers(1, most)) for axis in table.type.axes]
        drawn: Any = random.random(size) < share
        if table.type.element == "int":
            drawn = (
                random.integers(-(2**31), 2**31, size)
                if share == 1
                else random.integers(120, size=size)
            )
        tables[table.name] = drawn.tolist()
    return tables


MORE = (
    "pattern p(v: bool[batch, kv_head, *]): causal and v[batch, kv_head, k]",
    "pattern p(keep: bool[batch, *, *]): keep[batch, q // 8, k]",
    "pattern p(v: bool[*]): causal and (q + head) % 3 > 0 and v[heads * k]",
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.sampled_from([*TEXTS, *NUMBERS, *MORE]),
    lengths=st.tuples(st.integers(1, 70), st.integers(1, 90)),
    offset=st.one_of(st.none(), st.integers(-20, 90)),
    share=st.sampled_from([0.0, 0.03, 0.3, 1.0]),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    seed=st.integers(0, 1 << 16),
    config=st.sampled_from([SMALL, DESCRIPTOR]),
    at_once=st.sampled_from([None, 5000]),
)
def test_attention(
    worker: ProcessPoolExecutor,
    text: str,
    lengths: tuple[int, int],
    offset: int | None,
    share: float,
    heads: tuple[int, int],
    seed: int,
    config: KernelConfig,
    at_once: int | None,
) -> None:
    """Empty tables, full ones and those that end early; rows without keys; some query tiles at a
    time."""
    if text == STRIDES:  # a class of keys may be shorter than the box of a descriptor
        config = SMALL
    call = Call(
        text,
        *lengths,
        values={"n": 30},
        offset=offset,
        batch=2,
        heads=heads,
        config=config,
        tables=_tables(text, 100, share, seed),  # type: ignore[arg-type]
        chosen=True,
        lists_at_once=at_once,
    )
    found = worker.submit(attend, call).result()
    assert found.out < 3e-6, found
    assert found.lse < 1e-5, found
    assert found.empty


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.sampled_from([*(text for text in TEXTS if text != STRIDES), *NUMBERS, *MORE]),
    lengths=st.tuples(st.integers(1, 70), st.integers(1, 90)),
    share=st.sampled_from([0.0, 0.1, 1.0]),
    heads=st.sampled_from([(1, 1), (4, 2)]),
    seed=st.integers(0, 1 << 16),
    config=st.sampled_from([SMALL, DESCRIPTOR]),
)
def test_gradient_of_the_query(
    worker: ProcessPoolExecutor,
    text: str,
    lengths: tuple[int, int],
    share: float,
    heads: tuple[int, int],
    seed: int,
    config: KernelConfig,
) -> None:
    """Its kernels gather the same keys."""
    tables: Any = _tables(text, 100, share, seed)
    values = {"n": 30}
    call = Call(text, *lengths, values=values, batch=2, heads=heads, config=config, tables=tables)
    found = worker.submit(differentiate, Case(replace(call, chosen=True))).result()
    assert found.query < 3e-6 and found.hidden, found


@pytest.mark.parametrize(
    ("score", "shapes"),
    [
        ("score + slope[head] * (k - q)", {"slope": (2,)}),
        ("score + bias[clamp(q - k, 0, 40)]", {"bias": (41,)}),  # by distance
        ("score + of_key[k]", {"of_key": (80,)}),
    ],
)
def test_score_terms(
    worker: ProcessPoolExecutor, score: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    """They are computed at the gathered keys; the gradients of their tables, too."""
    text = "pattern p(v: bool[*]): causal and (window(9) or v[k])"
    tables: Any = {"v": [n % 5 == 0 for n in range(80)]}
    call = Call(text, 70, 90, config=SMALL, tables=tables, chosen=True)
    case = ScoreCall(call, score, shapes=shapes)
    found = worker.submit(attend_with_terms, case).result()
    assert found.out < 1e-5 and found.lse < 1e-5 and found.empty, found
    both = replace(case, call=replace(call, transposed=True, config=None))
    gradients = worker.submit(differentiate_terms, both).result()
    errors = (gradients.query, gradients.key, gradients.value, *gradients.tables.values())
    assert max(errors) < 1e-4, gradients


@pytest.mark.parametrize("config", [SMALL, DESCRIPTOR], ids=["pointer", "descriptor"])
@pytest.mark.parametrize(
    "name", ["eviction", "h2o", "sale", "snapkv", "minference", "longformer_tokens"]
)
@pytest.mark.parametrize("lengths", [(100, 100), (31, 90)])
def test_library(
    worker: ProcessPoolExecutor, name: str, lengths: tuple[int, int], config: KernelConfig
) -> None:
    text = source(name).text
    if name == "sale":
        text = text.replace("columns = 32", "columns = 4")
    random = np.random.default_rng(0)
    sizes = {"batch": 1, "head": 2, "kv_head": 1}
    tables: dict[str, list[object]] = {}
    for table in load(text).tables:
        assert isinstance(table.type, TableType)
        shape = [sizes.get(str(axis), 100) for axis in table.type.axes]
        drawn = random.random(shape) < 0.15 if table.type.element == "bool" else np.full(shape, 60)
        tables[table.name] = drawn.tolist()
    passes = lower_passes(
        load(text), config.block_q, config.block_k, transposed=False, sizes={"heads": 2}
    )
    assert passes[-1].gathered == config.block_k // (4 if name == "sale" else 1)
    values = {"recent": 9, "window": 9}
    call = Call(text, *lengths, values=values, config=config, tables=tables, chosen=True)
    found = worker.submit(attend, call).result()
    assert found.out < 3e-6 and found.lse < 1e-5 and found.empty, found


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.sampled_from(
        [
            "pattern p(v: bool[head, *]): causal and v[head, k]",
            "pattern p(v: bool[kv_head, *], w: bool[*]): v[kv_head, 9 + k] or w[k // 4]",
            "pattern p(w: bool[*]): window(9) and w[k // 4]",
        ]
    ),
    length=st.sampled_from([1, 30, 700, 4095, 4096, 9000]),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    head=st.integers(0, 1),
    seed=st.integers(0, 1 << 16),
)
def test_what_is_listed(
    worker: ProcessPoolExecutor, text: str, length: int, share: float, head: int, seed: int
) -> None:
    """One list and all ranks, by one program or by several."""
    tables = _tables(text, 12000, share, seed)
    if "head" in text:
        tables["v"] = tables["v"][:2]  # type: ignore[index]
    call = Call(text, 1, length, config=SMALL, tables=tables, chosen=True)  # type: ignore[arg-type]
    runs, ranks = worker.submit(run_lists, call, head).result()
    run = 4 if "and w" in text else 1
    keys = np.arange(0, length, run)

    def entries(table: str, index: Any) -> Any:
        rows = np.asarray(tables[table])
        row = rows if rows.ndim == 1 else rows[head if "v[head" in text else 0]
        inside = index < len(row)
        return inside & row[np.where(inside, index, 0)]

    kept = np.zeros(len(keys), np.bool_)
    if "v[" in text:
        kept |= entries("v", keys + (9 if "9 +" in text else 0))
    if "w[" in text:
        kept |= entries("w", keys // 4)
    assert runs[: kept.sum()] == np.flatnonzero(kept).tolist()
    assert set(runs[kept.sum() :]) <= {-7}
    assert ranks == [0, *np.cumsum(kept).tolist()]


# ------------------------------------------------------------------------------------ plans


def _launches(
    text: str, length: int, tables: dict[str, tuple[int, ...]], order: str = "forward"
) -> tuple[Launch, ...]:
    """Of a call with 2 batch entries of 4 heads and 2 of the keys."""
    config = KernelConfig(64, 64, 4, 3, order=order)  # type: ignore[arg-type]
    pattern = load(text)
    planner = Planner(lambda q, k: [lower_passes(pattern, q, k, transposed=False)], config)
    sizes = ((2, 4, length, 64), (2, 2, length, 64), (2, 2, length, 64), (2, 4, length, 64))
    layouts = [
        Layout(name, 0, size, (size[1] * length * 64, length * 64, 64, 1), 2)
        for name, size in zip(("query", "key", "value", "out"), sizes, strict=True)
    ]
    problem = Problem("bfloat16", 64, 64, 2)
    return planner.plan(problem, "cuda:90", layouts, {"q_offset": 0}, 1.0, tables)


def test_one_list_serves_all_query_tiles() -> None:
    text = "pattern p(v: bool[kv_head, *]): causal and v[kv_head, k]"
    lists, kernel = _launches(text, 6400, {"v": (2, 6400)})
    assert [(b.name, b.shape) for b in lists.buffers] == [
        ("runs", (2, 6400)),
        ("run_ranks", (2, 6401)),
    ]
    assert lists.grid == (2, 2, 1)
    assert kernel.grid == (100, 4, 2)


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_lists_are_made_for_some_query_tiles_at_a_time(
    monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    text = "pattern p(keep: bool[kv_head, *, *]): causal and keep[kv_head, q // 64, k]"
    monkeypatch.setattr(list_plan, "MOST_GATHERED", 40 * 2 * 4 * 6401)
    launches = _launches(text, 6400, {"keep": (2, 100, 6400)}, order)
    assert [launch.source.name for launch in launches] == ["list_tiles", "forward"] * 3
    assert [launch.grid[0] for launch in launches[::2]] == (
        [34, 34, 32] if order == "forward" else [32, 34, 34]
    )
    # Memory for the longest turn, once.
    shapes = [[buffer.shape for buffer in launch.buffers] for launch in launches]
    assert shapes == [[(68, 6401), (68, 2)], *[[]] * 5]
    place = [p.name for p in launches[0].source.parameters].index("first_tile")
    pointers = len(launches[0].pointers)
    first = [launch.rest[place - pointers] for launch in launches[::2]]
    assert sorted(first) == [0, 34, 68]


def test_lists_that_are_too_long_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 64, k]"
    monkeypatch.setattr(list_plan, "MOST_LISTED", 4 * 4 * 6400)
    with pytest.raises(UnsupportedError, match="6400 tiles for each of 4 query tiles"):
        monkeypatch.setattr(list_plan, "MOST_GATHERED", 1)
        _launches(text, 6400, {"keep": (4, 100, 6400)})


def test_kernels_of_key_tiles_gather_nothing() -> None:
    (program,) = lower_passes(load(TEXTS[0]), 64, 64, transposed=False)
    with pytest.raises(ConfigError, match="gathered from runs of 1"):
        emit_grad_key_value(
            with_transposed(program), Problem("bfloat16", 64, 64), KernelConfig(64, 64, 4, 2)
        )
