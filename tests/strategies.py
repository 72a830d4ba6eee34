"""Hypothesis strategies that draw masks and texts of the language.

`predicates()` draws what the language can say, as the checker would build it; `texts()` draws texts
together with a Python expression of the same meaning.
"""

from dataclasses import dataclass

from hypothesis import strategies as st

from patterncc.dsl.build import (
    absolute,
    add,
    all_of,
    any_of,
    branch,
    compare,
    floordiv,
    maximum,
    minimum,
    modulo,
    multiply,
    negate,
    select,
    subtract,
)
from patterncc.dsl.linear import implies_causal, reads_position
from patterncc.dsl.mask import (
    Const,
    Cover,
    Entry,
    IntExpr,
    K,
    Member,
    Param,
    Predicate,
    Q,
    Segment,
    Var,
)
from patterncc.dsl.pattern import IntType, Parameter, SegmentsType, TableType

# What the drawn expressions read; the tests give these values.
NUMBERS = ("n", "width", "zero_based")
TABLES: dict[str, TableType | SegmentsType] = {
    "w": TableType("int", ("head",)),
    "image": TableType("int", ("token",)),
    "keep": TableType("bool", ("head", None, None)),
    "doc": SegmentsType(),
}
COORDINATES = ("q", "k", "head", "kv_head", "layer", "batch")
SIZES = ("q_len", "kv_len", "heads", "kv_heads", "layers")
SPECIALISED = ("heads", "kv_heads", "layers")

PARAMETERS = (
    *(Parameter(name, IntType(), None) for name in NUMBERS),
    *(Parameter(name, kind, None) for name, kind in TABLES.items()),
)

small = st.integers(-40, 40)
positive = st.integers(1, 16)
operators = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])


def leaves(tables: bool) -> st.SearchStrategy[IntExpr]:
    """Constants, coordinates, sizes, parameters."""
    choices: list[st.SearchStrategy[IntExpr]] = [
        st.builds(Const, small),
        st.sampled_from([Var("q"), Var("k")]),
        st.sampled_from([Var("q"), Var("k")]),
        st.sampled_from([Var(name) for name in (*COORDINATES, *SIZES)]),
        st.sampled_from([Param(name) for name in NUMBERS]),
    ]
    if tables:
        choices.append(st.just(Entry("w", (Var("head"),))))
    return st.one_of(choices)


def divisors() -> st.SearchStrategy[IntExpr]:
    """What may divide."""
    sizes = st.sampled_from([Var(name) for name in SPECIALISED])
    return st.one_of(
        st.builds(Const, positive),
        st.builds(Const, positive),
        sizes,
        st.builds(lambda size, n: maximum(floordiv(size, Const(n)), Const(1)), sizes, positive),
    )


@st.composite
def products(draw: st.DrawFn, inner: st.SearchStrategy[IntExpr]) -> IntExpr:
    """A product of which one factor at most moves with the position."""
    left = draw(inner)
    if reads_position(left):
        return multiply(left, draw(st.one_of(st.builds(Const, small), divisors())))
    return multiply(
        left,
        draw(
            st.one_of(
                st.builds(Const, small), leaves(False).filter(lambda leaf: not reads_position(leaf))
            )
        ),
    )


def _extend(tables: bool, inner: st.SearchStrategy[IntExpr]) -> st.SearchStrategy[IntExpr]:
    conditions = st.builds(compare, operators, inner, inner)
    choices: list[st.SearchStrategy[IntExpr]] = [
        st.builds(add, inner, inner),
        st.builds(subtract, inner, inner),
        st.builds(add, inner, inner, inner),
        products(inner),
        st.builds(floordiv, inner, divisors()),
        st.builds(modulo, inner, divisors()),
        st.builds(minimum, inner, inner),
        st.builds(maximum, inner, inner),
        st.builds(absolute, inner),
        st.builds(select, conditions, inner, inner),
    ]
    if tables:
        choices.append(st.builds(lambda index: Entry("image", (index,)), inner))
        kinds = st.sampled_from(["id", "start", "end"])
        choices.append(st.builds(lambda kind, place: Segment(kind, "doc", place), kinds, inner))
    return st.one_of(choices)


def integers(tables: bool = True, leaves_at_most: int = 6) -> st.SearchStrategy[IntExpr]:
    """Integer expressions."""
    return st.recursive(
        leaves(tables), lambda inner: _extend(tables, inner), max_leaves=leaves_at_most
    )


