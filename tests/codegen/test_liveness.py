"""Live keys are exact: the closed form equals brute force, a key once dropped stays dropped, and
bounds hold.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc.codegen.facts.liveness import Bound, LiveSet, growth, live_set
from patterncc.codegen.schedule import evaluate
from patterncc.dsl import load
from patterncc.dsl.build import substitute
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import Const, Expr, IntExpr, Param, Predicate, Var, variables
from tests.codegen.drawing import masks, numbers, pattern_of

FAR = 1 << 20  # queries looked at for the few keys that nearer ones do not read


def read_by(
    body: Predicate, env: dict[str, int], first: int, end: int, keys: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Which keys some query in `[first, end)` reads, query by query."""
    q = np.arange(first, end, dtype=np.int64)[:, None]
    allowed = np.asarray(evaluate(body, {**env, "q": q, "k": keys[None, :]}), dtype=bool)
    return np.asarray(np.broadcast_to(allowed, (len(q), len(keys))).any(axis=0), dtype=bool)


@settings(max_examples=150)
@given(body=masks, values=numbers, t=st.integers(0, 300), more=st.integers(1, 400))
def test_live_keys_of_a_known_length(
    body: Predicate, values: dict[str, int], t: int, more: int
) -> None:
    kv_len = t + more
    try:
        live = live_set(pattern_of(body), kv_len=kv_len)
    except UnsupportedError:
        return
    env = {**values, "kv_len": kv_len}
    expected = read_by(body, env, t, kv_len, np.arange(t + 1))
    np.testing.assert_array_equal(live.keys(t, env), expected)


@settings(max_examples=120)
@given(body=masks, values=numbers, t=st.integers(0, 250))
def test_live_keys_of_any_length(body: Predicate, values: dict[str, int], t: int) -> None:
    try:
        live = live_set(pattern_of(body))
    except UnsupportedError:
        return
    found = live.keys(t, values)
    if "kv_len" in variables(body):
        # A key is live if it is read at one of the lengths to come.
        for more in (1, 2, 7, 100):
            read = read_by(body, {**values, "kv_len": t + more}, t, t + more, np.arange(t + 1))
            assert not (read & ~found).any()
        return
    read = read_by(body, values, t, t + 2000, np.arange(t + 1))
    assert not (read & ~found).any()
    rest = np.flatnonzero(found & ~read)[:2]
    for key in rest:
        assert read_by(body, values, t + 2000, t + FAR, np.array([key])).all()


@settings(max_examples=60)
@given(body=masks, values=numbers)
def test_what_is_dropped_stays_dropped_and_bounds_hold(
    body: Predicate, values: dict[str, int]
) -> None:
    try:
        live = live_set(pattern_of(body), values=values)
        state, most = growth(live)
    except UnsupportedError:
        return
    before = live.keys(0, {})
    for t in range(1, 1500, 7):
        now = live.keys(t, {})
        assert not (now[: len(before)] & ~before).any()
        if most is not None and t >= most.since:
            assert now.sum() <= most.keys
        before = now
    if state == "unbounded":
        counts = [live.keys(t, {}).sum() for t in (10_000, 1_000_000)]
        assert counts[1] > counts[0]


def at(name: str, t: int, **values: int) -> npt.NDArray[np.bool_]:
    pattern = load(name)
    given = {number.name: number.value or 0 for number in pattern.numbers} | values
    return live_set(pattern, values=given).keys(t, {})


def test_streaming_by_hand() -> None:
    keys = at("streaming", 9999)
    expected = np.zeros(10_000, dtype=bool)
    expected[:4] = expected[9999 - 4095 :] = True
    np.testing.assert_array_equal(keys, expected)
    assert growth(live_set(load("streaming"), values={"sinks": 4, "window": 4096})) == (
        "bounded",
        Bound(4100, 8191),
    )


