"""What the tests of executors share."""

from collections.abc import Iterator

import pytest

from patterncc.codegen import cpu
from patterncc.codegen.cpu import kernels

KERNELS = ("aten flash", "matmul")


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs a test on each kernel, the way a torch without the flash kernel would."""
    if request.param == "matmul":
        monkeypatch.setattr(kernels, "flash_works", lambda: False)
    elif cpu.cpu_kernel_name() != request.param:
        pytest.skip("this torch lacks the flash kernel")
    assert cpu.cpu_kernel_name() == request.param
    yield request.param
