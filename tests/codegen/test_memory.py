"""Memory that calls take beside their results: nothing for patterns in closed form but, where they
take several passes, the rows that one pass leaves for the next; backward numbers for each row, and
in one pass the sums of the query's gradient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import pytest

from patterncc import launchers
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.problem import DType, Problem
from patterncc.dsl import load
from patterncc.settings import settings

HEADS, DIM = 4, 128
ONE_PASS = {
    "causal": "causal",
    "streaming": "causal and (sinks(4) or window(4096))",
    "chunked": "causal and q // 512 == k // 512",
    "dilated": "dilated(64, 8)",
    "ladder": "causal and ((k // 128 + layer) % 8 == 0 or window(1024))",
    "heads": "if head < 2 then causal else causal and window(512)",
}
TWO_PASSES = "window(512) or dilated(512, 8)"


@pytest.fixture(autouse=True)
def _untuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tuned is asked for by device, and there is none."""
    monkeypatch.setattr(launchers, "config_for", lambda *_, **__: None)


def layouts(length: int, *names: str) -> list[Layout]:
    strides = (HEADS * length * DIM, length * DIM, DIM, 1)
    return [Layout(name, 0, (1, HEADS, length, DIM), strides, 2) for name in names]


def forward(text: str, length: int, dtype: DType = "bfloat16") -> tuple[Launch, ...]:
    planner = launchers.launcher(load(text).structure, ()).planner
    given = layouts(length, "query", "key", "value", "out")
    problem = Problem(dtype, DIM, DIM)
    return planner.plan(problem, "cuda:90", given, {"q_offset": 0, "layer": 0}, 1.0)


def backward(text: str, length: int) -> tuple[Launch, ...]:
    launchers.backward_launcher.cache_clear()  # settings are read when one is made
    planner = launchers.backward_launcher(load(text).structure, ()).planner
    given = layouts(length, "grad_out", "query", "key", "value", "out")
    problem, env = Problem("bfloat16", DIM, DIM), {"q_offset": 0, "layer": 0}
    return planner.plan(problem, "cuda:90", given, env, 1.0, multiprocessors=132)


def sizes(launches: Iterable[Launch]) -> dict[str, int]:
    """Bytes of all buffers, by name; both types are of 4."""
    return {name: 4 * prod(shape) for one in launches for name, shape, _ in one.buffers}


@pytest.mark.parametrize("text", ONE_PASS.values(), ids=ONE_PASS)
def test_closed_forms_take_nothing_beside_their_results(text: str) -> None:
    for length in (1000, 1 << 20):
        assert sizes(forward(text, length)) == {}


def test_a_second_pass_takes_the_rows_of_the_first() -> None:
    for length in (1000, 1 << 17):
        launches = forward(TWO_PASSES, length)
        assert len(launches) == 2
        assert sizes(launches) == {"state": 4 * HEADS * length * DIM}
    assert sizes(forward(TWO_PASSES, 1000, "float32")) == {}


@pytest.mark.parametrize("allowed", [True, False], ids=["one pass", "two kernels"])
@pytest.mark.parametrize("text", ONE_PASS.values(), ids=ONE_PASS)
def test_backward_takes_numbers_for_each_row_and_sums(
    text: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = replace(settings(), one_pass=allowed)
    monkeypatch.setattr(launchers, "settings", lambda: asked)
    for length in (1 << 13, 1 << 20):
        launches = backward(text, length)
        found = sizes(launches)
        sums = found.pop("sums", 0)
        rows = 4 * HEADS * (length + 1024)  # bytes; rows that fill up the last block count
        in_one_pass = "gradients" in {launch.source.name for launch in launches}
        assert allowed or not in_one_pass
        if in_one_pass:
            assert found.pop("query_sums") <= DIM * rows
            assert found.pop("added_shares") <= rows / 32
        assert set(found) <= {"row_lse", "row_delta"}, found
        assert sum(found.values()) <= 2 * rows
        # A float32 gradient of key and value for each program that the device runs at a time.
        assert sums <= 8 * 132 * 128 * 2 * DIM * 4
