"""Splits of a mask are exact: every allowed pair is in one part, and no other pair is in any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc.codegen.choice import candidates, lower_passes, tiling_names
from patterncc.codegen.counted_call import counted_in
from patterncc.codegen.decompose import class_condition, decompositions
from patterncc.dsl.build import add, all_of, any_of, compare, modulo, multiply
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.loader import load
from patterncc.dsl.mask import Const, K, Predicate, Q, Var
from tests.codegen.drawing import Shape, dense, environment, masks, numbers, shapes

steps = st.sampled_from([2, 3, 8, 100])
congruences: st.SearchStrategy[Predicate] = st.one_of(
    st.builds(
        lambda a, b, c, other, step: compare(
            "==",
            modulo(add(multiply(Const(a), Q), multiply(Const(b), K), c), Const(step)),
            other,
        ),
        st.sampled_from([0, 0, 1, -1, 2]),
        st.sampled_from([1, -1, 3]),
        st.sampled_from([Const(0), Const(5), Var("layer")]),
        st.sampled_from([Const(0), Const(1), Const(-1), Const(7), Var("head")]),
        steps,
    ),
    st.builds(lambda step: compare("==", modulo(Q, step), modulo(K, step)), steps.map(Const)),
)
strided: st.SearchStrategy[Predicate] = st.one_of(
    st.builds(all_of, congruences, masks),
    st.builds(all_of, congruences, congruences, masks),
    st.builds(any_of, st.builds(all_of, congruences, masks), masks),
    st.builds(all_of, masks, st.builds(any_of, congruences, masks)),
    st.builds(any_of, congruences, congruences),
)


@settings(max_examples=300)
@given(body=strided, shape=shapes(), values=numbers)
def test_every_pair_is_in_one_part(body: Predicate, shape: Shape, values: dict[str, int]) -> None:
    env = environment(shape, values)
    allowed = dense(body, env)
    for parts in decompositions(body):
        count = np.zeros(allowed.shape, int)
        for part in parts:
            count += dense(part.body, env) & dense(class_condition(part.tiling), env)
        np.testing.assert_array_equal(count, allowed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dilated", "residue 8"),
        ("longnet", "residue 2"),
        ("longformer(256, 4, 16)", "dense + residue 4"),
        ("sparse_strided", "dense + residue 128"),
        ("causal and (window(256) or (k + layer) % 8 == 3)", "dense + key stride 8"),
        ("causal and k % 4 == 1", "key stride 4"),
        ("if head % 2 == 0 then dilated(512, 8) else window(256)", "dense + residue 8"),
        ("minference_dilated_window", "dense + residue 2"),
        ("lserve", "dense + dense"),  # what the table lists apart from what loops know
        ("streaming", "dense"),
        ("local_strided", "dense"),
        ("causal and (window(16384) or k % 2 == 0)", "dense"),  # the split would gain nothing
    ],
)
def test_the_least_work_is_chosen(text: str, expected: str) -> None:
    passes = lower_passes(load(text), 64, 64, sizes={"heads": 8}, within=True, transposed=False)
    assert tiling_names(passes) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("deepspeed_bigbird", "dense + gathered runs of 16"), ("infllm_v2", "dense + dense")],
)
def test_blocks_without_a_default_are_counted_as_blocks(name: str, expected: str) -> None:
    """Calls are planned by texts without defaults: 1024 blocks of 16 would be all that there is."""
    pattern = load(load(name).structure)
    assert pattern.open_numbers
    passes = lower_passes(pattern, 64, 64, within=True, transposed=False)
    assert tiling_names(passes) == expected


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("k // 16 < n", 16),
        ("abs(q // 48 - k // 16) <= n // 2", 16),
        ("k // 16 < n or k % 5 < n", 1),
        ("(q - k) // 8 < 2 * n and k // 64 < m", 8),
        ("until[k // 64] < n", 1),
        ("until[k // 64] < n - k // 32", 32),
        ("m <= k", 1),
    ],
)
def test_what_one_of_a_number_stands_for(text: str, positions: int) -> None:
    pattern = load(f"pattern p(until: int[token], n, m): {text}")
    assert counted_in(pattern.body, "n") == positions


def test_a_choice_can_be_forced() -> None:
    pattern = load("dilated")
    assert tiling_names(lower_passes(pattern, 64, 64, tiling="dense")) == "dense"
    assert tiling_names(lower_passes(pattern, 64, 64, tiling="strided")) == "residue 8"
    with pytest.raises(ConfigError, match="no tiling 'sparse'"):
        lower_passes(pattern, 64, 64, tiling="sparse")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no term with a stride"):
        lower_passes(load("causal"), 64, 64, tiling="strided")


def test_costs_are_counted() -> None:
    dense_way, strided_way = candidates(load("dilated(512, 8)"), 64, 64, within=True)
    assert strided_way.cost * 6 < dense_way.cost
