"""Syntax → pattern: names, types, arguments, and which parameters are fixed."""

from typing import Any

import pytest

import patterncc.dsl
from patterncc.codegen import ir
from patterncc.dsl import diagnose, load
from patterncc.dsl.declare import TILE_SYMBOLS
from patterncc.dsl.errors import (
    PatternError,
    PatternSyntaxError,
    PatternTypeError,
    UnknownNameError,
)
from patterncc.dsl.limits import MAX_CONSTANT
from patterncc.dsl.mask import FALSE, Var
from patterncc.dsl.pattern import IntType, Parameter, SegmentsType, TableType


def codes(text: str, **values: Any) -> list[tuple[str, str]]:
    """The codes of the mistakes in a text and the excerpts that they point at."""
    found = []
    for mistake in diagnose(text, values=values).errors:
        assert mistake.span is not None
        found.append((mistake.code, text[mistake.span.start : mistake.span.end]))
    return found


def body(text: str, **values: Any) -> str:
    """The canonical text of a lone body."""
    return load(text, **values).text


# ----------------------------------------------------------------------------------- names


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


# ----------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("q", [("type-mismatch", "q")]),
        ("causal and 3", [("type-mismatch", "3")]),
        ("not q", [("type-mismatch", "q")]),
        ("causal + 1 < 3", [("type-mismatch", "causal")]),
        ("causal < 3", [("type-mismatch", "causal")]),
        ("(k < 3) == (q < 3)", [("type-mismatch", "(k < 3)"), ("type-mismatch", "(q < 3)")]),
        ("causal in {1}", [("type-mismatch", "causal")]),
        ("k in {causal, 1}", [("type-mismatch", "causal")]),
        ("k in causal..3", [("type-mismatch", "causal")]),
        ("if q then causal else causal", [("type-mismatch", "q")]),
        ("if causal then causal else 3", [("type-mismatch", "if causal then causal else 3")]),
        ("if causal then 1 else 3", [("type-mismatch", "if causal then 1 else 3")]),
        ("q at (q, k)", [("type-mismatch", "q")]),
        ("causal at (causal, k)", [("type-mismatch", "causal")]),
        ("window(causal)", [("type-mismatch", "causal")]),
        ("min(causal, 3) < 1", [("type-mismatch", "causal")]),
        ("cover(8, 8, q)", [("type-mismatch", "q")]),
        ("cover(causal, 8, causal)", [("type-mismatch", "causal")]),
        ("q[3] < 1", [("unknown-name", "q")]),
        ("let a = 3\na[3] < 1", [("type-mismatch", "a")]),
        ("start(q, k) < 3", [("type-mismatch", "q")]),
        ("document(q)", [("type-mismatch", "q")]),
        ("pattern p(w: int[head]): document(w)", [("type-mismatch", "w")]),
        ("pattern p(w: int[head]): k < w", [("type-mismatch", "w")]),
        ("pattern p(d: segments): k < end(d, causal)", [("type-mismatch", "causal")]),
        ("pattern p(w: int[head]): k < w[layer]", [("table-index", "layer")]),
        ("pattern p(w: int[head]): k < w[head, 1]", [("table-index", "w[head, 1]")]),
        ("pattern p(t: bool[head, *]): t[0, k]", [("table-index", "0")]),
        ("pattern p(d: segments): d[q, k] < 1", [("table-index", "d[q, k]")]),
        ("pattern p(n: number): k < n", [("unknown-type", "number")]),
        ("pattern p(n: bool): k < n", [("unknown-type", "bool")]),
        ("pattern p(n: int[heads]): k < 3", [("unknown-type", "heads")]),
        ("pattern p(n: int[*]): k < 3", [("unknown-type", "*")]),
        ("pattern p(n: bool[token]): k < 3", [("unknown-type", "token")]),
        ("pattern p(n: int[head, head]): k < 3", [("unknown-type", "head")]),
        ("pattern p(n: int[head, token]): k < 3", [("unknown-type", "int[head, token]")]),
        ("pattern p(n: segments[head]): k < 3", [("unknown-type", "segments[head]")]),
    ],
)  # fmt: skip
def test_type_mistakes(text: str, mistakes: list[tuple[str, str]]) -> None:
    assert codes(text) == mistakes


