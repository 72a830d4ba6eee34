"""Patches of rasters against brute force: what is visited, what is full, in both directions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patterncc.codegen import schedule
from patterncc.codegen.ir import BlockProgram, Direction, Patches
from patterncc.codegen.lower import specialise, with_transposed
from patterncc.codegen.monotone import Side
from patterncc.codegen.passes import run_passes
from patterncc.codegen.patch_choice import patch_choices
from patterncc.codegen.patch_grid import grid_before
from patterncc.codegen.patches import held_places, passing_places, patch_program, tile_count
from patterncc.codegen.raster import Raster, rasters
from patterncc.dsl.build import compare, modulo, select
from patterncc.dsl.loader import load
from patterncc.dsl.mask import Const, IntExpr, Var

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
def grids(draw: st.DrawFn, extents: tuple[int, ...]) -> tuple[IntExpr, ...]:
    """How far before the edge held patches begin, by what is one number for a call."""
    if draw(st.booleans()):
        return ()
    first, second = ([draw(st.integers(0, each - 1)) for each in extents] for _ in range(2))
    odd = compare("==", modulo(Var("layer"), Const(2)), Const(1))
    return tuple(select(odd, Const(a), Const(b)) for a, b in zip(first, second, strict=True))


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
    usual = st.integers(1, min(sizes))
    late = draw(st.one_of(usual, usual, st.integers(-6, 14)))  # larger than an axis, or negative
    body = specialise(load(text).body, {})
    found = [raster for raster in rasters(body) if raster.sizes == inner]
    assume(found)
    extents = [tuple(draw(st.integers(1, min(size + 1, 5))) for size in sizes) for _ in range(4)]
    if draw(st.booleans()):  # tiles of keys without elements that are no places may be full
        extents[2] = extents[1]
    befores = [draw(grids(each)) for each in (extents[0], extents[2])]
    query, passing_keys, key, passing_queries = extents
    patches = Patches(inner, query, passing_keys, key, passing_queries, *befores)
    spare = draw(st.sampled_from([0, 0, 3]))
    whole = draw(st.booleans())
    # Calls that end within a raster, or have more keys than the mask has places.
    kv_len = outer * area if whole else draw(st.integers(1, (outer + 2) * area))
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
    rows = max(prod(patches.query), prod(patches.passing_queries)) + spare
    tile = rows, max(prod(patches.key), prod(patches.passing_keys))
    exact = (
        whole
        and 1 <= late <= min(sizes)
        and not any(t in text for t in ("% 2 == ", "% 3 == ", "% 4 == ", "layer"))
    )
    return Case(text, found[0], body, patches, tile, env, exact and not found[0].others)


def dense(case: Case) -> npt.NDArray[np.bool_]:
    env = case.env
    q = env["q_offset"] + np.arange(env["q_len"])[:, None]
    k = np.arange(env["kv_len"])[None, :]
    allowed = schedule.evaluate(case.body, {**env, "q": q, "k": k})
    return np.broadcast_to(np.asarray(allowed, np.bool_), (env["q_len"], env["kv_len"]))


def check_direction(
    case: Case, program: BlockProgram, direction: Direction, *, fills: bool
) -> None:
    """Every allowed pair is in one visited tile, full tiles are full, and what is exact is so."""
    env, patches = case.env, case.patches
    side: Side = "q" if direction == "forward" else "k"
    other: Side = "k" if direction == "forward" else "q"
    blocks = {"q": case.tile[0], "k": case.tile[1]}
    allowed = dense(case)
    allowed = allowed if side == "q" else allowed.T
    start = {"q": env["q_offset"], "k": 0}
    lists = schedule.tile_lists(program, env, direction)
    held, held_exists = held_places(patches, side, blocks[side], env)
    assert len(lists.indptr) == len(held) + 1 == tile_count(patches, side, env) + 1
    first = lists.tiles
    seen, seen_exists = passing_places(patches, other, blocks[other], first, env)
    count = np.zeros(allowed.shape, np.int64)
    for tile, (places, there) in enumerate(zip(held, held_exists, strict=True)):
        mine = places[there] - start[side]
        for at in range(lists.indptr[tile], lists.indptr[tile + 1]):
            others = seen[at][seen_exists[at]] - start[other]
            pairs = allowed[np.ix_(mine, others)]
            count[np.ix_(mine, others)] += 1
            keys_exist = (seen_exists[at] if other == "k" else there).all()
            is_full = bool(keys_exist and pairs.all())
            assert not (lists.full[at] and pairs.size and not is_full), "a tile is not full"
            if case.exact:
                assert pairs.any(), "a tile is visited in vain"
                assert not fills or lists.full[at] == is_full
    assert (count[allowed] == 1).all(), "a pair is in no tile or in several"
    assert count.max(initial=0) <= 1
    assert fills or not lists.full.any()


def check(case: Case, *, fills: bool) -> None:
    program = with_transposed(
        run_passes(
            patch_program("drawn", case.body, case.raster, case.patches, case.tile, fills=fills),
            check=True,
        ),
        check=True,
    )
    check_direction(case, program, "forward", fills=fills)
    check_direction(case, program, "transposed", fills=fills)


@settings(max_examples=150)
@given(case=cases(), fills=st.booleans())
def test_patches_equal_brute_force(case: Case, fills: bool) -> None:
    whole_tiles = prod(case.patches.passing_keys) == prod(case.patches.key) == case.tile[1]
    check(case, fills=fills and whole_tiles and not case.raster.others)


@settings(max_examples=60)
@given(case=cases())
def test_patches_that_are_chosen_equal_brute_force(case: Case) -> None:
    """Shapes and grids as counting finds them, for rasters of whatever sizes."""
    choices = patch_choices(case.body, 16, 16, case.env)
    (chosen,) = (each for each in choices if each.raster == case.raster)
    tiles = replace(case, patches=chosen.patches, tile=(16, 16), exact=False)
    check(tiles, fills=chosen.fills)


def test_elements_are_counted_once() -> None:
    shapes = (5, 7), (2, 3, 4), (1, 1, 1), (1, 2, 3), (1, 1, 1)
    grids = tuple(map(Const, (1, 2, 3))), tuple(map(Const, (0, 1, 2)))
    env = {"q_len": 83, "kv_len": 131, "q_offset": 40}
    for patches in (Patches(*shapes), Patches(*shapes, *grids)):
        for side, block, first, last in (("q", 24, 40, 123), ("k", 8, 0, 131)):
            places, exists = held_places(patches, side, block, env)  # type: ignore[arg-type]
            assert sorted(places[exists].tolist()) == list(range(first, last))


def test_grids_are_those_of_windows() -> None:
    """The patches of odd layers of Swin begin with its windows, which are cut off by the edge."""
    (raster,) = rasters(specialise(load("swin").body, {}))
    for axis in raster.axes:
        for layer, extent, before in ((0, 7, 0), (1, 7, 4), (1, 14, 4), (1, 1, 0), (1, 6, 0)):
            found = grid_before(axis, "q", extent)
            assert schedule.evaluate(found, {"layer": layer, "height": 56}) == before
            assert found == grid_before(axis, "k", extent)
    by_head = load("if head == 0 then (q - 3) // 7 == k // 7 else q == k").body
    assert grid_before(by_head, "q", 7) == Const(4)  # one grid for all heads of a call
    sides = load("(q + 2) // 4 == (k - 1) // 4").body
    assert [grid_before(sides, side, 4) for side in ("q", "k")] == [Const(2), Const(3)]
