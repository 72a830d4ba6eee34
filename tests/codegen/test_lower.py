"""Lowering is exact: visited and full tiles equal brute force in both directions, each tile
visited once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import assume, given, settings

from patterncc.codegen import schedule
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.lower import lower, with_transposed
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Predicate
from tests.codegen.drawing import (
    Shape,
    brute_block_map,
    dense,
    environment,
    masks,
    numbers,
    pattern_of,
    shapes,
)


def transposed_map(program: BlockProgram, env: dict[str, int]) -> npt.NDArray[np.uint8]:
    lists = schedule.transposed_tiles(program, env)
    columns = np.repeat(np.arange(len(lists.indptr) - 1), np.diff(lists.indptr))
    rows = -(-env["q_len"] // program.block_q)
    result = np.zeros((rows, len(lists.indptr) - 1), np.uint8)
    np.add.at(result, (lists.tiles, columns), np.where(lists.full, 2, 1).astype(np.uint8))
    assert len(set(zip(lists.tiles.tolist(), columns.tolist(), strict=True))) == len(columns)
    return result


def check(body: Predicate, shape: Shape, values: dict[str, int]) -> None:
    env = environment(shape, values)
    expected = brute_block_map(dense(body, env), shape)
    for within in {False, shape.within}:
        program = lower(pattern_of(body), shape.block_q, shape.block_k, within=within, check=True)
        lists = schedule.forward_tiles(program, env)
        for row in range(len(lists.indptr) - 1):
            tiles = lists.tiles[lists.indptr[row] : lists.indptr[row + 1]]
            assert len(set(tiles.tolist())) == len(tiles), f"row {row} visits a tile twice"
        assert_exact(schedule.block_map(program, env), expected, program)
        assert_exact(transposed_map(program, env), expected, program)


def assert_exact(
    found: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8], program: BlockProgram
) -> None:
    """The map is the expected one; with terms ignored it visits no less and has no tile full that
    is not.
    """
    if program.ignored:
        assert (found[expected > 0] > 0).all()
        assert (expected[found == 2] == 2).all()
    else:
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=100)
@given(body=masks, shape=shapes(), values=numbers)
def test_block_maps_equal_brute_force(
    body: Predicate, shape: Shape, values: dict[str, int]
) -> None:
    try:
        check(body, shape, values)
    except UnsupportedError:
        assume(False)


@settings(max_examples=30)
@given(body=masks, shape=shapes())
def test_the_transposed_direction_can_be_added_later(body: Predicate, shape: Shape) -> None:
    pattern = pattern_of(body)
    try:
        both = lower(pattern, shape.block_q, shape.block_k)
        forward = lower(pattern, shape.block_q, shape.block_k, transposed=False)
    except UnsupportedError:
        assume(False)
    assert forward.transposed is None
    assert with_transposed(forward, check=True) == both
    assert with_transposed(both) is both
