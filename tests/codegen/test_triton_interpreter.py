"""Generated kernels in Triton's interpreter: numbers against float64, text against its meaning."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.lower import lower
from patterncc.codegen.schedule import evaluate, forward_tiles
from patterncc.dsl.build import (
    absolute,
    add,
    floordiv,
    maximum,
    minimum,
    modulo,
    multiply,
    subtract,
)
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Const, IntExpr, Param, Predicate, Q, Var
from tests.codegen.drawing import Shape, environment, masks, numbers, pattern_of, shapes
from tests.codegen.interpreter import Call, attend, integers, mask_tile, tiles_of_row

SLOW_EXAMPLES = settings(
    max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


# ------------------------------------------------------------------------------------ attention

BY_DESCRIPTOR = KernelConfig(32, 32, 4, 1, "descriptor")
WIDE = KernelConfig(16, 64, 4, 1)
TALL = KernelConfig(64, 16, 4, 1, order="reverse")
HALF = "float16"

CALLS = (
    Call("full", 50, 70),
    Call("causal", 100, 100, batch=2),
    Call("causal", 70, 130, dtype=HALF),
    Call("causal", 130, 70, config=BY_DESCRIPTOR),  # rows before the first key
    Call("causal", 40, 90, offset=120),  # rows after the last key
    Call("causal", 1, 77),
    Call("causal", 64, 64, config=TALL),
    Call("window(40)", 100, 100),
    Call("window", 90, 90, {"n": 0}),  # no row has keys
    Call("window", 64, 100, {"n": 33}, offset=80, dtype=HALF),  # first tiles empty, last rows too
    Call("window", 100, 100, {"n": -5}),
    Call("window(33)", 96, 96, config=WIDE, heads=(6, 2)),
    Call("window(33)", 96, 96, config=BY_DESCRIPTOR, heads=(6, 2), dtype=HALF),
    Call("around(20)", 60, 110, offset=10),
    Call("streaming(5, 20)", 120, 120, heads=(4, 2)),
    Call("streaming", 100, 140, {"sinks": 50, "window": 30}, config=BY_DESCRIPTOR),
    Call("tri_shape(40, 30, 20)", 90, 150, heads=(1, 1)),
    Call("prefix(40)", 90, 90),
    Call("tail(20)", 90, 100),
    Call("k > q", 90, 70),  # the last rows have no keys
    Call("chunked(50)", 120, 150),
    Call("chunks_back(20, 1)", 90, 120),
    Call("block_causal(24)", 80, 80),
    Call("dilated(10, 6)", 90, 100, heads=(1, 1)),
    Call("strided(37)", 90, 150, heads=(1, 1)),
    Call("local_strided(16, 2, 3)", 100, 120, heads=(1, 1)),
    Call("ladder(4, 30, 24, 3)", 100, 130, {"layer": 5}, heads=(1, 1)),
    Call("ladder(4, 30, 50, 7)", 60, 190, {"layer": 2}, heads=(1, 1)),  # classes as lanes
    Call("longformer(20, 3)", 80, 80, heads=(1, 1)),
    Call("s2(32)", 64, 64, heads=(2, 1)),
    Call("if head in {0, 3} then causal else streaming(4, 20)", 70, 90, heads=(4, 2)),
    Call("if layer % 3 == 1 then full else window(9)", 40, 60, {"layer": 4}),
    Call("k <= q and (k + batch) % 3 != 1", 40, 60, batch=2, heads=(1, 1)),
    Call("causal", 64, 64, scale=-0.7),
    Call("causal", 64, 64, scale=0.0),
)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call.text} {call.q_len}x{call.kv_len}")
def test_attention(worker: ProcessPoolExecutor, call: Call) -> None:
    _attends(worker, call)


HEAD_DIMS = ((8, 8), (24, 40), (64, 48), (72, 72), (80, 80), (96, 16), (104, 104), (192, 128))


@pytest.mark.parametrize("config", [WIDE, BY_DESCRIPTOR], ids=["pointer", "descriptor"])
@pytest.mark.parametrize(("head_dim", "value_head_dim"), HEAD_DIMS)
def test_head_dims(
    worker: ProcessPoolExecutor, head_dim: int, value_head_dim: int, config: KernelConfig
) -> None:
    call = Call("window(30)", 50, 60, head_dim=head_dim, value_head_dim=value_head_dim)
    half = Call(**{**vars(call), "dtype": HALF, "config": config, "scale": 0.1})
    _attends(worker, half)


@pytest.mark.parametrize("head_dim", [16, 80, 100, 136])
def test_head_dims_in_float32(worker: ProcessPoolExecutor, head_dim: int) -> None:
    _attends(worker, Call("causal", 50, 60, head_dim=head_dim, scale=0.1))


@pytest.mark.parametrize("offset", [2**30 - 40, -(2**30)])
@pytest.mark.parametrize("number", [2**30, -(2**30)])
def test_extreme_numbers(worker: ProcessPoolExecutor, offset: int, number: int) -> None:
    for sinks in (2**30, -(2**30), 21):
        values = {"sinks": sinks, "window": number}
        _attends(worker, Call("streaming", 40, 50, values, offset, (1, 1)))


def test_bfloat16_is_refused(worker: ProcessPoolExecutor) -> None:
    with pytest.raises(UnsupportedError, match="interpreter"):
        worker.submit(attend, Call("causal", 8, 8, dtype="bfloat16")).result()


def _attends(worker: ProcessPoolExecutor, call: Call) -> None:
    found = worker.submit(attend, call).result()
    assert found.out < (4e-3 if call.dtype == HALF else 3e-6), found
    assert found.lse < 1e-5, found
    assert found.empty


# ------------------------------------------------------------------------------------ text

POSITIONS = (-(2**30), -1025, -257, -101, -100, -99, -8, -1, 0, 1, 7, 8, 99, 100, 2**30)
A = Param("a")
DIVIDED: tuple[IntExpr, ...] = tuple(
    operation(value, Const(divisor))
    for operation in (floordiv, modulo)
    for divisor in (1, 2, 3, 7, 8, 100, 1024, 2**20, 2**30 - 1)
    for value in (Q, add(Q, A), absolute(Q), multiply(Const(-3), Q))
)
OTHERS: tuple[IntExpr, ...] = (
    add(Q, A, Var("kv_len"), Const(2**30)),
    subtract(A, multiply(Const(5), Q)),
    multiply(Q, A),
    minimum(Q, A, Const(-3)),
    maximum(Const(4), minimum(Q, floordiv(A, Const(3)))),
    absolute(subtract(Q, A)),
    floordiv(add(floordiv(Q, Const(7)), A), Const(12)),
    modulo(subtract(modulo(Q, Const(7)), modulo(A, Const(5))), Const(3)),
)


@pytest.mark.parametrize("bits", [32, 64])
def test_integers(worker: ProcessPoolExecutor, bits: int) -> None:
    """Floors of negative values, and sums and products beyond 32 bits."""
    for number in (-(2**30), -7, 0, 1, 13, 2**30):
        env = {"a": number, "kv_len": 77}
        jobs = [
            (expr, worker.submit(integers, expr, env, POSITIONS, bits)) for expr in DIVIDED + OTHERS
        ]
        for expr, job in jobs:
            wanted = [int(evaluate(expr, {**env, "q": q})) for q in POSITIONS]
            assert job.result() == wanted, (expr, number)


@SLOW_EXAMPLES
@given(mask=masks, shape=shapes(), values=numbers, first=st.integers(0, 5))
def test_masks(
    worker: ProcessPoolExecutor,
    mask: Predicate,
    shape: Shape,
    values: dict[str, int],
    first: int,
) -> None:
    """The text of a mask gives, tile by tile, what the mask means."""
    env = environment(shape, values) | {"q_offset": shape.q_offset - 50}
    q = env["q_offset"] + np.arange(16)[:, None]
    k = 32 * first + np.arange(32)[None, :]
    wanted = np.logical_and(evaluate(mask, {**env, "q": q, "k": k}), k < env["kv_len"])
    found = worker.submit(mask_tile, mask, env, 16, 32, 32 * first).result()
    np.testing.assert_array_equal(found, np.broadcast_to(wanted, (16, 32)))


@SLOW_EXAMPLES
@given(mask=masks, shape=shapes(), values=numbers, within=st.booleans())
def test_tiles(
    worker: ProcessPoolExecutor,
    mask: Predicate,
    shape: Shape,
    values: dict[str, int],
    within: bool,
) -> None:
    """The emitted loops visit each tile of the program once, with the right kind."""
    env = environment(shape, values)
    try:
        program = lower(
            pattern_of(mask), shape.block_q, shape.block_k, within=within and shape.within
        )
    except UnsupportedError:
        return
    lists = forward_tiles(program, env)
    rows = len(lists.indptr) - 1
    for row in {0, rows // 2, rows - 1}:
        found = worker.submit(tiles_of_row, program, env, row).result()
        here = slice(lists.indptr[row], lists.indptr[row + 1])
        tiles, full = lists.tiles[here], lists.full[here]
        assert sorted(found["full"]) == tiles[full].tolist()
        assert sorted(found["partial"]) == tiles[~full].tolist()
