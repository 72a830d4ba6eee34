"""How programs of a Gluon kernel share the query tiles of a call: no tile is left out, none is
computed twice, and the programs are as many as the device has at once."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import KernelConfig, Order, check_config
from patterncc.codegen.gpu.gluon.forward_source import emit_gluon_forward
from patterncc.codegen.gpu.gluon.walk import Walk, item_lines, turn_lines, walk_of
from patterncc.codegen.gpu.launches import Call
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError

ONE = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
MANY = replace(ONE, query_tiles="many")
PROBLEM = Problem("bfloat16", 128, 128)
MULTIPROCESSORS = 132

Item: TypeAlias = tuple[int, int, int]


def _items(walk: Walk, order: Order) -> list[list[Item]]:
    """Batch entry, head and tile of the items of each program, as the kernel's text finds them."""
    found = []
    for program in range(walk.grid[0]):
        tl = SimpleNamespace(
            program_id=lambda axis, program=program: program,
            where=lambda condition, then, otherwise: then if condition else otherwise,
        )
        scope: dict[str, Any] = {"tl": tl, **walk.numbers}
        exec("\n".join(turn_lines()), scope)
        text = compile("\n".join(item_lines(order)), "item", "exec")
        mine: list[Item] = []
        for turn in range(scope["turns"]):
            scope["turn"] = turn
            exec(text, scope)
            mine.append((scope["batch"], scope["head"], scope["q_tile"]))
        found.append(mine)
    return found


@given(
    tiles=st.integers(1, 12),
    heads=st.integers(1, 5),
    batch=st.integers(1, 3),
    turns=st.integers(1, 9),
    share=st.floats(0, 1),
    order=st.sampled_from(["forward", "reverse"]),
)
def test_each_item_is_computed_once(
    tiles: int, heads: int, batch: int, turns: int, share: float, order: Order
) -> None:
    long = int(tiles * heads * batch * share) // turns
    walk = Walk(tiles, heads, batch, turns, long)
    found = [item for mine in _items(walk, order) for item in mine]
    assert len(found) == walk.items
    assert set(found) == {
        (b, h, tile) for b in range(batch) for h in range(heads) for tile in range(tiles)
    }


# ------------------------------------------------------------------------------------ of a call


def _walk(length: int, heads: int = 16) -> Walk:
    sizes = (1, heads, length, 128)
    strides = (heads * length * 128, length * 128, 128, 1)
    layouts = {name: Layout(name, 0, sizes, strides, 2) for name in ("query", "key", "value")}
    numbers = {"q_offset": 0, "q_len": length, "kv_len": length}
    call = Call(PROBLEM, "cuda:90", layouts, numbers, {}, {}, MULTIPROCESSORS)
    return walk_of(call, MANY)


def test_multiprocessors_share_the_tiles() -> None:
    walk = _walk(16384)
    assert walk.turns == 16  # 2048 items, 132 places
    assert walk.grid[0] <= MULTIPROCESSORS
    assert _walk(1024, heads=8).turns == 1
    assert _walk(1024, heads=8).grid == (64, 1, 1)


@pytest.mark.parametrize("length", [1024, 2000, 5000])
def test_tiles_of_a_windows_start_are_spread(length: int) -> None:
    """Rows near the start see fewer keys: no program has a quarter more to do than the mean."""
    walk = _walk(length, heads=64)
    work = [
        sum(min(tile + 1, 9) for _, _, tile in mine)
        for mine in _items(walk, "forward")[: walk.long]
    ]
    assert max(work) <= 1.27 * sum(work) / len(work)  # one tile at a time: 2.25


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"emitter": "triton"}, "is for Gluon"),
        ({"block_k": 64}, "tiles of 128x128"),
        ({"neighbours": "heads"}, "neighbouring tiles"),
    ],
)
def test_configs_that_cannot_be(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_config(replace(MANY, **change), PROBLEM, "cuda:90")


@pytest.mark.parametrize(
    ("text", "words"),
    [("dilated(512, 8)", "in classes"), ("window(512) or dilated(512, 8)", "several passes")],
)
def test_patterns_that_cannot_be(text: str, words: str) -> None:
    passes = lower_passes(load(text), 128, 128, within=True, transposed=False)
    with pytest.raises(ConfigError, match=words):
        emit_gluon_forward(passes[0], PROBLEM, MANY, hands_on=len(passes) > 1)
