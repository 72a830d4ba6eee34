"""Tiles that tables list: the listing kernel against the schedule, attention against float64."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patterncc.codegen.config import KernelConfig
from patterncc.codegen.list_source import ListAxes, list_axes
from patterncc.codegen.lower import lower
from patterncc.dsl import load
from tests.codegen.interpreter import Call, attend, interpreter

KEEP = "pattern p(keep: bool[head, *, *]): keep[head, q // {a}, k // {b}]"
CAUSAL = "pattern p(keep: bool[head, *, *]): causal and keep[head, q // {a}, k // {b}]"
BACKWARDS = "pattern p(keep: bool[*, *]): keep[(400 - q) // {a}, (3 - k) // {b} + 9]"
EITHER = "pattern p(s: bool[*], v: bool[*]): causal and (v[k // {b}] or s[(q - k) // {a}])"
BOTH = "pattern p(s: bool[*], v: bool[*]): v[k // {b}] and s[q // {a}] and window(90)"
BY_BATCH = "pattern p(keep: bool[batch, *, *]): causal and keep[batch, q // {a}, k // {b}]"
TEXTS = (KEEP, CAUSAL, BACKWARDS, EITHER, BOTH, BY_BATCH)
SMALL = KernelConfig(16, 16, 4, 1)
DESCRIPTOR = KernelConfig(16, 32, 4, 1, "descriptor", "reverse")


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    with interpreter() as pool:
        yield pool


def _tables(text: str, share: float, seed: int) -> dict[str, Any]:
    """Random tables, some of which end before the last position."""
    random = np.random.default_rng(seed)
    tables = {}
    for table in load(text).tables:
        size = random.integers(2, 9, len(table.type.axes))  # type: ignore[union-attr]
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
    seed: int,
    config: KernelConfig,
) -> None:
    text = text.format(a=a, b=b)
    call = Call(
        text, *lengths, offset=offset, batch=2, config=config, tables=_tables(text, share, seed)
    )
    found = worker.submit(attend, call).result()
    assert found.out < 3e-6, found
    assert found.lse < 1e-5, found
    assert found.empty


def test_lists_are_shared_where_they_are_equal() -> None:
    def axes(text: str) -> tuple[bool, bool]:
        return list_axes(lower(load(text.format(a=16, b=16)), 16, 16))

    assert axes(KEEP) == (True, False)
    assert axes(EITHER) == (False, False)
    assert axes(BY_BATCH) == (False, True)


def test_fine_tables_are_left_to_the_mask() -> None:
    program = lower(load(CAUSAL.format(a=1, b=1)), 64, 64)
    assert program.listed
    assert not lists_tiles(program)