def test_tables() -> None:
    text = """
        pattern p(a: int[head], b: int[layer, head], c: int[batch], d: bool[kv_head],
                  e: bool[head, *, *], f: int[token], g: segments):
            k < a[head] + b[layer, head] + c[batch] and d[kv_head] and
                e[head, q // 64, k // 64] and f[q] == f[k] and g[q] == g[k] and
                start(g, q) <= k < end(g, q)
    """
    pattern = load(text)
    assert pattern.parameters == (
        Parameter("a", TableType("int", ("head",))),
        Parameter("b", TableType("int", ("layer", "head"))),
        Parameter("c", TableType("int", ("batch",))),
        Parameter("d", TableType("bool", ("kv_head",))),
        Parameter("e", TableType("bool", ("head", None, None))),
        Parameter("f", TableType("int", ("token",))),
        Parameter("g", SegmentsType()),
    )
    assert load(pattern.text) == pattern


def test_tables_are_passed_on_by_name() -> None:
    text = "pattern p(mine: segments, keep: bool[head, *, *]): document(mine) and blocks(64, keep)"
    assert load(text).text == (
        "pattern _(keep: bool[head, *, *], mine: segments): "
        "mine[q] == mine[k] and keep[head, q // 64, k // 64]"
    )


# ----------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("causal and prefix", [("wrong-arguments", "prefix")]),
        ("prefix()", [("wrong-arguments", "prefix()")]),
        ("window(1, 2)", [("wrong-arguments", "2")]),
        ("window(1, 2, 3)", [("wrong-arguments", "2, 3")]),
        ("window(m = 1)", [("wrong-arguments", "m")]),
        ("streaming(sinks = 1, 2)", [("wrong-arguments", "2")]),
        ("streaming(1, sinks = 2)", [("wrong-arguments", "sinks = 2")]),
        ("causal(1)", [("wrong-arguments", "1")]),
        ("min(q) < 1", [("wrong-arguments", "min(q)")]),
        ("abs(q, k) < 1", [("wrong-arguments", "abs(q, k)")]),
        ("clamp(q, 1) < 1", [("wrong-arguments", "clamp(q, 1)")]),
        ("abs(a = q) < 1", [("wrong-arguments", "a = q")]),
        ("cover(8, causal)", [("wrong-arguments", "cover(8, causal)")]),
        ("window(foo, 1)", [("unknown-name", "foo"), ("wrong-arguments", "1")]),
    ],
)
def test_argument_mistakes(text: str, mistakes: list[tuple[str, str]]) -> None:
    assert codes(text) == mistakes


def test_arguments_by_position_name_and_default() -> None:
    texts = ["ladder(2, 64, kept = 3)", "ladder(2, kept = 3, recent = 64)"]
    texts.append("ladder(sinks = 2, recent = 64, rung = 128, period = 8, kept = 3)")
    assert len({body(text) for text in texts}) == 1


# ----------------------------------------------------------------------------------- values


FIXED = [
    ("k < n", False),
    ("q - k < n * 2", False),
    ("q // 8 < n", False),
    ("q - n < k // 4", False),
    ("(q - n) // 8 == k // 8", False),
    ("(q + n) * 2 < k", False),
    ("n * head < k", False),
    ("n * m * head < k", False),
    ("n // 8 < k", False),
    ("min(n, q) < k", False),
    ("if n < 4 then causal else k < n", False),
    ("k in {n, 3}", False),
    ("window(n)", False),
    ("causal at (q + n, k)", False),
    ("let half = n // 2\nk < half", False),
    ("q // n == 1", True),
    ("q % n == 1", True),
    ("q * n < k", True),
    ("n * (q - k) < 3", True),
    ("(n + 1) * (q // 2) < 3", True),
    ("2 * n * q < 3", True),
    ("q // (n * 4 + 1) == 1", True),
    ("q // max(1, n // heads) == 1", True),
    ("head % n == 1", True),
    ("cover(n, 8, causal)", True),
    ("cover(8, 2 * n, causal)", True),
    ("chunked(n)", True),
    ("chunked(2 * n)", True),
    ("dilated(4, n)", True),
    ("dilated(n, 4)", False),
    ("let x = n * 2\nq // x == 1", True),
    ("let x = q // n\nx == 1", True),
    ("inner(n)", True),
    ("other(q, n)", True),
    ("other(head, n)", False),
    ("if q < 3 then causal else q % n == 1", True),
    ("q * (if head < 3 then n else 2) < 3", None),
]


