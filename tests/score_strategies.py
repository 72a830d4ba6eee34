"""Hypothesis strategies that draw score terms, and what they read."""

from __future__ import annotations

from hypothesis import strategies as st

from patterncc.dsl.build import absolute, add, compare, floordiv, maximum, minimum, modulo, multiply
from patterncc.dsl.mask import Const, IntExpr, K, Predicate, Q, Var
from patterncc.dsl.score.build import (
    apply,
    choice,
    greatest,
    least,
    lift,
    magnitude,
    minus,
    over,
    plus,
    times,
)
from patterncc.dsl.score.nodes import SCORE, Constant, Lookup, Number, Real

NUMBERS = {"cap": 3.5, "gain": -0.75, "tau": 2.0}
SHAPES = {"slopes": (2,), "bias": (2, 9), "places": (12,)}
ENV = {"head": 1, "kv_head": 0, "layer": 2, "batch": 0}
SIZES = {"q_len": 8, "kv_len": 12, "heads": 2, "kv_heads": 1, "layers": 4}

_DISTANCE = add(Q, multiply(Const(-1), K))


@st.composite
def integers(draw: st.DrawFn, sink: bool = False) -> IntExpr:
    """Integers of the pattern language."""
    places: list[IntExpr] = [Q] if sink else [Q, K, _DISTANCE]
    leaf = draw(st.sampled_from([*places, Var("head"), Var("layer"), Const(3), Var("kv_len")]))
    small = Const(draw(st.integers(1, 6)))
    match draw(st.integers(0, 6)):
        case 0:
            return floordiv(leaf, small)
        case 1:
            return modulo(leaf, small)
        case 2:
            return absolute(add(leaf, multiply(Const(-1), small)))
        case 3:
            return minimum(maximum(leaf, Const(-3)), small)
    return leaf


@st.composite
def conditions(draw: st.DrawFn, sink: bool = False) -> Predicate:
    """Predicates of the pattern language."""
    op = draw(st.sampled_from(["==", "<", "<=", "!="]))
    return compare(op, draw(integers(sink)), draw(integers(sink)))  # type: ignore[arg-type]


@st.composite
def lookups(draw: st.DrawFn, sink: bool = False) -> Lookup:
    """Entries of tables, some of them outside."""
    match draw(st.integers(0, 1 if sink else 3)):
        case 0:
            return Lookup("slopes", (Var("head"),))
        case 1:
            return Lookup("bias", (Var("head"), draw(integers(sink))))
        case 2:
            return Lookup("bias", (Var("head"), add(_DISTANCE, Const(4))))
    return Lookup("places", (draw(integers(sink)),))


@st.composite
def reals(draw: st.DrawFn, depth: int = 3, sink: bool = False, smooth: bool = False) -> Real:
    """Score terms that are finite wherever scores are moderate.

    Args:
        depth: Levels of nesting.
        sink: Without a score and a key.
        smooth: Without kinks, at which a difference quotient is no derivative.
    """
    leaves: list[st.SearchStrategy[Real]] = [
        st.sampled_from([Constant(0.5), Constant(-2.0), Constant(1.0), Constant(0.1)]),
        st.sampled_from([Number(name) for name in NUMBERS]),
        st.builds(lift, integers(sink)),
        lookups(sink),
    ]
    if not sink:
        leaves += [st.just(SCORE), st.just(SCORE)]
    if depth == 0:
        return draw(st.one_of(leaves))
    inner = reals(depth - 1, sink, smooth)
    bounded = inner.map(lambda expr: apply("tanh", expr))
    apart = inner.map(lambda expr: plus(Constant(1.5), apply("sigmoid", expr)))
    choices: list[st.SearchStrategy[Real]] = [
        *leaves,
        st.builds(plus, inner, inner),
        st.builds(lambda a, b: plus(a, minus(b)), inner, inner),
        st.builds(times, inner, bounded),
        st.builds(over, inner, apart),
        st.builds(over, inner, st.sampled_from([Number("cap"), Constant(49.0), Number("gain")])),
        st.builds(lambda expr: apply("exp", expr), bounded),
        st.builds(lambda expr: apply("log", expr), apart),
        st.builds(lambda expr: apply("sqrt", expr), apart),
        st.builds(lambda expr: apply("sigmoid", expr), inner),
        bounded,
        st.builds(choice, conditions(sink), inner, inner),
    ]
    if not smooth:
        choices += [
            st.builds(least, inner, inner),
            st.builds(greatest, inner, inner, inner),
            st.builds(magnitude, inner),
        ]
    return draw(st.one_of(choices))
