"""Plans compute each allowed pair once and no other, in few calls; equal heads share a plan."""

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc.codegen.cpu import heads
from patterncc.codegen.cpu.heads import PlanStore
from patterncc.codegen.cpu.plan import Plan, make_plan
from patterncc.codegen.cpu.tiles import FULL, MaskedTiles, masked_tiles
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.lower import lower
from patterncc.dsl import load
from patterncc.dsl.errors import ArgumentError, UnsupportedError
from patterncc.dsl.mask import Predicate
from tests.codegen.drawing import Shape, dense, environment, masks, numbers, pattern_of, shapes

Grid = npt.NDArray[np.bool_]


def tiles_of(allowed: Grid, block_q: int, block_k: int) -> MaskedTiles:
    """The tiles of a mask, found by looking at every pair."""
    q_len, kv_len = allowed.shape
    padded = np.zeros((-(-q_len // block_q) * block_q, -(-kv_len // block_k) * block_k), np.bool_)
    padded[:q_len, :kv_len] = allowed
    bank: dict[bytes, tuple[int, Grid]] = {}
    found = []
    for q_tile in range(len(padded) // block_q):
        for k_tile in range(padded.shape[1] // block_k):
            rows = slice(q_tile * block_q, (q_tile + 1) * block_q)
            tile = padded[rows, k_tile * block_k : (k_tile + 1) * block_k]
            if tile[: q_len - rows.start].all():
                found.append((q_tile, k_tile, FULL))
            elif tile.any():
                number, _ = bank.setdefault(tile.tobytes(), (len(bank), tile))
                found.append((q_tile, k_tile, number))
    q_tiles, k_tiles, numbers = np.array(found, np.int64).reshape(-1, 3).T
    stack = np.array([tile for _, tile in bank.values()], np.bool_)
    stack = stack.reshape(len(bank), block_q, block_k)
    return MaskedTiles(block_q, block_k, q_tiles, k_tiles, numbers, stack)


def computed(plan: Plan, q_len: int, kv_len: int) -> npt.NDArray[np.int64]:
    """How often each pair enters the softmax, by going through the calls."""
    counts = np.zeros((q_len, kv_len), np.int64)
    written = np.zeros(q_len, np.bool_)
    for call in plan.calls:
        seen = np.ones((call.size, call.keys), np.bool_)
        if call.masks is not None:
            seen = plan.call_mask(call)
            assert seen.shape == (call.size, call.keys)
        dead = np.zeros(call.size, np.bool_) if call.dead is None else call.dead
        np.testing.assert_array_equal(dead, ~seen.any(axis=1))
        assert call.count == 1 or (len(call.spans) == 1 and call.row_step >= call.size)
        for block in range(call.count):
            first = call.row + block * call.row_step
            rows = np.arange(first, first + call.size)
            keys = np.concatenate([np.arange(*span) for span in call.spans])
            assert written[rows].all() if not call.first else not written[rows].any()
            written[rows] = True
            counts[np.ix_(rows, keys + block * call.key_step)] += seen
    assert plan.untouched == (not written.all())
    assert plan.merges == any(not call.first for call in plan.calls)
    return counts


def lengths(low: int = 1) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, 90), st.integers(low, 90))


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Unions of bands, staircases, columns, rows and scattered blocks, and what they leave out."""
    q_len, kv_len = draw(lengths())
    q, k = np.arange(q_len)[:, None], np.arange(kv_len)[None, :]
    grid = np.zeros((q_len, kv_len), np.bool_)
    for _ in range(draw(st.integers(0, 4))):
        a, b = draw(st.integers(-90, 90)), draw(st.integers(1, 60))
        slope = draw(st.integers(1, 3))
        seed = draw(st.integers(0, 99))
        scattered = np.random.default_rng(seed).random((90 // 7 + 1, 90 // 5 + 1)) < 0.2
        grid = grid ^ draw(
            st.sampled_from(
                [
                    (a <= slope * q - k) & (slope * q - k < a + b),
                    (k <= q + a) & (k >= 0),
                    (k >= q + a) & (k >= 0),
                    (abs(a) <= k) & (k < abs(a) + b) & (q >= 0),
                    (abs(a) <= q) & (q < abs(a) + b) & (k >= 0),
                    (q // b == k // b),
                    ((q - k) % b == 0),
                    scattered[q // 7, k // 5],
                ]
            )
        )
    return grid


@settings(max_examples=300)
@given(grids(), st.sampled_from([4, 8, 16]), st.sampled_from([4, 8, 16, 32]))
def test_each_allowed_pair_is_computed_once(grid: Grid, block_q: int, block_k: int) -> None:
    plan = make_plan(tiles_of(grid, block_q, block_k), *grid.shape)
    np.testing.assert_array_equal(computed(plan, *grid.shape), grid)


def test_blocks_of_a_call_share_no_row() -> None:
    # Full tiles that two rows share, and the next two: alike, a tile further down each.
    grid = np.zeros((4, 16), np.bool_)
    grid[0, 9:12] = True
    for row in (1, 2, 3):
        grid[row, row + 2 : row + 6] = grid[row, row + 9 : row + 12] = True
    wide = np.kron(grid, np.ones((64, 64), np.bool_))
    plan = make_plan(tiles_of(wide, 64, 64), *wide.shape)
    np.testing.assert_array_equal(computed(plan, *wide.shape), wide)


@settings(max_examples=40)
@given(masks, shapes(), numbers)
def test_tiles_of_lowered_masks(body: Predicate, shape: Shape, values: dict[str, int]) -> None:
    try:
        program = lower(pattern_of(body), shape.block_q, shape.block_k)
    except UnsupportedError:
        return
    env = environment(shape, values)
    plan = make_plan(masked_tiles(program, env), shape.q_len, shape.kv_len)
    np.testing.assert_array_equal(computed(plan, shape.q_len, shape.kv_len), dense(body, env))


@cache
def program_of(text: str) -> BlockProgram:
    return lower(load(text), 64, 64, within=True)


def plan_of(text: str, length: int) -> Plan:
    program = program_of(text)
    env = {"q_len": length, "kv_len": length, "q_offset": 0}
    return make_plan(masked_tiles(program, env), length, length)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("full", 1),
        ("q // 512 == k // 512", 1),
        ("0 <= q - k < 512", 5),
        ("causal and (k < 4 or q - k < 512)", 12),
        ("abs(q - k) <= 256", 9),
    ],
)
@pytest.mark.parametrize("length", [2048, 8192])
def test_calls_do_not_grow_with_the_length(text: str, calls: int, length: int) -> None:
    assert len(plan_of(text, length).calls) <= calls


def test_calls_of_a_causal_mask_grow_as_the_logarithm() -> None:
    assert [len(plan_of("k <= q", 64 << power).calls) for power in range(8)] == [*range(1, 9)]
    assert plan_of("k <= q", 4096).pairs == 4096 * (4096 + 64) // 2


def test_decoding_reads_its_keys_and_no_others() -> None:
    env = {"q_len": 1, "kv_len": 9999, "q_offset": 9998}
    program = program_of("causal and (k < 4 or q - k < 512)")
    plan = make_plan(masked_tiles(program, env), 1, 9999)
    assert {call.spans for call in plan.calls} == {((0, 4),), ((9487, 9999),)}
    assert [call.masks for call in plan.calls] == [None, None]


def test_work_falls_with_density() -> None:
    dense_pairs = 4096 * 4096
    for window in (64, 256, 1024):
        pairs = plan_of(f"0 <= q - k < {window}", 4096).pairs
        assert pairs <= 4096 * (window + 64) <= dense_pairs
    assert plan_of("q // 64 % 8 == 0 and k // 64 % 8 == 0", 4096).pairs == dense_pairs // 64


def test_keys_that_no_row_of_a_tile_sees_are_left_out() -> None:
    (call,) = plan_of("k < 4", 256).calls
    assert (call.spans, call.masks, call.size) == (((0, 4),), None, 256)


def test_a_plan_is_the_same_each_time() -> None:
    def describe(plan: Plan) -> list[object]:
        return [
            (call.row, call.row_step, call.size, call.count, call.spans, call.key_step, call.first)
            for call in plan.calls
        ]

    text = "causal and (q - k < 100 or k // 64 % 3 == 0)"
    assert describe(plan_of(text, 1000)) == describe(plan_of(text, 1000))


# -------------------------------------------------------------------------------- heads, the store


def scalars(**given: int) -> dict[str, int]:
    base = {"q_len": 128, "kv_len": 128, "q_offset": 0, "heads": 4, "kv_heads": 2, "layer": 0}
    return base | given


def places(text: str, batch: int = 2) -> list[tuple[heads.Place, ...]]:
    found = PlanStore().find(lower(load(text), 32, 32), scalars(), batch)
    return [part.places for part in found]


def test_heads_that_see_the_same_share_a_plan() -> None:
    assert places("k <= q") == [((None, None),)]
    assert places("k <= q + 16 * max(head, 2)") == [
        ((None, 0), (None, 1), (None, 2)),
        ((None, 3),),
    ]
    assert places("if kv_head == 1 then causal else true") == [
        ((None, 0), (None, 1)),
        ((None, 2), (None, 3)),
    ]
    assert places("if batch == 1 then causal else true") == [((0, None),), ((1, None),)]
    assert places("if batch == 1 and head < 2 then causal else true") == [
        ((0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3)),
        ((1, 0), (1, 1)),
    ]


def test_plans_are_kept_for_what_the_program_reads() -> None:
    store = PlanStore()
    program = lower(load("pattern p(w = 8): 0 <= q - k < w"), 32, 32)
    store.find(program, scalars(w=8), 1)
    store.find(program, scalars(w=8, layer=3), 2)
    assert store.misses == 1
    store.find(program, scalars(w=9), 1)
    store.find(program, scalars(w=8, q_offset=1), 1)
    store.find(program, scalars(w=8, kv_len=129), 1)
    assert store.misses == 4
    again = lower(load("pattern p(w = 8): 0 <= q - k < w"), 32, 32)
    store.find(again, scalars(w=8), 1)
    assert store.misses == 4
    with pytest.raises(ArgumentError, match="reads `w`"):
        store.find(program, scalars(), 1)


def test_programs_that_differ_are_never_mixed_up() -> None:
    store = PlanStore()
    text = "pattern p(w = 8): 0 <= q - k < w and head // (heads // 2) == 0"
    two = lower(load(text), 32, 32, sizes={"heads": 2})
    four = lower(load(text), 32, 32, sizes={"heads": 4})
    assert two.structure == four.structure
    first = store.find(two, scalars(w=8), 1)
    second = store.find(four, scalars(w=8), 1)
    assert [part.places for part in first] != [part.places for part in second]


def test_the_store_is_bounded() -> None:
    program = lower(load("pattern p(w = 8): 0 <= q - k < w"), 32, 32)
    size = PlanStore()
    size.find(program, scalars(w=8), 1)
    store = PlanStore(limit=3 * size.nbytes)
    for w in range(1, 30):
        store.find(program, scalars(w=w), 1)
    assert 0 < store.nbytes <= 3 * size.nbytes
    store.find(program, scalars(w=29), 1)
    assert store.misses == 29
    tiny = PlanStore(limit=1)
    tiny.find(program, scalars(w=8), 1)
    assert tiny.nbytes == 0
