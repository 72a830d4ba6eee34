"""Passes keep every value and every visited tile; the verifier refuses what is not well formed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patterncc.codegen import schedule
from patterncc.codegen.ir import RESIDUE, BlockProgram, Sweep
from patterncc.codegen.lower import initial_program
from patterncc.codegen.passes import PASSES, after_each
from patterncc.codegen.passes.prune import prune
from patterncc.codegen.passes.simplify import integer
from patterncc.codegen.verify import verify
from patterncc.dsl.build import add, compare, floordiv, maximum, minimum, modulo, multiply
from patterncc.dsl.errors import InternalError, UnsupportedError
from patterncc.dsl.mask import FALSE, TRUE, Const, IntExpr, Mod, Predicate, Var
from tests.codegen.drawing import Shape, environment, masks, numbers, pattern_of, shapes

leaves: st.SearchStrategy[IntExpr] = st.one_of(
    st.integers(-300, 300).map(Const), st.sampled_from([Var("x"), Var("y"), Var("z")])
)
divisors = st.sampled_from([1, 2, 3, 5, 8, 64, 100, 128]).map(Const)
bounds: st.SearchStrategy[IntExpr] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(add, inner, inner),
        st.builds(lambda factor, x: multiply(Const(factor), x), st.integers(-130, 130), inner),
        st.builds(floordiv, inner, divisors),
        st.builds(modulo, inner, divisors),
        st.builds(minimum, inner, inner),
        st.builds(maximum, inner, inner, inner),
    ),
    max_leaves=12,
)


@settings(max_examples=500)
@given(bound=bounds, values=st.tuples(*[st.integers(-10_000, 10_000)] * 3))
def test_simplify_keeps_the_value(bound: IntExpr, values: tuple[int, int, int]) -> None:
    env = dict(zip("xyz", values, strict=True))
    assert schedule.evaluate(integer(bound), env) == schedule.evaluate(bound, env)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (add(floordiv(add(Var("s"), Const(-128)), Const(128)), Const(1)), "s // 128"),
        (floordiv(add(multiply(Const(128), Var("x")), Const(127)), Const(128)), "x"),
        (maximum(floordiv(Var("s"), Const(8)), floordiv(Var("t"), Const(8))), "max(s, t) // 8"),
    ],
)
def test_simplify_gives_what_a_person_would_write(bound: IntExpr, expected: str) -> None:
    from patterncc.dsl.printer import expression_text

    assert expression_text(integer(bound)) == expected


@settings(max_examples=40)
@given(body=masks, shape=shapes(), values=numbers)
def test_every_pass_keeps_the_visited_tiles(
    body: Predicate, shape: Shape, values: dict[str, int]
) -> None:
    env = environment(shape, values)
    try:
        program = initial_program(pattern_of(body), shape.block_q, shape.block_k)
    except UnsupportedError:
        assume(False)
    expected = schedule.block_map(program, env)
    stages = dict(after_each(program, check=True))
    assert list(stages) == ["lower", *(name for name, _ in PASSES)]
    for after in stages.values():
        np.testing.assert_array_equal(schedule.block_map(after, env), expected)


def program_of(*sweeps: Sweep) -> BlockProgram:
    return BlockProgram("test", 64, 64, TRUE, forward=sweeps, transposed=())


def test_prune_drops_only_what_cannot_run() -> None:
    runs = Sweep("full", Const(0), Var("q_last"))
    empty = Sweep("full", Const(3), Const(3))
    never = replace(runs, guard=FALSE)
    assert prune(program_of(runs, empty, never)).forward == (runs,)


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [
        (Sweep("full", Const(0), Var("k_tile")), "reads k_tile"),
        (Sweep("full", Const(0), Var("q")), "reads q"),
        (Sweep("full", RESIDUE, Var("q_last")), "reads residue"),
        (Sweep("full", Const(0), Var("q_last"), stride=0), "stride"),
        (Sweep("full", Const(0), Mod(Var("q_last"), Var("layer"))), "divides"),
        (Sweep("full", Const(0), Const(1), guard=compare("<", Var("i"), Const(0))), "reads i"),
    ],
)
def test_verify_names_the_sweep_and_the_fault(sweep: Sweep, reason: str) -> None:
    with pytest.raises(InternalError, match=f"after x: forward sweep 0: .*{reason}"):
        verify(program_of(sweep), "x")
