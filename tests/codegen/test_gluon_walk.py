"""How programs of a Gluon kernel share the query tiles of a call: no tile is left out, none is
computed twice, and the programs are as many as the device has at once."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc.codegen.gpu.config import KernelConfig, Order, check_config
from patterncc.codegen.gpu.gluon.walk import Walk, item_lines, turn_lines, walk_of
from patterncc.codegen.gpu.launches import Call
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.ir import DENSE, Tiling
from patterncc.codegen.lower import lower
from patterncc.codegen.problem import Problem
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError

WIDE = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
SMALL = KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon")
MULTIPROCESSORS = 132


Item: TypeAlias = tuple[int, int, int, int]


def _items(walk: Walk, tiling: Tiling, order: Order) -> list[list[Item]]:
    """Batch entry, head, tile and class of the items of each program, as the kernel's text finds
    them."""
    found = []
    for program in range(walk.grid[0]):
        tl = SimpleNamespace(
            program_id=lambda axis, program=program: program,
            where=lambda condition, then, otherwise: then if condition else otherwise,
            minimum=min,
        )
        scope: dict[str, Any] = {"tl": tl, **walk.numbers}
        exec("\n".join(turn_lines()), scope)
        text = compile("\n".join(item_lines(tiling, order)), "item", "exec")
        mine: list[Item] = []
        for turn in range(scope["turns"]):
            scope["turn"] = turn
            exec(text, scope)
            mine.append((scope["batch"], scope["head"], scope["q_tile"], scope.get("row_class", 0)))
        found.append(mine)
    return found


@given(
    tiles=st.integers(1, 12),
    heads=st.integers(1, 5),
    batch=st.integers(1, 3),
    section=st.integers(1, 15),
    turns=st.integers(1, 9),
    share=st.floats(0, 1),
    order=st.sampled_from(["forward", "reverse"]),
    step=st.sampled_from([1, 3]),
)
def test_each_item_is_computed_once(
    tiles: int,
    heads: int,
    batch: int,
    section: int,
    turns: int,
    share: float,
    order: Order,
    step: int,
) -> None:
    pairs = heads * batch
    long = int(tiles * step * pairs * share) // turns
    walk = Walk(tiles * step, heads, pairs, min(section, pairs), turns, long)
    tiling = DENSE if step == 1 else residue_tiling(step)
    found = [item for mine in _items(walk, tiling, order) for item in mine]
    assert len(found) == walk.items
    assert set(found) == {
        (b, h, tile, row)
        for b in range(batch)
        for h in range(heads)
        for tile in range(tiles)
        for row in range(step)
    }


# ------------------------------------------------------------------------------------ of a call


def _walk(
    text: str,
    length: int,
    config: KernelConfig = WIDE,
    heads: int = 16,
    env: dict[str, int] | None = None,
) -> Walk:
    sizes = (1, heads, length, 128)
    strides = (heads * length * 128, length * 128, 128, 1)
    layouts = {name: Layout(name, 0, sizes, strides, 2) for name in ("query", "key", "value")}
    numbers = {"q_offset": 0, "q_len": length, "kv_len": length, **(env or {})}
    problem = Problem("bfloat16", 128, 128)
    call = Call(problem, "cuda:90", layouts, numbers, {}, {}, MULTIPROCESSORS)
    program = lower(load(text), config.block_q, config.block_k, within=True)
    return walk_of(program, call, config)


def test_alike_tiles_are_shared_among_all_places() -> None:
    walk = _walk("window(1024)", 16384)
    assert walk.turns == 16  # 2048 items, 132 places
    assert walk.grid[0] <= MULTIPROCESSORS
    small = _walk("window(256)", 16384, SMALL)
    assert small.turns == 16  # twice the items, two places on a multiprocessor
    assert small.grid[0] <= 2 * MULTIPROCESSORS
    assert _walk("window(1024)", 1024, heads=8).turns == 1


def test_uneven_tiles_leave_short_programs_for_the_end() -> None:
    walk = _walk("causal", 16384, replace(WIDE, order="reverse"))
    short = walk.grid[0] - walk.long
    assert walk.turns == 3
    assert walk.long > 3 * MULTIPROCESSORS
    assert short >= walk.items // 4
    assert walk.section == 2  # of 8 MiB of keys and values


def test_few_tiles_of_many_heads_are_sorted_across_heads() -> None:
    walk = _walk("causal", 1024, replace(WIDE, order="reverse"))
    assert (walk.turns, walk.section) == (1, 16)
    assert walk.grid[0] == walk.items


def test_neighbouring_heads() -> None:
    assert _walk("causal", 16384, replace(WIDE, neighbours="heads")).section == 16


def test_what_only_the_device_knows_is_uneven() -> None:
    walk = _walk("pattern p(doc: segments): causal and doc[q] == doc[k]", 16384)
    assert walk.long < walk.grid[0]


def test_walking_is_for_gluon() -> None:
    with pytest.raises(ConfigError, match="query_tiles='many' is for Gluon"):
        check_config(KernelConfig(query_tiles="many"), Problem("bfloat16", 128, 128), "cuda:90")
