"""Counts are exact: visible keys per row, tiles and work equal brute force."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import assume, given, settings

from patterncc.codegen import schedule
from patterncc.codegen.facts import pair_counts
from patterncc.codegen.facts.counts import work
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import Problem
from patterncc.dsl.build import all_of, any_of, compare, subtract
from patterncc.dsl.loader import load
from patterncc.dsl.mask import Const, K, Param, Predicate, Q
from tests.codegen.drawing import (
    Shape,
    brute_block_map,
    dense,
    environment,
    masks,
    numbers,
    pattern_of,
    shapes,
)

STREAMING = all_of(
    compare("<=", K, Q),
    any_of(compare("<", K, Param("a")), compare("<", subtract(Q, K), Param("b"))),
)


@settings(max_examples=60)
@given(body=masks, shape=shapes(), values=numbers)
def test_pair_counts_equal_brute_force(
    body: Predicate, shape: Shape, values: dict[str, int]
) -> None:
    env = environment(shape, values)
    counted = count_pairs(pair_program(pattern_of(body), {}), env)
    allowed = dense(body, env)
    np.testing.assert_array_equal(counted.rows, allowed.sum(axis=1))
    np.testing.assert_array_equal(counted.keys, allowed.sum(axis=0))


def test_pairs_that_tables_allow_are_counted() -> None:
    pattern = load(
        "pattern p(keep: bool[*, *], id: int[token]): keep[q // 20, k] and id[q] != id[k]"
    )
    random = np.random.default_rng(0)
    env = {"q_len": 150, "kv_len": 210, "q_offset": 60}
    tables = {"keep": random.random((9, 200)) < 0.4, "id": random.integers(0, 3, 210)}
    counted = count_pairs(pair_program(pattern, {}), env | tables)
    allowed = dense(pattern.body, env | tables)  # type: ignore[arg-type]
    np.testing.assert_array_equal(counted.rows, allowed.sum(axis=1))
    np.testing.assert_array_equal(counted.keys, allowed.sum(axis=0))


@pytest.mark.parametrize(
    "text",
    [
        "sliding_tile(tile = 12, depth = 3, rows = 4, columns = 5, text = 30)",
        "pattern p(id: int[token], keep: bool[*, *]): id[q] != id[k] or keep[q // 40, k // 70]",
        "neighborhood_3d(4, 6, 7, 3, 3, 5) and k // 2 % 3 != q // 42",
    ],
)
def test_pairs_of_a_kind_are_looked_at_once(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, and keys, of which a mask reads the same are alike; counts are those of all pairs."""
    pattern = load(text)
    random = np.random.default_rng(1)
    env = {"q_len": 150, "kv_len": 210, "q_offset": 60, "layer": 0}
    env |= {number.name: number.value for number in pattern.numbers if number.value is not None}
    tables = {"keep": random.random((5, 3)) < 0.4, "id": random.integers(0, 3, 210)}
    monkeypatch.setattr(pair_counts, "_AT_ONCE", 50)  # rows of several kinds in several turns
    counted = pair_counts.counts_of_kinds(pattern.body, env | tables)
    allowed = dense(pattern.body, env | tables)  # type: ignore[arg-type]
    if "3d" in text:  # it reads all of a position
        assert counted is None
        return
    assert counted is not None and counted.keys is not None
    np.testing.assert_array_equal(counted.rows, allowed.sum(axis=1))
    np.testing.assert_array_equal(counted.keys, allowed.sum(axis=0))


@settings(max_examples=40)
@given(body=masks, shape=shapes(), values=numbers)
def test_tile_counts_equal_the_map(body: Predicate, shape: Shape, values: dict[str, int]) -> None:
    env = environment(shape, values)
    expected = brute_block_map(dense(body, env), shape)
    program = lower(pattern_of(body), shape.block_q, shape.block_k)
    assume(not program.ignored)
    full, partial = schedule.tile_counts(program, env)
    np.testing.assert_array_equal(full, (expected == 2).sum(axis=1))
    np.testing.assert_array_equal(partial, (expected == 1).sum(axis=1))


def test_work_of_streaming_by_hand() -> None:
    pattern = pattern_of(STREAMING)
    env = {"q_len": 512, "kv_len": 512, "q_offset": 0, "a": 4, "b": 128}
    counts = count_pairs(pair_program(pattern, {}), env)
    done = work((lower(pattern, 128, 128),), Problem("bfloat16", 64, 64), env, counts)
    # Rows 0..127 see q + 1 keys; the others 128 and those sinks that the window has left behind.
    rows = [min(q + 1, 128) + min(4, max(0, q - 127)) for q in range(512)]
    assert done.pairs == sum(rows)
    # Each row of tiles: the diagonal, the tile before it and, from the third on, the sinks' tile.
    assert (done.visited, done.full, done.tiles, done.longest) == (1 + 2 + 3 + 3, 0, 16, 3)
    assert done.useful_flops == 4 * 64 * done.pairs
    assert done.computed_flops == 4 * 64 * 9 * 128 * 128
    assert done.least_bytes == 2 * 128 * (512 + 512) + 4 * 512
    assert done.tile_bytes == 2 * 128 * 9 * 128


def test_a_million_tokens_are_counted_without_enumeration() -> None:
    size = 1 << 20
    env = {"q_len": size, "kv_len": size, "q_offset": 0, "a": 4, "b": 4096}
    start = time.perf_counter()
    keys = count_pairs(pair_program(pattern_of(STREAMING), {}, transposed=False), env).rows
    assert time.perf_counter() - start < 10
    q = np.arange(size)
    expected = np.minimum(q + 1, 4096) + np.clip(q - 4095, 0, 4)
    np.testing.assert_array_equal(keys, expected)


def test_dead_rows_count_nothing() -> None:
    body = compare("<", subtract(K, Q), Const(-5))
    env = {"q_len": 8, "kv_len": 8, "q_offset": 0}
    np.testing.assert_array_equal(
        count_pairs(pair_program(pattern_of(body), {}), env).rows, [0, 0, 0, 0, 0, 0, 1, 2]
    )
