"""Names in patterns: what they mean, and mistakes in them."""

from __future__ import annotations

import pytest

from patterncc.codegen import ir
from patterncc.dsl import diagnose, load
from patterncc.dsl.declare import TILE_SYMBOLS
from patterncc.dsl.errors import (
    PatternError,
    UnknownNameError,
)
from patterncc.dsl.mask import Var
from tests.dsl.checking import body, codes


def test_lets_name_parts() -> None:
    assert body("let d = q - k\nlet near = d < 8\ncausal and near") == "k <= q and q - k < 8"


def test_names_of_patterns_and_of_values_are_apart() -> None:
    text = "pattern p(window = 4): window(window) and causal"
    assert load(text).structure == "pattern _(window): k <= q and 0 <= q - k < window"


def test_own_patterns_come_before_the_library() -> None:
    assert body("pattern window(n): k < n\npattern p(): window(3)") == "k < 3"


def test_patterns_may_be_used_before_they_are_defined() -> None:
    assert body("pattern a(): b\npattern b(): k < 3\npattern c(): a") == "k < 3"


def test_the_last_pattern_is_meant_unless_another_is_asked_for() -> None:
    text = "pattern a(): k < 1\npattern b(): k < 2"
    assert load(text).text == "k < 2"
    assert load(text, name="a").text == "k < 1"
    assert load(text, name="a").name == "a"
    with pytest.raises(UnknownNameError, match="did you mean `a`"):
        load(text, name="aa")
    assert load("streaming", name="streaming").name == "streaming"


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("casual", [("unknown-name", "casual")]),
        ("causal and windw(3) or k < foo", [("unknown-name", "windw"), ("unknown-name", "foo")]),
        ("w[head] < k", [("unknown-name", "w")]),
        ("pattern p(w: int[head]): k < w(head)", [("unknown-name", "w")]),
        ("k < q_offset", [("unknown-name", "q_offset")]),
        ("let a = b\nlet b = 1\na < k", [("unknown-name", "b")]),
        ("let a = nothing\na and a and causal", [("unknown-name", "nothing")]),
        ("pattern a(): k < 1\npattern a(): k < 2", [("duplicate-name", "a")]),
        ("pattern a(b, b): k < b", [("duplicate-name", "b")]),
        ("pattern a(b):\n let b = 1\n k < b", [("duplicate-name", "b")]),
        ("let b = 1\nlet b = 2\nk < b", [("duplicate-name", "b")]),
        ("let q = 1\nk < q", [("reserved-name", "q")]),
        ("pattern p(kv_len): k < kv_len", [("reserved-name", "kv_len")]),
        ("pattern p(q_offset): k < 3", [("reserved-name", "q_offset")]),
        ("pattern p(scale): k < scale", [("reserved-name", "scale")]),
        ("pattern p(residue): k < residue", [("reserved-name", "residue")]),
        ("pattern min(): causal", [("reserved-name", "min")]),
        ("pattern head(): causal", [("reserved-name", "head")]),
        ("pattern p(): p", [("recursion", "p")]),
        ("pattern a(): b\npattern b(): a or b", [("recursion", "a"), ("recursion", "b")]),
        ("pattern causal(): causal and k < 3", [("recursion", "causal")]),
    ],
)
def test_name_mistakes(text: str, mistakes: list[tuple[str, str]]) -> None:
    assert codes(text) == mistakes


def test_symbols_of_the_block_ir_are_reserved() -> None:
    symbols = {value.name for value in vars(ir).values() if isinstance(value, Var)}
    assert symbols == TILE_SYMBOLS | {"q_offset"}


def test_a_hidden_library_pattern_is_explained() -> None:
    with pytest.raises(PatternError, match="the library's `causal` is hidden by this one"):
        load("pattern causal(): causal and k < 3")


def test_suggestions() -> None:
    for text, meant in [
        ("casual", "causal"),
        ("q_idx < k", "q"),
        ("kv_idx < q", "k"),
        ("num_heads < k", "heads"),
        ("sliding_window(8)", "window"),
        ("pattern p(window): k < widow", "window"),
        ("streaming(sink = 3)", "sinks"),
        ("pattern p(n: itn): k < n", "int"),
    ]:
        (mistake,) = diagnose(text).errors
        assert mistake.hint == f"did you mean `{meant}`?"


def test_what_did_not_parse_is_not_unknown_as_well() -> None:
    text = "let a = * 3\nlet b = a\na < b and c"
    assert [code for code, _ in codes(text)] == ["syntax", "unknown-name"]
    assert [code for code, _ in codes("pattern a(: k\npattern b(): a")] == ["unmatched-bracket"]
