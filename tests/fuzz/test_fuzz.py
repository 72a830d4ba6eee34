"""The long-running checks find what is planted, and repeat."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.lower import lower
from tests.fuzz import lowering


def test_a_batch_has_no_differences_and_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "BATCH", 4)
    found, again = lowering.run_batch(3), lowering.run_batch(3)
    assert found.checks == 4 * lowering.CALLS and not found.differences
    assert (found.checks, found.masks) == (again.checks, again.masks)


def test_a_lost_sweep_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_a_sweep(*arguments: Any, **options: Any) -> BlockProgram:
        program = lower(*arguments, **options)
        return replace(program, forward=program.forward[1:])

    monkeypatch.setattr(lowering, "BATCH", 4)
    monkeypatch.setattr(lowering, "lower", without_a_sweep)
    assert lowering.run_batch(3).differences