@pytest.mark.parametrize(("text", "fixed"), FIXED)
def test_fixed_and_run_time_parameters(text: str, fixed: bool | None) -> None:
    *lets, last = text.split("\n")
    lines = ["pattern inner(x): chunked(x + 1)", "pattern other(x, y): x * y < 3"]
    lines += ["pattern p(n = 4, m = 5):", *lets, last]
    if fixed is None:
        with pytest.raises(PatternError, match="not-linear"):
            load("\n".join(lines))
        return
    pattern = load("\n".join(lines))
    assert (("n", 4) in pattern.fixed) == fixed
    assert (Parameter("n", IntType(), 4) in pattern.parameters) != fixed


def test_values_bind_parameters() -> None:
    text = "pattern p(n, m, step = 2): k < n + m and (q - k) % step == 0"
    pattern = load(text, n=5, step=3)
    assert pattern.fixed == (("step", 3),)
    assert pattern.parameters == (Parameter("n", IntType(), 5), Parameter("m", IntType(), None))
    assert pattern.text == "pattern _(m, n = 5): k < m + n and (q - k) % 3 == 0"
    assert pattern.structure == "pattern _(m, n): k < m + n and (q - k) % 3 == 0"
    assert [number.name for number in pattern.numbers] == ["m", "n"]


def test_integers_of_any_type_are_values() -> None:
    class Index:
        def __index__(self) -> int:
            return 7

    values: Any = {"n": Index()}
    assert load("window", **values) == load("window", n=7)


@pytest.mark.parametrize(
    ("text", "values", "code"),
    [
        ("pattern p(n): q // n == 1", {}, "missing-value"),
        ("pattern p(n): q // n == 1", {"n": 0}, "not-positive"),
        ("pattern p(n): q // n == 1", {"n": -3}, "not-positive"),
        ("pattern p(n): cover(n, n, causal)", {"n": 0}, "not-positive"),
        ("pattern p(n): k < n", {"n": True}, "wrong-value"),
        ("pattern p(n): k < n", {"n": 1.5}, "wrong-value"),
        ("pattern p(n): k < n", {"n": "8"}, "wrong-value"),
        ("pattern p(n): k < n", {"n": 1 << 31}, "constant-too-large"),
        ("pattern p(n): k < n", {"m": 1}, "wrong-value"),
        ("causal", {"n": 1}, "wrong-value"),
        ("k < 3", {"n": 1}, "wrong-value"),
        ("document", {"doc": 1}, "wrong-value"),
        ("pattern p(n): q * n < 3", {"n": 1 << 30}, None),
        ("pattern p(n): q * n * 2 < 3", {"n": 1 << 30}, "constant-too-large"),
    ],
)
def test_value_mistakes(text: str, values: dict[str, Any], code: str | None) -> None:
    found = [mistake.code for mistake in diagnose(text, values=values).errors]
    assert found == ([code] if code else [])


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("q // 0 == 1", [("not-positive", "0")]),
        ("q % (3 - 3) == 1", [("not-positive", "(3 - 3)")]),
        ("chunked(0)", [("not-positive", "0")]),
        ("pattern a(x): chunked(x - 4)\npattern b(y): a(y)\nb(4)", [("syntax", "b")]),
        ("pattern a(x): chunked(x - 4)\npattern b(): a(4)", [("not-positive", "a(4)")]),
        ("pattern a(x): chunked(x)\npattern b(): a(0)", [("not-positive", "0")]),
        ("chunks_back(m = 1, n = 0)", [("not-positive", "0")]),
        ("cover(0, 8, causal) or cover(8, -1, causal)",
         [("not-positive", "0"), ("not-positive", "-1")]),
        ("cover(head, 8, causal)", [("not-constant", "head")]),
        ("cover(heads, 8, causal)", [("not-constant", "heads")]),
        ("q // kv_len == 1", [("length-divisor", "kv_len")]),
        ("q % (q_len + 1) == 1", [("length-divisor", "(q_len + 1)")]),
        ("chunked(kv_len // 4)", [("length-divisor", "kv_len // 4")]),
        ("q // k == 1", [("varying-divisor", "k")]),
        ("q // head == 1", [("varying-divisor", "head")]),
        ("q // layer == 1", [("varying-divisor", "layer")]),
        ("chunked(layer + 1)", [("varying-divisor", "layer + 1")]),
        ("pattern p(w: int[head]): q // w[head] == 1", [("varying-divisor", "w[head]")]),
        ("pattern p(d: segments): q // start(d, q) == 1", [("varying-divisor", "start(d, q)")]),
        ("q * k < 3", [("not-linear", "q * k")]),
        ("q * head < 3", [("not-linear", "q * head")]),
        ("q * kv_len < 3", [("not-linear", "q * kv_len")]),
        ("pattern p(w: int[head]): q * w[head] < 1", [("not-linear", "q * w[head]")]),
        ("1073741825 < q", [("constant-too-large", "1073741825")]),
        ("1073741824 + 1 < q", [("constant-too-large", "1073741824 + 1")]),
        ("40000 * 40000 < q", [("constant-too-large", "40000 * 40000")]),
        ("65536 * (65536 * q) < 3", [("constant-too-large", "65536 * (65536 * q)")]),
        ("(1073741824 * q < 3) at (2 * q, k)",
         [("constant-too-large", "(1073741824 * q < 3) at (2 * q, k)")]),
        ("pattern p(n = 2000000000): k < n", [("constant-too-large", "2000000000")]),
        ("pattern p(n = q): k < n", [("wrong-value", "q")]),
        ("pattern p(d: segments = 3): document(d)", [("wrong-value", "3")]),
        ("false", [("unsatisfiable", "false")]),
        ("causal and 3 < 2", [("unsatisfiable", "causal and 3 < 2")]),
        ("k < k", [("unsatisfiable", "k < k")]),
    ],
)  # fmt: skip
def test_value_mistakes_in_the_text(text: str, mistakes: list[tuple[str, str]]) -> None:
    assert codes(text) == mistakes


