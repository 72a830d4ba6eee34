"""Values of parameters: which are fixed, which are legal, and mistakes in them."""

from __future__ import annotations

from typing import Any

import pytest

from patterncc.dsl import diagnose, load
from patterncc.dsl.errors import (
    PatternError,
)
from patterncc.dsl.limits import MAX_CONSTANT
from patterncc.dsl.pattern import IntType, Parameter
from tests.dsl.checking import body, codes

FIXED = [
    ("k < n", False),
    ("q - k < n * 2", False),
    ("q // 8 < n", False),
    ("q - n < k // 4", False),
    ("(q - n) // 8 == k // 8", False),
    ("(q + n) * 2 < k", False),
    ("n * head < k", False),
    ("n * m * head < k", False),
    ("n // 8 < k", False),
    ("min(n, q) < k", False),
    ("if n < 4 then causal else k < n", False),
    ("k in {n, 3}", False),
    ("window(n)", False),
    ("causal at (q + n, k)", False),
    ("let half = n // 2\nk < half", False),
    ("q // n == 1", True),
    ("q % n == 1", True),
    ("q * n < k", True),
    ("n * (q - k) < 3", True),
    ("(n + 1) * (q // 2) < 3", True),
    ("2 * n * q < 3", True),
    ("q // (n * 4 + 1) == 1", True),
    ("q // max(1, n // heads) == 1", True),
    ("head % n == 1", True),
    ("cover(n, 8, causal)", True),
    ("cover(8, 2 * n, causal)", True),
    ("chunked(n)", True),
    ("chunked(2 * n)", True),
    ("dilated(4, n)", True),
    ("dilated(n, 4)", False),
    ("let x = n * 2\nq // x == 1", True),
    ("let x = q // n\nx == 1", True),
    ("inner(n)", True),
    ("other(q, n)", True),
    ("other(head, n)", False),
    ("if q < 3 then causal else q % n == 1", True),
    ("q * (if head < 3 then n else 2) < 3", None),
]


@pytest.mark.parametrize(("text", "fixed"), FIXED)
def test_fixed_and_run_time_parameters(text: str, fixed: bool | None) -> None:
    *lets, last = text.split("\n")
    lines = ["pattern inner(x): chunked(x + 1)", "pattern other(x, y): x * y < 3"]
    lines += ["pattern p(n = 4, m = 5):", *lets, last]
    if fixed is None:
        with pytest.raises(PatternError, match="not-linear"):
            load("\n".join(lines))
        return
    pattern = load("\n".join(lines))
    assert (("n", 4) in pattern.fixed) == fixed
    assert (Parameter("n", IntType(), 4) in pattern.parameters) != fixed


def test_values_bind_parameters() -> None:
    text = "pattern p(n, m, step = 2): k < n + m and (q - k) % step == 0"
    pattern = load(text, n=5, step=3)
    assert pattern.fixed == (("step", 3),)
    assert pattern.parameters == (Parameter("n", IntType(), 5), Parameter("m", IntType(), None))
    assert pattern.text == "pattern _(m, n = 5): k < m + n and (q - k) % 3 == 0"
    assert pattern.structure == "pattern _(m, n): k < m + n and (q - k) % 3 == 0"
    assert [number.name for number in pattern.numbers] == ["m", "n"]


def test_integers_of_any_type_are_values() -> None:
    class Index:
        def __index__(self) -> int:
            return 7

    values: Any = {"n": Index()}
    assert load("window", **values) == load("window", n=7)


