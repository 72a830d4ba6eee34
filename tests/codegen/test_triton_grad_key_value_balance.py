"""Which key tiles are split, by what counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.classes import row_classes
from patterncc.codegen.gpu.balance import (
    LONGEST,
    SHARES,
    SHORTEST,
    Steps,
    key_tile_steps,
    progressions,
    split_tiles,
)
from patterncc.codegen.gpu.chunk_source import MOST_PROGRESSIONS, Progression
from patterncc.codegen.gpu.launches import ceildiv
from patterncc.codegen.ir import Q_CLASS, BlockProgram, Tiling
from patterncc.codegen.lower import lower
from patterncc.codegen.schedule import tile_counts
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl import load
from patterncc.dsl.mask import Const

SIZES = {"heads": 4, "kv_heads": 2, "layers": 1}
AT_ONCE = 264  # two programs on each of 132 multiprocessors


def _env(length: int, **numbers: int) -> dict[str, int]:
    return {"q_len": length, "kv_len": length, "q_offset": 0, "layer": 0, **numbers}


# ------------------------------------------------------------------------------------ counts

PROGRAMS = (
    ("causal", Tiling()),
    ("streaming(70, 200)", Tiling()),
    ("ladder(4, 100, 128, 8)", Tiling()),
    ("ladder(4, 64, 50, 7)", Tiling()),  # residue classes
    ("dilated(40, 8)", residue_tiling(8)),
    ("causal and k % 8 == q % 4", Tiling(4, 8, Q_CLASS)),
    ("causal and k % 4 == 1", Tiling(1, 4, Const(1))),
    ("q % 5 == 2 and k <= q", Tiling(5, 1, Const(0))),
)


@pytest.mark.parametrize(("text", "tiling"), PROGRAMS, ids=[text for text, _ in PROGRAMS])
@pytest.mark.parametrize("lengths", [(700, 700), (300, 901), (17, 40)], ids=str)
def test_steps(text: str, tiling: Tiling, lengths: tuple[int, int]) -> None:
    """Counted for all classes at once as they are one by one."""
    program = lower(load(text), 16, 32, tiling=tiling)
    q_len, kv_len = lengths
    env = {"q_len": q_len, "kv_len": kv_len, "q_offset": kv_len - q_len, "layer": 0}
    tiles = ceildiv(ceildiv(kv_len, tiling.k_step), program.block_k)
    wanted = np.zeros((tiles, tiling.k_step), np.int64)
    for part in row_classes(program, env):
        full, partial = tile_counts(program, part.env, "transposed")
        column = part.first_row if tiling.q_step == tiling.k_step else part.first_key
        wanted[: len(full), column] += full + partial
    found = key_tile_steps(program, env, heads=4, group=2)
    np.testing.assert_array_equal(found, 2 * wanted.ravel())


def test_the_tallest_head_counts() -> None:
    program = lower(load("if head == 3 then causal else window(40)"), 16, 16)
    found = key_tile_steps(program, _env(320), heads=4, group=2)
    narrow, wide = (
        key_tile_steps(lower(load(text), 16, 16), _env(320), heads=1, group=1)
        for text in ("window(40)", "causal")
    )
    np.testing.assert_array_equal(found, narrow + wide)


def test_bounds_that_read_tables_are_left_out() -> None:
    text = "pattern p(w: int[head]): window(w[head]) or k < 20 and k <= q"
    found = key_tile_steps(lower(load(text), 16, 16), _env(320), heads=1, group=1)
    assert found[0] > 2 * found[5]


# ------------------------------------------------------------------------------------ splitting


def _programs(steps: Steps, split: tuple[Progression, ...]) -> list[int]:
    """The steps of every program, longest chunk of each chunked tile included."""
    whole = steps.copy()
    found: list[int] = []
    for one in split:
        for place in range(one.first, one.first + one.step * one.count, one.step):
            assert whole[place] >= 0, "two progressions share a tile"
            found += [ceildiv(int(steps[place]), one.chunks)] * one.chunks
            whole[place] = -1
    return [*found, *map(int, whole[whole > 0])]


TALL = (
    "streaming(64, 1024)",
    "streaming(64, 4096)",
    "longformer(256, 64)",
    "ladder(4, 1024, 128, 8)",
    "ladder(4, 1024, 100, 8)",  # a period of 25 tiles
    "local_strided(64, 16, 8)",
    "sparse_strided",
    "tri_shape(64, 1024, 128)",
    "bigbird",
)


def _passes(text: str) -> tuple[BlockProgram, ...]:
    return lower_passes(load(text), 64, 64, sizes=SIZES, within=True)


@pytest.mark.parametrize("length", [16384, 65536])
@pytest.mark.parametrize("copies", [1, 16, 64])
@pytest.mark.parametrize("text", TALL)
def test_no_program_is_much_longer(text: str, copies: int, length: int) -> None:
    """At most twice the median, or an eighth of what keeps one place busy."""
    for program in _passes(text):
        if program.listed:
            continue
        steps = key_tile_steps(program, _env(length, local=1024, batch=0), heads=1, group=1)
        split = split_tiles(steps, copies, AT_ONCE)
        programs = _programs(steps, split)
        share = int(steps.sum()) * copies // AT_ONCE
        most = max(LONGEST * int(np.median(steps[steps > 0])), share // SHARES, SHORTEST)
        assert max(programs) <= most
        if copies == 1 and length == 16384:
            assert max(programs) <= max(LONGEST * np.median(programs), SHORTEST)
        # What chunks leave takes memory for a few rounds of programs, whatever the length.
        assert sum(one.programs for one in split) * copies <= 4 * SHARES * AT_ONCE


@pytest.mark.parametrize("text", ["causal", "full", "window(1024)", "dilated(512, 8)"])
def test_even_work_is_not_split(text: str) -> None:
    for program in _passes(text):
        steps = key_tile_steps(program, _env(16384), heads=16, group=1)
        assert split_tiles(steps, 16, AT_ONCE) == ()


def test_an_idle_device_is_filled() -> None:
    (program,) = _passes("full")
    steps = key_tile_steps(program, _env(2048), heads=1, group=1)  # 32 tiles of 32 steps
    split = split_tiles(steps, 1, AT_ONCE)
    programs = _programs(steps, split)
    assert len(programs) == 4 * len(steps)
    assert max(programs) == SHORTEST
    assert split_tiles(np.zeros(5, np.int64), 1, AT_ONCE) == ()


def test_groups_count() -> None:
    (program,) = _passes("streaming(64, 1024)")
    steps = key_tile_steps(program, _env(16384), heads=16, group=4)
    np.testing.assert_array_equal(steps, 4 * key_tile_steps(program, _env(16384), 16, 1))


# ------------------------------------------------------------------------------------ progressions


@given(places=st.sets(st.integers(0, 400), max_size=60), most=st.integers(1, 6))
def test_progressions_are_disjoint(places: set[int], most: int) -> None:
    found = progressions(sorted(places), most)
    covered = [place for a, b, n in found for place in range(a, a + b * n, b)]
    assert len(found) <= most
    assert len(set(covered)) == len(covered)
    assert all(place >= 0 for place in covered)
    assert len(covered) <= 5 * len(places)


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        ([0], [(0, 1, 1)]),
        ([0, 1, 2, 3], [(0, 1, 4)]),
        ([7, 15, 23, 31], [(7, 8, 4)]),
        ([0, 14, 15, 30, 31, 46, 47, 62, 63], [(0, 15, 3), (14, 16, 4), (31, 16, 3)]),
    ],
)
def test_progressions(places: list[int], wanted: list[tuple[int, int, int]]) -> None:
    found = progressions(places, MOST_PROGRESSIONS)
    assert sorted(p for a, b, n in found for p in range(a, a + b * n, b)) == places
    assert len(found) <= len(wanted) + 1
