"""The oracle itself, judged by masks small enough to check by eye and by an evaluator in Python."""

import math
from collections.abc import Mapping

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from patterncc.codegen import elementwise
from patterncc.codegen.reference import allowed, dense_attention, mask
from patterncc.dsl import build
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.mask import (
    MISSING,
    Abs,
    And,
    Branch,
    Compare,
    Const,
    Cover,
    Entry,
    FloorDiv,
    IntExpr,
    K,
    Max,
    Member,
    Min,
    Mod,
    Not,
    Or,
    Param,
    Predicate,
    Product,
    Q,
    Segment,
    Select,
    Sum,
    Truth,
    Var,
)
from patterncc.dsl.pattern import (
    IntType,
    Parameter,
    Pattern,
    SegmentsType,
    TableType,
)

CAUSAL = build.compare("<=", K, Q)
HEAD = Var("head")


def pattern(body: Predicate, *parameters: Parameter, **fixed: int) -> Pattern:
    return Pattern("", parameters, tuple(fixed.items()), body, "", "")


def drawn(tensor: torch.Tensor) -> list[str]:
    return ["".join("#" if seen else "." for seen in row) for row in tensor.tolist()]


# ------------------------------------------------------------------------------ small masks


def test_rows_stand_at_the_end_of_the_keys_unless_told() -> None:
    assert drawn(mask(pattern(CAUSAL), q_len=2, kv_len=4)) == ["###.", "####"]
    assert drawn(mask(pattern(CAUSAL), q_len=2, kv_len=4, q_offset=0)) == ["#...", "##.."]


def test_rows_before_position_zero_use_floor_arithmetic() -> None:
    same_chunk = build.compare(
        "==", build.floordiv(Q, Const(2)), build.subtract(build.floordiv(K, Const(2)), Const(1))
    )
    # Rows stand at -3, -2, -1, 0, 1; their chunks are -2, -1, -1, 0, 0.
    assert drawn(mask(pattern(same_chunk), q_len=5, kv_len=2)) == ["..", "##", "##", "..", ".."]
    modulo = build.compare("==", build.modulo(Q, Const(3)), K)
    assert drawn(mask(pattern(modulo), q_len=4, kv_len=3, q_offset=-2)) == [
        ".#.",
        "..#",
        "#..",
        ".#.",
    ]


def test_run_time_numbers_come_from_values_or_defaults() -> None:
    body = build.all_of(CAUSAL, build.compare("<", build.subtract(Q, K), Param("window")))
    windowed = pattern(body, Parameter("window", IntType(), 2))
    assert drawn(mask(windowed, q_len=3)) == ["#..", "##.", ".##"]
    assert drawn(mask(windowed, q_len=3, values={"window": 1})) == ["#..", ".#.", "..#"]


def test_heads_share_key_value_heads() -> None:
    body = build.compare("==", Var("kv_head"), K)
    found = [
        drawn(mask(pattern(body), q_len=1, kv_len=2, head=h, heads=4, kv_heads=2)) for h in range(4)
    ]
    assert found == [["#."], ["#."], [".#"], [".#"]]


def test_tables_are_read_by_any_index() -> None:
    body = Member("keep", (HEAD, build.floordiv(Q, Const(2)), build.floordiv(K, Const(2))))
    blocks = pattern(body, Parameter("keep", TableType("bool", ("head", None, None))))
    keep = torch.tensor([[[1, 0], [0, 1]], [[0, 1], [1, 1]]], dtype=torch.bool)
    assert drawn(mask(blocks, q_len=4, head=0, tables={"keep": keep})) == [
        "##..",
        "##..",
        "..##",
        "..##",
    ]
    assert drawn(mask(blocks, q_len=4, head=1, tables={"keep": keep})) == [
        "..##",
        "..##",
        "####",
        "####",
    ]

    widths = pattern(
        build.compare("<", K, Entry("w", (HEAD,))), Parameter("w", TableType("int", ("head",)))
    )
    assert drawn(mask(widths, q_len=1, kv_len=3, head=1, tables={"w": [3, 2]})) == ["##."]


