"""Where chunks of key tiles stand in the grid where tiles take turns: in their order, each once,
and as the kernel finds them that adds chunks up."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu import balance
from patterncc.codegen.gpu.balance import split_in_turn
from patterncc.codegen.gpu.chunk_source import (
    MOST_PROGRESSIONS,
    Progression,
    chunk_values,
    follow_each_other,
    turn_place_lines,
)
from patterncc.codegen.gpu.gluon.gradient_source import emit_gluon_gradients
from patterncc.codegen.gpu.one_pass_choice import ONE_PASS
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from tests.codegen.gluon_emulator import Emulator

KERNEL = emit_gluon_gradients(
    lower_passes(load("full"), 64, 128)[0], Problem("bfloat16", 128, 128), ONE_PASS
)


@st.composite
def _splits(draw: st.DrawFn) -> tuple[int, tuple[Progression, ...]]:
    """Progressions that follow each other, and how many key tiles there are."""
    found, place = [], 0
    for _ in range(draw(st.integers(0, MOST_PROGRESSIONS))):
        first = place + draw(st.integers(0, 5))
        step, count = draw(st.integers(1, 6)), draw(st.integers(1, 5))
        found.append(Progression(first, step, count, draw(st.integers(1, 7))))
        place = first + step * (count - 1) + 1
    return place + draw(st.integers(0 if found else 1, 9)), tuple(found)


def _found(programs: int, split: tuple[Progression, ...]) -> list[tuple[int, int, int, bool, int]]:
    """What the lines compute for each program, in the numbers that kernels compute with, whose
    divisions round to 0."""
    scope: dict[str, Any] = Emulator(KERNEL, ()).names()
    scope |= {
        name: torch.tensor(value, dtype=torch.int32) for name, value in chunk_values(split).items()
    }
    numbers = torch.arange(programs, dtype=torch.int32)
    scope["tl"].program_id = lambda axis: numbers
    scope["towards_zero"] = lambda a, b: torch.div(a, b, rounding_mode="trunc")
    text = "\n".join(turn_place_lines())
    for rounded in (text, text.replace("left // (", "towards_zero(left, ")):
        exec(rounded, scope)
        assert not bool(torch.as_tensor(scope["idle"]).any())
    names = ("key_place", "chunk", "chunks", "split", "sums_place")
    columns = [torch.as_tensor(scope[name]).broadcast_to(programs).tolist() for name in names]
    return list(zip(*columns, strict=True))


@settings(max_examples=200, deadline=None)
@given(_splits())
def test_places(drawn: tuple[int, tuple[Progression, ...]]) -> None:
    tiles, split = drawn
    assert follow_each_other(split)
    rows: dict[tuple[int, int], int] = {}
    chunks: dict[int, int] = {}
    for one in split:
        for number in range(one.count):
            tile = one.first + one.step * number
            chunks[tile] = one.chunks
            for chunk in range(one.chunks):
                rows[tile, chunk] = len(rows)
    wanted = [
        (tile, chunk, chunks.get(tile, 1), tile in chunks, rows.get((tile, chunk), 0))
        for tile in range(tiles)
        for chunk in range(chunks.get(tile, 1))
    ]
    assert _found(len(wanted), split) == wanted


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([0, 3, 9, 10, 40, 250]), min_size=1, max_size=80),
    st.integers(1, 20),
    st.integers(1, 8),
)
def test_tall_tiles_in_order(steps: list[int], copies: int, parts: int) -> None:
    """No chunk is longer than asked for; what cannot be told in few numbers is None."""
    split = split_in_turn(np.array(steps), copies, 132, parts)
    if split is None:
        return
    assert follow_each_other(split)
    whole = split_in_turn(np.array(steps), copies, 132, 1)
    assert whole is not None
    assert all(
        one.chunks >= 1 and one.first + one.step * (one.count - 1) < len(steps) for one in split
    )
    assert sum(one.programs for one in split) >= sum(one.programs for one in whole)


def test_tiles_that_nobody_sees_are_a_chunk() -> None:
    """A progression may hold other tiles than tall ones, and half of one only such."""
    steps = np.zeros(400, np.int64)
    tall = [0, 1, 3, 7, 12, 20, 30, 45, 66, 90, 140]
    steps[tall] = 300
    steps[390:] = 9
    for parts in (1, 2, 8):
        split = split_in_turn(steps, 16, 132, parts)
        if split is not None:
            assert all(one.chunks >= 1 for one in split)
    zeros = balance._halved(steps, [Progression(160, 10, 8, 5)], 3)
    assert zeros
    assert all(one.chunks >= 1 for one in zeros)


def test_no_order() -> None:
    """Tall key tiles of no pattern."""
    steps = np.full(600, 4)
    steps[np.random.default_rng(0).choice(600, 40, replace=False)] = 300
    assert split_in_turn(steps, 16, 132, 1) is None
