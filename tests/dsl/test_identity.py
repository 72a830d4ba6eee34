"""The canonical text: it loads back as the same pattern, and spellings of one meaning share it."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from patterncc.dsl import library, load
from patterncc.dsl.build import substitute
from patterncc.dsl.errors import PatternError
from patterncc.dsl.mask import (
    FALSE,
    And,
    Compare,
    Const,
    Expr,
    Max,
    Min,
    Or,
    Predicate,
    Product,
    Sum,
    walk,
)
from patterncc.dsl.printer import expression_text, pattern_text
from tests.strategies import PARAMETERS, predicates

relaxed = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def unsatisfiable(body: Predicate) -> bool:
    return body == FALSE


@relaxed
@given(predicates())
def test_canonical_text_loads_back(body: Predicate) -> None:
    assume(not unsatisfiable(body))
    text = pattern_text(PARAMETERS, body)
    pattern = load(text)
    assert pattern.body == body
    assert pattern.text == pattern.structure == text
    assert pattern.fixed == ()


@relaxed
@given(predicates())
def test_building_again_changes_nothing(body: Predicate) -> None:
    assert substitute(body, {}) == body


@st.composite
def respelled(draw: st.DrawFn, expr: Expr) -> str:
    """Another text of an expression: operands exchanged, brackets everywhere, comments."""

    def spell(node: Expr) -> str:
        match node:
            case Sum(parts) | Product(parts) | Min(parts) | Max(parts) | And(parts) | Or(parts):
                texts = [spell(part) for part in draw(st.permutations(parts))]
                match node:
                    case Min() | Max():
                        return f"{'min' if isinstance(node, Min) else 'max'}({', '.join(texts)})"
                    case Sum():
                        op = "+"
                    case Product():
                        op = "*"
                    case And():
                        op = "and"
                    case Or():
                        op = "or"
                space = draw(st.sampled_from([" ", "  ", "\n", " # so\n\t"]))
                return "(" + f" {op}{space}".join(texts) + ")"
            case Compare(op, left, right):
                if draw(st.booleans()):
                    flipped = {"==": "==", "!=": "!=", "<": ">", "<=": ">="}[op]
                    return f"({spell(right)} {flipped} {spell(left)})"
                if draw(st.booleans()):
                    opposite = {"==": "!=", "!=": "==", "<": ">=", "<=": ">"}[op]
                    return f"(not ({spell(left)} {opposite} {spell(right)}))"
                return f"({spell(left)} {op} {spell(right)})"
            case Const(value) if value < 0:
                return f"(0 - {-value})"
        return f"({expression_text(node)})"

    return spell(expr)


@relaxed
@given(predicates(), st.data())
def test_other_spellings_are_the_same_pattern(body: Predicate, data: st.DataObject) -> None:
    assume(not unsatisfiable(body))
    header = pattern_text(PARAMETERS, body).removesuffix(expression_text(body))
    assert load(header + data.draw(respelled(body))).body == body


SAME = [
    ["causal and window(64)", "window(64)and causal", "window(n = 64) and (causal)"],
    [
        "0 <= q - k < 64",
        "window(64)",
        "let d = q - k\n0 <= d and d < 64",
        "let distance = q - k\nlet near = distance < 64\nnear and distance >= 0",
        "0 <= q - k and 64 > q - k",
        "pattern near(n): 0 <= q - k < n\npattern p(): near(32 + 32)",
        "# a comment\n0 <= q - k and\n  q - k < # here\n  8 * 8",
        "0 <= (q - k) < 64",
        "q - k in 0..64",
    ],
    ["streaming(sinks = 4, window = 512)", "streaming(window = 512)", "streaming(4, 512)"],
    ["k in {1, 2, 3}", "k == 3 or k == 1 or 2 == k", "k in {3, 2, 1, 1}"],
    ["if head == 0 then causal else causal", "causal", "k <= q", "q >= k", "true and causal"],
    ["max(q, k, 3) < 5", "max(k, max(3, q)) < 5"],
    ["(q + 1) * 2 < k", "2 * q + 2 < k", "k > q + q + 2"],
    ["pattern a(x, y = 3): k < x + y", "pattern b(y = 3, x): k < y + x"],
    ["window(3) at (q + 1, k)", "0 <= q + 1 - k < 3", "0 <= q - k + 1 < 3"],
    ["cover(64, 64, causal and k < 5)", "cover(64, 32 + 32, k < 5 and k <= q)"],
]


@pytest.mark.parametrize("texts", SAME)
def test_same(texts: list[str]) -> None:
    patterns = [load(text) for text in texts]
    assert len({pattern.text for pattern in patterns}) == 1
    assert len(set(patterns)) == 1


DIFFERENT = [
    "causal",
    "k < q",
    "causal and window(64)",
    "causal or window(64)",
    "window(65)",
    "window(64)",
    "cover(64, 64, causal)",
    "cover(64, 32, causal)",
    "cover(64, 64, causal) at (q + 1, k)",
    "q // 4 == k // 4",
    "q % 4 == k % 4",
    "pattern p(n): k < n",
    "pattern p(m): k < m",
    "pattern p(n = 4): k < n",
    "pattern p(n = 5): k < n",
    "pattern p(w: int[head]): k < w[head]",
    "pattern p(w: int[layer]): k < w[layer]",
    "if head == 0 then causal else window(4)",
    "if head == 0 then window(4) else causal",
]


def test_different() -> None:
    assert len({load(text).text for text in DIFFERENT}) == len(DIFFERENT)


def test_defaults_are_in_the_text_but_not_in_the_structure() -> None:
    one, two = load("window", n=64), load("window", n=65)
    assert one != two
    assert one.structure == two.structure == "pattern _(n): 0 <= q - k < n"
    assert one.text == "pattern _(n = 64): 0 <= q - k < n"


def test_fixed_parameters_are_in_both() -> None:
    one, two = load("chunked", n=64), load("chunked", n=65)
    assert one.structure != two.structure
    assert one.fixed == (("n", 64),)


@pytest.mark.parametrize("name", library.names())
def test_library_text_loads_back(name: str) -> None:
    pattern = load(name)
    again = load(pattern.text)
    assert again == pattern
    assert again.body == pattern.body
    assert again.structure == pattern.structure
    assert {p.name: p.value for p in again.parameters} == {
        p.name: p.value for p in pattern.parameters
    }


def test_name_is_not_identity() -> None:
    assert load("pattern a(): k <= q") == load("causal")
    assert load("pattern a(): k <= q").name == "a"
    assert load("k <= q").name == ""
    assert load("pattern _(n): k < n").name == ""


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("-q + k < 1", "k - q < 1"),
        ("-q < -k", "-q < -k"),
        ("q - (k - 1) <= 0", "q - k + 1 <= 0"),
        ("2 * (q // 4) - 3 * (k // 4) < 1", "2 * (q // 4) - 3 * (k // 4) < 1"),
        ("q // 4 // heads == (k // 4) % 2", "q // 4 // heads == k // 4 % 2"),
        ("(-q) // 4 < -(k // 4)", "-q // 4 < -(k // 4)"),
        ("not (causal and k < 3)", "not (k <= q and k < 3)"),
        ("causal and k < 3 or q < 5", "q < 5 or k <= q and k < 3"),
        ("(causal or k < 3) and q < 5", "q < 5 and (k <= q or k < 3)"),
        ("if head < 2 then causal else true", "if head < 2 then k <= q else true"),
        ("(if head < 2 then q else k) < 3", "(if head < 2 then q else k) < 3"),
        ("(if head < 2 then causal else true) and k < 3",
         "k < 3 and (if head < 2 then k <= q else true)"),
        ("k in {0, 3} or head == 1", "k in {0, 3} or head == 1"),
        ("window(5) at (k, q)", "0 <= k - q < 5"),
    ],
)  # fmt: skip
def test_reads_well(text: str, canonical: str) -> None:
    assert load(text).text == canonical


def test_text_of_every_node_is_an_expression() -> None:
    body = load("causal and (k // 64 + head) % 8 < min(layer, 3) or abs(q - k) in {1, 3}").body
    for node in walk(body):
        assert expression_text(node)


def test_unsatisfiable() -> None:
    with pytest.raises(PatternError, match="unsatisfiable"):
        load("causal and false")
