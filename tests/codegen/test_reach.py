"""How far information travels is exact: both ways equal products of matrices, the closed form holds
at other lengths, and a graph library finds the same.
"""

from __future__ import annotations

from itertools import pairwise

import networkx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc.codegen.facts import hops
from patterncc.codegen.facts.layers import layer_period
from patterncc.codegen.facts.reach import Method, Reach, layer_graph, reach
from patterncc.codegen.facts.runs import flags_of
from patterncc.codegen.pieces import TooIntricateError
from patterncc.codegen.schedule import evaluate
from patterncc.dsl import load
from patterncc.dsl.build import substitute
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import Const, Expr, IntExpr, Param, Predicate
from patterncc.dsl.pattern import Pattern
from tests.codegen.drawing import dense, masks, numbers, pattern_of

ONE = {"heads": 1, "kv_heads": 1, "layers": 4}
METHODS: tuple[Method, ...] = ("relations", "positions")

Matrix = npt.NDArray[np.bool_]


def layer_matrix(pattern: Pattern, q_len: int, layer: int, sizes: dict[str, int]) -> Matrix:
    """What each position of a layer takes in, bool `[readers, read]`, all heads joined."""
    share = sizes["heads"] // sizes["kv_heads"]
    values = {number.name: number.value or 0 for number in pattern.numbers}
    env = {**values, **sizes, "q_len": q_len, "kv_len": q_len, "q_offset": 0, "layer": layer}
    result = np.eye(q_len, dtype=bool)
    for head in range(sizes["heads"]):
        result |= dense(pattern.body, {**env, "head": head, "kv_head": head // share})
    return result


def through(pattern: Pattern, q_len: int, layers: range, sizes: dict[str, int]) -> Matrix:
    """What reaches each position of the output of some layers from the input of the lowest."""
    result = np.eye(q_len, dtype=bool)
    for layer in layers:
        result = (layer_matrix(pattern, q_len, layer, sizes).astype(int) @ result) > 0
    return result


def check(found: Reach, pattern: Pattern, sizes: dict[str, int]) -> None:
    q_len, layers = found.q_len, found.layers
    for state in found.states:
        flags = through(pattern, q_len, range(state.layer, layers), sizes)[-1]
        np.testing.assert_array_equal(flags_of(state.runs, q_len), flags)
        assert state.reached == flags.sum() and state.earliest == flags.argmax()
    whole = [through(pattern, q_len, range(height), sizes)[-1].all() for height in range(8)]
    if True in whole:
        assert found.enough == whole.index(True)
    else:
        assert found.enough is None or found.enough > 7
    assert found.path[0] == q_len - 1 and found.path[-1] == found.states[-1].earliest
    for number, (above, below) in enumerate(pairwise(found.path)):
        layer = layers - 1 - number
        assert layer_matrix(pattern, q_len, layer, sizes)[above, below]


@settings(max_examples=60)
@given(
    body=masks,
    values=numbers,
    q_len=st.integers(1, 48),
    layers=st.integers(1, 5),
    method=st.sampled_from(METHODS),
    other=st.integers(1, 40),
)
def test_reach_equals_products_of_matrices(
    body: Predicate,
    values: dict[str, int],
    q_len: int,
    layers: int,
    method: Method,
    other: int,
) -> None:
    put_in: dict[Expr, IntExpr] = {Param(name): Const(values[name]) for name in ("a", "b")}
    pattern = pattern_of(substitute(body, put_in))
    sizes = {"heads": 2, "kv_heads": 2, "layers": layers}
    try:
        found = reach(pattern, q_len, layers, sizes, method=method)
    except UnsupportedError:
        return
    check(found, pattern, sizes)
    # The closed form says it for every length, and for every position.
    top = range(layers - found.form_layers, layers)
    q, k = np.arange(other)[:, None], np.arange(other)[None, :]
    form = np.asarray(evaluate(found.form, {"q": q, "k": k, "kv_len": other}), dtype=bool)
    np.testing.assert_array_equal(
        np.broadcast_to(form, (other, other)), through(pattern, other, top, sizes)
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "text",
    [
        "streaming(2, 5)",
        "ladder(sinks = 1, recent = 3, rung = 2, period = 4)",
        "s2(8)",
        "dilated(3, 4)",
        "around(3)",
        "if layer % 3 == 2 then causal else window(4)",
        "if head == layer then window(9) else window(2)",
        "longformer(window = 3, globals = 1)",
        "tail(2)",
        "k > q",
    ],
)
def test_families(text: str, method: Method) -> None:
    pattern, sizes = load(text), {"heads": 4, "kv_heads": 2, "layers": 5}
    found = reach(pattern, 40, 5, sizes, method=method)
    check(found, pattern, sizes)
    assert found.method == method and found.form_layers == 5


def test_windows_by_hand() -> None:
    found = reach(load("window(4096)"), 65536, 12, ONE)
    assert found.method == "relations"
    assert [state.reached for state in found.states[:3]] == [1, 4096, 8191]
    assert found.states[-1].earliest == 65535 - 12 * 4095
    assert found.enough == -(-65535 // 4095)
    assert found.form == load("q - 49140 <= k and k <= q").body
    assert found.path == tuple(
        max(65535 - 4095 * number, found.states[-1].earliest) for number in range(13)
    )


def test_what_never_arrives() -> None:
    for text in ("chunked(64)", "dilated(9, 4)", "k < 3 and k <= q"):
        found = reach(load(text), 300, 3, ONE)
        assert found.enough is None and found.tried is None, text
    periodic = reach(load("if layer % 2 == 0 then chunked(64) else window(1)"), 300, 3, ONE)
    assert periodic.enough is None and periodic.tried == 64


def test_one_token() -> None:
    found = reach(load("causal"), 1, 2, ONE)
    assert found.enough == 0 and found.path == (0, 0, 0)


def test_intricate_patterns_are_followed_position_by_position() -> None:
    pattern = load("swin(height = 14, width = 14, window = 3)")
    by_positions = reach(pattern, 196, 4, ONE, method="positions")
    check(by_positions, pattern, ONE)
    assert reach(pattern, 196, 4, ONE).states == by_positions.states


def test_pairs_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise TooIntricateError("refused")

    monkeypatch.setattr(hops, "lower", refuse)
    pattern = load("ladder(sinks = 1, recent = 3, rung = 2, period = 4)")
    check(reach(pattern, 61, 3, ONE, method="positions"), pattern, ONE)
    with pytest.raises(UnsupportedError, match="16384 tokens are too many"):
        reach(pattern, 16384, 3, ONE, method="positions")


def test_a_stack_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise TooIntricateError("refused")

    monkeypatch.setattr("patterncc.codegen.facts.reach.Relations", refuse)
    monkeypatch.setattr("patterncc.codegen.facts.reach.Chain", refuse)
    found = reach(load("window(5)"), 30, 3, ONE)
    assert found.method == "positions" and found.form_layers == 0
    check(found, load("window(5)"), ONE)


@pytest.mark.parametrize(
    "text", ["streaming(2, 5)", "s2(8)", "if layer == 1 then full else sinks(1)"]
)
def test_the_graph_has_the_same_ancestors(text: str) -> None:
    pattern, sizes = load(text), {"heads": 2, "kv_heads": 1, "layers": 3}
    graph = layer_graph(pattern, 30, 3, sizes)
    assert networkx.is_directed_acyclic_graph(graph)
    found = reach(pattern, 30, 3, sizes)
    ancestors = networkx.ancestors(graph, (3, 29)) | {(3, 29)}
    for state in found.states:
        held = np.flatnonzero(flags_of(state.runs, 30)).tolist()
        assert sorted(position for layer, position in ancestors if layer == state.layer) == held
    path = [(3 - number, position) for number, position in enumerate(found.path)]
    assert all(graph.has_edge(below, above) for above, below in pairwise(path))


def test_sizes_that_cannot_be() -> None:
    for q_len, layers, message in (
        (0, 1, "q_len is 0"),
        (64, 0, "layers is 0"),
        (64, 5000, "layers is 5000"),
        (1 << 21, 1, "q_len is 2097152"),
        (1 << 20, 4096, "4096 layers of 1048576 tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            reach(load("causal"), q_len, layers, ONE)
    with pytest.raises(ConfigError, match="nodes"):
        layer_graph(load("causal"), 70000, 1, ONE)
    with pytest.raises(ConfigError, match="edges"):
        layer_graph(load("causal"), 4000, 1, ONE)
    with pytest.raises(ConfigError, match="`n` has no value"):
        reach(load("prefix"), 64, 1, ONE)
    with pytest.raises(UnsupportedError, match=r"`doc\["):
        reach(load("document"), 64, 1, ONE)


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("causal", 1),
        ("ladder(period = 6)", 6),
        ("if layer % 4 == 3 then causal else q - k < (k + 2 * layer) % 6", 12),
        ("q - k < layer", None),
        ("(k + layer // 2) % 4 == 0", None),
        ("(k % 3 + layer) % 4 == 0 and (layer * head + k) % 2 == 0", None),
    ],
)
def test_periods_of_layers(text: str, period: int | None) -> None:
    body = load(text).body
    assert layer_period(body) == period
    if period is not None:
        env = {"q_len": 30, "kv_len": 30, "q_offset": 0, "sinks": 1, "recent": 2, "kept": 1}
        for layer in range(3):
            np.testing.assert_array_equal(
                dense(body, {**env, "layer": layer}), dense(body, {**env, "layer": layer + period})
            )


def test_layers_are_read() -> None:
    pattern = load("if layer == layers - 1 then causal else window(1)")
    assert reach(pattern, 50, 3, {**ONE, "layers": 3}).enough is not None
    lower = reach(pattern, 50, 2, {**ONE, "layers": 3})
    assert lower.enough is None and lower.tried == 2
