"""The kernel of all gradients run on the CPU by `gluon_emulator`, against float64."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu import key_tile_plan, one_pass_choice
from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.backward_plan import BackwardPlanner
from patterncc.codegen.gpu.balance import split_in_turn
from patterncc.codegen.gpu.chunk_source import Progression
from patterncc.codegen.gpu.config import Neighbours
from patterncc.codegen.gpu.gluon.gradient_source import emit_gluon_gradients
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.steps import layout_of, problem_of
from patterncc.codegen.gpu.turn_choice import TurnChoice
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.turns import Turns
from patterncc.dsl import load
from patterncc.dsl.score.terms import PLAIN
from tests.codegen.attention import poisoned
from tests.codegen.gluon_emulator import DENSE_TEXTS, Deadlock, run_launch
from tests.codegen.gradients import GradientErrors, gradient_errors, reference

LENGTHS = ((300, 300, 0), (77, 391, 314), (391, 77, -314), (1, 400, 399))
WIDTHS = (128, 64)
SIZES = {"heads": 4, "kv_heads": 2, "layers": 4}

Change = Callable[[str], str]


@pytest.fixture(autouse=True)
def _in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass_choice, "LEAST_STEPS", 0)
    monkeypatch.setattr(one_pass_choice, "costly_mask", lambda mask: None)


def _launches(
    text: str, operands: dict[str, torch.Tensor], env: dict[str, int], scale: float, in_turn: bool
) -> list[Launch]:
    def lowered(block_q: int, block_k: int) -> Any:
        return [
            lower_passes(load(text), block_q, block_k, sizes=SIZES, within=within)
            for within in (True, False)
        ]

    names = ("grad_out", "query", "key", "value", "out")
    query, key, value = (operands[name] for name in names[1:4])
    planned = BackwardPlanner(lowered, BackwardConfig(), one_pass=True, in_turn=in_turn).plan(
        problem_of(query, key, value, PLAIN, isolates=False),
        "cuda:90",
        [layout_of(name, operands[name]) for name in names],
        env,
        scale,
    )
    return list(planned)


def _errors(
    text: str,
    lengths: tuple[int, int, int],
    heads: tuple[int, int] = (4, 2),
    change: Change | None = None,
    width: int = 128,
    in_turn: bool = False,
    splits: Sequence[tuple[Progression, ...]] = (),
) -> GradientErrors:
    """The errors of the gradients; the kernels before and after, Triton's, are done by torch: of
    chunks, too, where the last of `splits` says what was split."""
    q_len, kv_len, offset = lengths
    scale = width**-0.5
    like = torch.empty(0, dtype=torch.bfloat16)
    torch.manual_seed(0)
    query, key, value = (
        poisoned((1, count, length, width), like)
        for count, length in ((heads[0], q_len), (heads[1], kv_len), (heads[1], kv_len))
    )
    grad_out = torch.randn(query.shape).bfloat16()
    env = {"q_offset": offset, "layer": 2}
    wanted = reference(load(text), (query, key, value), grad_out, None, env, scale)
    operands = {"query": query, "key": key, "value": value, "grad_out": grad_out}
    operands["out"] = wanted.out.bfloat16()
    launches = _launches(text, operands, env, scale, in_turn)
    assert [one.source.name for one in launches][:2] == ["delta", "gradients"]
    for launch in launches:
        for buffer in launch.buffers:
            number = float("nan") if buffer.dtype == "float32" else -1
            dtype = getattr(torch, buffer.dtype)
            operands[buffer.name] = torch.full(buffer.shape, number, dtype=dtype)
    rows = slice(0, q_len)
    operands["row_lse"].fill_(float("inf"))
    lse = wanted.lse * 1.4426950408889634
    operands["row_lse"][:, :, rows] = torch.where(wanted.alive, lse, float("inf")).float()
    operands["row_delta"].zero_()
    operands["row_delta"][:, :, rows] = (wanted.out * grad_out.double()).sum(3).float()
    operands["added_shares"].zero_()
    stores = "query_sums" not in launches[0].pointers  # then nothing clears them
    if not stores:
        operands["query_sums"].zero_()
    for name, tensor in (("grad_key", key), ("grad_value", value)):
        operands[name] = torch.full_like(tensor, float("nan"))
    kernel = launches[1]
    if change is not None:
        changed = change(kernel.source.text)
        assert changed != kernel.source.text
        kernel = replace(kernel, source=replace(kernel.source, text=changed))
    run_launch(kernel, operands)
    if splits and splits[-1]:
        assert launches[2].source.name == "sum_chunks"
        _sum_chunks(operands, splits[-1], scale)
    grad_query = _grad_query(operands, scale, counted=stores)
    found = (grad_query, operands["grad_key"], operands["grad_value"])
    return gradient_errors(found, wanted)


def _grad_query(operands: dict[str, torch.Tensor], scale: float, *, counted: bool) -> torch.Tensor:
    """The query's gradient of its sums: of half, warp, step, row in eight, pair of columns, rows
    eight apart, column of the pair."""
    _, heads, q_len, width = operands["query"].shape
    sums = operands["query_sums"]
    if counted:  # as `round_query` does
        written = operands["added_shares"][:, :, ::2] > 0
        sums = torch.where(written.repeat_interleave(64, 2)[..., None], sums, 0)
    sums = sums.view(1, heads, -1, 2, 4, width // 16, 8, 4, 2, 2)
    # The rows of a product are those of the tile, or its columns.
    order = (4, 8, 6, 3, 5, 7, 9) if width == 128 else (3, 5, 7, 9, 4, 8, 6)
    sums = sums.permute(0, 1, 2, *order).reshape(1, heads, -1, width)
    return scale * sums[:, :, :q_len]


def _sum_chunks(
    operands: dict[str, torch.Tensor], split: tuple[Progression, ...], scale: float
) -> None:
    """Adds up what chunks have left, in their order. Nobody else has written those gradients."""
    width, place = operands["key"].shape[3], 0
    assert operands["sums"].shape[2] == sum(one.programs for one in split)
    for one in split:
        for tile in range(one.first, one.first + one.step * one.count, one.step):
            total = operands["sums"][:, :, place : place + one.chunks].sum(2)
            keys = slice(128 * tile, 128 * (tile + 1))
            results = (("grad_key", scale * total[..., :width]), ("grad_value", total[..., width:]))
            for name, found in results:
                rows = operands[name][:, :, keys]
                assert bool(rows.isnan().all())
                rows.copy_(found[:, :, : rows.shape[2]])
            place += one.chunks


def _right(found: GradientErrors) -> bool:
    return max(found.query, found.key, found.value) < 2e-2 and found.hidden


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("text", DENSE_TEXTS)
def test_patterns(text: str, width: int) -> None:
    for lengths in LENGTHS:
        found = _errors(text, lengths, width=width)
        assert _right(found), (lengths, found)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("heads", [(2, 2), (4, 1)])
def test_groups(heads: tuple[int, int], width: int) -> None:
    assert _right(_errors("window(200)", (500, 500, 0), heads, width=width))


def test_positions_at_the_ends_of_what_kernels_count() -> None:
    """Limits and positions 2^30 apart differ by more than 32 bits hold."""
    for offset in (-(1 << 30), (1 << 30) - 300):
        assert _right(_errors("around(50)", (300, 300, offset), (1, 1)))
        assert _right(_errors("k > q", (300, 300, offset), (1, 1)))


@pytest.mark.parametrize("width", WIDTHS)
def test_chunks_add_up(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split tile leaves sums, one of each chunk; nobody writes its gradients."""
    split = (Progression(0, 1, 1, 3),)
    monkeypatch.setattr(key_tile_plan, "split_tiles", lambda *_: split)
    assert not _right(
        _errors("causal", (500, 500, 0), (1, 1), width=width)
    )  # chunks are not summed here
    run = run_launch

    def summed(launch: Launch, operands: dict[str, torch.Tensor]) -> None:
        run(launch, operands)
        assert operands["sums"].shape == (1, 1, 3, 128, 2 * width)
        sums = operands["sums"].sum(2)
        assert bool(operands["grad_key"][:, :, :128].isnan().all())
        operands["grad_key"][:, :, :128] = width**-0.5 * sums[..., :width]
        operands["grad_value"][:, :, :128] = sums[..., width:]

    monkeypatch.setattr("tests.codegen.test_one_pass_emulated.run_launch", summed)
    assert _right(_errors("causal", (500, 500, 0), (1, 1), width=width))


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
        found = _errors(text, lengths, width=width, in_turn=True)
        assert _right(found), (lengths, found)


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("text", ["full", "window(100)", "k > q", "q > 100000 and k < 5"])
def test_the_first_turn_stores(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are NaN before; rows that no key tile adds to are never written."""
    monkeypatch.setattr(one_pass_choice, "FIRST_STORES", math.inf)
    for lengths in LENGTHS:
        found = _errors(text, lengths, in_turn=True)
        assert _right(found), (lengths, found)


def test_a_first_turn_that_adds_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = TurnChoice("rising", "heads", 2.0)
    monkeypatch.setattr(one_pass_choice, "choose_turns", lambda *call: choice)
    monkeypatch.setattr(one_pass_choice, "FIRST_STORES", math.inf)
    found = _errors(
        "full",
        (500, 500, 0),
        (1, 1),
        lambda text: text.replace("copy_out(query_sums", "add_out(query_sums"),
        in_turn=True,
    )
    assert not _right(found)


@pytest.mark.usefixtures("turns")
def test_heads_that_differ_in_turn() -> None:
    text = "if head in {0, 3} then causal else streaming(4, 50)"
    assert _right(_errors(text, (500, 500, 0), (4, 1), in_turn=True))


# ------------------------------------------------------------------------------------ in chunks


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
        found = _errors(text, lengths, heads, width=width, in_turn=True, splits=splits)
        assert _right(found), (lengths, splits[-1], found)
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
        found = _errors(text, (700, 700, 0), (2, 1), in_turn=True, splits=[split])
        assert _right(found), (text, found)


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
        _errors("full", (700, 700, 0), (1, 1), other, in_turn=True, splits=[split])


def test_chunks_before_all_key_tiles_are_a_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are where nobody takes turns."""
    split = (Progression(3, 1, 1, 2),)
    _always(monkeypatch, TurnChoice("rising", "heads", 2.0, split))

    def before(*call: Any, split: bool, **options: Any) -> Any:
        return emit_gluon_gradients(*call, **options)

    monkeypatch.setattr(key_tile_plan, "emit_gluon_gradients", before)
    with pytest.raises(AssertionError):
        _errors("full", (700, 700, 0), (1, 1), in_turn=True, splits=[split])


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

    monkeypatch.setattr("tests.codegen.test_one_pass_emulated.run_launch", kept)
    for _ in range(3):
        _errors("streaming(5, 70)", (500, 500, 0), in_turn=True, splits=[split])
    for again in results[1:]:
        for name, found in results[0].items():
            assert torch.equal(found.nan_to_num(7.0), again[name].nan_to_num(7.0)), name


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
        _errors("full", (500, 500, 0), (1, 1), wrong, in_turn=True)


def test_a_share_that_is_given_back_early_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = TurnChoice("rising", "heads", 2.0)
    monkeypatch.setattr(one_pass_choice, "choose_turns", lambda *call: choice)

    def early(text: str) -> str:
        slow = "__import__('time').sleep(0.02)"
        return re.sub(r"( +)copied_out\(0\)\n(.*\n)", rf"\2\1{slow}\n\1copied_out(0)\n", text)

    found = _errors("causal", (500, 500, 0), (1, 1), early, in_turn=True)
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
        _errors(
            "causal", (500, 500, 0), (1, 1), lambda text: text.replace(f"arrive({barrier})", "pass")
        )


@pytest.mark.parametrize("width", WIDTHS)
def test_warpgroups_that_do_not_wait_for_each_other_are_seen(width: int) -> None:
    """The share of the query's gradient would read what the other one has not yet left."""

    def unheard(text: str) -> str:
        slow = "__import__('time').sleep(0.05 * part)"
        text = re.sub(r"( +)(grad_scores_tiles.index\(.*?store.*)", rf"\1{slow}\n\1\2", text)
        return text.replace("wait(grad_scores_ready.index(other), phase ^ other)", "pass")

    assert not _right(_errors("causal", (500, 500, 0), (1, 1), unheard, width))


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_that_are_given_back_early_are_seen(width: int) -> None:
    def early(text: str) -> str:
        text = re.sub(r" +arrive\(rows_free.index\(stage\)\)\n", "", text)
        wait = "__import__('time').sleep(0.02)"
        asked = r"( +)(grad_key = multiply\(factors, query.*\n)"
        return re.sub(asked, rf"\1\2\1arrive(rows_free.index(stage))\n\1{wait}\n", text)

    assert not _right(_errors("full", (700, 700, 0), (1, 1), early, width))


@pytest.mark.parametrize("heads", [(1, 1), (4, 1)])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_share_that_is_overwritten_before_it_is_added_is_seen(
    heads: tuple[int, int], width: int
) -> None:
    """The copy engine may read it as late as somebody waits for that."""
    found = _errors(
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

    assert not _right(_errors("full", (700, 700, 0), (1, 1), early, width))


def test_a_product_that_is_read_early_is_an_error() -> None:
    with pytest.raises(AssertionError, match="may still run"):
        _errors(
            "causal",
            (300, 300, 0),
            (1, 1),
            lambda text: text.replace("grad_weights = finish(1, ", "grad_weights = finish(2, "),
        )
