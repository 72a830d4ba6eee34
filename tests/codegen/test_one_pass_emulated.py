"""The kernel of all gradients run on the CPU by `gluon_emulator`, against float64."""

from __future__ import annotations

import math
import re

import pytest
import torch

from patterncc.codegen.gpu import key_tile_plan, one_pass_choice
from patterncc.codegen.gpu.chunk_source import Progression
from patterncc.codegen.gpu.config import Neighbours
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.turn_choice import TurnChoice
from patterncc.codegen.turns import Turns
from tests.codegen.emulated_gradients import errors, is_right
from tests.codegen.gluon_emulator import DENSE_TEXTS, Deadlock, run_launch

LENGTHS = ((300, 300, 0), (77, 391, 314), (391, 77, -314), (1, 400, 399))
WIDTHS = (128, 64)


@pytest.fixture(autouse=True)
def _in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass_choice, "LEAST_STEPS", 0)
    monkeypatch.setattr(one_pass_choice, "costly_mask", lambda mask: None)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("text", DENSE_TEXTS)
def test_patterns(text: str, width: int) -> None:
    for lengths in LENGTHS:
        found = errors(text, lengths, width=width)
        assert is_right(found), (lengths, found)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("heads", [(2, 2), (4, 1)])
def test_groups(heads: tuple[int, int], width: int) -> None:
    assert is_right(errors("window(200)", (500, 500, 0), heads, width=width))


def test_positions_at_the_ends_of_what_kernels_count() -> None:
    """Limits and positions 2^30 apart differ by more than 32 bits hold."""
    for offset in (-(1 << 30), (1 << 30) - 300):
        assert is_right(errors("around(50)", (300, 300, offset), (1, 1)))
        assert is_right(errors("k > q", (300, 300, offset), (1, 1)))


