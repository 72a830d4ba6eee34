"""Calls of the kernel of all gradients, run on the CPU by `gluon_emulator`, against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.backward_plan import BackwardPlanner
from patterncc.codegen.gpu.chunk_source import Progression
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.steps import layout_of, problem_of
from patterncc.dsl import load
from patterncc.dsl.score.terms import PLAIN
from tests.codegen.attention import poisoned
from tests.codegen.gluon_emulator import run_launch
from tests.codegen.gradients import GradientErrors, gradient_errors, reference

SIZES = {"heads": 4, "kv_heads": 2, "layers": 4}

Change = Callable[[str], str]


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


def errors(
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


def is_right(found: GradientErrors) -> bool:
    """Are all gradients right, and is nothing seen that is hidden?"""
    return max(found.query, found.key, found.value) < 2e-2 and found.hidden
