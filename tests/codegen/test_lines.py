"""Loops over the lines of a raster against brute force, tile by tile in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from patterncc.codegen import schedule
from patterncc.codegen.evaluation import evaluate
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.line_sweeps import line_program, with_transposed_lines
from patterncc.codegen.lines import lines_of
from patterncc.codegen.lower import first_row_step, lower, specialise
from patterncc.codegen.passes import run_passes
from patterncc.dsl.loader import load
from patterncc.dsl.mask import And, Predicate
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


def check(program: BlockProgram, case: Case, *, both: bool = True) -> None:
    """Visited and full tiles are those of brute force, and what tiles decide is true of them."""
    allowed = dense(case.body, case.env)
    expected = brute_block_map(allowed, case.shape)
    lists = schedule.forward_tiles(program, case.env)
    for row in range(len(lists.indptr) - 1):
        tiles = lists.tiles[lists.indptr[row] : lists.indptr[row + 1]]
        assert len(set(tiles.tolist())) == len(tiles), f"row {row} visits a tile twice"
    found = schedule.block_map(program, case.env)
    np.testing.assert_array_equal(found, expected)
    if both:
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
    # A mask may be about wider places than those that were drawn.
    assume(lines is not None and lines.fits(case.shape.block_q, case.shape.block_k))
    assume(case.env["q_offset"] % lines.area == 0)
    tile = case.shape.block_q, case.shape.block_k
    program = line_program("drawn", case.body, lines, tile)
    check(run_passes(with_transposed_lines(program, lines), check=True), case)
