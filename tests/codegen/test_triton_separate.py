"""Separated masks mean the same, and the common ones become as cheap as can be."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from patterncc.codegen.gpu.mask_source import emit_mask
from patterncc.codegen.gpu.separate import separate
from patterncc.codegen.schedule import evaluate
from patterncc.dsl import load
from patterncc.dsl.mask import FALSE, TRUE, Not, Predicate, walk
from tests.codegen.drawing import Shape, dense, environment, masks, numbers, shapes


@settings(max_examples=300)
@given(mask=masks, shape=shapes(), values=numbers)
def test_same_meaning(mask: Predicate, shape: Shape, values: dict[str, int]) -> None:
    env = environment(shape, values) | {"q_len": min(shape.q_len, 70), "kv_len": shape.kv_len}
    separated = separate(mask)
    np.testing.assert_array_equal(dense(separated, env), dense(mask, env))
    assert not any(isinstance(node, Not) for node in walk(separated))


def test_constants() -> None:
    assert evaluate(separate(TRUE), {}) is True
    assert evaluate(separate(FALSE), {}) is False
    assert emit_mask(FALSE).expression == "(k < 0)"
    assert emit_mask(TRUE).expression == "(k < kv_len)"


def test_window_is_one_comparison() -> None:
    """The row's limits are computed once; a window of 2**30 must not wrap on the way."""
    source = emit_mask(load("window").body)
    unsigned = ".to(tl.uint32, bitcast=True)"
    assert source.expression == f"((k - row_term_0){unsigned} < row_term_1{unsigned})"
    assert source.key_lines == ()
    assert "q.to(tl.int64) - number_n.to(tl.int64)" in source.row_lines[0]
    assert source.row_lines[1].endswith("- row_term_0")


def test_streaming_is_two_comparisons() -> None:
    """Being a sink is asked once per key: such keys count as later than any window's start."""
    source = emit_mask(load("streaming").body)
    assert source.expression == "((k < row_term_0) & (row_term_1 <= key_term_0))"
    assert source.key_lines == (f"key_term_0 = tl.where((k < number_sinks), {2**30 + 1}, k)",)


def test_dilation_divides_rows_and_keys_apart() -> None:
    """(q - k) % 5 == 0 costs no division per element."""
    source = emit_mask(load("strided(5)").body)
    assert source.key_lines == ("key_term_0 = k % 5",)
    assert source.row_lines == ("row_term_0 = floor_modulo(q, 5)",)
    assert source.expression == "((k < kv_len) & (key_term_0 == row_term_0))"
    assert "%" not in source.expression
    assert "floor" not in source.expression


def test_head_conditions_go_into_the_row_limits() -> None:
    source = emit_mask(load("if head in {0, 3} then causal else window(64)").body)
    assert "(k - row_term_0)" in source.expression
    assert "head" not in source.expression
    assert "tl.where(((head == 0) | (head == 3)), 0, q - 63)" in source.row_lines[0]
    assert source.key_lines == ()
