"""Tiles that tables list: what is visited and what is full equals brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc.codegen import schedule
from patterncc.codegen.lower import lower
from patterncc.codegen.schedule import evaluate
from patterncc.dsl.loader import load
from tests.codegen.drawing import Shape, brute_block_map, shapes
from tests.codegen.test_lower import transposed_map

KEEP = "pattern p(keep: bool[head, *, *]): keep[head, q // {a}, k // {b}]"
CAUSAL = "pattern p(keep: bool[head, *, *]): k <= q and keep[head, q // {a}, k // {b}]"
BACKWARDS = "pattern p(keep: bool[*, *]): keep[(400 - q) // {a}, (3 - k) // {b} + 9]"
EITHER = "pattern p(s: bool[*], v: bool[*]): k <= q and (v[k // {b}] or s[(q - k) // {a}])"
BOTH = "pattern p(s: bool[*], v: bool[*]): v[k // {b}] and s[q // {a}] and q - k < 90"


@settings(max_examples=150)
@given(
    text=st.sampled_from([KEEP, CAUSAL, BACKWARDS, EITHER, BOTH]),
    a=st.sampled_from([1, 5, 16, 64, 100]),
    b=st.sampled_from([1, 16, 30, 64]),
    shape=shapes(),
    share=st.sampled_from([0.05, 0.5, 0.97]),
    seed=st.integers(0, 1 << 16),
)
def test_listed_tiles(text: str, a: int, b: int, shape: Shape, share: float, seed: int) -> None:
    pattern = load(text.format(a=a, b=b))
    random = np.random.default_rng(seed)
    env: dict[str, object] = {
        "q_len": shape.q_len,
        "kv_len": shape.kv_len,
        "q_offset": shape.q_offset,
        "head": 1,
    }
    for table in pattern.tables:
        size = random.integers(1, 30, len(table.type.axes))  # type: ignore[union-attr]
        size[0] = max(size[0], 2)
        env[table.name] = random.random(size) < share
    q = shape.q_offset + np.arange(shape.q_len)[:, None]
    allowed = evaluate(pattern.body, {**env, "q": q, "k": np.arange(shape.kv_len)[None, :]})
    allowed = np.broadcast_to(allowed, (shape.q_len, shape.kv_len))
    expected = brute_block_map(allowed, shape)
    program = lower(pattern, shape.block_q, shape.block_k, check=True)
    assert program.listed and not program.ignored
    for found in (schedule.block_map(program, env), transposed_map(program, env)):  # type: ignore[arg-type]
        assert (found[expected > 0] > 0).all(), "every tile with an allowed pair is visited"
        assert (expected[found == 2] == 2).all(), "full tiles are full"
        if text == KEEP:  # one table and nothing else: nothing is visited in vain
            np.testing.assert_array_equal(found, expected)
    full, partial = schedule.tile_counts(program, env)
    found = schedule.block_map(program, env)
    np.testing.assert_array_equal(full, (found == 2).sum(1))
    np.testing.assert_array_equal(partial, (found == 1).sum(1))


@pytest.mark.parametrize(
    "text",
    [
        "pattern p(keep: bool[*, *]): keep[q % 64, k // 64]",  # a remainder is not monotone
        "pattern p(keep: bool[*]): causal and not keep[k // 64]",
        "pattern p(keep: bool[*]): causal or keep[k // 64]",
    ],
)
def test_what_cannot_be_asked_of_a_tile_is_ignored(text: str) -> None:
    program = lower(load(text), 64, 64)
    assert not program.listed and len(program.ignored) == 1
