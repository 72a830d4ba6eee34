"""Kernels in changed variables and in several passes, in Triton's interpreter against float64."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.ir import DENSE, Q_CLASS, Tiling
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl.build import modulo, multiply
from patterncc.dsl.mask import Const, Var
from tests.codegen.interpreter import Call, attend

POINTER = KernelConfig(16, 32, 4, 1)
DESCRIPTOR = KernelConfig(16, 16, 4, 1, "descriptor")
REVERSE = KernelConfig(16, 16, 4, 1, order="reverse")
HALF = "float16"
MINUS_LAYER = modulo(multiply(Const(-1), Var("layer")), Const(4))


def _in(text: str, tiling: Tiling, *lengths: int, **options: object) -> Call:
    return Call(text, *lengths, passes=((text, tiling),), **options)  # type: ignore


EIGHT = residue_tiling(8)
CLASSES = (
    _in("dilated(10, 8)", EIGHT, 100, 100),
    _in("dilated(10, 8)", EIGHT, 100, 133, config=DESCRIPTOR, heads=(4, 2), batch=2),
    _in("dilated(10, 8)", EIGHT, 133, 150, config=DESCRIPTOR, dtype=HALF),  # incomplete groups
    _in("dilated(10, 8)", EIGHT, 130, 128, config=DESCRIPTOR, offset=-5),
    _in("dilated(10, 8)", EIGHT, 50, 300, config=REVERSE, offset=270),  # rows past the keys
    _in("dilated(10, 8)", EIGHT, 3, 90),  # classes without rows
    _in("dilated(10, 8)", EIGHT, 40, 5),  # classes without keys
    _in("dilated(10, 8)", EIGHT, 1, 1),
    _in("dilated(9, 3)", residue_tiling(3), 100, 107, offset=-20),
    _in("(q - k) % 6 == 0", residue_tiling(6), 70, 101, config=DESCRIPTOR),
    _in("(q - k) % 6 == 0", residue_tiling(6), 70, 101, value_head_dim=40, head_dim=24),
    _in("k % 8 == q % 8 and q // 64 == k // 64", EIGHT, 140, 140),
    _in("causal and (q - k) % 4 == 0 and k < kv_len - 9", residue_tiling(4), 60, 90),
    _in("causal and k % 4 == 1", Tiling(1, 4, Const(1)), 90, 120),
    _in("causal and k % 4 == 1", Tiling(1, 4, Const(1)), 90, 120, config=DESCRIPTOR),
    _in("(k + layer) % 4 == 0 and k <= q", Tiling(1, 4, MINUS_LAYER), 77, 99, values={"layer": 6}),
    _in("causal and k % 8 == q % 4", Tiling(4, 8, Q_CLASS), 100, 130, heads=(3, 1)),
    _in("q % 5 == 2 and k <= q", Tiling(5, 1, Const(0)), 90, 90),
)


def _attends(worker: ProcessPoolExecutor, call: Call) -> None:
    found = worker.submit(attend, call).result()
    assert found.out < (4e-3 if call.dtype == HALF else 3e-6), found
    assert found.lse < 1e-5, found
    assert found.empty


def _name(call: Call) -> str:
    return f"{call.text} {call.q_len}x{call.kv_len}"


@pytest.mark.parametrize("call", CLASSES, ids=_name)
def test_classes(worker: ProcessPoolExecutor, call: Call) -> None:
    _attends(worker, call)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    step=st.sampled_from([2, 3, 4, 7, 16]),
    keys=st.integers(1, 30),
    lengths=st.tuples(st.integers(1, 90), st.integers(1, 120)),
    offset=st.one_of(st.none(), st.integers(-30, 130)),
    config=st.sampled_from([POINTER, REVERSE, DESCRIPTOR]),
)
def test_dilation(
    worker: ProcessPoolExecutor,
    step: int,
    keys: int,
    lengths: tuple[int, int],
    offset: int | None,
    config: KernelConfig,
) -> None:
    if config.load == "descriptor" and lengths[1] // step < config.block_k:
        config = POINTER
    text = f"dilated({keys}, {step})"
    call = _in(text, residue_tiling(step), *lengths, offset=offset, config=config, heads=(1, 1))
    _attends(worker, call)


NEAR, FAR = "window(20)", "q - k >= 20 and dilated(12, 8)"
PASSES = (
    Call("window(20) or dilated(12, 8)", 100, 130, passes=((NEAR, DENSE), (FAR, EIGHT))),
    Call("window(20) or dilated(12, 8)", 60, 130, passes=((FAR, EIGHT), (NEAR, DENSE)), dtype=HALF),
    Call(
        "window(20) or dilated(12, 8) or k < 3 and k <= q",
        90,
        140,
        passes=(
            (NEAR, DENSE),
            (f"{FAR} and k >= 3", EIGHT),
            ("k < 3 and q - k >= 20", DENSE),
        ),
        config=DESCRIPTOR,
        heads=(4, 2),
        value_head_dim=24,
        dtype=HALF,
    ),
    # Rows that see keys in one pass only, in the other only, in none.
    Call(
        "if q < 30 then window(9) else q < 60 and dilated(5, 8)",
        90,
        90,
        passes=(("q < 30 and window(9)", DENSE), ("30 <= q and q < 60 and dilated(5, 8)", EIGHT)),
    ),
    Call(
        "causal and k % 4 == 1 or causal and k % 4 == 3",
        80,
        80,
        passes=(
            ("causal and k % 4 == 3", Tiling(1, 4, Const(3))),
            ("causal and k % 4 == 1", Tiling(1, 4, Const(1))),
        ),
        scale=0.0,
    ),
)


@pytest.mark.parametrize("call", PASSES, ids=_name)
def test_passes(worker: ProcessPoolExecutor, call: Call) -> None:
    _attends(worker, call)
