"""Options, markers and fixtures that all tests share."""

import difflib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings

# Times on a shared machine vary too much for a deadline; a failure must fail again.
settings.register_profile("patterncc", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("patterncc")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--update-golden") and os.environ.get("CI"):
        raise pytest.UsageError("--update-golden is refused where CI is set")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _has_gpu() -> bool:
    import torch  # only where a test asks for it: two seconds

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def worker() -> Iterator[ProcessPoolExecutor]:
    """The process in which kernels are interpreted; what it is sent leaves it as it was."""
    from tests.codegen.interpreter import interpreter  # only where a test asks for it

    with interpreter() as pool:
        yield pool


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Compares a text with a golden file, or writes the file under --update-golden."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        expected = path.read_text(encoding="utf-8") if path.exists() else ""
        if text != expected:
            lines = difflib.unified_diff(
                expected.splitlines(), text.splitlines(), str(path), "now", lineterm=""
            )
            pytest.fail("\n".join(lines) or f"{path}: line ends differ", pytrace=False)

    return check
