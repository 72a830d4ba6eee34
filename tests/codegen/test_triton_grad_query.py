"""The query's gradient in Triton's interpreter, against float64 autograd over the dense mask."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from patterncc.codegen.gpu.config import KernelConfig
from tests.codegen.gradients import Case, differentiate
from tests.codegen.interpreter import Call, interpreter

BY_DESCRIPTOR = KernelConfig(32, 32, 4, 1, "descriptor")
WIDE = KernelConfig(16, 64, 4, 1)
TALL = KernelConfig(64, 16, 4, 1, order="reverse")
HALF = "float16"

CASES = (
    Case(Call("full", 50, 70), with_lse=False),
    Case(Call("causal", 100, 100, batch=2)),
)


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    with interpreter() as pool:
        yield pool


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.call.text}")
def test_gradient(worker: ProcessPoolExecutor, case: Case) -> None:
    _differentiates(worker, case)


def _differentiates(worker: ProcessPoolExecutor, case: Case) -> None:
    found = worker.submit(differentiate, case).result()
    assert found.query < (2e-3 if case.call.dtype == HALF else 2e-6), found
    assert found.hidden