def test_documents() -> None:
    document = pattern(
        build.compare("==", Segment("id", "doc", Q), Segment("id", "doc", K)),
        Parameter("doc", SegmentsType()),
    )
    # Documents of 2, 0 and 1 tokens; position 3 is in none: one of its own.
    cu_seqlens = torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    assert drawn(mask(document, q_len=4, tables={"doc": cu_seqlens})) == [
        "##..",
        "##..",
        "..#.",
        "...#",
    ]
    other = pattern(build.negate(document.body), *document.parameters)
    assert drawn(mask(other, q_len=4, tables={"doc": cu_seqlens})) == [
        "..##",
        "..##",
        "##.#",
        "###.",
    ]


@pytest.mark.parametrize(("kind", "values"), [("start", [0, 0, 2, 3]), ("end", [2, 2, 3, 4])])
def test_where_documents_start_and_end(kind: str, values: list[int]) -> None:
    edge = Segment(kind, "doc", Q)  # type: ignore[arg-type]
    tables = {"doc": torch.tensor([0, 2, 3])}
    for q, value in enumerate(values):
        below = [
            bool(
                allowed(
                    build.compare("<", Const(at), edge),
                    torch.tensor(q),
                    torch.tensor(0),
                    {},
                    tables,
                )
            )
            for at in range(5)
        ]
        assert below.count(True) == value


# ------------------------------------------------------------------------------ covers


def test_a_cover_holds_whole_blocks() -> None:
    slash = build.compare("==", build.subtract(Q, K), Const(2))
    cover = Cover(2, 2, slash, causal=False)
    assert drawn(mask(pattern(cover), q_len=5)) == ["....."] * 2 + ["##..."] * 2 + ["..##."]
    assert drawn(mask(pattern(Cover(2, 2, CAUSAL, causal=True)), q_len=4)) == drawn(
        mask(pattern(CAUSAL), q_len=4)
    )


def test_a_cover_does_not_depend_on_the_lengths() -> None:
    # Position 3 is in the block of 2, so a call of three positions still sees what 3 would touch.
    cover = Cover(
        2,
        2,
        build.all_of(build.compare("==", Q, Const(3)), build.compare("==", K, Const(3))),
        False,
    )
    assert drawn(mask(pattern(cover), q_len=3)) == ["...", "...", "..#"]


def test_a_cover_of_a_table_looks_at_existing_positions_only() -> None:
    body = build.compare("==", Entry("image", (Q,)), Entry("image", (K,)))
    image = Parameter("image", TableType("int", ("token",)))
    covered = mask(pattern(Cover(2, 2, body, False), image), q_len=3, tables={"image": [1, 2, 2]})
    assert drawn(covered) == ["###", "###", "###"]
    apart = mask(pattern(Cover(2, 2, body, False), image), q_len=3, tables={"image": [1, 2, 3]})
    assert drawn(apart) == ["##.", "##.", "..#"]


def test_a_cover_moved_elsewhere_keeps_its_own_positions() -> None:
    moved = build.substitute(
        Cover(2, 2, build.compare("==", Q, K), False), {Q: build.subtract(Q, Const(1))}
    )
    # Row 0 looks from position -1, whose block holds no position.
    assert drawn(mask(pattern(moved), q_len=4)) == ["....", "##..", "##..", "..##"]


def test_the_chunks_of_a_cover_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    body = build.compare(
        "==", build.modulo(build.add(Q, build.multiply(Const(3), K)), Const(7)), Const(0)
    )
    whole = mask(pattern(Cover(4, 2, body, True)), q_len=40)
    monkeypatch.setattr(elementwise, "_CHUNK", 16)
    assert torch.equal(mask(pattern(Cover(4, 2, body, True)), q_len=40), whole)


# ------------------------------------------------------------------------------ against Python


