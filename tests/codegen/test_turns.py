"""Turns: of every row tile the key tiles that visit it have the numbers 0, 1, ... in the order in
which their programs are started, by the closed forms and by the text of the kernel. A number too
many, or one too few, and a GPU would wait for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings

from patterncc.codegen import schedule
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.evaluation import evaluate
from patterncc.codegen.gpu.gluon.dialect import gluon_functions
from patterncc.codegen.gpu.gluon.gradient_source import emit_gluon_gradients
from patterncc.codegen.gpu.gluon.turn_source import turn_lines
from patterncc.codegen.gpu.one_pass_choice import ONE_PASS
from patterncc.codegen.gpu.scalar_source import HELPERS
from patterncc.codegen.ir import K_TILE, Q_FIRST, Q_LAST, BlockProgram, Sweep
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import Problem
from patterncc.codegen.turns import Turns, earlier_tiles, turns_reason
from patterncc.dsl import load
from patterncc.dsl.build import add
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Const, Predicate
from tests.codegen.drawing import Shape, environment, masks, numbers, pattern_of, shapes
from tests.codegen.gluon_emulator import Emulator
from tests.codegen.library_programs import NAMES, SIZES, library_pattern

ORDERS: tuple[Turns, Turns] = ("rising", "falling")
LENGTHS = ((1000, 1000, 0), (77, 991, 914), (991, 77, -914), (1, 1400, 1399), (640, 2000, 700))

KERNEL = emit_gluon_gradients(
    lower_passes(load("full"), 64, 128)[0], Problem("bfloat16", 128, 128), ONE_PASS
)

Counts = npt.NDArray[np.int64]


def _visits(program: BlockProgram, env: dict[str, int]) -> npt.NDArray[np.bool_]:
    """Which row tiles `[rows]` each key tile `[keys]` visits, as its program runs."""
    lists = schedule.transposed_tiles(program, env)
    keys = len(lists.indptr) - 1
    found = np.zeros((-(-env["q_len"] // program.block_q), keys), np.int64)
    np.add.at(found, (lists.tiles, np.repeat(np.arange(keys), np.diff(lists.indptr))), 1)
    assert found.max(initial=0) <= 1
    return found > 0


def _in_order(visits: npt.NDArray[np.bool_], turns: Turns) -> Counts:
    """How many programs were started before, of those that visit a row tile."""
    if turns == "falling":
        return _in_order(visits[:, ::-1], "rising")[:, ::-1]
    return np.cumsum(visits, 1) - visits


def _places(program: BlockProgram, env: dict[str, int], shape: tuple[int, int]) -> dict[str, Any]:
    rows, keys = (np.arange(size, dtype=np.int64) for size in shape)
    first = env["q_offset"] + program.block_q * rows[:, None]
    last = np.minimum(first + program.block_q, env["q_offset"] + env["q_len"]) - 1
    return {**env, Q_FIRST.name: first, Q_LAST.name: last, K_TILE.name: keys[None, :]}


def _by_closed_form(
    program: BlockProgram, env: dict[str, int], shape: tuple[int, int], turns: Turns
) -> Counts:
    scope, total = _places(program, env, shape), np.zeros(shape, np.int64)
    for sweep in earlier_tiles(program, turns):
        number = np.where(evaluate(sweep.guard, scope), evaluate(sweep.hi, scope), 0)
        assert (number >= 0).all()
        total += number
    return total


def _by_text(
    program: BlockProgram, env: dict[str, int], shape: tuple[int, int], turns: Turns
) -> Counts:
    """What the kernel's lines compute, in the numbers that it computes with."""
    scope = Emulator(KERNEL, ()).names()
    exec(gluon_functions(HELPERS), scope)
    for name, value in env.items():
        scope |= dict.fromkeys((name, f"number_{name}"), torch.tensor(value, dtype=torch.int32))
    rows, keys = (torch.arange(size, dtype=torch.int32) for size in shape)
    scope |= {"row_first": rows[:, None] * program.block_q, "k_tile": keys[None, :]}
    scope |= {"BLOCK_Q": program.block_q}
    exec("\n".join(turn_lines(program, turns)), scope)
    found = torch.as_tensor(scope["turn"])
    assert found.dtype == torch.int32
    return found.broadcast_to(shape).numpy().astype(np.int64)


