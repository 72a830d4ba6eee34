"""How mistakes are printed, and that exceptions survive a trip between processes."""

import copy
import pickle
import unicodedata
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc.dsl import errors
from patterncc.dsl.errors import (
    ArgumentError,
    ConfigError,
    Diagnostic,
    InternalError,
    PatternccError,
    PatternError,
    PatternSyntaxError,
    PatternTypeError,
    TuningError,
    UnknownNameError,
    UnsupportedError,
)
from patterncc.dsl.source import Source, Span


def excerpt(text: str, start: int, end: int) -> tuple[str, str]:
    """The source line and the carets as printed, without the gutter."""
    rendered = Diagnostic("c", "m", Span(start, end), source=Source("s", text)).render()
    _, _, _, line, carets = rendered.split("\n")
    return line.partition("|")[2][1:], carets.partition("|")[2][1:]


def test_render() -> None:
    text = "# notes\nlet b = 1\nlet a = casual and window(256)\n"
    at = text.index("casual")
    diagnostic = Diagnostic(
        "unknown-name",
        "no pattern is called `casual`",
        Span(at, at + 6),
        "did you mean `causal`?",
        source=Source("long.pat", text),
    )
    assert diagnostic.render() == dedent(
        """\
        error[unknown-name]: no pattern is called `casual`
         --> long.pat:3:9
          |
        3 | let a = casual and window(256)
          |         ^^^^^^
          = hint: did you mean `causal`?"""
    )


def test_render_aligns_to_the_line_number() -> None:
    text = "\n" * 99 + "k < w"
    diagnostic = Diagnostic("c", "m", Span(103, 104), "use\n`q`", ("one", "two"), Source("s", text))
    assert diagnostic.render() == dedent(
        """\
        error[c]: m
           --> s:100:5
            |
        100 | k < w
            |     ^
            = hint: use
                    `q`
            = note: one
            = note: two"""
    )


def test_render_without_a_place() -> None:
    assert Diagnostic("c", "m").render() == "error[c]: m"
    assert Diagnostic("c", "m", Span(0, 1)).render() == "error[c]: m"
    assert Diagnostic("c", "m", source=Source("s", "text"), hint="h").render() == dedent(
        """\
        error[c]: m
         --> s
          = hint: h"""
    )


def test_empty_text_leaves_no_trailing_space() -> None:
    rendered = Diagnostic("c", "m", Span(0, 0), source=Source("s", "")).render()
    assert rendered.split("\n")[2:] == ["  |", "1 |", "  | ^"]


@pytest.mark.parametrize(
    ("text", "start", "end", "line", "carets"),
    [
        ("a b", 2, 3, "a b", "  ^"),
        ("a b", 3, 3, "a b", "   ^"),
        ("a b", 9, 9, "a b", "   ^"),
        ("a b\n", 3, 4, "a b", "   ^"),
        ("a b\n", 4, 4, "", "^"),
        ("a b\r\nc", 2, 5, "a b", "  ^"),
        ("one two\nthree", 4, 13, "one two", "    ^^^"),
        ("\ta b", 1, 2, "    a b", "    ^"),
        ("ab\tc", 3, 4, "ab  c", "    ^"),
        ("ab\tc", 2, 3, "ab  c", "  ^^"),
        ("\u7a93 < w", 4, 5, "\u7a93 < w", "     ^"),
        ("\u7a93\u53e3 w", 0, 2, "\u7a93\u53e3 w", "^^^^"),
        ("\U0001f600 w", 2, 3, "\U0001f600 w", "   ^"),
        ("e\u0301 w", 3, 4, "e\u0301 w", "  ^"),
        ("e\u0301", 1, 2, "e\u0301", " ^"),
        ("\x1b[31m w", 6, 7, "\u241b[31m w", "      ^"),
        ("\u202ew", 1, 2, "\ufffdw", " ^"),
        ("\ud800w", 1, 2, "\ufffdw", " ^"),
        ("\u2028w\x85", 1, 2, "\ufffdw\ufffd", " ^"),
    ],
)
def test_carets(text: str, start: int, end: int, line: str, carets: str) -> None:
    assert excerpt(text, start, end) == (line, carets)


def test_long_line_shows_a_window() -> None:
    text = "a" * 5000 + "XYZ" + "b" * 5000
    line, carets = excerpt(text, 5000, 5003)
    assert line == "..." + "a" * 49 + "XYZ" + "b" * 48 + "..."
    assert carets == " " * 52 + "^^^"


