"""Types, arguments and replaced positions of patterns, and mistakes in them."""

from __future__ import annotations

import pytest

from patterncc.dsl import load
from patterncc.dsl.pattern import Parameter, SegmentsType, TableType
from tests.dsl.checking import body, codes

# ------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("q", [("type-mismatch", "q")]),
        ("causal and 3", [("type-mismatch", "3")]),
        ("not q", [("type-mismatch", "q")]),
        ("causal + 1 < 3", [("type-mismatch", "causal")]),
        ("causal < 3", [("type-mismatch", "causal")]),
        ("(k < 3) == (q < 3)", [("type-mismatch", "(k < 3)"), ("type-mismatch", "(q < 3)")]),
        ("causal in {1}", [("type-mismatch", "causal")]),
        ("k in {causal, 1}", [("type-mismatch", "causal")]),
        ("k in causal..3", [("type-mismatch", "causal")]),
        ("if q then causal else causal", [("type-mismatch", "q")]),
        ("if causal then causal else 3", [("type-mismatch", "if causal then causal else 3")]),
        ("if causal then 1 else 3", [("type-mismatch", "if causal then 1 else 3")]),
        ("q at (q, k)", [("type-mismatch", "q")]),
        ("causal at (causal, k)", [("type-mismatch", "causal")]),
        ("window(causal)", [("type-mismatch", "causal")]),
        ("min(causal, 3) < 1", [("type-mismatch", "causal")]),
        ("cover(8, 8, q)", [("type-mismatch", "q")]),
        ("cover(causal, 8, causal)", [("type-mismatch", "causal")]),
        ("q[3] < 1", [("unknown-name", "q")]),
        ("let a = 3\na[3] < 1", [("type-mismatch", "a")]),
        ("start(q, k) < 3", [("type-mismatch", "q")]),
        ("document(q)", [("type-mismatch", "q")]),
        ("pattern p(w: int[head]): document(w)", [("type-mismatch", "w")]),
        ("pattern p(w: int[head]): k < w", [("type-mismatch", "w")]),
        ("pattern p(d: segments): k < end(d, causal)", [("type-mismatch", "causal")]),
        ("pattern p(w: int[head]): k < w[layer]", [("table-index", "layer")]),
        ("pattern p(w: int[head]): k < w[head, 1]", [("table-index", "w[head, 1]")]),
        ("pattern p(t: bool[head, *]): t[0, k]", [("table-index", "0")]),
        ("pattern p(d: segments): d[q, k] < 1", [("table-index", "d[q, k]")]),
        ("pattern p(n: number): k < n", [("unknown-type", "number")]),
        ("pattern p(n: bool): k < n", [("unknown-type", "bool")]),
        ("pattern p(n: int[heads]): k < 3", [("unknown-type", "heads")]),
        ("pattern p(n: int[*]): k < 3", [("unknown-type", "*")]),
        ("pattern p(n: bool[token]): k < 3", [("unknown-type", "token")]),
        ("pattern p(n: int[head, head]): k < 3", [("unknown-type", "head")]),
        ("pattern p(n: int[head, token]): k < 3", [("unknown-type", "int[head, token]")]),
        ("pattern p(n: segments[head]): k < 3", [("unknown-type", "segments[head]")]),
    ],
)  # fmt: skip
def test_type_mistakes(text: str, mistakes: list[tuple[str, str]]) -> None:
    assert codes(text) == mistakes


def test_tables() -> None:
    text = """
        pattern p(a: int[head], b: int[layer, head], c: int[batch], d: bool[kv_head],
                  e: bool[head, *, *], f: int[token], g: segments):
            k < a[head] + b[layer, head] + c[batch] and d[kv_head] and
                e[head, q // 64, k // 64] and f[q] == f[k] and g[q] == g[k] and
                start(g, q) <= k < end(g, q)
    """
    pattern = load(text)
    assert pattern.parameters == (
        Parameter("a", TableType("int", ("head",))),
        Parameter("b", TableType("int", ("layer", "head"))),
        Parameter("c", TableType("int", ("batch",))),
        Parameter("d", TableType("bool", ("kv_head",))),
        Parameter("e", TableType("bool", ("head", None, None))),
        Parameter("f", TableType("int", ("token",))),
        Parameter("g", SegmentsType()),
    )
    assert load(pattern.text) == pattern


