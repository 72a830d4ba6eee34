"""Hypothesis strategies for masks that lower, and the brute force they are held against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from patterncc.codegen.schedule import evaluate
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
from patterncc.dsl.mask import Const, IntExpr, K, Param, Predicate, Q, Var, parameters
from patterncc.dsl.pattern import IntType, Parameter, Pattern

NUMBERS = ("a", "b")
SCALARS = (Var("layer"), Var("head"), Var("kv_len"), Param("a"), Param("b"))

constants = st.integers(-40, 260).map(Const)
periods = st.sampled_from([2, 3, 4, 5, 7, 8, 12, 16, 32, 64, 100]).map(Const)
positions = st.sampled_from([Q, K, subtract(Q, K), subtract(K, Q), add(Q, K)])


def _scaled(position: IntExpr) -> st.SearchStrategy[IntExpr]:
    return st.one_of(
        st.just(position),
        periods.map(lambda period: floordiv(position, period)),
        periods.map(lambda period: modulo(position, period)),
        st.integers(-3, 3).map(lambda factor: multiply(Const(factor), position)),
        st.just(absolute(position)),
        constants.map(lambda low: maximum(position, low)),
        constants.map(lambda high: minimum(position, high)),
    )


scalars = st.one_of(constants, st.sampled_from(SCALARS))
terms = positions.flatmap(_scaled)
integers: st.SearchStrategy[IntExpr] = st.one_of(
    terms,
    st.builds(add, terms, scalars),
    st.builds(lambda x, s, period: modulo(add(x, s), period), terms, scalars, periods),
    st.builds(lambda x, s, period: floordiv(add(x, s), period), terms, scalars, periods),
    st.builds(subtract, terms, terms),
)
comparisons: st.SearchStrategy[Predicate] = st.builds(
    compare,
    st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
    integers,
    st.one_of(scalars, st.builds(add, scalars, scalars), terms),
)
windows: st.SearchStrategy[Predicate] = st.builds(
    lambda low, width: all_of(
        compare("<=", low, subtract(Q, K)), compare("<", subtract(Q, K), add(low, width))
    ),
    st.sampled_from([Const(0), Const(-30), Const(17), Param("a")]),
    st.one_of(st.integers(1, 200).map(Const), st.just(Param("b"))),
)
causal = compare("<=", K, Q)
atoms: st.SearchStrategy[Predicate] = st.one_of(comparisons, windows, st.just(causal))
masks: st.SearchStrategy[Predicate] = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.builds(all_of, inner, inner),
        st.builds(any_of, inner, inner),
        st.builds(lambda p, r: all_of(causal, any_of(p, r)), inner, inner),
        inner.map(negate),
        st.builds(branch, comparisons, inner, inner),
        st.builds(
            lambda c, x, y: compare("<", subtract(Q, K), select(c, x, y)),
            comparisons,
            scalars,
            scalars,
        ),
    ),
    max_leaves=4,
)


@dataclass(frozen=True)
class Shape:
    """Lengths, offset and tile of one check."""

    q_len: int
    kv_len: int
    q_offset: int
    block_q: int
    block_k: int

    @property
    def within(self) -> bool:
        return self.q_offset >= 0 and self.q_offset + self.q_len <= self.kv_len


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    q_len, kv_len = draw(st.integers(1, 400)), draw(st.integers(1, 400))
    offset = draw(st.one_of(st.just(kv_len - q_len), st.integers(-60, 400)))
    tiles = st.sampled_from([16, 32, 48, 64, 128])
    return Shape(q_len, kv_len, offset, draw(tiles), draw(tiles))


numbers = st.fixed_dictionaries(
    {name: st.integers(-5, 300) for name in NUMBERS}
    | {"layer": st.integers(0, 12), "head": st.integers(0, 7)}
)


def pattern_of(body: Predicate) -> Pattern:
    """A mask as a pattern, without going through text."""
    names = sorted(parameters(body))
    return Pattern(
        name="",
        parameters=tuple(Parameter(name, IntType()) for name in names),
        fixed=(),
        body=body,
        text=repr(body),
        structure=repr(body),
    )


def environment(shape: Shape, values: dict[str, int]) -> dict[str, int]:
    return {**values, "q_len": shape.q_len, "kv_len": shape.kv_len, "q_offset": shape.q_offset}


def dense(body: Predicate, env: dict[str, int]) -> npt.NDArray[np.bool_]:
    """The mask `[q_len, kv_len]`, pair by pair."""
    q = env["q_offset"] + np.arange(env["q_len"], dtype=np.int64)[:, None]
    k = np.arange(env["kv_len"], dtype=np.int64)[None, :]
    allowed = np.asarray(evaluate(body, {**env, "q": q, "k": k}), dtype=bool)
    return np.broadcast_to(allowed, (env["q_len"], env["kv_len"]))


def brute_block_map(allowed: npt.NDArray[np.bool_], shape: Shape) -> npt.NDArray[np.uint8]:
    """0 empty, 1 partial, 2 full, looking at every pair of every tile."""
    rows, columns = -(-shape.q_len // shape.block_q), -(-shape.kv_len // shape.block_k)
    result = np.zeros((rows, columns), np.uint8)
    for i in range(rows):
        for j in range(columns):
            tile = allowed[
                i * shape.block_q : (i + 1) * shape.block_q,
                j * shape.block_k : (j + 1) * shape.block_k,
            ]
            whole = tile.all() and tile.shape[1] == shape.block_k
            result[i, j] = 2 if whole else int(tile.any())
    return result