def python_integer(expr: IntExpr, env: Mapping[str, int]) -> int:
    match expr:
        case Const(value):
            return value
        case Var(name) | Param(name):
            return env[name]
        case Sum(parts):
            return sum(python_integer(part, env) for part in parts)
        case Product(parts):
            return math.prod(python_integer(part, env) for part in parts)
        case FloorDiv(value_, by):
            return python_integer(value_, env) // python_integer(by, env)
        case Mod(value_, by):
            return python_integer(value_, env) % python_integer(by, env)
        case Min(parts):
            return min(python_integer(part, env) for part in parts)
        case Max(parts):
            return max(python_integer(part, env) for part in parts)
        case Abs(value_):
            return abs(python_integer(value_, env))
        case Select(condition, then, otherwise):
            return python_integer(then if python_logic(condition, env) else otherwise, env)
    raise NotImplementedError(expr)


def python_logic(expr: Predicate, env: Mapping[str, int]) -> bool:
    match expr:
        case Truth(value):
            return value
        case Compare(op, left_, right_):
            left, right = python_integer(left_, env), python_integer(right_, env)
            return {
                "==": left == right,
                "!=": left != right,
                "<": left < right,
                "<=": left <= right,
            }[op]
        case And(parts):
            return all(python_logic(part, env) for part in parts)
        case Or(parts):
            return any(python_logic(part, env) for part in parts)
        case Not(part):
            return not python_logic(part, env)
        case Branch(condition, then, otherwise):
            return python_logic(then if python_logic(condition, env) else otherwise, env)
    raise NotImplementedError(expr)


def integers(depth: int) -> st.SearchStrategy[IntExpr]:
    """Integer terms of at most this depth, every kind of node among them."""
    leaves: st.SearchStrategy[IntExpr] = st.one_of(
        st.integers(-9, 9).map(Const), st.sampled_from([Q, K, HEAD, Var("kv_len"), Param("n")])
    )
    if depth == 0:
        return leaves
    inner = integers(depth - 1)
    divisors = st.integers(1, 7).map(Const)
    return st.one_of(
        leaves,
        st.builds(build.add, inner, inner),
        st.builds(build.subtract, inner, inner),
        st.builds(build.multiply, st.integers(-3, 3).map(Const), inner),
        st.builds(build.floordiv, inner, divisors),
        st.builds(build.modulo, inner, divisors),
        st.builds(build.minimum, inner, inner),
        st.builds(build.maximum, inner, inner),
        st.builds(build.absolute, inner),
        st.builds(build.select, predicates(depth - 1), inner, inner),
    )


def predicates(depth: int) -> st.SearchStrategy[Predicate]:
    """Predicates of at most this depth over terms of it."""
    operators = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
    comparisons = st.builds(build.compare, operators, integers(depth), integers(depth))
    if depth == 0:
        return comparisons
    inner = predicates(depth - 1)
    return st.one_of(
        comparisons,
        st.builds(build.all_of, inner, inner),
        st.builds(build.any_of, inner, inner),
        inner.map(build.negate),
        inner.map(Not),
        st.builds(build.branch, inner, inner, inner),
    )


@given(predicates(2), st.integers(1, 9), st.integers(1, 9), st.integers(-9, 9))
def test_masks_mean_what_python_says(
    body: Predicate, q_len: int, kv_len: int, q_offset: int
) -> None:
    env = {"head": 1, "kv_len": kv_len, "n": 3}
    number = Parameter("n", IntType(), 3)
    found = mask(pattern(body, number), q_len=q_len, kv_len=kv_len, q_offset=q_offset, head=1)
    expected = [
        [python_logic(body, env | {"q": q_offset + i, "k": k}) for k in range(kv_len)]
        for i in range(q_len)
    ]
    assert found.tolist() == expected


# ------------------------------------------------------------------------------ bad input


