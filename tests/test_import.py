"""What an import loads and how long it takes, each in a fresh process."""

import subprocess
import sys
from pathlib import Path

import pytest

import patterncc

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("islpy", "matplotlib", "networkx", "numpy", "optuna", "rich", "sympy", "torch", "triton")


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["patterncc", "patterncc.dsl", "patterncc.dsl.errors"])
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*(set({HEAVY}) & set(sys.modules)))"
    assert run(code) == ""


def test_import_is_fast() -> None:
    code = (
        "import time; start = time.perf_counter(); import patterncc; "
        "print(time.perf_counter() - start)"
    )
    assert min(float(run(code)) for _ in range(5)) < 0.150


def test_public_names() -> None:
    assert sorted(patterncc._EXPORTS) == sorted(set(patterncc.__all__) - {"__version__"})
    assert set(patterncc.__all__) <= set(dir(patterncc))
    for name, module in patterncc._EXPORTS.items():
        assert getattr(patterncc, name) is getattr(sys.modules[module], name)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'attenshun'"):
        patterncc.attenshun  # noqa: B018
