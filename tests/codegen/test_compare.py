"""Comparisons are right: what is proved has no exception among small calls, what is denied has a
pair that shows it, and both spell out the same for equal texts.
"""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc.codegen.facts.compare import Comparison, Witness, compare_patterns
from patterncc.dsl import load
from patterncc.dsl.build import all_of, any_of, compare, negate
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.evaluate import allows
from patterncc.dsl.mask import Const, Cover, K, Predicate, Q
from patterncc.dsl.pattern import Pattern
from tests.codegen.drawing import (
    Shape,
    dense,
    environment,
    masks,
    numbers,
    pattern_of,
    shapes,
)


def confirm(witness: Witness | None, left: Predicate, right: Predicate) -> None:
    """A witness is a pair of a call, and only its side allows it."""
    if witness is None:
        return
    values = dict(witness.values)
    assert 0 <= witness.k < values["kv_len"]
    assert 0 <= witness.q - values["q_offset"] < values["q_len"]
    assert values.get("layer", 0) >= 0 and values.get("head", 0) >= 0
    sides = {
        "left": allows(left, witness.q, witness.k, values),
        "right": allows(right, witness.q, witness.k, values),
    }
    assert [side for side, allowed in sides.items() if allowed] == [witness.allowed_by]


@settings(max_examples=150)
@given(left=masks, right=masks, shape=shapes(), values=numbers)
def test_claims_hold_in_every_small_call(
    left: Predicate, right: Predicate, shape: Shape, values: dict[str, int]
) -> None:
    try:
        comparison = compare_patterns(pattern_of(left), pattern_of(right))
    except UnsupportedError:
        return
    confirm(comparison.left_only, left, right)
    confirm(comparison.right_only, left, right)
    env = environment(shape, values)
    in_left, in_right = dense(left, env), dense(right, env)
    if comparison.within:
        assert not (in_left & ~in_right).any()
    if comparison.contains:
        assert not (in_right & ~in_left).any()
    if comparison.relation == "disjoint":
        assert not (in_left & in_right).any()


@settings(max_examples=60)
@given(a=masks, b=masks, way=st.integers(0, 4))
def test_other_spellings_are_equal(a: Predicate, b: Predicate, way: int) -> None:
    spellings = [
        any_of(a, all_of(a, b)),
        all_of(a, any_of(a, b)),
        any_of(all_of(a, b), all_of(a, negate(b))),
        all_of(any_of(a, b), any_of(a, negate(b))),
        negate(any_of(negate(a), all_of(b, negate(b)))),
    ]
    try:
        assert compare_patterns(pattern_of(a), pattern_of(spellings[way])).equal
    except UnsupportedError:
        return


@settings(max_examples=60)
@given(a=masks, b=masks)
def test_sides_can_be_exchanged(a: Predicate, b: Predicate) -> None:
    turned = {"within": "contains", "contains": "within"}
    try:
        one = compare_patterns(pattern_of(a), pattern_of(b))
        other = compare_patterns(pattern_of(b), pattern_of(a))
    except UnsupportedError:
        return
    assert other.relation == turned.get(one.relation, one.relation)


def related(left: str, right: str, **sizes: int) -> Comparison:
    return compare_patterns(load(left), load(right), sizes=sizes)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("chunked(64)", "q // 64 == k // 64"),
        ("causal and chunked(64)", "k <= q and q - k <= q % 64"),
        ("dilated(32, 4)", "q - k in 0..128 and q % 4 == k % 4"),
        ("if layer % 2 == 0 then causal else full", "if layer % 2 == 1 then full else causal"),
        ("q - k < layer * 3", "q - k < layer + layer + layer"),
        ("block_causal(16) at (q // 2, k // 2)", "block_causal(32)"),
        ("pattern f(w): q - k < w", "pattern g(w): q - k <= w - 1"),
        ("cover(4, 4, window(3))", "causal and q // 4 - k // 4 <= 1"),
        ("cover(16, 16, dilated(4, 8))", "causal and q // 16 - k // 16 <= 2"),
        ("heads > head", "full"),
        ("layers > layer and kv_head <= head", "true"),
        ("pattern f(w): q - k < w * layer", "pattern g(w): q - k + 1 <= layer * w"),
        ("k < kv_len and q < kv_len or q >= kv_len", "full"),
    ],
)
def test_equal(left: str, right: str) -> None:
    comparison = related(left, right)
    assert comparison.relation == "equal"
    assert comparison.left_only is None and comparison.right_only is None
    assert comparison.at_defaults is None


@settings(max_examples=25)
@given(
    body=masks,
    block_q=st.integers(1, 6),
    block_k=st.integers(1, 6),
    length=st.integers(1, 12),
    values=numbers,
)
def test_covers(
    body: Predicate, block_q: int, block_k: int, length: int, values: dict[str, int]
) -> None:
    cover = Cover(block_q, block_k, body, False)
    positions = all_of(compare(">=", Q, Const(0)), compare(">=", K, Const(0)))
    try:
        whole = compare_patterns(pattern_of(all_of(body, positions)), pattern_of(cover))
        assert whole.within
        comparison = compare_patterns(pattern_of(cover), pattern_of(body))
    except UnsupportedError:
        return
    confirm(comparison.left_only, cover, body)
    env = {**values, "kv_len": length, "q_len": length}
    if comparison.within:
        for q in range(length):
            for k in range(length):
                assert allows(body, q, k, env) or not allows(cover, q, k, env)