def test_outside_of_a_table_nothing_is_a_member_and_numbers_are_missing() -> None:
    keep = Parameter("keep", TableType("bool", (None,)))
    tables = {"keep": torch.tensor([True, True])}
    for body, row in (
        (Member("keep", (K,)), "##."),
        (Not(Member("keep", (K,))), "..#"),
        (Member("keep", (build.subtract(K, Const(1)),)), ".##"),
    ):
        assert drawn(mask(pattern(body, keep), q_len=1, kv_len=3, tables=tables)) == [row]
    nothing = {"keep": torch.zeros(0, dtype=torch.bool)}
    found = mask(pattern(Member("keep", (K,)), keep), q_len=1, kv_len=2, tables=nothing)
    assert drawn(found) == [".."]

    image = Parameter("image", TableType("int", ("token",)))
    missing = build.compare("==", Entry("image", (K,)), Const(MISSING))
    found = mask(pattern(missing, image), q_len=1, kv_len=3, tables={"image": [0, 5]})
    assert drawn(found) == ["..#"]


@pytest.mark.parametrize(
    ("body", "arguments", "message"),
    [
        (build.compare("<", K, Param("n")), {}, "`n` has no default"),
        (CAUSAL, {"values": {"n": 1, "m": 1}}, "no run-time number `m`"),
        (CAUSAL, {"values": {"block": 1}}, "`block` is fixed"),
        (CAUSAL, {"values": {"n": 1}, "tables": {"w": [1]}}, "no table `w`"),
        (build.compare("<", K, Var("heads")), {"values": {"n": 1}}, "reads `heads`"),
        (FloorDiv(K, Param("n")), {"values": {"n": 0}}, "not positive"),
        (CAUSAL, {"q_len": -1, "values": {"n": 1}}, "`q_len` is -1"),
        (CAUSAL, {"heads": 3, "kv_heads": 2, "values": {"n": 1}}, "3 heads cannot share 2"),
    ],
)
def test_wrong_arguments(
    body: Predicate | IntExpr, arguments: dict[str, object], message: str
) -> None:
    if isinstance(body, FloorDiv):
        body = build.compare("==", body, Const(1))
    number = pattern(body, Parameter("n", IntType()), block=64)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=message):
        mask(number, **{"q_len": 3, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("bounds", [[1, 2], [0, 2, 1], []])
def test_cu_seqlens_must_rise_from_zero(bounds: list[int]) -> None:
    body = build.compare("==", Segment("id", "doc", Q), Const(0))
    with pytest.raises(ArgumentError, match="cu_seqlens"):
        mask(pattern(body, Parameter("doc", SegmentsType())), q_len=2, tables={"doc": bounds})


# ------------------------------------------------------------------------------ attention


def test_dense_attention_matches_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 5, 8, generator=generator, dtype=torch.float64)
    key = torch.randn(2, 2, 7, 8, generator=generator, dtype=torch.float64)
    value = torch.randn(2, 2, 7, 3, generator=generator, dtype=torch.float64)
    seen = torch.rand(2, 4, 5, 7, generator=generator) < 0.5
    seen[..., 0] = True
    out, lse = dense_attention(query, key, value, seen, 0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(out, expected)
    scores = (query @ key.repeat_interleave(2, 1).mT * 0.3).masked_fill(~seen, -math.inf)
    torch.testing.assert_close(lse, scores.logsumexp(-1))


def test_dense_attention_of_dead_rows_and_poisoned_keys() -> None:
    query = torch.ones(1, 1, 2, 1)
    key = torch.tensor([math.nan, 2.0, math.inf])[None, None, :, None]
    value = torch.tensor([math.nan, 5.0, -math.inf])[None, None, :, None]
    seen = torch.tensor([[False, False, False], [False, True, False]])
    out, lse = dense_attention(query, key, value, seen, 1.0)
    assert out.flatten().tolist() == [0.0, 5.0]
    assert lse.flatten().tolist() == [-math.inf, 2.0]
    out, _ = dense_attention(query, key, value, torch.tensor([True, True, False]), 1.0)
    assert out.isnan().all()


@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 3), (3, 0), (0, 0)])
def test_dense_attention_of_nothing(q_len: int, kv_len: int) -> None:
    query = torch.ones(1, 2, q_len, 4)
    key = torch.ones(1, 1, kv_len, 4)
    out, lse = dense_attention(query, key, key, torch.ones(q_len, kv_len, dtype=torch.bool), 1.0)
    assert out.shape == (1, 2, q_len, 4)
    assert not out.any()
    assert bool((lse == -math.inf).all())
