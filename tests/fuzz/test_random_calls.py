"""Random calls of `tests.gpu.random_calls` on the CPU: they repeat, and find what is planted."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

import patterncc
from patterncc import gpu_calls
from tests.gpu.call_summary import Message, Summary
from tests.gpu.checked_call import CPU_EXECUTOR, run_call
from tests.gpu.drawn_calls import ORIGINS, Origin, draw_calls, draw_pattern, tensors_of, values_of

LONGEST = 90


@pytest.mark.parametrize("origin", ORIGINS)
def test_calls_are_right_and_repeat(origin: Origin) -> None:
    drawn = draw_pattern(4, origin)
    assert drawn == draw_pattern(4, origin) and drawn.origin == origin
    (call,) = draw_calls(drawn, 1, LONGEST if origin != "long" else LONGEST // 8)
    assert [call] == draw_calls(drawn, 1, LONGEST if origin != "long" else LONGEST // 8)
    outcome = run_call(drawn, drawn.compiled(), call, "cpu")
    assert outcome.differences == ()
    assert {"out", "lse", "grad_query", "grad_key", "grad_value"} <= set(outcome.errors)


def test_what_has_run_is_not_taken_from_other_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw_pattern(4, "text")
    (call,) = draw_calls(drawn, 1, LONGEST)
    for kept in ("_forwards", "_backwards"):
        monkeypatch.setattr(gpu_calls, kept, {"of another test": None})
    outcome = run_call(drawn, drawn.compiled(), call, "cpu")
    assert outcome.forward == outcome.backward == CPU_EXECUTOR


def test_masks_that_read_tables_have_them() -> None:
    drawn = draw_pattern(4, "tables")
    names = {table.name for table in drawn.compiled().pattern.tables}
    (call,) = draw_calls(drawn, 1, LONGEST)
    assert names and names <= set(values_of(drawn, call))


def test_memory_past_the_rows_is_not_a_number() -> None:
    drawn = draw_pattern(4, "text")
    for call in draw_calls(drawn, 4, LONGEST):
        for tensor in tensors_of(drawn, call, "cpu"):
            assert tensor.isfinite().all()
            length = tensor.shape[2] + 1
            longer = tensor.as_strided(
                (*tensor.shape[:2], length, tensor.shape[3]), tensor.stride()
            )
            assert longer[:, :, -1].isnan().all()


def test_a_wrong_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = draw_pattern(4, "text")
    right = patterncc.Attention.mask

    def wrong(self: patterncc.Attention, *arguments: Any, **options: Any) -> Tensor:
        mask = right(self, *arguments, **options).clone()
        mask[-1, 0] ^= True
        return mask

    monkeypatch.setattr(patterncc.Attention, "mask", wrong)
    (call,) = draw_calls(drawn, 1, LONGEST)
    outcome = run_call(drawn, drawn.compiled(), call, "cpu")
    assert any("out: differs" in words for words in outcome.differences)
    summary = Summary()
    summary.take(Message("begun", 4))
    summary.take(Message("called", 4, outcome, {"text": "", "dtype": "torch.bfloat16"}))
    assert summary.document()["failures"] and summary.document()["not_ended"] == [4]
