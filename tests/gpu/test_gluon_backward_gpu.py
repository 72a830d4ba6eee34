"""Gradients in one pass on a real GPU, against float64: ragged ends, rows without keys, poisoned
memory, grouped heads, tall columns, and repeated runs: the query's gradient alone may differ, and
in turn nothing does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import patterncc
from patterncc.codegen.backward_tensors import BackwardTensors
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu import one_pass_choice
from patterncc.codegen.gpu.backward import Backward
from patterncc.codegen.gpu.balance import split_in_turn
from patterncc.codegen.gpu.config import Neighbours
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.turn_choice import UNEVEN_ORDERS, TurnChoice
from patterncc.codegen.ir import BlockProgram, Passes
from patterncc.codegen.turns import Turns
from patterncc.dsl import load
from tests.codegen.attention import poisoned
from tests.codegen.gradients import gradient_errors, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="Gluon kernels are for compute capability 9.0",
    ),
]

SIZES = {"heads": 4, "kv_heads": 2, "layers": 4}
LENGTHS = ((300, 300, 0), (77, 391, 314), (391, 77, -314), (130, 700, 20), (1, 1025, 1024))
WIDTHS = (128, 64)
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 2e-2}
PATTERNS = (
    "full",
    "causal",
    "window(100)",
    "around(50)",
    "streaming(5, 70)",
    "local_strided(16, 4, 3)",
    "ladder(4, 20, 10, 11)",
    "longformer(40, 3)",
    "chunked(100)",
    "if head in {0, 3} then causal else streaming(4, 50)",
    "k > q",
    "q > 100000 and k < 5",
)
IN_TURN = (
    *("full", "causal", "window(100)", "streaming(5, 70)", "local_strided(16, 4, 3)", "k > q"),
    "if head in {0, 3} then causal else streaming(4, 50)",
)


SPLIT = (
    *(("streaming(64, 128)", order, width) for order in (0, 1) for width in WIDTHS),
    *(("streaming(200, 70)", 1, 64), ("local_strided(64, 2, 8)", 0, 128)),
    *(("local_strided(64, 2, 8)", 1, 64), ("causal", 0, 64), ("causal", 1, 128)),
)
"""Patterns, which of `UNEVEN_ORDERS`, head dimensions."""


@pytest.fixture(autouse=True)
def _in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short calls, too, and masks that are left to other kernels for their registers."""
    monkeypatch.setattr(one_pass_choice, "LEAST_STEPS", 0)
    monkeypatch.setattr(one_pass_choice, "costly_mask", lambda mask: None)


def _lowered(text: str) -> Any:
    def lowered(block_q: int, block_k: int) -> tuple[Passes, Passes]:
        within, anywhere = (
            lower_passes(load(text), block_q, block_k, sizes=SIZES, within=within)
            for within in (True, False)
        )
        return within, anywhere

    return lowered


def _check(
    text: str,
    lengths: tuple[int, int, int],
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    heads: tuple[int, int] = (4, 2),
    with_lse: bool = True,
    width: int = 128,
    deterministic: bool = False,
) -> None:
    q_len, kv_len, offset = lengths
    pattern, lowered = load(text), _lowered(text)
    like = torch.empty(0, dtype=dtype, device="cuda")
    torch.manual_seed(0)
    query, key, value = (
        poisoned((2, count, length, width), like)
        for count, length in ((heads[0], q_len), (heads[1], kv_len), (heads[1], kv_len))
    )
    numbers = {p.name: p.value for p in pattern.numbers if p.value is not None}
    env, scale = {"q_offset": offset, "layer": 2, **numbers}, width**-0.5
    out, lse = Forward(lowered, folder=folder)(query, key, value, env=env, scale=scale)
    grad_out = torch.randn_like(out)
    grad_lse = torch.randn_like(lse) if with_lse else None
    tensors = BackwardTensors(grad_out, grad_lse, query, key, value, out, lse)
    backward = Backward(lowered, folder=folder, deterministic=deterministic)
    ready = backward.ready(tensors, env=env, scale=scale)
    assert ready.steps is not None
    assert "gradients" in {step.planned.source.name for step in ready.steps}
    results = []
    for _ in range(20 if deterministic else 2):
        # What results and sums are made of next holds NaN, so that what nobody writes is seen.
        torch.full((8 * query.numel(),), float("nan"), device="cuda")
        results.append(backward(*tensors, env=env, scale=scale))
    wanted = reference(pattern, (query, key, value), grad_out, grad_lse, env, scale)
    for got in results:
        found = gradient_errors(got, wanted)
        assert max(found.query, found.key, found.value) < TOLERANCE[dtype], found
        assert found.hidden
    for again in results[1:]:
        same = zip(results[0], again, strict=True)
        for one, other in list(same)[0 if deterministic else 1 :]:
            assert one is not None
            assert other is not None
            assert torch.equal(one, other)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("text", PATTERNS)
