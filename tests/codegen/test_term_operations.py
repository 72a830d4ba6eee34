"""How many operations score terms take for each pair."""

from __future__ import annotations

import pytest

from patterncc.codegen.gpu.term_operations import Operations, pair_operations
from patterncc.dsl.score.terms import PLAIN, load_terms


@pytest.mark.parametrize(
    ("score", "sink", "simple", "special"),
    [
        (None, "sinks[head]", 0, 0),
        ("score * 2", None, 1, 0),  # the scale is the row's
        ("softcap(score, 50)", None, 5, 2),
        ("softcap(score, cap)", None, 9, 3),  # and a quotient
        ("score + slopes[head]", None, 2, 0),
        ("score + slopes[head] * (k - q)", None, 5, 0),
        ("score + alibi(slopes)", "log(head + 2)", 7, 0),
        ("score + sqrt(abs(k - q))", None, 7, 1),
        ("exp(score) + exp(score)", None, 3, 1),  # equal parts once
        ("if k < 4 then score / 2 else score", None, 4, 0),
        ("min(score, slopes[head], 3)", None, 3, 0),
    ],
)
def test_operations(score: str | None, sink: str | None, simple: int, special: int) -> None:
    assert pair_operations(load_terms(score, sink)) == Operations(simple, special)


def test_no_terms_take_nothing() -> None:
    assert pair_operations(PLAIN) == Operations()
