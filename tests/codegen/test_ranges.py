"""Comparisons decided by ranges alone go, and no pair changes by that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from patterncc.codegen.ranges import without_foregone
from patterncc.dsl.loader import load
from patterncc.dsl.mask import Predicate
from patterncc.dsl.printer import expression_text
from tests.codegen.drawing import Shape, dense, environment, masks, numbers, shapes


@settings(max_examples=300)
@given(body=masks, shape=shapes(), values=numbers)
def test_no_pair_changes(body: Predicate, shape: Shape, values: dict[str, int]) -> None:
    env = environment(shape, values)
    np.testing.assert_array_equal(dense(without_foregone(body), env), dense(body, env))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("causal and k // 16 % 4 < 4", "k <= q"),
        ("causal and (q - k) % 8 != 8", "k <= q"),
        ("causal and max(k, 3) >= 0", "k <= q"),
        ("causal or 4 <= min(k % 4, q)", "k <= q"),
        ("causal or k % 32 // 8 == 4", "k <= q"),
        ("causal or kv_len + heads < 2", "k <= q"),
        ("causal and k % 4 < 3", "k <= q and k % 4 < 3"),
        ("causal and q >= 0", "k <= q and 0 <= q"),
    ],
)
def test_what_is_certain_goes(text: str, left: str) -> None:
    assert expression_text(without_foregone(load(text).body)) == left