def test_limits_of_constants() -> None:
    assert body(f"{MAX_CONSTANT} < q") == f"{MAX_CONSTANT} < q"
    assert body(f"-{MAX_CONSTANT} < q") == f"-{MAX_CONSTANT} < q"
    assert body("0001 < q") == "1 < q"


def test_a_mistake_that_a_call_brings_about_is_blamed_on_the_call() -> None:
    (mistake,) = diagnose("causal and chunked(n = 8 - 8)").errors
    assert mistake.source is not None
    assert mistake.source.name == "<pattern>"
    assert mistake.notes == ("`chunked` has `q // n`",)


def test_an_unsatisfiable_helper_is_legal() -> None:
    assert body("pattern never(): false\npattern p(): never or causal") == "k <= q"
    with pytest.raises(PatternError):
        load("pattern never(): false")


# ----------------------------------------------------------------------------------- at, cover


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("causal at (q + 1, k)", "k <= q + 1"),
        ("(causal and k < 3) at (k, q)", "q <= k and q < 3"),
        ("causal at (q + 1, k) at (2 * q, k)", "k <= 2 * q + 1"),
        ("let p = causal\np at (q + 1, k)", "k <= q + 1"),
        ("let d = q - k\n(d < 3) at (q + 1, k)", "q + 1 - k < 3"),
        ("pattern f(x): (k < x) at (q, k + 1)\npattern g(): f(k)", "k + 1 < k"),
        ("pattern f(x): (k < x) at (q, k + 1)\npattern g(): f(q)", "k + 1 < q"),
        ("pattern f(x): (k < x) at (k, q)\npattern g(): f(q + k)", "q < q + k"),
        (
            "pattern f(x): g(x + k) at (q + 1, k)\npattern g(y): (q < y) at (q, k + 5)\n"
            "pattern h(): f(q)",
            "q + 1 < q + k",
        ),
        ("cover(8, 8, causal) at (q + 1, k)", "cover(8, 8, k <= q) at (q + 1, k)"),
        ("cover(8, 8, causal at (q + 1, k))", "cover(8, 8, k <= q + 1)"),
        ("pattern f(n): cover(n, n, k < n)\npattern g(): f(4)", "cover(4, 4, k < 4)"),
    ],
)
def test_positions_are_replaced(text: str, same: str) -> None:
    assert load(text).body == load(same).body


def test_an_argument_is_not_caught_by_cover() -> None:
    text = "pattern f(x): cover(8, 8, k < x)\npattern g(): f(q)"
    assert codes(text) == [("cover-argument", "f(q)")]


# ----------------------------------------------------------------------------------- the entry


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
