"""Chunks of key tiles that take turns: the kernel of all gradients, with chunks at the places of
their tiles, run on the CPU by `gluon_emulator`. Programs run one after the other, as they are
started: one that waits for a later one is a deadlock."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from patterncc.codegen.gpu import key_tile_plan, one_pass_choice
from patterncc.codegen.gpu.balance import split_in_turn
from patterncc.codegen.gpu.chunk_source import Progression
from patterncc.codegen.gpu.config import Neighbours
from patterncc.codegen.gpu.gluon.gradient_source import emit_gluon_gradients
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.turn_choice import TurnChoice
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.turns import Turns
from tests.codegen.emulated_gradients import errors, is_right
from tests.codegen.gluon_emulator import run_launch

ORDERS: tuple[tuple[Turns, Neighbours], ...] = (
    *(("rising", "heads"), ("rising", "tiles")),
    *(("falling", "tiles"), ("falling", "heads")),
)
WIDTHS = (128, 64)


@pytest.fixture(autouse=True)
def _in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass_choice, "LEAST_STEPS", 0)
    monkeypatch.setattr(one_pass_choice, "costly_mask", lambda mask: None)


SPLIT = (
    *("streaming(5, 70)", "streaming(200, 70)", "local_strided(64, 2, 8)", "causal"),
    *("ladder(64, 100, 128, 4)", "if head in {0, 3} then causal else streaming(4, 50)"),
)
SPLIT_LENGTHS = ((700, 700, 0), (300, 800, 500), (650, 330, -320))


@pytest.fixture(params=ORDERS)
def splits(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Progression, ...]]:
    """Every order, with tall key tiles in chunks of two tiles of rows; what is split, call by
    call."""
    order, neighbours = request.param
    found: list[tuple[Progression, ...]] = []

    def choose(
        program: BlockProgram, steps: Any, env: Any, heads: int, group: int, batch: int, *_: int
    ) -> TurnChoice:
        split = split_in_turn(steps, heads // group * batch, 132, 4)
        assert split is not None
        found.append(split)
        return TurnChoice(order, neighbours, 2.0, split)

    monkeypatch.setattr(one_pass_choice, "choose_turns", choose)
    monkeypatch.setattr("tests.codegen.gluon_emulator._PATIENCE", 2.0)
    return found


@pytest.mark.parametrize("heads", [(4, 2), (2, 2)])
@pytest.mark.parametrize("text", SPLIT)
def test_chunks_in_turn(
    text: str,
    heads: tuple[int, int],
    splits: list[tuple[Progression, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sums are NaN before, where the first one stores."""
    for number, lengths in enumerate(SPLIT_LENGTHS):
        if text.startswith("ladder") and number == 2:
            continue  # rows before the first key take it more loops than programs in turn may have
        monkeypatch.setattr(one_pass_choice, "FIRST_STORES", math.inf if number % 2 else 0.0)
        width = WIDTHS[number == 2]
        found = errors(text, lengths, heads, width=width, in_turn=True, splits=splits)
        assert is_right(found), (lengths, splits[-1], found)
    assert any(splits) or heads == (2, 2)  # there some see too few rows


def _always(monkeypatch: pytest.MonkeyPatch, choice: TurnChoice) -> None:
    monkeypatch.setattr(one_pass_choice, "choose_turns", lambda *call: choice)
    monkeypatch.setattr("tests.codegen.gluon_emulator._PATIENCE", 0.5)


@pytest.mark.parametrize(("order", "neighbours"), ORDERS)
@pytest.mark.parametrize(
    "split",
    [
        (Progression(1, 2, 2, 3),),
        (Progression(0, 2, 2, 3), Progression(3, 1, 1, 5), Progression(4, 1, 2, 1)),
    ],
)
def test_any_key_tiles_may_be_split(
    order: Turns,
    neighbours: Neighbours,
    split: tuple[Progression, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also into more chunks than there are rows, and into one."""
    _always(monkeypatch, TurnChoice(order, neighbours, 2.0, split))
    for text in ("full", "causal", "window(200)"):
        found = errors(text, (700, 700, 0), (2, 1), in_turn=True, splits=[split])
        assert is_right(found), (text, found)


@pytest.mark.parametrize(("order", "neighbours"), ORDERS)
def test_programs_started_in_the_other_order_are_a_deadlock(
    order: Turns, neighbours: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = (Progression(1, 2, 2, 3),)
    _always(monkeypatch, TurnChoice(order, neighbours, 2.0, split))
    axis = 1 if neighbours == "heads" else 0
    here, there = f"tl.program_id({axis})", f"(tl.num_programs({axis}) - 1 - tl.program_id({axis}))"

    def other(text: str) -> str:
        if order == "falling":
            return text.replace(there, here)
        return text.replace(f"program = {here}", f"program = {there}")

    with pytest.raises(AssertionError):
        errors("full", (700, 700, 0), (1, 1), other, in_turn=True, splits=[split])


def test_chunks_before_all_key_tiles_are_a_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are where nobody takes turns."""
    split = (Progression(3, 1, 1, 2),)
    _always(monkeypatch, TurnChoice("rising", "heads", 2.0, split))

    def before(*call: Any, split: bool, **options: Any) -> Any:
        return emit_gluon_gradients(*call, **options)

    monkeypatch.setattr(key_tile_plan, "emit_gluon_gradients", before)
    with pytest.raises(AssertionError):
        errors("full", (700, 700, 0), (1, 1), in_turn=True, splits=[split])


def test_chunks_have_the_same_bits_in_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of the emulator race as warps do."""
    split = (Progression(0, 1, 1, 4),)
    _always(monkeypatch, TurnChoice("falling", "heads", 2.0, split))
    results: list[dict[str, torch.Tensor]] = []
    run = run_launch

    def kept(launch: Launch, operands: dict[str, torch.Tensor]) -> None:
        run(launch, operands)
        names = ("query_sums", "sums", "grad_key", "grad_value")
        results.append({name: operands[name].clone() for name in names})

    monkeypatch.setattr("tests.codegen.emulated_gradients.run_launch", kept)
    for _ in range(3):
        errors("streaming(5, 70)", (500, 500, 0), in_turn=True, splits=[split])
    for again in results[1:]:
        for name, found in results[0].items():
            assert torch.equal(found.nan_to_num(7.0), again[name].nan_to_num(7.0)), name
