"""Offsets, lines and columns."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc.dsl.source import Source, Span


@pytest.mark.parametrize(
    ("text", "offset", "position"),
    [
        ("", 0, (1, 1)),
        ("ab", 0, (1, 1)),
        ("ab", 2, (1, 3)),
        ("ab\n", 2, (1, 3)),
        ("ab\n", 3, (2, 1)),
        ("ab\ncd", 4, (2, 2)),
        ("ab\r\ncd", 5, (2, 2)),
        ("\n\n", 1, (2, 1)),
        ("ab", 9, (1, 3)),
    ],
)
def test_position(text: str, offset: int, position: tuple[int, int]) -> None:
    assert Source("s", text).position(offset) == position


@pytest.mark.parametrize(
    ("text", "offset", "line"),
    [
        ("", 0, ""),
        ("ab\ncd\n", 0, "ab"),
        ("ab\ncd\n", 2, "ab"),
        ("ab\ncd\n", 3, "cd"),
        ("ab\ncd\n", 6, ""),
        ("ab\r\ncd", 1, "ab"),
        ("ab\r\ncd", 3, "ab"),
        ("\r\n", 0, ""),
        ("\r\n", 1, ""),
        ("ab", 9, "ab"),
    ],
)
def test_line_span(text: str, offset: int, line: str) -> None:
    source = Source("s", text)
    assert source.excerpt(source.line_span(offset)) == line


def test_end_is_after_the_last_word() -> None:
    assert Source("s", "ab  \n\n").end() == Span(2, 2)
    assert Source("s", " \n").end() == Span(0, 0)


def test_span() -> None:
    assert Span(2, 4).cover(Span(1, 3)) == Span(1, 4)
    assert Span(1, 2) < Span(1, 3) < Span(2, 2)
    with pytest.raises(ValueError, match="not a span"):
        Span(3, 2)
    with pytest.raises(ValueError, match="not a span"):
        Span(-1, 2)


def test_values_pickle() -> None:
    value = (Source("s", "text"), Span(0, 2))
    assert pickle.loads(pickle.dumps(value)) == value


@given(st.text("ab\r\n", max_size=30), st.data())
def test_position_names_the_offset(text: str, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(text)))
    line, column = Source("s", text).position(offset)
    lines = text.split("\n")
    assert sum(len(before) + 1 for before in lines[: line - 1]) + column - 1 == offset
    assert column <= len(lines[line - 1]) + 1
