"""Text → syntax: what binds to what, where lines end, what a mistake is called."""

# ruff: noqa: RUF001

import pytest

from patterncc.dsl.errors import Diagnostic
from patterncc.dsl.parser import Parsed, parse
from patterncc.dsl.source import Source
from patterncc.dsl.syntax import (
    Arithmetic,
    At,
    Choose,
    Comparison,
    Connect,
    Definition,
    Expression,
    Invert,
    Minus,
    Name,
    Number,
)
from patterncc.dsl.writer import written


def parsed(text: str) -> Parsed:
    return parse(Source("test.pat", text))


def definition(text: str) -> Definition:
    result = parsed(text)
    assert result.diagnostics == ()
    (only,) = result.program.definitions
    return only


def expression(text: str) -> Expression:
    return definition(text).body


def mistakes(text: str) -> list[tuple[str, str]]:
    """The codes of the mistakes in a text and the excerpts that they point at."""
    found = []
    for mistake in parsed(text).diagnostics:
        assert mistake.span is not None
        found.append((mistake.code, text[mistake.span.start : mistake.span.end]))
    return found


def only(text: str) -> Diagnostic:
    (mistake,) = parsed(text).diagnostics
    return mistake


@pytest.mark.parametrize(
    ("text", "grouped"),
    [
        ("a or b and not c", "a or (b and (not c))"),
        ("not a < b", "not (a < b)"),
        ("not not a", "not (not a)"),
        ("a < b + c * -d", "a < (b + (c * (-d)))"),
        ("a - b - c", "(a - b) - c"),
        ("a // b % c * d", "((a // b) % c) * d"),
        ("-a // b", "(-a) // b"),
        ("-a at (b, c)", "-(a at (b, c))"),
        ("a and b at (c, d)", "a and (b at (c, d))"),
        ("a at (b, c) at (d, e)", "(a at (b, c)) at (d, e)"),
        ("not a in {b}", "not (a in {b})"),
        ("a + b in c + d..e", "(a + b) in (c + d)..e"),
        ("if a then b else c and d", "if a then b else (c and d)"),
        ("if a then b else if c then d else e", "if a then b else (if c then d else e)"),
    ],
)
def test_binding(text: str, grouped: str) -> None:
    assert written(expression(grouped)) == written(expression(text)) == text


def test_kinds_of_node() -> None:
    match expression("not -q + 1 < k and (if a then b else c) or p at (q, k)"):
        case Connect(
            "or",
            (
                Connect(
                    "and",
                    (
                        Invert(Comparison(Arithmetic(Minus(Name("q")), (("+", Number("1")),)), _)),
                        Choose(),
                    ),
                ),
                At(Name("p"), Name("q"), Name("k")),
            ),
        ):
            pass
        case other:
            pytest.fail(repr(other))


def test_a_definition() -> None:
    found = definition("pattern p(a, b: int = -4, w: int[head], t: bool[head, *], d: segments): a")
    assert found.name is not None
    assert found.name.text == "p"
    assert [parameter.name.text for parameter in found.parameters] == ["a", "b", "w", "t", "d"]
    types = [parameter.type for parameter in found.parameters]
    assert types[0] is None
    assert [axis.text for axis in types[3].axes] == ["head", "*"]  # type: ignore[union-attr]
    assert definition("pattern p: a").parameters == definition("pattern p(): a").parameters == ()


def test_several_definitions() -> None:
    result = parsed("pattern a(): k\n\npattern b():\n  let x = 1\n  x\n")
    names = [found.name.text for found in result.program.definitions if found.name]
    assert names == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "a and\nb",
        "a and # why\n\n  # so\n b",
        "(a\nand b)",
        "(\na and b\n)\n",
        "\n\n a and b",
        "a and b\n\n\n",
        "a and\r\nb\r\n",
        "not\na",
        "a <\nb",
        "a in\n{b,\nc\n}",
        "a in b..\nc",
        "if a then\nb else\nc",
        "let x =\n a\nx",
        "let x = a\n\n# c\nlet y = x\n y",
        "a at\n(q,\nk)",
        "-\na",
        "p(a,\nb = 3\n)",
    ],
)
def test_lines_that_go_on(text: str) -> None:
    assert parsed(text).diagnostics == ()
    assert len(parsed(text).program.definitions) == 1


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a\nand b", "and"),
        ("a\nb", "b"),
        ("if a then b\nelse c", ""),
        ("let x = a b", "b"),
        ("let x = 1 let y = 2\nx", "let"),
        ("let x = a", ""),
        ("pattern p() a", "a"),
        ("pattern p():\n", ""),
        ("a and", ""),
        ("a <", ""),
        ("k in {}", "}"),
        ("k in 3", ""),
        ("p(a, )", ")"),
        ("p(, a)", ","),
        ("4k < q", "4k"),
        ("pattern 3(): k", "3"),
        ("pattern if(): k", "if"),
        ("a < not b", "not"),
        ("a and if b then c else d", "if"),
        ("let let = 3\nk", "let"),
        ("pattern p(a: [head]): a", "["),
        ("a at b", "b"),
        ("a at (b)", ")"),
        ("then", "then"),
    ],
)
def test_syntax_errors(text: str, place: str) -> None:
    assert mistakes(text) == [("syntax", place)]