def test_long_line_uses_its_room_at_both_ends() -> None:
    text = "XYZ" + "b" * 500
    assert excerpt(text, 0, 3) == (text[:100] + "...", "^^^")
    text = "a" * 500 + "XYZ"
    assert excerpt(text, 500, 503) == ("..." + text[-100:], " " * 100 + "^^^")
    assert excerpt(text, 503, 503) == ("..." + text[-100:], " " * 103 + "^")
    assert excerpt("a" * 100, 0, 1) == ("a" * 100, "^")
    assert excerpt("a" * 101, 0, 1) == ("a" * 100 + "...", "^")


def test_long_span_is_cut() -> None:
    assert excerpt("a" * 500, 100, 400) == ("..." + "a" * 100 + "...", "   " + "^" * 100)


def test_hostile_text_is_printed_fast() -> None:
    line, _ = excerpt("a" * 3_000_000, 1_500_000, 2_500_000)
    assert len(line) == 106


def test_control_characters_of_names_and_messages_are_not_printed() -> None:
    diagnostic = Diagnostic("c", "m\x1b", Span(0, 0), "h\x07", ("n\r",), Source("s\n\x1b", "t"))
    rendered = diagnostic.render()
    assert not set("\x1b\x07\r") & set(rendered)
    assert rendered.split("\n")[1] == " --> s\u240a\u241b:1:1"


def columns(text: str) -> int:
    return sum(
        0
        if unicodedata.category(c) in ("Mn", "Me")
        else 2
        if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in text
    )


@given(st.text(max_size=300), st.data())
def test_carets_are_under_the_span(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    diagnostic = Diagnostic("c", "m", Span(start, end), source=Source("s", text))
    rendered = diagnostic.render()
    rendered.encode()
    lines = rendered.split("\n")
    assert len(lines) == 5
    assert lines[4].strip(" |^") == ""
    shown = columns(lines[3])
    assert shown <= len(lines[3].partition("|")[0]) + 2 + 106
    assert lines[4].count("^") >= 1
    if text[start : start + 1].isalnum():
        assert columns(lines[4]) <= shown


ONE = Diagnostic("a", "first", Span(0, 1), "h", ("n",), Source("s", "text"))
TWO = Diagnostic("b", "second")
EXAMPLES: list[PatternccError] = [
    PatternccError("message"),
    PatternError(ONE, TWO),
    PatternSyntaxError(ONE),
    UnknownNameError(ONE),
    PatternTypeError(TWO, ONE),
    UnsupportedError("message", "hint"),
    UnsupportedError("message"),
    ConfigError("message", ("a", "b")),
    ConfigError("message"),
    ArgumentError("message"),
    TuningError("message", (("config", "reason"),)),
    InternalError("message", "file"),
]


def test_all_errors_have_an_example() -> None:
    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, PatternccError)
    }
    assert {type(error) for error in EXAMPLES} == classes


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_pickle(error: PatternccError) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is type(error)
        assert again.args == error.args
        assert str(again) == str(error)


def test_pattern_error_lists_its_diagnostics() -> None:
    error = UnknownNameError(ONE, TWO)
    assert error.diagnostics == (ONE, TWO)
    assert str(error) == f"{ONE.render()}\n\n{TWO.render()}"
    assert str(ONE) == ONE.render()


def test_other_errors_say_what_to_do() -> None:
    assert str(UnsupportedError("no float64", "use float32")) == (
        "no float64\n  = hint: use float32"
    )
    assert str(UnsupportedError("no float64")) == "no float64"
    assert str(ConfigError("stages is 9", ("1", "2"))) == "stages is 9; legal: 1, 2"
    assert str(InternalError("pass merge", "/tmp/ir.txt")) == (
        "pass merge. This is a bug in patterncc, please report it.\n"
        "  = note: written to /tmp/ir.txt; please attach it"
    )


def test_tuning_error_shows_some_failures() -> None:
    few = TuningError("nothing ran", (("64x64", "spills"), ("128x64", "crashed")))
    assert str(few) == "nothing ran\n  64x64: spills\n  128x64: crashed"
    many = TuningError("nothing ran", tuple((str(i), "spills") for i in range(25)))
    assert str(many).endswith("  19: spills\n  and 5 more")
    assert len(many.failures) == 25