def test_tables_are_passed_on_by_name() -> None:
    text = "pattern p(mine: segments, keep: bool[head, *, *]): document(mine) and blocks(64, keep)"
    assert load(text).text == (
        "pattern _(keep: bool[head, *, *], mine: segments): "
        "mine[q] == mine[k] and keep[head, q // 64, k // 64]"
    )


# --------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("causal and prefix", [("wrong-arguments", "prefix")]),
        ("prefix()", [("wrong-arguments", "prefix()")]),
        ("window(1, 2)", [("wrong-arguments", "2")]),
        ("window(1, 2, 3)", [("wrong-arguments", "2, 3")]),
        ("window(m = 1)", [("wrong-arguments", "m")]),
        ("streaming(sinks = 1, 2)", [("wrong-arguments", "2")]),
        ("streaming(1, sinks = 2)", [("wrong-arguments", "sinks = 2")]),
        ("causal(1)", [("wrong-arguments", "1")]),
        ("min(q) < 1", [("wrong-arguments", "min(q)")]),
        ("abs(q, k) < 1", [("wrong-arguments", "abs(q, k)")]),
        ("clamp(q, 1) < 1", [("wrong-arguments", "clamp(q, 1)")]),
        ("abs(a = q) < 1", [("wrong-arguments", "a = q")]),
        ("cover(8, causal)", [("wrong-arguments", "cover(8, causal)")]),
        ("window(foo, 1)", [("unknown-name", "foo"), ("wrong-arguments", "1")]),
    ],
)
def test_argument_mistakes(text: str, mistakes: list[tuple[str, str]]) -> None:
    assert codes(text) == mistakes


def test_arguments_by_position_name_and_default() -> None:
    texts = ["ladder(2, 64, kept = 3)", "ladder(2, kept = 3, recent = 64)"]
    texts.append("ladder(sinks = 2, recent = 64, rung = 128, period = 8, kept = 3)")
    assert len({body(text) for text in texts}) == 1


# --------------------------------------------------------------------------------------- at, cover


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("causal at (q + 1, k)", "k <= q + 1"),
        ("(causal and k < 3) at (k, q)", "q <= k and q < 3"),
        ("causal at (q + 1, k) at (2 * q, k)", "k <= 2 * q + 1"),
        ("let p = causal\np at (q + 1, k)", "k <= q + 1"),
        ("let d = q - k\n(d < 3) at (q + 1, k)", "q + 1 - k < 3"),
        ("pattern f(x): (k < x) at (q, k + 1)\npattern g(): f(k)", "k + 1 < k"),
        ("pattern f(x): (k < x) at (q, k + 1)\npattern g(): f(q)", "k + 1 < q"),
        ("pattern f(x): (k < x) at (k, q)\npattern g(): f(q + k)", "q < q + k"),
        (
            "pattern f(x): g(x + k) at (q + 1, k)\npattern g(y): (q < y) at (q, k + 5)\n"
            "pattern h(): f(q)",
            "q + 1 < q + k",
        ),
        ("cover(8, 8, causal) at (q + 1, k)", "cover(8, 8, k <= q) at (q + 1, k)"),
        ("cover(8, 8, causal at (q + 1, k))", "cover(8, 8, k <= q + 1)"),
        ("pattern f(n): cover(n, n, k < n)\npattern g(): f(4)", "cover(4, 4, k < 4)"),
    ],
)
def test_positions_are_replaced(text: str, same: str) -> None:
    assert load(text).body == load(same).body


def test_an_argument_is_not_caught_by_cover() -> None:
    text = "pattern f(x): cover(8, 8, k < x)\npattern g(): f(q)"
    assert codes(text) == [("cover-argument", "f(q)")]