def predicates(
    tables: bool = True, covers: bool = True, leaves_at_most: int = 6
) -> st.SearchStrategy[Predicate]:
    """Predicates.

    Args:
        tables: Do they read tables and segments?
        covers: Do they have covers?
        leaves_at_most: Comparisons and the like in one predicate, about.
    """
    inner = integers(tables, 4)
    base: list[st.SearchStrategy[Predicate]] = [
        st.builds(compare, operators, inner, inner),
        st.builds(compare, operators, st.just(subtract(Var("q"), Var("k"))), inner),
        st.builds(
            lambda low, x, high: all_of(compare("<=", low, x), compare("<", x, high)),
            inner,
            inner,
            inner,
        ),
        st.builds(
            lambda x, elements: any_of(*(compare("==", x, e) for e in elements)),
            inner,
            st.lists(inner, min_size=1, max_size=4),
        ),
    ]
    if tables:
        base.append(st.builds(lambda a, b: Member("keep", (Var("head"), a, b)), inner, inner))

    def extend(part: st.SearchStrategy[Predicate]) -> st.SearchStrategy[Predicate]:
        choices = [
            st.builds(negate, part),
            st.lists(part, min_size=2, max_size=3).map(lambda parts: all_of(*parts)),
            st.lists(part, min_size=2, max_size=3).map(lambda parts: any_of(*parts)),
            st.builds(branch, part, part, part),
        ]
        if covers:
            choices.append(st.builds(_cover, positive, positive, part))
            choices.append(st.builds(_cover, positive, positive, part, inner, inner))
        return st.one_of(choices)

    return st.recursive(st.one_of(base), extend, max_leaves=leaves_at_most)


def _cover(
    block_q: int,
    block_k: int,
    body: Predicate,
    q: IntExpr = Q,
    k: IntExpr = K,
) -> Predicate:
    return Cover(block_q, block_k, body, implies_causal(body), q, k)


# ----------------------------------------------------------------------------------- texts


@dataclass(frozen=True)
class Spelling:
    """A text of the language and a Python expression that means the same."""

    text: str
    python: str


def _join(form: str, *parts: Spelling, python: str | None = None) -> Spelling:
    return Spelling(
        form.format(*(part.text for part in parts)),
        (python or form).format(*(part.python for part in parts)),
    )


_names = st.sampled_from(["q", "k", "q", "k", "head", "layer", "kv_len", "q_len", "heads"])
_text_leaves = st.one_of(small.map(str), _names).map(lambda text: Spelling(text, text))


@st.composite
def _parenthesised(draw: st.DrawFn, inner: st.SearchStrategy[Spelling]) -> Spelling:
    part = draw(inner)
    return _join("({})", part) if draw(st.booleans()) else part


def _number_texts(inner: st.SearchStrategy[Spelling]) -> st.SearchStrategy[Spelling]:
    inner = _parenthesised(inner)
    loose = inner.map(lambda part: _join("({})", part))
    return st.one_of(
        st.builds(
            lambda op, a, b: _join(f"{{}} {op} {{}}", a, b),
            st.sampled_from(["+", "-"]),
            inner,
            inner,
        ),
        st.builds(lambda a, n: _join(f"{{}} * {n}", a), inner, small),
        st.builds(
            lambda a, op, n: _join(f"{{}} {op} {n}", a),
            inner,
            st.sampled_from(["//", "%"]),
            positive,
        ),
        st.builds(lambda a: _join("-{}", a), loose),
        st.builds(lambda a, b: _join("min({}, {})", a, b), inner, inner),
        st.builds(lambda a, b, c: _join("max({}, {}, {})", a, b, c), inner, inner, inner),
        st.builds(lambda a: _join("abs({})", a), inner),
        st.builds(
            lambda a, b, c: _join("clamp({}, {}, {})", a, b, c, python="min(max({}, {}), {})"),
            inner,
            inner,
            inner,
        ),
        st.builds(
            lambda a, b, c, d: _join(
                "(if {} < {} then {} else {})", a, b, c, d, python="({2} if {0} < {1} else {3})"
            ),
            inner,
            inner,
            inner,
            inner,
        ),
    )


def _predicate_texts(inner: st.SearchStrategy[Spelling]) -> st.SearchStrategy[Spelling]:
    inner = _parenthesised(inner)
    loose = inner.map(lambda part: _join("({})", part))
    return st.one_of(
        st.builds(lambda a, b: _join("{} and {}", a, b), inner, inner),
        st.builds(lambda a, b, c: _join("{} or {} and {}", a, b, c), inner, inner, inner),
        st.builds(lambda a: _join("not {}", a), inner),
        st.builds(
            lambda a, b, c: _join(
                "(if {} then {} else {})", a, b, c, python="({1} if {0} else {2})"
            ),
            loose,
            loose,
            inner,
        ),
    )


def texts() -> st.SearchStrategy[Spelling]:
    """Lone expressions, with a Python expression of the same meaning over the same names."""
    numbers = st.recursive(_text_leaves, _number_texts, max_leaves=5)
    base = st.one_of(
        st.builds(lambda op, a, b: _join(f"{{}} {op} {{}}", a, b), operators, numbers, numbers),
        st.builds(
            lambda a, op, b, op2, c: _join(f"{{}} {op} {{}} {op2} {{}}", a, b, c),
            numbers,
            operators,
            numbers,
            operators,
            numbers,
        ),
        st.builds(
            lambda a, b, c: _join("{} in {{{}, {}}}", a, b, c, python="{} in ({}, {})"),
            numbers,
            numbers,
            numbers,
        ),
        st.builds(
            lambda a, b, c: _join("{} in {}..{}", a, b, c, python="{1} <= {0} < {2}"),
            numbers,
            numbers,
            numbers,
        ),
        st.sampled_from([Spelling("true", "True"), Spelling("false", "False")]),
    )
    return st.recursive(base, _predicate_texts, max_leaves=5)
