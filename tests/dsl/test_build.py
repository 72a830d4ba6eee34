"""The constructors: they fold, they order, and they never change a value."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
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
    substitute,
    subtract,
)
from patterncc.dsl.evaluate import allows, integer
from patterncc.dsl.limits import MAX_CONSTANT
from patterncc.dsl.mask import (
    FALSE,
    TRUE,
    Compare,
    Const,
    FloorDiv,
    IntExpr,
    K,
    Mod,
    Predicate,
    Product,
    Q,
    Sum,
    Var,
)
from patterncc.dsl.order import compare_expressions
from tests.strategies import integers, predicates

relaxed = settings(suppress_health_check=[HealthCheck.too_slow])
env = {
    "head": 1,
    "kv_head": 0,
    "layer": 2,
    "batch": 0,
    "q_len": 9,
    "kv_len": 12,
    "heads": 4,
    "kv_heads": 2,
    "layers": 6,
    "n": 3,
    "width": 5,
    "zero_based": 0,
}
plain = integers(tables=False)
places = st.integers(-30, 60)


@relaxed
@given(plain, plain, st.integers(1, 12), places, places)
def test_integers_keep_their_values(a: IntExpr, b: IntExpr, n: int, q: int, k: int) -> None:
    scope = {**env, "q": q, "k": k}
    x, y = integer(a, scope), integer(b, scope)
    assert integer(add(a, b, a), scope) == x + y + x
    assert integer(subtract(a, b), scope) == x - y
    assert integer(multiply(a, b), scope) == x * y
    assert integer(multiply(Const(n), a, Const(-2)), scope) == -2 * n * x
    assert integer(floordiv(floordiv(a, Const(n)), Const(4)), scope) == x // n // 4
    assert integer(modulo(modulo(a, Const(4 * n)), Const(n)), scope) == x % (4 * n) % n
    assert integer(modulo(modulo(a, Const(n)), Const(4)), scope) == x % n % 4
    assert integer(minimum(a, b, Const(n)), scope) == min(x, y, n)
    assert integer(maximum(a, b, Const(n)), scope) == max(x, y, n)
    assert integer(absolute(a), scope) == abs(x)
    assert integer(select(compare("<", a, b), a, b), scope) == min(x, y)


@relaxed
@given(predicates(tables=False), predicates(tables=False), places, places)
def test_predicates_keep_their_values(a: Predicate, b: Predicate, q: int, k: int) -> None:
    def holds(predicate: Predicate) -> bool:
        return allows(predicate, q, k, env)

    x, y = holds(a), holds(b)
    assert holds(all_of(a, b, a)) == (x and y)
    assert holds(any_of(a, b, a)) == (x or y)
    assert holds(negate(a)) == (not x)
    assert holds(branch(a, b, negate(b))) == (y if x else not y)


@relaxed
@given(plain, plain, plain)
def test_order_is_total(a: IntExpr, b: IntExpr, c: IntExpr) -> None:
    assert (compare_expressions(a, b) == 0) == (a == b)
    assert (compare_expressions(a, b) < 0) == (compare_expressions(b, a) > 0)
    if compare_expressions(a, b) <= 0 and compare_expressions(b, c) <= 0:
        assert compare_expressions(a, c) <= 0


@relaxed
@given(predicates(tables=False, covers=False), plain, plain, places, places)
def test_substitution(body: Predicate, a: IntExpr, b: IntExpr, q: int, k: int) -> None:
    scope = {**env, "q": q, "k": k}
    moved = substitute(body, {Q: a, K: b})
    assert allows(moved, q, k, env) == allows(body, integer(a, scope), integer(b, scope), env)


def test_folding() -> None:
    n, head = Var("layer"), Var("head")
    assert add(n, Const(2), multiply(Const(-1), n)) == Const(2)
    assert add(n, n, n) == Product((Const(3), n))
    assert multiply(Const(2), add(Q, Const(3))) == Sum((Product((Const(2), Q)), Const(6)))
    assert multiply(n, Const(0), head) == Const(0)
    assert multiply() == Const(1)
    assert floordiv(Const(-7), Const(2)) == Const(-4)
    assert modulo(Const(-7), Const(4)) == Const(1)
    assert floordiv(floordiv(Q, Const(4)), Const(8)) == FloorDiv(Q, Const(32))
    assert modulo(modulo(Q, Const(12)), Const(4)) == Mod(Q, Const(4))
    assert modulo(modulo(Q, Const(12)), Const(1)) == Const(0)
    large = floordiv(Q, Const(MAX_CONSTANT))
    assert floordiv(large, Const(2)) == FloorDiv(large, Const(2))
    assert minimum(Const(3), Const(5)) == Const(3)
    assert compare(">", Q, K) == Compare("<", K, Q)
    assert compare("==", K, Q) == compare("==", Q, K)
    assert compare("<", Const(1), Const(2)) == TRUE
    assert all_of() == TRUE
    assert any_of() == FALSE
    assert all_of(compare("<", Q, K), FALSE) == FALSE
    assert negate(negate(compare("<", Q, K))) == compare("<", Q, K)


def test_a_predicate_has_no_truth_value() -> None:
    with pytest.raises(TypeError, match="has no truth value"):
        bool(compare("<", Q, K))


def test_the_parser_is_loaded_when_it_is_needed() -> None:
    code = "import sys, patterncc.dsl; print('lark' in sys.modules); patterncc.dsl.load('causal'); "
    code += "print('lark' in sys.modules)"
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]