def test_what_was_expected_is_said_in_words() -> None:
    assert only("a b").message == "expected an operator or the end of the line, found `b`"
    assert only("a and").message == "expected an expression, found the end of the text"
    assert only("if a b").message == "expected an operator or `then`, found `b`"
    assert only("pattern p(a b): c").message == "expected `)`, `,`, `:` or `=`, found `b`"
    assert only("a < not b").message == "expected a number, found `not`"
    assert only("a\nand b").hint is not None


def test_each_definition_and_let_has_its_own_mistake() -> None:
    text = "\n".join(
        [
            "pattern a(): k <",
            "pattern b():",
            "    let x = * 3",
            "    let y = (4",
            "    let z = 3 3",
            "    x < y",
            "pattern c(): k < q",
            "pattern d(x y): k",
        ]
    )
    assert [code for code, _ in mistakes(text)] == [
        "syntax",
        "syntax",
        "unmatched-bracket",
        "syntax",
        "syntax",
    ]
    program = parsed(text).program
    assert [found.name.text for found in program.definitions if found.name] == ["b", "c"]
    assert program.broken == {"a", "d", "x", "z"}


@pytest.mark.parametrize(
    ("text", "mended", "code"),
    [
        ("a && b", "a and b", "foreign-operator"),
        ("a & b", "a and b", "foreign-operator"),
        ("a || b", "a or b", "foreign-operator"),
        ("a | b", "a or b", "foreign-operator"),
        ("!a", "not a", "foreign-operator"),
        ("~a", "not a", "foreign-operator"),
        ("a / b", "a // b", "foreign-operator"),
        ("a ** b", "a * b", "foreign-operator"),
        ("a <> b", "a != b", "foreign-operator"),
        ("a ≤ b", "a <= b", "unexpected-character"),
        ("a ≥ b", "a >= b", "unexpected-character"),
        ("a ≠ b", "a != b", "unexpected-character"),
        ("a ∧ b", "a and b", "unexpected-character"),
        ("a ∨ ¬b", "a or not b", "unexpected-character"),
        ("a ∈ {b}", "a in {b}", "unexpected-character"),
        ("a − b", "a - b", "unexpected-character"),
        ("a × b", "a * b", "unexpected-character"),
        ("a　＜ b", "a < b", "unexpected-character"),
        ("（a）", "a", "unexpected-character"),
        ("а", "a", "unexpected-character"),
        ("саusаl", "causal", "unexpected-character"),
        ("a аnd b", "a and b", "unexpected-character"),
        ("１２ < q", "12 < q", "unexpected-character"),
        ("1２3 < q", "123 < q", "unexpected-character"),
        ("a\u00a0and b", "a and b", "unexpected-character"),
        ("a and\rb", "a and b", "unexpected-character"),
        ("(a]", "a", "unmatched-bracket"),
        ("a)", "a", "unmatched-bracket"),
        ("(a", "a", "unmatched-bracket"),
        ("let x = (a\nx", None, "unmatched-bracket"),
    ],
)  # fmt: skip
def test_what_is_mended(text: str, mended: str | None, code: str) -> None:
    result = parsed(text)
    assert {mistake.code for mistake in result.diagnostics} == {code}
    if mended is not None:
        assert written(result.program.definitions[0].body) == mended


def test_foreign_characters_are_named() -> None:
    assert only("k ≤ q").message == "`≤` (U+2264, LESS-THAN OR EQUAL TO) is no part of the language"
    assert only("k ≤ q").hint == "write `<=`"
    assert "CYRILLIC SMALL LETTER ES" in only("сausal").message
    assert only("сausal").hint == "write `causal` with plain letters"
    assert "U+202E (RIGHT-TO-LEFT OVERRIDE)" in only("k \u202e< q").message
    assert "U+0000" in only("k <\0 q").message
    assert only("0.5 < q").hint == "numbers are whole, and a range is written `a..b`"


def test_a_run_of_foreign_characters_is_one_mistake() -> None:
    assert mistakes("k < $$$ q") == [("unexpected-character", "$$$")]


def test_compare_with_one_equals_sign() -> None:
    assert mistakes("q = k") == [("single-equals", "=")]
    assert mistakes("causal and q % 4 = 0") == [("single-equals", "=")]


@pytest.mark.parametrize("text", ["", "\n\n", "  ", "# nothing\n\n"])
def test_an_empty_text(text: str) -> None:
    assert [code for code, _ in mistakes(text)] == ["empty"]


def test_places() -> None:
    text = "causal and\n  window(256, b = (3)) or k in {1, 2}"
    body = expression(text)
    assert isinstance(body, Connect)
    places = [text[part.span.start : part.span.end] for part in body.operands]
    assert places == ["causal and\n  window(256, b = (3))", "k in {1, 2}"]


def test_comments_are_kept() -> None:
    result = parsed("# one\nlet a = 1 # two\n(a # three\n)\n# four")
    assert [comment.text for comment in result.comments] == ["# one", "# two", "# three", "# four"]


def test_definitions_do_not_mix_with_a_lone_expression() -> None:
    assert mistakes("pattern p(): k\np") == [("syntax", "p")]
    assert mistakes("k < q\npattern p(): k") == [("syntax", "k")]
