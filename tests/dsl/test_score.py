"""Score terms: canonical text, meaning, derivatives."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import assume, given, settings

from patterncc.dsl.errors import PatternError
from patterncc.dsl.score.derivative import derivative
from patterncc.dsl.score.evaluate import real
from patterncc.dsl.score.nodes import SCORE, ZERO, Lookup, Real, lookups
from patterncc.dsl.score.printer import real_text
from patterncc.dsl.score.ready import READY
from patterncc.dsl.score.terms import PLAIN, ScoreTerms, load_terms, terms_of
from tests.score_strategies import ENV, NUMBERS, SHAPES, SIZES, reals

TABLES = {
    "slopes": [0.25, -1.5],
    "bias": [[0.1 * (i - j) for j in range(9)] for i in range(2)],
    "places": [math.sin(i) for i in range(12)],
}


def logit(text: str) -> str:
    return real_text(load_terms(text).logit)


def slope(text: str) -> str:
    return real_text(load_terms(text).slope)


def value(expr: Real, score: float, q: int, k: int) -> float:
    return real(expr, score, {**ENV, **SIZES, "q": q, "k": k}, NUMBERS, TABLES)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("score", "score"),
        ("softcap(score, 50)", "50.0 * tanh(score / 50.0)"),
        ("softcap(score, cap)", "cap * tanh(score / cap)"),
        ("softcap(x = score, c = 50)", "50.0 * tanh(score / 50.0)"),
        ("score + alibi(slopes)", "score - slopes[head] * abs(q - k)"),
        ("alibi(slopes = m) + score", "score - m[head] * abs(q - k)"),
        (
            "score + relative_bias(bias, 4)",
            "score + bias[head, min(max(q - k, -4), 4) + 4]",
        ),
        ("score - slopes[head] * (q - k)", "score - slopes[head] * (q - k)"),
        ("let d = q - k\nscore - d * 0.5", "score - 0.5 * (q - k)"),
        ("let x = score / 2\nx + x", "2.0 * (score / 2.0)"),
        ("score + 0 * cap", "score"),
        ("q + score - k", "score + (q - k)"),
        ("score * 2 * 3", "6.0 * score"),
        ("1 - score", "1.0 - score"),
        ("score + q // 8 * 2", "score + (2 * (q // 8))"),
        ("if window(4) then score else min(score, 2)", None),
        ("score * log(1 + abs(q - k)) / sqrt(tau)", None),
        ("score + 1e-5 * q + 2.5e+3", "score + 1e-05 * q + 2500.0"),
        ("clamp(score, -cap, cap)", "min(max(score, -cap), cap)"),
        ("max(score, q, k, 3)", "max(score, max(q, k), 3.0)"),
    ],
)
def test_canonical_text(text: str, canonical: str | None) -> None:
    terms = load_terms(text)
    if canonical is not None:
        assert terms.text == canonical
    assert terms_of(terms.text) == terms
    assert terms_of(terms.text).text == terms.text


def test_terms_are_values() -> None:
    terms = load_terms("softcap(score, cap) + alibi(slopes)", "sinks[layer, head]")
    assert terms == load_terms("alibi(slopes) + cap * tanh(score / cap)", "sinks[layer,head]")
    assert hash(terms) == hash(terms_of(terms.text))
    assert pickle.loads(pickle.dumps(terms)) == terms
    assert terms.numbers == ("cap",)
    assert terms.tables == {"sinks": 2, "slopes": 1}
    assert not terms.plain
    assert load_terms() == PLAIN == load_terms("score") and PLAIN.plain
    assert not load_terms(sink="0").plain


def test_ready_terms_are_written_in_the_algebra() -> None:
    assert {name: ready.signature for name, ready in READY.items()} == {
        "softcap": "softcap(x, c)",
        "alibi": "alibi(slopes)",
        "relative_bias": "relative_bias(bias, n)",
    }


@pytest.mark.parametrize(
    ("text", "derived"),
    [
        ("score", "1.0"),
        ("softcap(score, 50)", "1.0 - tanh(score / 50.0) * tanh(score / 50.0)"),
        ("softcap(score, 49)", "1.0 - tanh(score / 49.0) * tanh(score / 49.0)"),
        ("softcap(score, c)", "1.0 - tanh(score / c) * tanh(score / c)"),
        ("score - slopes[head] * (q - k)", "1.0"),
        ("score * gains[head] + q", "gains[head]"),
        ("sigmoid(score)", "sigmoid(score) * (1.0 - sigmoid(score))"),
        ("log(score)", "1.0 / score"),
        ("max(score, 2)", "below(score, 2.0, 0.0, 1.0)"),
        ("abs(score)", "sign(score)"),
        ("if q < k then score else 0.5 * score", "if q < k then 1.0 else 0.5"),
    ],
)
def test_derivatives_are_simple(text: str, derived: str) -> None:
    assert slope(text) == derived


def test_derivatives_by_tables() -> None:
    terms = load_terms(
        "score * gains[head] - slopes[head] * (q - k) + bias[q] * bias[k]", "s[head]"
    )
    found = {real_text(entry): real_text(slope) for entry, slope in terms.table_slopes()}
    assert found == {
        "gains[head]": "score",
        "slopes[head]": "k - q",
        "bias[q]": "bias[k]",
        "bias[k]": "bias[q]",
    }
    assert [(real_text(a), real_text(b)) for a, b in terms.sink_slopes()] == [("s[head]", "1.0")]


@settings(deadline=None, max_examples=50)
@given(reals())
def test_text_parses_back(expr: Real) -> None:
    assume("score" in real_text(expr))
    terms = ScoreTerms(expr)
    assert terms_of(terms.text) == terms, terms.text


@settings(deadline=None, max_examples=50)
@given(reals(sink=True))
def test_text_of_sinks_parses_back(expr: Real) -> None:
    terms = ScoreTerms(SCORE, expr)
    assert terms_of(terms.text) == terms, terms.text


@settings(deadline=None, max_examples=50)
@given(reals(smooth=True))
def test_derivative_is_the_limit_of_differences(expr: Real) -> None:
    by_score = derivative(expr, SCORE)
    step = 1e-5
    for score, q, k in ((0.3, 2, 5), (-1.7, 7, 1)):
        difference = value(expr, score + step, q, k) - value(expr, score - step, q, k)
        found = value(by_score, score, q, k)
        assert math.isclose(found, difference / (2 * step), rel_tol=1e-4, abs_tol=1e-4)


@settings(deadline=None, max_examples=50)
@given(reals())
def test_derivative_by_what_is_not_read_is_zero(expr: Real) -> None:

    assert derivative(expr, Lookup("other", ())) == ZERO
    for entry in lookups(expr):
        assert entry.table in SHAPES


@pytest.mark.parametrize(
    ("score", "sink", "code", "excerpt"),
    [
        ("score + tann(q)", None, "unknown-name", "tann"),
        ("score / 0", None, "wrong-value", "0"),
        ("score * q // 8", None, "type-mismatch", "8"),
        ("slopes[head] * 2", None, "unused", "slopes[head] * 2"),
        ("score + bias[score]", None, "type-mismatch", "score"),
        ("score + bias[q / 2]", None, "type-mismatch", "q / 2"),
        ("score + bias[tau]", None, "type-mismatch", "tau"),
        ("if tau < 2 then score else 0", None, "type-mismatch", "tau"),
        ("score + window", None, "type-mismatch", "window"),
        ("score + (q < k)", None, "type-mismatch", "(q < k)"),
        ("score + tanh", None, "type-mismatch", "tanh"),
        ("score + exp(1000)", None, "constant-too-large", "score + exp(1000)"),
        ("score + exp(1000 * tau)", None, None, ""),
        ("score +", None, "syntax", ""),
        ("score + .5", None, "unexpected-character", "."),
        ("score + 1.5x", None, "unexpected-character", "."),
        ("score && 2", None, "foreign-operator", "&&"),
        ("score + q * k", None, "not-linear", "q * k"),
        ("score + q // kv_len", None, "length-divisor", "kv_len"),
        ("score + q % 0", None, "not-positive", "0"),
        ("score + b[q] + b[q, k]", None, "table-index", "b[q, k]"),
        ("score + b[q] + b", None, "type-mismatch", "b"),
        ("score + query", None, "reserved-name", "query"),
        ("score + sink", None, "reserved-name", "sink"),
        ("score + q_first[head]", None, "reserved-name", "q_first[head]"),
        ("let score = 2\nscore + 1", None, "reserved-name", "score"),
        ("let x = 2\nlet x = 3\nscore + x", None, "duplicate-name", "x"),
        ("score + softcap(q)", None, "wrong-arguments", "softcap(q)"),
        ("score + alibi(2.0)", None, "type-mismatch", "2.0"),
        ("score + relative_bias(b, tau)", None, "type-mismatch", "tau"),
        ("tanh(score, 2)", None, "wrong-arguments", "tanh(score, 2)"),
        ("tanh(x = score)", None, "wrong-arguments", "tanh(x = score)"),
        ("", None, "empty", ""),
        ("pattern p(): score", None, "syntax", "pattern p(): score"),
        ("score", "score", "type-mismatch", "score"),
        ("score", "sinks[k]", "type-mismatch", "k"),
        ("score", "if k < 2 then 1 else 0.5", "type-mismatch", "k"),
        ("score", "let d = q - k\nd * 0.5", "type-mismatch", "k"),
        ("let p = tau < 2\nif p then score else 0", None, "type-mismatch", "tau"),
        ("score + " * 30 + "(" * 120 + "q", None, "too-deep", "("),
    ],
)
def test_mistakes(score: str, sink: str | None, code: str | None, excerpt: str) -> None:
    if code is None:
        load_terms(score, sink)
        return
    with pytest.raises(PatternError) as caught:
        load_terms(score, sink)
    found = caught.value.diagnostics[0]
    assert found.code == code
    assert found.source is not None and found.span is not None
    assert found.source.excerpt(found.span) == excerpt
    assert found.source.name == ("<score>" if sink is None else "<sink>")


def test_all_mistakes_of_both_texts_are_reported() -> None:
    with pytest.raises(PatternError) as caught:
        load_terms("score + tann(q) + sqr(k)", "k + 1")
    codes = [diagnostic.code for diagnostic in caught.value.diagnostics]
    assert codes == ["unknown-name", "unknown-name", "type-mismatch"]


@pytest.mark.parametrize(
    "text",
    [
        "softcap(" * 90 + "score" + ", 2)" * 90,
        "let a = score * score\n" + "let a{} = a * a\n" * 12 + "a",
        "score" + " + tanh(q + score)" * 3000,
        "softcap(1, " * 40 + "score" + ")" * 40,
    ],
)
def test_large_terms_are_refused_in_little_time(text: str) -> None:
    lines = text.split("\n")
    if "{}" in text:
        lets = [f"let a{i + 1} = a{i or ''} * tanh(a{i or ''})" for i in range(40)]
        text = "\n".join([lines[0], *lets, "a40"])
    with pytest.raises(PatternError) as caught:
        load_terms(text)
    assert caught.value.diagnostics[0].code in ("too-deep", "too-long")


def test_names_in_one_text_and_the_other_agree() -> None:
    with pytest.raises(PatternError, match="`s` is not used alike"):
        load_terms("score + s", "s[head]")
    with pytest.raises(PatternError, match="`s` is not used alike"):
        load_terms("score + s[q]", "s[head, layer]")
