"""The formatter: one style, the same meaning, every comment kept, and no change the second time."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from patterncc.dsl import diagnose, load
from patterncc.dsl.errors import PatternSyntaxError
from patterncc.dsl.formatter import format_source
from patterncc.dsl.mask import FALSE, Predicate
from patterncc.dsl.parser import parse
from patterncc.dsl.printer import pattern_text
from patterncc.dsl.source import Source
from patterncc.dsl.writer import WIDTH
from tests.strategies import PARAMETERS, Spelling, predicates, texts

relaxed = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])

STYLES = [
    ("causal", "causal\n"),
    ("( k<=q )and(k<4 or( q-k<8 ))", "k <= q and (k < 4 or q - k < 8)\n"),
    ("let a=1\nk<a", "let a = 1\nk < a\n"),
    ("pattern p: k<q", "pattern p():\n    k < q\n"),
    (
        "pattern p(a=3,b:int[head],c:bool[head,*],d:segments):k<q",
        "pattern p(a = 3, b: int[head], c: bool[head, *], d: segments):\n    k < q\n",
    ),
    ("pattern p():k\npattern r():q", "pattern p():\n    k\n\npattern r():\n    q\n"),
    ("f(a=3,b)and x in{1,2}or y in 3 .. 4", "f(a = 3, b) and x in {1, 2} or y in 3..4\n"),
    ("(if a then b else c)and d", "(if a then b else c) and d\n"),
    (
        "if(if a then b else c)then(if d then e else f)else if g then h else i",
        "if (if a then b else c) then (if d then e else f) else if g then h else i\n",
    ),
    ("-(-a)<- (b*c)", "--a < -(b * c)\n"),
    ("a-(b-c)-(d+e)*2<007", "a - (b - c) - (d + e) * 2 < 7\n"),
    ("not(not a)and not(b and c)", "not not a and not (b and c)\n"),
    ("(a at(q,k+1))at(k,q)", "a at (q, k + 1) at (k, q)\n"),
    ("(a and b)at(q,k)", "(a and b) at (q, k)\n"),
    ("a and(b and c)", "a and (b and c)\n"),
]


@pytest.mark.parametrize(("text", "formatted"), STYLES)
def test_style(text: str, formatted: str) -> None:
    assert format_source(text) == formatted


def test_comments_and_empty_lines() -> None:
    text = """

#top
# second

# of a


pattern a(x=1, # of x
  y=2): # of the header
  # of the let
  let z=x+   # inside
     y  # after the let

  # of the body
  z<k and


    causal # after the body
# after a
pattern b(): k<q
#the end

# really
"""
    assert (
        format_source(text)
        == """\
#top
# second

# of a

# of x
pattern a(x = 1, y = 2):  # of the header
    # of the let
    # inside
    let z = x + y  # after the let

    # of the body
    z < k and causal  # after the body

# after a
pattern b():
    k < q
#the end

# really
"""
    )


def test_long_lines_are_broken_after_operators() -> None:
    text = (
        "let wide = a_long_name_of_a_pattern(1) or another_long_name_of_a_pattern(2) or x in {"
        + (", ".join(str(n) for n in range(1000, 1030)))
    )
    text += (
        "}\nif head in {0, 1, 2, 3} then wide and causal and another_pattern(1234, 5678) else if "
    )
    text += "layer < 3 then not (causal and some_pattern(1234567) and some_other_pattern(12345678) "
    text += "and k < 3) else wide"
    formatted = format_source(text)
    assert (
        formatted
        == """\
let wide = a_long_name_of_a_pattern(1) or
    another_long_name_of_a_pattern(2) or
    x in {1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014,
        1015, 1016, 1017, 1018, 1019, 1020, 1021, 1022, 1023, 1024, 1025, 1026, 1027, 1028, 1029}
if head in {0, 1, 2, 3} then
    wide and causal and another_pattern(1234, 5678) else
if layer < 3 then
    not (causal and some_pattern(1234567) and some_other_pattern(12345678) and k < 3) else
    wide
"""
    )
    assert format_source(formatted) == formatted


def test_many_parameters() -> None:
    text = f"pattern p({', '.join(f'parameter_{n} = {n}' for n in range(9))}): k < parameter_3"
    formatted = format_source(text)
    assert max(map(len, formatted.splitlines())) <= WIDTH
    assert formatted.splitlines()[1].startswith("        parameter_")
    assert load(formatted) == load(text)


@relaxed
@given(predicates())
def test_meaning_is_kept_and_the_second_time_changes_nothing(body: Predicate) -> None:
    assume(body != FALSE)
    text = pattern_text(PARAMETERS, body)
    formatted = format_source(text)
    assert load(formatted).text == text
    assert format_source(formatted) == formatted


@st.composite
def commented(draw: st.DrawFn) -> str:
    """A text with comments and line ends between its words, all inside one bracket."""
    spelling: Spelling = draw(texts())
    words = spelling.text.replace("(", " ( ").replace(")", " ) ").split()
    gaps = st.sampled_from([" ", " ", " ", "\n", " # a comment\n", "\n\n# another\n"])
    inner = "".join(word + draw(gaps) for word in words)
    lead = draw(st.sampled_from(["", "# first\n", "# first\n\n", "let a = 3 # of a\n"]))
    return f"{lead}({inner})" + draw(st.sampled_from(["", "\n", " # last", "\n\n# last\n"]))


@relaxed
@given(commented())
def test_comments_survive(text: str) -> None:
    formatted = format_source(text)
    before, after = (parse(Source("", each)).comments for each in (text, formatted))
    assert sorted(c.text.rstrip() for c in before) == sorted(c.text.rstrip() for c in after)
    assert format_source(formatted) == formatted
    one, two = diagnose(text).pattern, diagnose(formatted).pattern
    assert one == two


def test_a_text_that_does_not_parse_is_left_alone() -> None:
    with pytest.raises(PatternSyntaxError, match=r"long\.pat:1:4"):
        format_source("k <", file="long.pat")


def test_names_and_types_are_not_looked_at() -> None:
    assert format_source("casual and 3") == "casual and 3\n"


def test_only_comments() -> None:
    with pytest.raises(PatternSyntaxError, match="empty"):
        format_source("# nothing\n")