@pytest.mark.parametrize(
    ("text", "values", "code"),
    [
        ("pattern p(n): q // n == 1", {}, "missing-value"),
        ("pattern p(n): q // n == 1", {"n": 0}, "not-positive"),
        ("pattern p(n): q // n == 1", {"n": -3}, "not-positive"),
        ("pattern p(n): cover(n, n, causal)", {"n": 0}, "not-positive"),
        ("pattern p(n): k < n", {"n": True}, "wrong-value"),
        ("pattern p(n): k < n", {"n": 1.5}, "wrong-value"),
        ("pattern p(n): k < n", {"n": "8"}, "wrong-value"),
        ("pattern p(n): k < n", {"n": 1 << 31}, "constant-too-large"),
        ("pattern p(n): k < n", {"m": 1}, "wrong-value"),
        ("causal", {"n": 1}, "wrong-value"),
        ("k < 3", {"n": 1}, "wrong-value"),
        ("document", {"doc": 1}, "wrong-value"),
        ("pattern p(n): q * n < 3", {"n": 1 << 30}, None),
        ("pattern p(n): q * n * 2 < 3", {"n": 1 << 30}, "constant-too-large"),
    ],
)
def test_value_mistakes(text: str, values: dict[str, Any], code: str | None) -> None:
    found = [mistake.code for mistake in diagnose(text, values=values).errors]
    assert found == ([code] if code else [])


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("q // 0 == 1", [("not-positive", "0")]),
        ("q % (3 - 3) == 1", [("not-positive", "(3 - 3)")]),
        ("chunked(0)", [("not-positive", "0")]),
        ("pattern a(x): chunked(x - 4)\npattern b(y): a(y)\nb(4)", [("syntax", "b")]),
        ("pattern a(x): chunked(x - 4)\npattern b(): a(4)", [("not-positive", "a(4)")]),
        ("pattern a(x): chunked(x)\npattern b(): a(0)", [("not-positive", "0")]),
        ("chunks_back(m = 1, n = 0)", [("not-positive", "0")]),
        ("cover(0, 8, causal) or cover(8, -1, causal)",
         [("not-positive", "0"), ("not-positive", "-1")]),
        ("cover(head, 8, causal)", [("not-constant", "head")]),
        ("cover(heads, 8, causal)", [("not-constant", "heads")]),
        ("q // kv_len == 1", [("length-divisor", "kv_len")]),
        ("q % (q_len + 1) == 1", [("length-divisor", "(q_len + 1)")]),
        ("chunked(kv_len // 4)", [("length-divisor", "kv_len // 4")]),
        ("q // k == 1", [("varying-divisor", "k")]),
        ("q // head == 1", [("varying-divisor", "head")]),
        ("q // layer == 1", [("varying-divisor", "layer")]),
        ("chunked(layer + 1)", [("varying-divisor", "layer + 1")]),
        ("pattern p(w: int[head]): q // w[head] == 1", [("varying-divisor", "w[head]")]),
        ("pattern p(d: segments): q // start(d, q) == 1", [("varying-divisor", "start(d, q)")]),
        ("q * k < 3", [("not-linear", "q * k")]),
        ("q * head < 3", [("not-linear", "q * head")]),
        ("q * kv_len < 3", [("not-linear", "q * kv_len")]),
        ("pattern p(w: int[head]): q * w[head] < 1", [("not-linear", "q * w[head]")]),
        ("1073741825 < q", [("constant-too-large", "1073741825")]),
        ("1073741824 + 1 < q", [("constant-too-large", "1073741824 + 1")]),
        ("40000 * 40000 < q", [("constant-too-large", "40000 * 40000")]),
        ("65536 * (65536 * q) < 3", [("constant-too-large", "65536 * (65536 * q)")]),
        ("(1073741824 * q < 3) at (2 * q, k)",
         [("constant-too-large", "(1073741824 * q < 3) at (2 * q, k)")]),
        ("pattern p(n = 2000000000): k < n", [("constant-too-large", "2000000000")]),
        ("pattern p(n = q): k < n", [("wrong-value", "q")]),
        ("pattern p(d: segments = 3): document(d)", [("wrong-value", "3")]),
        ("false", [("unsatisfiable", "false")]),
        ("causal and 3 < 2", [("unsatisfiable", "causal and 3 < 2")]),
        ("k < k", [("unsatisfiable", "k < k")]),
    ],
)  # fmt: skip
def test_value_mistakes_in_the_text(text: str, mistakes: list[tuple[str, str]]) -> None:
    assert codes(text) == mistakes


def test_limits_of_constants() -> None:
    assert body(f"{MAX_CONSTANT} < q") == f"{MAX_CONSTANT} < q"
    assert body(f"-{MAX_CONSTANT} < q") == f"-{MAX_CONSTANT} < q"
    assert body("0001 < q") == "1 < q"


def test_a_mistake_that_a_call_brings_about_is_blamed_on_the_call() -> None:
    (mistake,) = diagnose("causal and chunked(n = 8 - 8)").errors
    assert mistake.source is not None
    assert mistake.source.name == "<pattern>"
    assert mistake.notes == ("`chunked` has `q // n`",)


def test_an_unsatisfiable_helper_is_legal() -> None:
    assert body("pattern never(): false\npattern p(): never or causal") == "k <= q"
    with pytest.raises(PatternError):
        load("pattern never(): false")