def test_patterns(text: str, width: int, tmp_path: Path) -> None:
    for number, lengths in enumerate(LENGTHS):
        dtype = (torch.bfloat16, torch.float16)[number % 2]
        _check(text, lengths, tmp_path, dtype, with_lse=number != 1, width=width)


@pytest.mark.parametrize("turns", ["rising", "falling"])
@pytest.mark.parametrize("text", IN_TURN)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("stores", [False, True])
def test_in_turn(
    text: str,
    turns: Turns,
    width: int,
    stores: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same bits in every run, whichever order is chosen, with heads that share keys; also where
    the first key tile stores."""
    monkeypatch.setattr(one_pass_choice, "FIRST_STORES", math.inf if stores else 0.0)
    neighbours: Neighbours = "heads" if turns == "rising" else "tiles"
    choice = TurnChoice(turns, neighbours, 2.0)
    monkeypatch.setattr(one_pass_choice, "choose_turns", lambda *call: choice)
    for lengths in LENGTHS[:3]:
        dtype = torch.float16 if lengths[0] == 77 else torch.bfloat16
        _check(text, lengths, tmp_path, dtype, width=width, deterministic=True)


@pytest.mark.parametrize(("text", "order", "width"), SPLIT)
def test_chunks_in_turn(
    text: str, order: int, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tall key tiles in chunks at their places, in every order that may be chosen: the same bits in
    twenty runs; also where the first one stores."""
    stores = math.inf if (order == 1) == (width == 64) else 0.0
    monkeypatch.setattr(one_pass_choice, "FIRST_STORES", stores)
    split_once = []

    def choose(
        program: BlockProgram, steps: Any, env: Any, heads: int, group: int, batch: int, *_: int
    ) -> TurnChoice:
        split = split_in_turn(steps, heads // group * batch, 132, 2)
        assert split is not None
        split_once.append(split)
        return TurnChoice(*UNEVEN_ORDERS[order], 2.0, split)

    monkeypatch.setattr(one_pass_choice, "choose_turns", choose)
    for lengths, heads in (((2000, 2000, 0), (4, 2)), ((777, 2391, 1614), (2, 2))):
        _check(text, lengths, tmp_path, heads=heads, width=width, deterministic=True)
    assert split_once[0]  # the shorter call of `causal` has none to split


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (8, 1)])
def test_grouped_heads(heads: tuple[int, int], width: int, tmp_path: Path) -> None:
    _check("streaming(5, 200)", (500, 500, 0), tmp_path, heads=heads, width=width)


@pytest.mark.parametrize("width", WIDTHS)
def test_tall_columns(width: int, tmp_path: Path) -> None:
    """Sinks that all rows see are split."""
    _check("streaming(64, 128)", (2000, 2000, 0), tmp_path, heads=(2, 1), width=width)


@pytest.mark.parametrize("width", WIDTHS)
def test_public_call(width: int) -> None:
    """The option reaches the kernels, the output is that of the default, and torch's own switch for
    deterministic algorithms goes before."""
    tensors = [
        torch.randn(1, 2, 4096, width, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        for _ in range(3)
    ]
    usual = patterncc.compile("causal")
    free = patterncc.compile("causal", deterministic=False)
    out = usual(*tensors)
    grad_out = torch.randn_like(out)
    wanted = torch.autograd.grad(out, tensors, grad_out)
    got = torch.autograd.grad(free(*tensors), tensors, grad_out)
    for one, other in zip(got, wanted, strict=True):
        assert (one - other).norm() < 1e-2 * other.norm()
    torch.use_deterministic_algorithms(True)
    try:
        again = torch.autograd.grad(free(*tensors), tensors, grad_out)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(again, wanted, strict=True))
