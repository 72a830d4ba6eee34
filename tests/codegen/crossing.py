"""Parameters of tests that cross two lists, too many pairs to run all of them every time."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def each_with_one(
    rows: Iterable[Any],
    columns: Sequence[Any],
    *,
    always: Sequence[Any] = (),
    turns: Sequence[Any] | None = None,
) -> list[Any]:
    """All pairs of a row and a column, of which every row has one in turn, and those of `always`;
    the others run only with `pytest -m exhaustive`.

    Args:
        rows, columns: What is crossed.
        always: Columns that every row has.
        turns: Columns that rows have in turn, None for no column; all but those of `always` if not
            given.
    """
    if turns is None:
        turns = [column for column in columns if column not in always]
    found = []
    for number, row in enumerate(rows):
        for column in columns:
            chosen = column in always or column == turns[number % len(turns)]
            marks = [] if chosen else [pytest.mark.exhaustive]
            found.append(pytest.param(row, column, marks=marks))
    return found
