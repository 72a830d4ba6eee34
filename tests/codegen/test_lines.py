"""Loops over the lines of a raster against brute force, tile by tile in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patterncc.call import Call
from patterncc.codegen import schedule
from patterncc.codegen.facts.counts import count_tiles
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.line_sweeps import line_program, with_transposed_lines
from patterncc.codegen.lines import lines_of
from patterncc.codegen.listing import kernel_mask
from patterncc.codegen.lower import first_row_step, lower, specialise
from patterncc.codegen.passes import run_passes
from patterncc.dsl.build import all_of
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.loader import load
from patterncc.dsl.mask import Predicate
from patterncc.dsl.printer import expression_text
from tests.codegen import cpu_calls
from tests.codegen.cpu_calls import random
from tests.codegen.cpu_gradients import check as check_gradients
from tests.codegen.drawing import Shape, brute_block_map, dense
from tests.codegen.test_lower import transposed_map

DEFINITIONS = """
pattern near(a, b, size, window):
    abs(clamp(a, window // 2, size - 1 - window // 2) - b) <= window // 2

pattern kernel(a, b, size, window):
    let left = window // 2
    let centre = clamp(a, left, size - window + left)
    centre - left <= b <= centre - left + window - 1

pattern same(a, b, window, shift):
    (a - shift) // window == (b - shift) // window
"""

# What a mask may ask along an axis `a`, `b` of `size` units; with a number that is given late.
AXES = (
    "near({a}, {b}, {size}, {window})",
    "near({a}, {b}, {size}, late)",
    "kernel({a}, {b}, {size}, late)",
    "same({a}, {b}, {step}, {shift})",
    "{b} - {a} <= {window} and {a} - {b} < late",
    "{b} <= {a}",
    "{a} >= {shift} and {b} < {step}",
    "(if layer % 2 == 1 then same({a}, {b}, {step}, {shift}) else abs({a} - {b}) < {window})",
)
# How the window lies among what else is seen: text behind the video or before it, a limit in the
# middle of a unit, other layers.
AROUND = (
    "{close}",
    "k < {video} + text and (q >= {video} or k >= {video} or {close})",
    "k < {video} + text and ({close} or q >= {video} and k >= {unit} or k >= {video})",
    "k < {unit} * late or q < {unit} and layer % 2 == 0 or {close}",
    "k < text and {close}",
    "if layer == 1 then {close} else k <= text",
)


@dataclass(frozen=True)
class Case:
    text: str
    body: Predicate
    shape: Shape
    env: dict[str, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    axes = draw(st.integers(1, 3))
    inner = tuple(draw(st.integers(2, 4)) for _ in range(axes - 1))
    unit = draw(st.sampled_from([4, 6, 8, 12]))
    depth = draw(st.integers(1, 3))
    area = prod(inner) * unit
    terms = []
    for axis in range(axes):
        step = prod(inner[axis:]) * unit
        remainder = f" % {inner[axis - 1]}" if axis else ""
        template = draw(st.sampled_from(AXES))
        terms.append(
            template.format(
                a=f"(q // {step}{remainder})",
                b=f"(k // {step}{remainder})",
                size=(depth, *inner)[axis],
                window=draw(st.integers(1, 4)),
                step=draw(st.integers(1, 4)),
                shift=draw(st.integers(0, 3)),
            )
        )
    close = "(" + " and ".join(f"({term})" for term in terms) + ")"
    around = draw(st.sampled_from(AROUND))
    around = around.format(close=close, video=f"{depth * area}", unit=unit)
    text = DEFINITIONS + f"pattern drawn(late, text):\n    {around}\n"
    blocks = [block for block in range(1, unit + 1) if unit % block == 0]
    kv_len = draw(st.one_of(st.integers(1, (depth + 2) * area), st.just(depth * area)))
    q_offset = draw(st.integers(0, (kv_len - 1) // area)) * area
    q_len = draw(st.one_of(st.just(kv_len - q_offset), st.integers(1, kv_len - q_offset)))
    tile = draw(st.sampled_from(blocks)), draw(st.sampled_from(blocks))
    env = {
        "q_len": q_len,
        "kv_len": kv_len,
        "q_offset": q_offset,
        "layer": draw(st.integers(0, 2)),
        "late": draw(st.one_of(st.integers(0, 4), st.integers(-6, 14))),
        "text": draw(st.integers(-unit, 3 * unit)),
    }
    return Case(text, specialise(load(text).body, {}), Shape(q_len, kv_len, q_offset, *tile), env)


def check(program: BlockProgram, case: Case) -> None:
    """Visited and full tiles are those of brute force, and what tiles decide is true of them."""
    allowed = dense(case.body, case.env)
    expected = brute_block_map(allowed, case.shape)
    lists = schedule.forward_tiles(program, case.env)
    for row in range(len(lists.indptr) - 1):
        tiles = lists.tiles[lists.indptr[row] : lists.indptr[row + 1]]
        assert len(set(tiles.tolist())) == len(tiles), f"row {row} visits a tile twice"
    found = schedule.block_map(program, case.env)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(transposed_map(program, case.env), expected)
    visited = spread(found, case.shape)
    for term in program.decided:
        assert dense(term, case.env)[visited > 0].all()


def spread(found: npt.NDArray[np.uint8], shape: Shape) -> npt.NDArray[np.uint8]:
    """A map of tiles as one of pairs."""
    rows = found.repeat(shape.block_q, 0)[: shape.q_len]
    return rows.repeat(shape.block_k, 1)[:, : shape.kv_len]


@settings(max_examples=200)
@given(case=cases())
def test_lines_equal_brute_force(case: Case) -> None:
    lines = lines_of(case.body)
    assume(lines is not None)
    assert lines is not None
    # A mask may be about wider places than those that were drawn.
    assume(lines.fits(case.shape.block_q, case.shape.block_k))
    assume(case.env["q_offset"] % lines.area == 0)
    tile = case.shape.block_q, case.shape.block_k
    program = line_program("drawn", case.body, lines, tile)
    check(run_passes(with_transposed_lines(program, lines), check=True), case)


# Of 576 tokens; how many frames and how much text there are, and the windows, are run-time numbers.
SLIDING = load("sliding_tile", tile=24, depth=2, rows=3, columns=4)
CALLS = (  # rows, keys, position of the first row
    (576, 576, 0),
    (300, 576, 0),
    (288, 576, 288),
    (100, 470, 288),
    (1, 1, 0),
    (640, 640, 0),
    (300, 650, 288),
)


@pytest.mark.parametrize("text", [0, 50, -30])
@pytest.mark.parametrize("tile", [(24, 8), (8, 24), (12, 12), (1, 1)])
def test_sliding_tiles_are_exact(tile: tuple[int, int], text: int) -> None:
    program = lower(SLIDING, *tile, within=True, check=True)
    assert not program.ignored and max(len(sweep.repeats) for sweep in program.forward) == 2
    for q_len, kv_len, q_offset in CALLS:
        for windows in ((3, 3, 3), (1, 1, 3), (5, 1, 1), (2, 4, 3)):
            names = ("depth_window", "row_window", "column_window")
            env = dict(zip(names, windows, strict=True)) | {"depth": 2, "text": text, "layer": 0}
            env |= {"q_len": q_len, "kv_len": kv_len, "q_offset": q_offset}
            shape = Shape(q_len, kv_len, q_offset, *tile)
            check(program, Case("", SLIDING.body, shape, env))


def test_windows_of_heads() -> None:
    pattern = load("sliding_tile_heads", tile=24, depth=2, rows=3, columns=4)
    program = lower(pattern, 24, 12, within=True, check=True)
    assert not program.ignored
    windows = np.array([[1, 3], [3, 2]])
    for layer in (0, 1):
        for head in (0, 1):
            env = {**pattern.defaults, "q_len": 560, "kv_len": 570, "q_offset": 0}
            env |= {"layer": layer, "head": head}
            tables = dict.fromkeys(("depth_window", "row_window", "column_window"), windows)
            shape = Shape(560, 570, 0, 24, 12)
            check(program, Case("", pattern.body, shape, env | tables))  # type: ignore[arg-type]


def test_counts_of_a_video() -> None:
    """Nothing is visited in vain, and no mask is computed: of five frames of 6 x 10 units a window
    sees 3 x 3 x 3; a unit is three tiles wide."""
    pattern = load("sliding_tile")
    env = {**pattern.defaults, "q_len": 115200, "kv_len": 115200, "q_offset": 0, "layer": 0}
    counts = count_tiles(lower(pattern, 128, 128, within=True, transposed=False), env)
    assert counts.visited == counts.full == 5 * 6 * 10 * 27 * 9
    assert counts.longest == 27 * 3
    # The first frame and a half, as far as the window is in it.
    env |= {"q_len": 34560, "kv_len": 34560}
    counts = count_tiles(lower(pattern, 128, 128, within=True, transposed=False), env)
    pairs = count_pairs(pair_program(pattern, {}, within=True), env)
    assert counts.visited * 128 * 128 == pairs.rows.sum() == 194_641_920
    assert pairs.keys is not None and pairs.keys.sum() == pairs.rows.sum()


def test_kernels_ask_what_tiles_do_not_decide() -> None:
    program = lower(SLIDING, 24, 12, within=True)
    assert all_of(kernel_mask(program), *program.decided) == program.mask
    assert expression_text(kernel_mask(program)) == "k < text + 288 * depth"


@pytest.mark.parametrize(
    "text",
    [
        "near(q // 8 % 4, k // 8 % 4, 4, 3) and q % 8 <= k % 8",  # looks into units
        "near(q // 8 % 4, k // 8 % 4, 4, 3) and near(q // 32, k // 32, 3, 3) or k <= q",
        "near(q // 8 % 4, k // 8 % 4, 4, 3) or near(q // 32, k // 32, 3, 3)",  # boxes that meet
        "near(q // 8 % 4, k // 8 % 4, 4, 3) and k >= 5",  # begins in the middle of a unit
        "near(q // 8 % 4, k // 8 % 4, 4, 3) and q < 5",
        "q // 8 % 4 != k // 8 % 4 and near(q // 32, k // 32, 3, 3)",  # no interval
        "q // 8 % 4 % 3 == k // 8 % 4 % 3 and near(q // 32, k // 32, 3, 3)",
    ],
)
def test_what_lines_are_not(text: str) -> None:
    assert lines_of(load(f"{DEFINITIONS}pattern p(n = 1):\n    {text}\n").body) is None


def test_a_table_at_a_position_is_left_to_the_mask() -> None:
    text = "pattern p(keep: bool[*]): keep[k] and near(q // 8 % 4, k // 8 % 4, 4, 3)"
    assert lines_of(load(f"{DEFINITIONS}{text}").body) is None


def test_other_tiles_and_calls_are_lowered_as_before() -> None:
    """Tiles that do not divide a unit, and rows that may begin anywhere: right, in more tiles."""
    for tile, within in (((16, 16), True), ((24, 7), True), ((24, 24), False)):
        program = lower(SLIDING, *tile, within=within, transposed=False)
        assert program.ignored and not program.decided


def test_calls_that_begin_within_a_frame() -> None:
    """What `within` takes for granted of the first row."""
    assert first_row_step(SLIDING, {}) == 288
    assert Call.of(SLIDING, 100, 400, 288).within
    assert not Call.of(SLIDING, 100, 400, 24).within
    assert Call.of(load("causal"), 100, 400, 24).within
    assert first_row_step(load("neighborhood"), {}) == 1
    whole = lower(SLIDING, 24, 24, within=True)
    env = {**SLIDING.defaults, "q_len": 100, "kv_len": 400, "q_offset": 24, "layer": 0}
    with pytest.raises(ConfigError):
        schedule.forward_tiles(whole, env)
    # One direction alone needs tiles within units.
    forward = lower(SLIDING, 24, 24, within=True, transposed=False)
    assert forward.forward == whole.forward
    env["q_len"] = 96
    expected = brute_block_map(dense(SLIDING.body, env), Shape(96, 400, 24, 24, 24))
    np.testing.assert_array_equal(schedule.block_map(forward, env), expected)


@pytest.mark.parametrize("lengths", [(576, 576, 0), (300, 500, 0), (200, 576, 288), (99, 570, 40)])
def test_on_the_cpu(lengths: tuple[int, int, int]) -> None:
    """The executor and its gradients against float64; a call that begins within a frame, too."""
    q_len, kv_len, q_offset = lengths
    within = Call.of(SLIDING, q_len, kv_len, q_offset).within
    program = lower(SLIDING, 24, 24, within=within)
    assert bool(program.ignored) == (q_offset == 40) != within
    env = {**SLIDING.defaults, "q_offset": q_offset}
    query, key, value = (
        random(1, heads, length, 16, seed=seed, dtype=torch.float64)
        for seed, (heads, length) in enumerate(((4, q_len), (2, kv_len), (2, kv_len)))
    )
    cpu_calls.check(program, query, key, value, env)
    check_gradients((program,), program.mask, query, key, value, env)
