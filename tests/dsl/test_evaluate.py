"""The plain evaluator, against Python's own reading of a text and against sets written by hand."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError, PatternError
from patterncc.dsl.evaluate import allows
from patterncc.dsl.linear import implies_causal
from patterncc.dsl.mask import Cover, Predicate
from tests.strategies import Spelling, predicates, texts

relaxed = settings(suppress_health_check=[HealthCheck.too_slow])
positions = st.integers(-20, 80)


@relaxed
@given(texts(), st.data())
def test_a_text_means_what_python_says(spelling: Spelling, data: st.DataObject) -> None:
    env = {
        "head": data.draw(st.integers(0, 7)),
        "layer": data.draw(st.integers(0, 7)),
        "heads": 8,
        "q_len": data.draw(st.integers(1, 60)),
        "kv_len": data.draw(st.integers(1, 60)),
    }
    try:
        body = load(spelling.text).body
    except PatternError as error:
        assert [found.code for found in error.diagnostics] == ["unsatisfiable"]
        body = None
    for _ in range(4):
        q, k = data.draw(positions), data.draw(positions)
        expected = bool(eval(spelling.python, {}, {**env, "q": q, "k": k}))
        assert (body is not None and allows(body, q, k, env)) == expected


def rows(text: str, size: int, tables: dict[str, Any] | None = None, **env: int) -> list[str]:
    """The mask of a text as a picture."""
    pattern = load(text)
    return [
        "".join("#" if allows(pattern, q, k, env, tables) else "." for k in range(size))
        for q in range(size)
    ]


def test_streaming() -> None:
    assert rows("streaming(1, 2)", 6) == [
        "#.....",
        "##....",
        "###...",
        "#.##..",
        "#..##.",
        "#...##",
    ]


def test_defaults_may_be_replaced() -> None:
    text = "pattern p(n = 2): 0 <= q - k < n"
    assert rows(text, 3) == ["#..", "##.", ".##"]
    assert rows(text, 3, n=1) == ["#..", ".#.", "..#"]


def test_tables() -> None:
    text = "pattern p(w: int[head], keep: bool[*, *]): k < w[head] or keep[q, k - 1]"
    tables = {"w": [1, 0], "keep": [[True, False], [False, True]]}
    assert rows(text, 4, tables, head=0) == ["##..", "#.#.", "#...", "#..."]
    assert rows(text, 4, tables, head=1) == [".#..", "..#.", "....", "...."]


def test_tokens() -> None:
    text = "pattern p(image: int[token]): image[q] == image[k]"
    assert rows(text, 4, {"image": [7, 3, 7, 7]}) == ["#.##", ".#..", "#.##", "#.##"]


def test_a_token_outside_of_its_table_equals_none_inside() -> None:
    text = "pattern p(image: int[token]): image[q + 2] == image[k]"
    assert rows(text, 3, {"image": [7, 3, 7]}) == ["#.#", "...", "..."]


def test_segments() -> None:
    tables = {"doc": [0, 2, 2, 5]}
    assert rows("pattern p(doc: segments): doc[q] == doc[k]", 5, tables) == [
        "##...",
        "##...",
        "..###",
        "..###",
        "..###",
    ]
    assert rows("pattern p(doc: segments): k == start(doc, q)", 5, tables) == [
        "#....",
        "#....",
        "..#..",
        "..#..",
        "..#..",
    ]
    assert rows("pattern p(doc: segments): k == end(doc, q) - 1 and doc[q] == 2", 5, tables) == [
        ".....",
        ".....",
        "....#",
        "....#",
        "....#",
    ]


def test_a_position_outside_of_all_documents_is_one_of_its_own() -> None:
    text = (
        "pattern p(doc: segments): doc[q] == doc[k] and start(doc, q) == q and end(doc, k) == k + 1"
    )
    assert rows(text, 4, {"doc": [0, 1, 2]}) == ["#...", ".#..", "..#.", "...#"]
    assert allows(load(text), -1, -1, tables={"doc": [0, 1, 2]})
    assert not allows(load(text), -1, 2, tables={"doc": [0, 1, 2]})


def test_patterns_that_start_anew_in_each_document() -> None:
    text = """
        pattern p(doc: segments):
            document(doc) and chunked(2) at (q - start(doc, q), k - start(doc, k))
    """
    assert rows(text, 6, {"doc": [0, 3, 6]}) == [
        "##....",
        "##....",
        "..#...",
        "...##.",
        "...##.",
        ".....#",
    ]


@relaxed
@given(
    predicates(tables=False, covers=False),
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(-10, 30),
    st.integers(-10, 30),
)
def test_cover(body: Predicate, block_q: int, block_k: int, q: int, k: int) -> None:
    env = {"head": 1, "kv_head": 0, "layer": 2, "batch": 0, "q_len": 9, "kv_len": 12}
    env |= {"heads": 4, "kv_heads": 2, "layers": 6, "n": 3, "width": 5, "zero_based": 0}
    expected = False
    for a in range(30 + 6):
        for b in range(30 + 6):
            if a // block_q == q // block_q and b // block_k == k // block_k:
                expected = expected or allows(body, a, b, env)
    cover = Cover(block_q, block_k, body, causal=False)
    assert allows(cover, q, k, env) == expected
    cut = Cover(block_q, block_k, body, causal=True)
    assert allows(cut, q, k, env) == (expected and k <= q)


def test_cover_sees_only_positions_in_its_tables() -> None:
    text = "pattern p(image: int[token]): cover(4, 4, image[k] < 0)"
    assert rows(text, 2, {"image": [1, 1]}) == ["..", ".."]
    text = "pattern p(doc: segments): cover(4, 4, start(doc, k) == 3)"
    assert rows(text, 2, {"doc": [0, 3]}) == ["..", ".."]
    assert rows(text, 2, {"doc": [0, 3, 4]}) == ["##", "##"]


@relaxed
@given(predicates(tables=False), st.lists(st.tuples(positions, positions), min_size=5, max_size=5))
def test_what_implies_causal_is_causal(body: Predicate, places: list[tuple[int, int]]) -> None:
    env = {"head": 1, "kv_head": 0, "layer": 2, "batch": 0, "q_len": 9, "kv_len": 12}
    env |= {"heads": 4, "kv_heads": 2, "layers": 6, "n": 3, "width": 5, "zero_based": 0}
    if implies_causal(body):
        for q, k in places:
            assert k <= q or not allows(body, q, k, env)


@pytest.mark.parametrize(
    ("text", "causal"),
    [
        ("causal", True),
        ("k < q", True),
        ("k <= q + 1", False),
        ("k < q + 1", True),
        ("window(8)", True),
        ("around(8)", False),
        ("q == k", True),
        ("q == k + 3", True),
        ("q + 3 == k", False),
        ("2 * q == 2 * k - 1", True),
        ("3 * k <= 3 * q + 2", True),
        ("3 * k <= 3 * q + 3", False),
        ("3 * k < 3 * q + 3", True),
        ("2 * k <= q", False),
        ("streaming(4, 8) or tail(9) and causal", True),
        ("causal or tail(9)", False),
        ("if head < 2 then causal else window(3)", True),
        ("if head < 2 then causal else window(3) or sinks(2)", False),
        ("k // 8 <= q // 8", False),
    ],
)
def test_implies_causal(text: str, causal: bool) -> None:
    assert implies_causal(load(text).body) == causal


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="`layer` has no value"):
        allows(load("k < layer"), 1, 1)
    with pytest.raises(ConfigError, match="`n` has no value"):
        allows(load("pattern p(n): k < n"), 1, 1)
    with pytest.raises(ConfigError, match="`w` has no value"):
        allows(load("pattern p(w: int[head]): k < w[head]"), 1, 1, {"head": 0})
    with pytest.raises(ConfigError, match="a divisor of the pattern is 0"):
        allows(load("q // (heads - 8) == 1"), 1, 1, {"heads": 8})