@pytest.mark.parametrize("width", WIDTHS)
def test_chunks_add_up(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split tile leaves sums, one of each chunk; nobody writes its gradients."""
    split = (Progression(0, 1, 1, 3),)
    monkeypatch.setattr(key_tile_plan, "split_tiles", lambda *_: split)
    assert not is_right(
        errors("causal", (500, 500, 0), (1, 1), width=width)
    )  # chunks are not summed here
    run = run_launch

    def summed(launch: Launch, operands: dict[str, torch.Tensor]) -> None:
        run(launch, operands)
        assert operands["sums"].shape == (1, 1, 3, 128, 2 * width)
        sums = operands["sums"].sum(2)
        assert bool(operands["grad_key"][:, :, :128].isnan().all())
        operands["grad_key"][:, :, :128] = width**-0.5 * sums[..., :width]
        operands["grad_value"][:, :, :128] = sums[..., width:]

    monkeypatch.setattr("tests.codegen.emulated_gradients.run_launch", summed)
    assert is_right(errors("causal", (500, 500, 0), (1, 1), width=width))


# ------------------------------------------------------------------------------------ in turn


ORDERS: tuple[tuple[Turns, Neighbours], ...] = (
    *(("rising", "heads"), ("rising", "tiles")),
    *(("falling", "tiles"), ("falling", "heads")),
)


@pytest.fixture(params=ORDERS)
def turns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every order of programs, also where it would not be chosen. They run one after the other, as
    they are started: one that waits for a later one is a deadlock."""
    order, neighbours = request.param
    choice = TurnChoice(order, neighbours, 2.0)
    monkeypatch.setattr(one_pass_choice, "choose_turns", lambda *call: choice)
    monkeypatch.setattr("tests.codegen.gluon_emulator._PATIENCE", 2.0)


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "text", ["full", "causal", "window(100)", "streaming(5, 70)", "k > q", "q > 100000 and k < 5"]
)
def test_in_turn(text: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass_choice, "FIRST_STORES", 0.0)
    for lengths in LENGTHS:
        found = errors(text, lengths, width=width, in_turn=True)
        assert is_right(found), (lengths, found)


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("text", ["full", "window(100)", "k > q", "q > 100000 and k < 5"])
def test_the_first_turn_stores(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are NaN before; rows that no key tile adds to are never written."""
    monkeypatch.setattr(one_pass_choice, "FIRST_STORES", math.inf)
    for lengths in LENGTHS:
        found = errors(text, lengths, in_turn=True)
        assert is_right(found), (lengths, found)


def test_a_first_turn_that_adds_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = TurnChoice("rising", "heads", 2.0)
    monkeypatch.setattr(one_pass_choice, "choose_turns", lambda *call: choice)
    monkeypatch.setattr(one_pass_choice, "FIRST_STORES", math.inf)
    found = errors(
        "full",
        (500, 500, 0),
        (1, 1),
        lambda text: text.replace("copy_out(query_sums", "add_out(query_sums"),
        in_turn=True,
    )
    assert not is_right(found)


@pytest.mark.usefixtures("turns")
def test_heads_that_differ_in_turn() -> None:
    text = "if head in {0, 3} then causal else streaming(4, 50)"
    assert is_right(errors(text, (500, 500, 0), (4, 1), in_turn=True))


@pytest.mark.parametrize(
    "change", [("turn = tl.cast(", "turn = tl.cast(1 + "), ("pass_turn", "id")]
)
def test_a_wrong_turn_is_a_deadlock(
    change: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number too many, or a turn that is not passed."""
    choice = TurnChoice("rising", "heads", 2.0)
    monkeypatch.setattr(one_pass_choice, "choose_turns", lambda *call: choice)
    monkeypatch.setattr("tests.codegen.gluon_emulator._PATIENCE", 0.2)

    def wrong(text: str) -> str:
        start = text.index("def add_shares(")  # after the functions that it calls
        return text[:start] + text[start:].replace(*change)

    with pytest.raises(AssertionError):
        errors("full", (500, 500, 0), (1, 1), wrong, in_turn=True)


def test_a_share_that_is_given_back_early_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = TurnChoice("rising", "heads", 2.0)
    monkeypatch.setattr(one_pass_choice, "choose_turns", lambda *call: choice)

    def early(text: str) -> str:
        slow = "__import__('time').sleep(0.02)"
        return re.sub(r"( +)copied_out\(0\)\n(.*\n)", rf"\2\1{slow}\n\1copied_out(0)\n", text)

    found = errors("causal", (500, 500, 0), (1, 1), early, in_turn=True)
    assert found.query > 0.1
    assert max(found.key, found.value) < 2e-2


# ------------------------------------------------------------------------------------ it would tell


@pytest.mark.parametrize(
    "barrier",
    ["rows_free.index(stage)", "grad_scores_ready.index(stage)", "query_ready.index(stage)"],
)
def test_a_missing_arrival_is_a_deadlock(barrier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.codegen.gluon_emulator._PATIENCE", 0.2)
    with pytest.raises(Deadlock):
        errors(
            "causal", (500, 500, 0), (1, 1), lambda text: text.replace(f"arrive({barrier})", "pass")
        )


@pytest.mark.parametrize("width", WIDTHS)
def test_warpgroups_that_do_not_wait_for_each_other_are_seen(width: int) -> None:
    """The share of the query's gradient would read what the other one has not yet left."""

    def unheard(text: str) -> str:
        slow = "__import__('time').sleep(0.05 * part)"
        text = re.sub(r"( +)(grad_scores_tiles.index\(.*?store.*)", rf"\1{slow}\n\1\2", text)
        return text.replace("wait(grad_scores_ready.index(other), phase ^ other)", "pass")

    assert not is_right(errors("causal", (500, 500, 0), (1, 1), unheard, width))


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_that_are_given_back_early_are_seen(width: int) -> None:
    def early(text: str) -> str:
        text = re.sub(r" +arrive\(rows_free.index\(stage\)\)\n", "", text)
        wait = "__import__('time').sleep(0.02)"
        asked = r"( +)(grad_key = multiply\(factors, query.*\n)"
        return re.sub(asked, rf"\1\2\1arrive(rows_free.index(stage))\n\1{wait}\n", text)

    assert not is_right(errors("full", (700, 700, 0), (1, 1), early, width))


@pytest.mark.parametrize("heads", [(1, 1), (4, 1)])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_share_that_is_overwritten_before_it_is_added_is_seen(
    heads: tuple[int, int], width: int
) -> None:
    """The copy engine may read it as late as somebody waits for that."""
    found = errors(
        "causal",
        (500, 500, 0),
        heads,
        lambda text: re.sub(r"( {8,})copied_out\(0\)\n", r"\1pass\n", text),
        width,
    )
    assert found.query > 0.1
    assert max(found.key, found.value) < 2e-2


@pytest.mark.parametrize("width", WIDTHS)
def test_scores_that_are_asked_for_before_their_rows_are_there_are_seen(width: int) -> None:
    def early(text: str) -> str:
        slow = r"\1__import__('time').sleep(0.02)\n\1copy_in(query_desc_0"
        text = re.sub(r"( +)copy_in\(query_desc_0", slow, text)
        return text.replace("wait(query_ready.index(other), phase ^ stage)", "pass")

    assert not is_right(errors("full", (700, 700, 0), (1, 1), early, width))


def test_a_product_that_is_read_early_is_an_error() -> None:
    with pytest.raises(AssertionError, match="may still run"):
        errors(
            "causal",
            (300, 300, 0),
            (1, 1),
            lambda text: text.replace("grad_weights = finish(1, ", "grad_weights = finish(2, "),
        )
