"""The entries to the checker: exceptions, order of mistakes, warnings."""

from __future__ import annotations

import pytest

import patterncc.dsl
from patterncc.dsl import diagnose, load
from patterncc.dsl.errors import (
    PatternError,
    PatternSyntaxError,
    PatternTypeError,
    UnknownNameError,
)
from patterncc.dsl.mask import FALSE


def test_exceptions_tell_the_kind_of_mistake() -> None:
    for text, kind in [
        ("k <", PatternSyntaxError),
        ("casual", UnknownNameError),
        ("causal and 3", PatternTypeError),
        ("q // 0 == 1", PatternError),
        ("casual and 3", PatternError),
    ]:
        with pytest.raises(PatternError) as caught:
            load(text)
        assert type(caught.value) is kind


def test_mistakes_are_in_source_order_and_carry_their_text() -> None:
    checked = diagnose("windw(3) and q % 0 == 1\n and 3 +", file="long.pat")
    assert checked.pattern is None
    spans = [mistake.span.start for mistake in checked.errors if mistake.span]
    assert spans == sorted(spans)
    assert {mistake.source.name for mistake in checked.errors if mistake.source} == {"long.pat"}


def test_warnings() -> None:
    checked = diagnose("pattern p(n, m = 3):\n let a = 1\n let b = a\n k < m")
    assert checked.errors == ()
    assert checked.pattern is not None
    assert [warning.code for warning in checked.warnings] == ["unused", "unused"]
    assert checked.warnings[0].render().startswith("warning[unused]: the parameter `n` is never")
    assert checked.pattern.text == "pattern _(m = 3, n): k < m"


def test_a_parameter_that_folds_away_stays() -> None:
    assert load("pattern p(n): causal and 0 * n == 0").text == "pattern _(n): k <= q"


def test_false_is_the_only_body_that_is_refused() -> None:
    assert load("pattern p(n = 0): 0 <= q - k < n").body != FALSE


def test_entry_points() -> None:
    assert patterncc.dsl.load is load
    assert patterncc.dsl.__all__ == ["diagnose", "load"]
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        patterncc.dsl.lode  # noqa: B018
