"""The text of a few kernels: a refactoring leaves it as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward_source import emit_forward
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import Problem
from patterncc.dsl import load

FOLDER = Path(__file__).parents[1] / "golden" / "triton_forward"
CASES = {
    # The plain case: descriptors, the last tiles first.
    "causal": (
        "causal",
        Problem("bfloat16", 128, 128),
        KernelConfig(load="descriptor", order="reverse"),
    ),
    # Pointers, head dims in parts and padded, grouped heads, run-time numbers in mask and bounds.
    "streaming": ("streaming", Problem("float16", 80, 72, 4), KernelConfig(64, 64, 4, 3)),
    # A residue class per lane, floors of negative values, float32.
    "ladder": ("ladder(4, 64, 48, 7)", Problem("float32", 32, 32), KernelConfig(64, 32, 8, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_text(name: str, golden: Callable[[Path, str], None]) -> None:
    text, problem, config = CASES[name]
    program = lower(load(text), config.block_q, config.block_k, within=True)
    source = emit_forward(program, problem, config)
    golden(FOLDER / f"{name}.txt", source.text)
    assert emit_forward(program, problem, config) == source


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(CASES)
