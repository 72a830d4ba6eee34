"""Which order of turns is chosen, beside what was measured on an H200 (docs/gluon.md)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu import turn_choice
from patterncc.codegen.gpu.balance import key_tile_steps, split_tiles
from patterncc.codegen.gpu.chunk_source import follow_each_other
from patterncc.codegen.gpu.config import Neighbours
from patterncc.codegen.gpu.one_pass_choice import ONE_PASS, choose_one_pass
from patterncc.codegen.gpu.turn_choice import TurnChoice, choose_turns
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.problem import Problem
from patterncc.codegen.turns import Turns
from patterncc.dsl import load

WIDE = Problem("bfloat16", 128, 128)
NEIGHBOURS: tuple[Neighbours, ...] = ("tiles", "heads")
COUNTS = (turn_choice._end, turn_choice._end_in_steps)


def _program(text: str) -> BlockProgram:
    (program,) = lower_passes(load(text), ONE_PASS.block_q, ONE_PASS.block_k, within=True)
    return program


def _call(length: int) -> dict[str, int]:
    return {"q_len": length, "kv_len": length, "q_offset": 0}


def _choose(
    program: BlockProgram, env: dict[str, int], heads: int, group: int, *rest: int
) -> TurnChoice:
    steps = key_tile_steps(program, env, heads, group, strict=True)
    choice = choose_turns(program, steps, env, heads, group, *rest)
    assert choice is not None
    return choice


@pytest.mark.parametrize(
    ("text", "heads", "length", "turns", "faster"),
    [
        ("full", (16, 16), 16384, "rising", 1.34),
        ("causal", (16, 16), 16384, "rising", 1.30),
        ("window(4096)", (16, 16), 16384, "falling", 1.30),
        ("window(1024)", (16, 16), 16384, "falling", 1.07),
        ("causal", (2, 2), 8192, "falling", 1.34),
        ("full", (2, 2), 8192, None, 0.90),
        ("full", (16, 16), 4096, "rising", 1.33),
        ("causal", (1, 1), 32768, None, 1.00),
        ("full", (1, 1), 32768, "rising", 1.27),
        ("window(4096)", (1, 1), 32768, "falling", 1.27),
        ("causal", (32, 8), 32768, "rising", 1.23),
        ("window(4096)", (32, 8), 32768, "rising", 1.26),
    ],
)
def test_measured_calls(
    text: str, heads: tuple[int, int], length: int, turns: Turns | None, faster: float
) -> None:
    """The faster order, where one pass is faster at all, about as much faster as was measured."""
    program, group = _program(text), heads[0] // heads[1]
    env, problem = _call(length), replace(WIDE, group=group)
    choice = choose_one_pass((program,), problem, "cuda:90", env, heads[0], in_turn=True)
    assert choice.turns == turns, choice.reason
    assert choice.config.neighbours == ("heads" if turns == "rising" else "tiles")
    counted = _choose(program, env, heads[0], group, 1, 132).faster
    assert 0.85 < counted / faster < 1.06


@pytest.mark.parametrize(
    ("text", "problem", "reason"),
    [
        ("dilated(512, 8)", WIDE, "visited in classes"),
        ("pattern p(d: segments): causal and d[q] == d[k]", WIDE, "known to the device alone"),
    ],
)
def test_refusals(text: str, problem: Problem, reason: str) -> None:
    choice = choose_one_pass((_program(text),), problem, "cuda:90", _call(16384), 16, in_turn=True)
    assert choice.program is None
    assert reason in choice.reason


@pytest.mark.parametrize("turns", ["rising", "falling"])
@pytest.mark.parametrize("text", ["causal", "window(4096)", "full"])
def test_both_counts_agree_where_nothing_is_split(text: str, turns: Turns) -> None:
    """By programs, and by every step of them."""
    program, env = _program(text), _call(16384)
    steps = key_tile_steps(program, env, 16, 1, strict=True)
    first = turn_choice._first_tiles(program, env, 16, 1)
    programs = list(turn_choice._programs(steps, first, ()))
    if turns == "falling":
        programs.reverse()
    for neighbours in NEIGHBOURS:
        ends = [count(programs, 16, 132, neighbours) for count in COUNTS]
        assert ends[0] == pytest.approx(ends[1], rel=0.03)


@pytest.mark.parametrize("length", [4096, 16384, 100_000])
@pytest.mark.parametrize(
    "text", ["streaming(64, 4096)", "streaming(64, 1024)", "window(512) or k < 700"]
)
def test_sinks_cost_about_what_they_see(text: str, length: int) -> None:
    """Chunks of sinks are nearly as fast as as many more tiles of a window: nobody waits for
    them."""
    program, env = _program(text), _call(length)
    steps = key_tile_steps(program, env, 16, 1, strict=True)
    choice = _choose(program, env, 16, 1, 1, 132)
    tall = split_tiles(steps, 16, 132)
    if tall:
        assert choice.split
        assert follow_each_other(choice.split)
    first = turn_choice._first_tiles(program, env, 16, 1)
    programs = list(turn_choice._programs(steps, first, choice.split))
    if choice.turns == "falling":
        programs.reverse()
    end = turn_choice._end_in_steps(programs, 16, 132, choice.neighbours)
    ideal = 16 * (steps.sum() + turn_choice.START * len(programs)) / 132
    assert end < 1.2 * ideal + 2 * np.median(steps)


@pytest.mark.parametrize("text", ["causal", "window(4096)"])
def test_some_heads_stand_for_many(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted has a limit, however many heads and batch entries a call has."""
    program, env = _program(text), _call(16384)
    whole = _choose(program, env, 32, 1, 4, 132)
    monkeypatch.setattr(turn_choice, "MOST_COUNTED", 32 * 128)
    assert _choose(program, env, 32, 1, 4, 132).faster == pytest.approx(whole.faster, rel=0.05)
    same = _choose(program, env, 32, 1, 1, 132).faster
    assert _choose(program, env, 32, 1, 4096, 132).faster == same
