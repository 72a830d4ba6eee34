"""Golden stages: the text of each stage for a few small patterns, reviewed like code.

A refactoring must leave them as they are; `pytest --update-golden` rewrites them after a change
that is meant. The first line of each `input.pat` says why the case is there.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.compilation import Compilation

FOLDER = Path(__file__).parent / "golden" / "stages"
CASES = sorted(path.name for path in FOLDER.iterdir())
FILES = {"ast": "ast.txt", "mask": "mask.txt", "ir": "ir.txt"}
WITH_KERNEL = {
    "causal": KernelConfig(64, 64, 4, 3, "descriptor"),
    "local_strided": KernelConfig(128, 64, 8, 2, "pointer"),
    "patches": KernelConfig(64, 64, 4, 3, "descriptor"),
    "shifted_patches": KernelConfig(64, 64, 4, 3, "descriptor"),
    "ragged_rungs": KernelConfig(128, 128, 8, 2, "descriptor"),
}


def compilation(case: str) -> Compilation:
    text = (FOLDER / case / "input.pat").read_text(encoding="utf-8")
    config = WITH_KERNEL.get(case, KernelConfig(128, 128, 8, 2, "pointer"))
    problem = Problem("bfloat16", 128 if case != "local_strided" else 80, 128, 2)
    return Compilation(text, file=f"{case}/input.pat", problem=problem, config=config)


@pytest.mark.parametrize("case", CASES)
def test_stages(case: str, golden: Callable[[Path, str], None]) -> None:
    compiled = compilation(case)
    for stage, file in FILES.items():
        golden(FOLDER / case / file, compiled.text(stage))
    golden(FOLDER / case / "ir-lower.txt", compiled.text("ir", after="lower"))
    if case in WITH_KERNEL:
        golden(FOLDER / case / "triton.py.txt", compiled.text("triton"))


def test_every_file_is_read_and_every_case_says_why() -> None:
    for case in CASES:
        expected = {"input.pat", "ir-lower.txt", *FILES.values()}
        expected |= {"triton.py.txt"} if case in WITH_KERNEL else set()
        assert {path.name for path in (FOLDER / case).iterdir()} == expected
        first = (FOLDER / case / "input.pat").read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ") and len(first) > 20
    assert set(WITH_KERNEL) <= set(CASES)