def test_ladder_by_hand() -> None:
    keys, k = at("ladder", 5000, layer=3), np.arange(5001)
    np.testing.assert_array_equal(keys, (k < 4) | (k >= 5000 - 1023) | ((k // 128 + 3) % 8 == 0))


def test_terms_that_say_the_same() -> None:
    text = "k <= q and (q - k < 9 or 0 <= q - k) and 0 <= q - k < 9"
    assert live_set(load(text)).keys(20, {}).sum() == 9
    again = "causal and (window(9) and k < 50 or k < 50 and q - k < 9 or q - k < 3 and k < 50)"
    assert live_set(load(again)).keys(55, {}).sum() == 3


def test_symbols_stay_symbols() -> None:
    live = live_set(load("ladder"))
    assert variables(live.form) == {"k", "t", "layer"}
    put_in = live.at({"layer": 3, "sinks": 4, "recent": 1024, "kept": 1})
    np.testing.assert_array_equal(put_in.keys(5000, {}), at("ladder", 5000, layer=3))


def test_reading_the_length_means_any_length_to_come() -> None:
    # Each token of a decode is one of the last 100 when its turn comes.
    assert at("tri_shape", 3000).all()
    assert growth(live_set(load("tail"), values={"n": 100})) == ("unbounded", None)
    assert not live_set(load("q >= kv_len")).keys(50, {}).any()
    half = live_set(load("block_diffusion"), kv_len=4096)
    np.testing.assert_array_equal(
        half.keys(3000, {}),
        read_by(load("block_diffusion").body, {"kv_len": 4096}, 3000, 4096, np.arange(3001)),
    )


@pytest.mark.parametrize(
    ("text", "growing"),
    [
        ("causal", "unbounded"),
        ("causal and q <= 2 * k", "unbounded"),
        ("causal and q - k < 7", "bounded"),
        ("k < 12", "bounded"),
        ("k > q", "bounded"),
        ("k < 0", "bounded"),
        ("causal and q < 1000", "bounded"),
        ("causal and (q - k) % 5 == 0", "unbounded"),
        ("chunked(64)", "bounded"),
    ],
)
def test_growth(text: str, growing: str) -> None:
    live = live_set(load(text))
    state, most = growth(live)
    assert state == growing and (most is None) == (growing == "unbounded")


@pytest.mark.parametrize("name", ["neighborhood", "swin", "s2", "longformer", "sparse_fixed"])
def test_the_library(name: str) -> None:
    pattern = load(name)
    values = {number.name: number.value or 0 for number in pattern.numbers}
    env = {**values, "layer": 1, "head": 1, "heads": 4}
    live = live_set(pattern, values=values)
    for t in (10, 700, 1500):
        replace: dict[Expr, IntExpr] = {Param(name): Const(value) for name, value in values.items()}
        body = substitute(pattern.body, replace)
        # No query after these reads keys up to t that these do not: their patterns look back less.
        read = read_by(body, env, t, t + 4200, np.arange(t + 1))
        np.testing.assert_array_equal(live.keys(t, env), read)


def test_tables_and_products_are_named() -> None:
    with pytest.raises(UnsupportedError, match=r"`doc\[[kq]\]`"):
        live_set(load("document"))
    with pytest.raises(
        UnsupportedError, match=r"`layer \* kv_len` multiplies or divides by `kv_len`"
    ):
        live_set(load("q - k < layer * kv_len"))
    assert live_set(load("0 <= q - k < layer * head")).keys(9, {"layer": 2, "head": 2}).sum() == 4


def test_a_number_that_is_called_as_the_time_is() -> None:
    pattern = load("pattern f(t): 0 <= q - k < t")
    with pytest.raises(ConfigError, match="`t` is what the time is called"):
        live_set(pattern)
    assert live_set(pattern, values={"t": 5}).keys(20, {}).sum() == 5


def test_it_is_quick() -> None:
    start = time.perf_counter()
    for name in ("streaming", "ladder", "longformer", "dilated", "local_strided", "s2"):
        live_set(load(name))
    assert time.perf_counter() - start < 5


def test_a_form_reads_as_one() -> None:
    live = LiveSet(load("k < 3").body)
    assert live.keys(4, {}).tolist() == [True, True, True, False, False]
    assert live.at({"t": 3}).form == live.form
    replaced = substitute(live_set(load("chunked(64)")).form, {Var("t"): Var("q")})
    assert replaced == load("64 * (q // 64) <= k").body
