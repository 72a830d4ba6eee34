"""Programs in changed variables visit what brute force finds within each class of rows and keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patterncc.codegen import schedule
from patterncc.codegen.classes import row_classes
from patterncc.codegen.ir import Q_CLASS, Tiling
from patterncc.codegen.lower import lower
from patterncc.codegen.tiling import change_variables, residue_tiling
from patterncc.dsl.build import modulo, multiply
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.loader import load
from patterncc.dsl.mask import Const, Predicate, Var
from patterncc.dsl.printer import expression_text
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
from tests.codegen.test_lower import assert_exact, transposed_map

minus_layer = modulo(multiply(Const(-1), Var("layer")), Const(4))
tilings = st.sampled_from(
    [
        residue_tiling(2),
        residue_tiling(8),
        residue_tiling(100),
        Tiling(1, 8, Const(3)),
        Tiling(1, 4, minus_layer),
        Tiling(4, 8, Q_CLASS),
    ]
)


def check(body: Predicate, tiling: Tiling, shape: Shape, values: dict[str, int]) -> None:
    env = environment(shape, values)
    allowed = dense(body, env)
    within = {False, shape.within}
    programs = [
        lower(pattern_of(body), shape.block_q, shape.block_k, within=w, tiling=tiling, check=True)
        for w in within
    ]
    for program in programs:
        rows = 0
        for part in row_classes(program, env):
            mine = allowed[part.first_row :: tiling.q_step, part.first_key :: tiling.k_step]
            assert mine.shape == (part.env["q_len"], part.env["kv_len"])
            rows += len(mine)
            local = replace(shape, q_len=mine.shape[0], kv_len=mine.shape[1])
            expected = brute_block_map(mine, local)
            assert_exact(schedule.block_map(program, part.env), expected, program)
            assert_exact(transposed_map(program, dict(part.env)), expected, program)
        assert rows == shape.q_len


@settings(max_examples=60)
@given(body=masks, tiling=tilings, shape=shapes(), values=numbers)
def test_each_class_equals_brute_force(
    body: Predicate, tiling: Tiling, shape: Shape, values: dict[str, int]
) -> None:
    try:
        check(body, tiling, shape, values)
    except UnsupportedError:
        assume(False)


@pytest.mark.parametrize(
    ("text", "tiling", "expected"),
    [
        ("dilated(512, 8)", residue_tiling(8), "q <= k + 511 and k <= q"),
        ("(q - k) % 16 == 0 and k <= q", residue_tiling(16), "k <= q"),
        ("k % 8 == q % 8 and q // 64 == k // 64", residue_tiling(8), "q // 8 == k // 8"),
        ("k <= q and k % 4 == 1", Tiling(1, 4, Const(1)), "4 * k + 1 <= q"),
    ],
)
def test_steps_cancel(text: str, tiling: Tiling, expected: str) -> None:
    assert expression_text(change_variables(load(text).body, tiling)) == expected
