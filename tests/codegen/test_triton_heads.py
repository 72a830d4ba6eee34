"""Kernels whose programs start head by head: the same numbers, and used where heads differ."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.ir import Tiling
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl.mask import Const
from tests.codegen.gradients import Case, differentiate
from tests.codegen.interpreter import Call, attend

HEADS = KernelConfig(16, 16, 4, 1, neighbours="heads")
MIXED = "if head in {1, 2} then causal else window(9)"
LISTED = "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 16, k // 16]"
KEEP = [[[(h + i * j) % 3 == 1 for j in range(4)] for i in range(4)] for h in range(4)]


CALLS = (
    Call(MIXED, 50, 70, heads=(4, 2), batch=2),
    Call("pattern p(w: int[head]): window(w[head])", 40, 50, tables={"w": [3, 20]}),
    Call(
        f"({MIXED}) and (q - k) % 3 == 0",
        60,
        60,
        heads=(4, 2),
        passes=((f"({MIXED}) and (q - k) % 3 == 0", residue_tiling(3)),),
    ),
    Call(
        f"({MIXED}) and k % 4 == 1",
        60,
        60,
        heads=(4, 1),
        passes=((f"({MIXED}) and k % 4 == 1", Tiling(1, 4, Const(1))),),
    ),
    Call(LISTED, 64, 64, heads=(4, 1), tables={"keep": KEEP}),
)


@pytest.mark.parametrize("order", ["forward", "reverse"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.text)
def test_attention(worker: ProcessPoolExecutor, call: Call, order: str) -> None:
    config = replace(HEADS, order=order)  # type: ignore[arg-type]
    found = worker.submit(attend, replace(call, config=config)).result()
    assert found.out < 3e-6, found
    assert found.lse < 1e-5, found
    assert found.empty


def test_gradients(worker: ProcessPoolExecutor) -> None:
    call = Call(MIXED, 50, 70, heads=(4, 2), batch=2, config=replace(HEADS, order="reverse"))
    found = worker.submit(differentiate, Case(call)).result()
    assert found.query < 3e-6, found
    assert found.hidden
