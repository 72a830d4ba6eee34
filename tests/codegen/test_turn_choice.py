"""Which order of turns is chosen, beside what was measured on an H200 (docs/gluon.md)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu import one_pass_choice, turn_choice
from patterncc.codegen.gpu.balance import key_tile_steps, split_tiles
from patterncc.codegen.gpu.chunk_source import follow_each_other
from patterncc.codegen.gpu.config import Neighbours
from patterncc.codegen.gpu.one_pass_choice import ONE_PASS, choose_one_pass
from patterncc.codegen.gpu.turn_choice import TurnChoice, choose_turns, turn_choices
from patterncc.codegen.gpu.turn_count import (
    START,
    end_by_programs,
    end_in_steps,
    first_tiles,
    programs_of_head,
)
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.problem import Problem
from patterncc.codegen.turns import Turns
from patterncc.dsl import load

WIDE = Problem("bfloat16", 128, 128)
NEIGHBOURS: tuple[Neighbours, ...] = ("tiles", "heads")
COUNTS = (end_by_programs, end_in_steps)


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
    first = first_tiles(program, env, 16, 1)
    programs = list(programs_of_head(steps, first, ()))
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
    """Sinks are nearly as fast as as many more tiles of a window: they are first, and the window's
    programs never catch up, or their chunks are last, for which nobody waits."""
    program, env = _program(text), _call(length)
    steps = key_tile_steps(program, env, 16, 1, strict=True)
    choice = _choose(program, env, 16, 1, 1, 132)
    assert choice.uneven == bool(split_tiles(steps, 16, 132))
    assert choice.uneven or not choice.split
    assert follow_each_other(choice.split)
    first = first_tiles(program, env, 16, 1)
    programs = list(programs_of_head(steps, first, choice.split))
    if choice.turns == "falling":
        programs.reverse()
    end = end_in_steps(programs, 16, 132, choice.neighbours)
    ideal = 16 * (steps.sum() + START * len(programs)) / 132
    assert end < 1.2 * ideal + 2 * np.median(steps)


UNEVEN = ("streaming(64, 4096)", "streaming(64, 1024)", "local_strided(64, 16, 8)")
CALLS = ((16384, 16, 1, 1), (65536, 8, 1, 1), (32768, 32, 4, 1), (4096, 16, 1, 4), (8192, 2, 1, 1))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("text", UNEVEN)
def test_not_all_is_tried(text: str, call: tuple[int, int, int, int]) -> None:
    """Nothing that is left out is much faster; chunks take no more memory than the sums of the
    query's gradient, and gain."""
    length, heads, group, batch = call
    program, env = _program(text), _call(length)
    steps = key_tile_steps(program, env, heads, group, strict=True)
    every = list(turn_choices(program, steps, env, heads, group, batch, 132))
    choice = _choose(program, env, heads, group, batch, 132)
    assert choice in every
    assert choice.faster > 0.96 * max(one.faster for one in every)
    chunks = max(sum(part.programs for part in one.split) for one in every)
    assert chunks * 2 * program.block_k <= group * length
    if choice.split:
        order = choice.turns, choice.neighbours
        whole = [c for c in every if (c.turns, c.neighbours) == order and not c.split]
        assert [choice.faster > 1.02 * one.faster for one in whole] == [True]


@pytest.mark.parametrize("text", ["ladder(64, 1024, 128, 8)", "local_strided(64, 16, 8)"])
def test_rungs_are_first_and_whole(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rung takes less than an even share, and other rows' turns come while it runs."""
    monkeypatch.setattr(one_pass_choice, "LEAST_FASTER_UNEVEN", 1.15)
    program, env = _program(text), _call(16384) | {"layer": 0}
    choice = choose_one_pass((program,), WIDE, "cuda:90", env, 16, in_turn=True)
    assert (choice.turns, choice.config.neighbours, choice.split) == ("rising", "heads", ())


def test_uneven_key_tiles_must_be_further_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass_choice, "LEAST_FASTER_UNEVEN", 1.15)
    program, env = _program("streaming(64, 1024)"), _call(16384)
    choice = choose_one_pass((program,), WIDE, "cuda:90", env, 16, in_turn=True)
    assert choice.program is None
    assert "1.12 times as fast as two kernels, by count, unsure where some" in choice.reason
    program, longer = _program("streaming(64, 4096)"), _call(65536)
    choice = choose_one_pass((program,), WIDE, "cuda:90", longer, 4, in_turn=True)
    assert choice.turns == "falling"
    assert choice.split
    assert "1 that far more rows see as" in choice.reason
    monkeypatch.setattr(one_pass_choice, "LEAST_FASTER_UNEVEN", math.inf)
    assert choose_one_pass((program,), WIDE, "cuda:90", longer, 4, in_turn=True).program is None
    even = _program("window(1024)")
    assert choose_one_pass((even,), WIDE, "cuda:90", env, 16, in_turn=True).turns == "falling"


def test_more_key_tiles_than_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside heads a grid has a limit; chunks count, and so do key tiles that nobody sees."""
    program, env = _program("streaming(64, 1024)"), _call(16384)
    steps = key_tile_steps(program, env, 16, 1, strict=True)
    monkeypatch.setattr(turn_choice, "MOST_PROGRAMS", len(steps) + 6)
    some = list(turn_choices(program, steps, env, 16, 1, 1, 132))
    assert some
    assert all(sum(one.programs - 1 for one in choice.split) <= 6 for choice in some)
    monkeypatch.setattr(turn_choice, "MOST_PROGRAMS", len(steps) - 1)
    assert choose_turns(program, steps, env, 16, 1, 1, 132) is None
    choice = choose_one_pass((program,), WIDE, "cuda:90", env, 16, in_turn=True)
    assert "more key tiles than a grid has places" in choice.reason
    even = _choose(_program("window(1024)"), env, 16, 1, 1, 132)
    assert even.neighbours == "tiles"


@pytest.mark.parametrize("text", ["streaming(64, 4096)", "streaming(64, 1024)"])
def test_some_heads_with_as_much_of_the_device(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, env = _program(text), _call(16384)
    whole = _choose(program, env, 16, 1, 1, 132)
    monkeypatch.setattr(turn_choice, "MOST_FOLLOWED", 4 * 128)
    part = _choose(program, env, 16, 1, 1, 132)
    assert part.turns == whole.turns
    assert part.faster == pytest.approx(whole.faster, rel=0.05)


@pytest.mark.parametrize("text", ["causal", "window(4096)"])
def test_some_heads_stand_for_many(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted has a limit, however many heads and batch entries a call has."""
    program, env = _program(text), _call(16384)
    whole = _choose(program, env, 32, 1, 4, 132)
    monkeypatch.setattr(turn_choice, "MOST_COUNTED", 32 * 128)
    assert _choose(program, env, 32, 1, 4, 132).faster == pytest.approx(whole.faster, rel=0.05)
    same = _choose(program, env, 32, 1, 1, 132).faster
    assert _choose(program, env, 32, 1, 4096, 132).faster == same
