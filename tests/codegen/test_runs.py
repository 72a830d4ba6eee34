"""Positions as runs: nothing lost, nothing twice, and few of them where there is a rule."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from patterncc.codegen.facts.runs import Run, flags_of, runs_of


@given(st.lists(st.booleans(), max_size=80), st.integers(0, 5))
def test_there_and_back(flags: list[bool], first: int) -> None:
    array = np.array(flags, dtype=bool)
    runs = runs_of(array, first)
    expected = np.concatenate([np.zeros(first, dtype=bool), array])
    np.testing.assert_array_equal(flags_of(runs, first + len(flags)), expected)
    assert sum(run.positions for run in runs) == array.sum()
    assert all(run.period > run.length or run.count == 1 for run in runs)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)), max_size=6))
def test_there_and_back_where_runs_repeat(parts: list[tuple[int, int, int]]) -> None:
    pieces = [[True] * on + [False] * off for on, off, count in parts for _ in range(count)]
    array = np.array([flag for piece in pieces for flag in piece], dtype=bool)
    runs = runs_of(array)
    np.testing.assert_array_equal(flags_of(runs, len(array)), array)
    assert len(runs) <= 3 * len(parts)


def test_rules_are_found() -> None:
    k = np.arange(10_000)
    rungs = (k // 128) % 8 == 3
    assert runs_of(rungs) == (Run(384, 128, 10, 1024),)
    assert runs_of((k < 4) | rungs | (k > 9990)) == (
        Run(0, 4, 1, 4),
        Run(384, 128, 10, 1024),
        Run(9991, 9, 1, 9),
    )
    assert runs_of(k % 2 == 1) == (Run(1, 1, 5000, 2),)
    assert runs_of(k < 0) == ()
    assert runs_of(k >= 0) == (Run(0, 10_000, 1, 10_000),)
    assert Run(384, 128, 10, 1024).last == 384 + 9 * 1024 + 127