def test_smallest_witnesses() -> None:
    comparison = related("window(4)", "window(6)")
    assert comparison.relation == "within" and comparison.left_only is None
    assert comparison.right_only == Witness(
        "right", 4, 0, (("kv_len", 5), ("q_len", 5), ("q_offset", 0)), False
    )
    even = related("if layer % 2 == 0 then causal else full", "causal").left_only
    assert even is not None
    assert (even.q, even.k, dict(even.values)["layer"]) == (0, 1, 1)
    assert related("k < q", "k > q").relation == "disjoint"


def test_defaults_are_looked_at_too() -> None:
    comparison = related("streaming", "causal and (window(4096) or sinks(4))")
    assert comparison.relation == "different" and comparison.symbols == ("sinks", "window")
    assert comparison.at_defaults is not None and comparison.at_defaults.equal
    at_defaults = compare_patterns(
        load("streaming"), load("causal and (window(4096) or sinks(4))"), defaults=True
    )
    assert at_defaults.equal and at_defaults.symbols == ()


def test_a_counterexample_has_the_defaults_where_they_show_it() -> None:
    witness = related("streaming", "tri_shape").right_only
    assert witness is not None
    assert {"sinks": 4, "window": 4096, "last": 100}.items() <= dict(witness.values).items()


def test_rows_beyond_the_keys_are_told_apart() -> None:
    witness = related("q >= 0", "full").right_only
    assert witness is not None and witness.only_outside and witness.q == -1
    inside = related("q > 0", "full").right_only
    assert inside is not None and not inside.only_outside


def test_products_of_unknowns() -> None:
    wider = related(
        "pattern f(w): 0 <= q - k < w * layer", "pattern g(w): 0 <= q - k < w * layer + 1"
    )
    assert wider.relation == "within"
    confirm(
        wider.right_only,
        load("pattern f(w): 0 <= q - k < w * layer").body,
        load("pattern g(w): 0 <= q - k < w * layer + 1").body,
    )
    with pytest.raises(
        UnsupportedError, match=r"(?s)`layer \* w`.*hint: give values of w"
    ) as error:
        # The same for every number: what isl cannot see, and no number shows.
        related("pattern f(w): q - k < w * layer + layer", "pattern g(w): q - k < (w + 1) * layer")
    assert "not decided" in str(error.value)


def test_heads_that_share() -> None:
    assert related("head // 2 == kv_head", "full", heads=8, kv_heads=4).equal
    apart = related("head == kv_head", "full")
    assert apart.right_only is not None
    values = dict(apart.right_only.values)
    assert values["kv_head"] == values["head"] // (values["heads"] // values["kv_heads"])
    with pytest.raises(UnsupportedError, match=r"(?s)hangs on `kv_head \*.*give values of"):
        related("kv_head * (heads // kv_heads) <= head", "full")
    with pytest.raises(UnsupportedError, match="hangs on how query heads share"):
        related("kv_head == 0 or head != kv_head or heads == kv_heads", "full")
    assert related("longnet", "causal").relation == "within"


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("pattern f(doc: segments): doc[q] == doc[k]", r"`doc\[q\]`|`doc\[k\]`"),
        ("duo", r"`retrieval\[kv_head\]`"),
        ("pattern f(w: int[head]): q - k < w[head]", r"`w\[head\]`"),
    ],
)
def test_tables_are_named(text: str, term: str) -> None:
    with pytest.raises(UnsupportedError, match=term):
        related(text, "causal")
    with pytest.raises(UnsupportedError, match=term):
        related("causal", text)


def test_the_library_in_a_moment() -> None:
    names = ("streaming", "tri_shape", "ladder", "longformer", "local_strided", "s2", "swin")
    patterns: list[Pattern] = [load(name) for name in names]
    start = time.perf_counter()
    for left, right in combinations(patterns, 2):
        comparison = compare_patterns(left, right)
        assert comparison.relation in ("different", "within", "contains")
    assert time.perf_counter() - start < 20


def test_witnesses_are_the_first_of_small_calls() -> None:
    """The least number of keys, then the least query, then the least key, by trying all."""
    left, right = load("dilated(4, 3)"), load("window(9)")
    witness = compare_patterns(left, right).left_only
    assert witness is not None
    for length in range(1, 20):
        env = {"kv_len": length, "q_len": length, "q_offset": 0}
        only = np.argwhere(dense(left.body, env) & ~dense(right.body, env))
        if len(only):
            assert (length, *only[0]) == (dict(witness.values)["kv_len"], witness.q, witness.k)
            return
    pytest.fail("they are equal in all small calls")