def _check(program: BlockProgram, env: dict[str, int]) -> None:
    visits = _visits(program, env)
    for turns in ORDERS:
        wanted = _in_order(visits, turns)
        for found in (_by_closed_form, _by_text):
            counts = found(program, env, visits.shape, turns)
            np.testing.assert_array_equal(counts[visits], wanted[visits])


@pytest.mark.parametrize("name", NAMES)
def test_library(name: str) -> None:
    pattern = library_pattern(name)
    numbers = {**SIZES, "layer": 1, "head": 3, "kv_head": 0, "batch": 0}
    numbers |= {parameter.name: 100 for parameter in pattern.numbers}
    for within in (True, False):
        try:
            passes = lower_passes(pattern, 64, 128, sizes=SIZES, within=within)
        except UnsupportedError:
            pytest.skip("no lowering yet")
        if len(passes) > 1 or turns_reason(passes[0]) is not None:
            continue
        for q_len, kv_len, offset in LENGTHS:
            if not within or 0 <= offset <= kv_len - q_len:
                env = {**numbers, "q_len": q_len, "kv_len": kv_len, "q_offset": offset}
                _check(passes[0], env)


@settings(max_examples=60, deadline=None)
@given(body=masks, shape=shapes(), values=numbers)
def test_drawn_patterns(body: Predicate, shape: Shape, values: dict[str, int]) -> None:
    env = environment(shape, values) | {"batch": 0, "kv_head": 0, "heads": 8, "kv_heads": 8}
    for within in {False, shape.within}:
        try:
            program = lower(pattern_of(body), shape.block_q, shape.block_k, within=within)
        except UnsupportedError:
            continue
        if turns_reason(program) is None:
            _check(program, env)


# ------------------------------------------------------------------------------------ the proof


def _dense(text: str) -> BlockProgram:
    (program,) = lower_passes(load(text), 64, 128, sizes=SIZES)
    return program


@pytest.mark.parametrize(
    "text",
    [
        *("full", "causal", "window(1024)", "around(50)", "streaming(64, 1024)", "k > q"),
        *("local_strided(16, 4, 3)", "longformer(40, 3)", "q > 100000 and k < 5"),
        "if head in {0, 3} then causal else streaming(4, 50)",
        "pattern p(w: int): window(w)",
    ],
)
def test_both_directions_are_proved_to_agree(text: str) -> None:
    assert turns_reason(_dense(text)) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dilated(512, 8)", "classes"),
        ("chunked(100)", "loops visit its tiles"),
        ("pattern p(d: segments): causal and d[q] == d[k]", "tables or documents"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    found = turns_reason(_dense(text))
    assert found is not None
    assert reason in found


def _one_more(sweep: Sweep) -> Sweep:
    return replace(sweep, hi=add(sweep.hi, Const(1)))


def _one_less(sweep: Sweep) -> Sweep:
    return replace(sweep, hi=add(sweep.hi, Const(-1)))


@pytest.mark.parametrize("change", [_one_more, _one_less])
@pytest.mark.parametrize("text", ["full", "causal", "window(1024)", "streaming(64, 1024)"])
def test_a_tile_too_many_or_too_few_is_no_proof(text: str, change: Any) -> None:
    """Of any sweep of either direction."""
    program = _dense(text)
    assert program.transposed is not None
    for number, sweep in enumerate(program.forward):
        sweeps = list(program.forward)
        sweeps[number] = change(sweep)
        assert turns_reason(replace(program, forward=tuple(sweeps))) is not None
    for number, sweep in enumerate(program.transposed):
        sweeps = list(program.transposed)
        sweeps[number] = change(sweep)
        assert turns_reason(replace(program, transposed=tuple(sweeps))) is not None


def test_a_tile_visited_twice_is_no_proof() -> None:
    program = _dense("causal")
    twice = replace(program, forward=(*program.forward, program.forward[0]))
    assert turns_reason(twice) is not None
