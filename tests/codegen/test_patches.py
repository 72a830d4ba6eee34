"""Patches of rasters against brute force: what is visited, what is full, in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patterncc.codegen import schedule
from patterncc.codegen.ir import BlockProgram, Patches
from patterncc.codegen.lower import specialise, with_transposed
from patterncc.codegen.passes import run_passes
from patterncc.codegen.patches import patch_program, positions
from patterncc.codegen.raster import Raster, rasters
from patterncc.dsl.loader import load

DEFINITIONS = """
pattern near(a, b, size, kernel):
    let left = kernel // 2
    let centre = clamp(a, left, size - kernel + left)
    centre - left <= b <= centre - left + kernel - 1

pattern strided(a, b, size, kernel, stride):
    let left = kernel // 2
    let leader = min(a // stride * stride + stride // 2, size - 1)
    let centre = clamp(leader, left, size - kernel + left)
    centre - left <= b <= centre - left + kernel - 1

pattern same(a, b, window, shift):
    (a - shift) // window == (b - shift) // window
"""

# What a mask may ask along an axis `a`, `b` of `size` places; with a number that is given late.
AXES = (
    "near({a}, {b}, {size}, {kernel})",
    "near({a}, {b}, {size}, late)",
    "strided({a}, {b}, {size}, {kernel}, {step})",
    "same({a}, {b}, {step}, {shift})",
    "{b} - {a} <= {kernel} and {a} - {b} < {step}",
    "abs({a} - {b}) <= late",
    "{b} <= {a}",
    "(if layer % 2 == 1 then same({a}, {b}, {step}, {shift}) else abs({a} - {b}) < {kernel})",
)
# Interval arithmetic knows bounds of these alone.
LOOSE = ("{a} % {step} == {b} % {step} and abs({a} - {b}) <= {kernel}",)


@dataclass(frozen=True)
class Case:
    text: str
    raster: Raster
    body: Any
    patches: Patches
    tile: tuple[int, int]
    env: dict[str, int]
    exact: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    axes = draw(st.integers(2, 3))
    inner = tuple(draw(st.integers(3, 9)) for _ in range(axes - 1))
    area = prod(inner)
    outer = draw(st.integers(1, 7))
    sizes = (outer, *inner)
    loose = draw(st.booleans())
    terms = []
    for axis in range(axes):
        step = prod(inner[axis:])
        places = [
            (f"{p} // {step}" if step > 1 else p) + (f" % {inner[axis - 1]}" if axis else "")
            for p in ("q", "k")
        ]
        size = sizes[axis]
        template = draw(st.sampled_from(AXES + (LOOSE if loose and axis else ())))
        loose_axis = template in LOOSE
        terms.append(
            template.format(
                a=places[0],
                b=places[1],
                size=size,
                kernel=draw(st.integers(1, min(size, 5))),
                step=draw(st.integers(2, 4)),
                shift=draw(st.integers(0, 3)),
            )
        )
        loose = loose and not loose_axis
    text = DEFINITIONS + f"pattern drawn(late):\n    {' and '.join(f'({t})' for t in terms)}\n"
    late = draw(st.integers(1, min(sizes)))
    body = specialise(load(text).body, {})
    found = [raster for raster in rasters(body) if raster.sizes == inner]
    assume(found)
    extents = [tuple(draw(st.integers(1, min(size + 1, 5))) for size in sizes) for _ in range(2)]
    patches = Patches(inner, *extents)
    spare = draw(st.sampled_from([0, 0, 3]))
    whole = draw(st.booleans())
    kv_len = outer * area if whole else draw(st.integers(1, outer * area))
    q_offset = draw(st.integers(0, kv_len - 1))
    q_offset = q_offset // area * area if whole else q_offset
    q_len = kv_len - q_offset if whole else draw(st.integers(1, kv_len - q_offset))
    env = {
        "q_len": q_len,
        "kv_len": kv_len,
        "q_offset": q_offset,
        "layer": draw(st.integers(0, 1)),
        "late": late,
    }
    tile = prod(extents[0]) + spare, prod(extents[1]) + draw(st.sampled_from([0, spare]))
    exact = whole and not any(t in text for t in ("% 2 == ", "% 3 == ", "% 4 == ", "layer"))
    return Case(text, found[0], body, patches, tile, env, exact and not found[0].others)


def dense(case: Case) -> npt.NDArray[np.bool_]:
    env = case.env
    q = env["q_offset"] + np.arange(env["q_len"])[:, None]
    k = np.arange(env["kv_len"])[None, :]
    allowed = schedule.evaluate(case.body, {**env, "q": q, "k": k})
    return np.broadcast_to(np.asarray(allowed, np.bool_), (env["q_len"], env["kv_len"]))


def brute_map(case: Case) -> npt.NDArray[np.uint8]:
    """0 empty, 1 partial, 2 full, by looking at every pair of every two patches."""
    env = case.env
    rows, row_exists = positions(case.patches, "q", case.tile[0], env)
    keys, key_exists = positions(case.patches, "k", case.tile[1], env)
    allowed = dense(case)
    result = np.zeros((len(rows), len(keys)), np.uint8)
    for i, (row, there) in enumerate(zip(rows, row_exists, strict=True)):
        mine = allowed[row[there] - env["q_offset"]]
        for j, (key, present) in enumerate(zip(keys, key_exists, strict=True)):
            pairs = mine[:, key[present]]
            if pairs.any():
                result[i, j] = 1 + (present.all() and pairs.all())
    return result


def transposed_map(program: BlockProgram, env: dict[str, int], shape: Any) -> Any:
    lists = schedule.transposed_tiles(program, env)
    result = np.zeros(shape, np.uint8)
    columns = np.repeat(np.arange(len(lists.indptr) - 1), np.diff(lists.indptr))
    assert len(set(zip(columns.tolist(), lists.tiles.tolist(), strict=True))) == len(columns)
    result[lists.tiles, columns] = 1 + lists.full
    return result


def check(case: Case, *, fills: bool) -> None:
    program = with_transposed(
        run_passes(
            patch_program("drawn", case.body, case.raster, case.patches, case.tile, fills=fills),
            check=True,
        ),
        check=True,
    )
    expected = brute_map(case)
    lists = schedule.forward_tiles(program, case.env)
    rows = np.repeat(np.arange(len(lists.indptr) - 1), np.diff(lists.indptr))
    assert len(set(zip(rows.tolist(), lists.tiles.tolist(), strict=True))) == len(rows)
    maps = schedule.block_map(program, case.env), transposed_map(program, case.env, expected.shape)
    for found in maps:
        assert found.shape == expected.shape
        assert not ((expected > 0) & (found == 0)).any(), "a tile with an allowed pair is missing"
        assert not ((found == 2) & (expected < 2) & (expected > 0)).any(), "a tile is not full"
        if case.exact:
            assert ((found > 0) == (expected > 0)).all()
            assert not fills or (found == expected).all()
        if not fills:
            assert (found < 2).all()


@settings(max_examples=150)
@given(case=cases(), fills=st.booleans())
def test_patches_equal_brute_force(case: Case, fills: bool) -> None:
    full_keys = prod(case.patches.key) == case.tile[1]
    check(case, fills=fills and full_keys and not case.raster.others)


def test_elements_are_counted_once() -> None:
    patches = Patches((5, 7), (2, 3, 4), (1, 2, 3))
    env = {"q_len": 83, "kv_len": 131, "q_offset": 40}
    for side, block, first, last in (("q", 24, 40, 123), ("k", 8, 0, 131)):
        places, exists = positions(patches, side, block, env)  # type: ignore[arg-type]
        assert sorted(places[exists].tolist()) == list(range(first, last))
