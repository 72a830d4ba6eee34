"""Block programs equal the relation for all lengths, offsets and numbers: proved, not sampled.

The loops after all passes, read back as integer sets with everything symbolic, must be the tiles
that the mask touches; the full ones those that it fills; and no tile may be in two loops. Periods
that are no multiple of the tile (`chunked(100)`) are beyond isl's budget here; test_lower.py
samples them.
"""

from __future__ import annotations

from itertools import combinations

import islpy as isl
import pytest

from patterncc.codegen.ir import (
    DENSE,
    K_LAST,
    K_TILE,
    Q_CLASS,
    Q_FIRST,
    Q_LAST,
    Q_OFFSET,
    RESIDUE,
    BlockProgram,
    Direction,
    Sweep,
    Tiling,
)
from patterncc.codegen.lower import lower
from patterncc.codegen.presburger.exact import ExactSymbols
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl.build import add, all_of, any_of, compare, multiply, negate, substitute
from patterncc.dsl.loader import load
from patterncc.dsl.mask import FALSE, Const, IntExpr, K, Predicate, Q, Var

TILE, Q_LEN, KV_LEN = Var("tile"), Var("q_len"), Var("kv_len")
BUDGET = 5_000_000  # a proof may take longer than a compilation

CASES: list[tuple[str, Tiling]] = [
    ("full", DENSE),
    ("causal", DENSE),
    ("window", DENSE),
    ("around", DENSE),
    ("sinks", DENSE),
    ("prefix", DENSE),
    ("tail", DENSE),
    ("chunked(192)", DENSE),
    ("block_causal(48)", DENSE),
    ("chunks_back(64, 1)", DENSE),
    ("streaming", DENSE),
    ("local_strided", DENSE),
    ("ladder(rung = 128, period = 4)", DENSE),
    ("causal and (k // 32 + layer) % 4 == 0", DENSE),
    ("dilated(512, 8)", residue_tiling(8)),
    ("longformer(64, 4)", DENSE),
    ("causal and k % 4 == 1", Tiling(1, 4, Const(1))),
]


def times(factor: int, value: IntExpr) -> IntExpr:
    return multiply(Const(factor), value)


def between(low: IntExpr, value: IntExpr, high: IntExpr) -> Predicate:
    return all_of(compare("<=", low, value), compare("<", value, high))


def geometry(program: BlockProgram, direction: Direction) -> tuple[Predicate, Predicate, Predicate]:
    """The pairs of tile `TILE`, which of them exist, and what holds of the symbols."""
    rows, keys = program.block_q, program.block_k
    least = all_of(*(compare("<=", Const(1), size) for size in (Q_LEN, KV_LEN)))
    classes = between(Const(0), Q_CLASS, Const(program.tiling.q_step))
    context = all_of(least, program.assume, classes)
    if direction == "forward":
        row_end = add(Q_OFFSET, Q_LEN)
        context = all_of(
            context,
            compare("<=", Q_FIRST, Q_LAST),
            compare("<", Q_LAST, add(Q_FIRST, Const(rows))),
            compare("<=", Q_OFFSET, Q_FIRST),
            compare("<", Q_LAST, row_end),
        )
        pairs = all_of(
            between(Q_FIRST, Q, add(Q_LAST, Const(1))),
            between(times(keys, TILE), K, times(keys, add(TILE, Const(1)))),
            compare("<=", Const(0), TILE),
        )
        return pairs, compare("<", K, KV_LEN), context
    first = times(keys, K_TILE)
    context = all_of(
        context,
        compare("<=", Const(0), K_TILE),
        between(first, K_LAST, add(first, Const(keys))),
        compare("<", K_LAST, KV_LEN),
    )
    row = add(Q_OFFSET, times(rows, TILE))
    pairs = all_of(
        between(row, Q, add(row, Const(rows))),
        compare("<", Q, add(Q_OFFSET, Q_LEN)),
        between(first, K, add(first, Const(keys))),
        compare("<=", Const(0), TILE),
    )
    return pairs, compare("<=", K, K_LAST), context


def visits(sweep: Sweep) -> list[Predicate]:
    """For each class of a sweep when it visits tile `TILE`, with `k` as its counter."""
    tile = add(times(sweep.stride, K), sweep.phase)
    whole = all_of(sweep.guard, between(sweep.lo, K, sweep.hi), compare("==", TILE, tile))
    return [substitute(whole, {RESIDUE: Const(r)}) for r in range(sweep.classes)]


def prove(program: BlockProgram, direction: Direction) -> None:
    pairs, exists, context = geometry(program, direction)
    touched = all_of(pairs, exists, program.mask)
    lacking = all_of(pairs, opposite(all_of(exists, program.mask)))
    loops = [(sweep.kind, each) for sweep in program.sweeps(direction) for each in visits(sweep)]
    symbols = ExactSymbols([touched, lacking, context, *(each for _, each in loops)], budget=BUDGET)
    with symbols.budget():
        world = symbols.pairs(context).params()

        def tiles(predicate: Predicate) -> isl.Set:
            return symbols.pairs(predicate).params().intersect(world)

        visited = tiles(touched)
        full = visited.subtract(tiles(lacking))
        sets = [(kind, tiles(each)) for kind, each in loops]
        empty = tiles(FALSE)
        for kind, expected in (("full", full), ("partial", visited.subtract(full))):
            union = empty
            for found, each in sets:
                union = union.union(each) if found == kind else union
            assert union.is_equal(expected), f"{kind} tiles of the {direction} direction"
        for (_, one), (_, other) in combinations(sets, 2):
            assert one.intersect(other).is_empty(), "a tile is in two loops"


def opposite(predicate: Predicate) -> Predicate:
    args = getattr(predicate, "args", ())
    return any_of(*map(negate, args)) if args else negate(predicate)


@pytest.mark.parametrize("direction", ["forward", "transposed"])
@pytest.mark.parametrize(("text", "tiling"), CASES, ids=[text for text, _ in CASES])
def test_loops_are_the_relation(text: str, tiling: Tiling, direction: Direction) -> None:
    program = lower(load(text), 64, 64, within=True, tiling=tiling)
    assert not program.ignored and not program.listed
    prove(program, direction)


@pytest.mark.parametrize("text", ["causal", "window", "streaming"])
def test_loops_are_the_relation_wherever_rows_stand(text: str) -> None:
    prove(lower(load(text), 128, 64), "forward")


def test_a_wrong_loop_is_found() -> None:
    program = lower(load("causal"), 64, 64, within=True)
    prove(program, "forward")
    wrong = program.map_sweeps(lambda sweeps: sweeps[:-1])
    with pytest.raises(AssertionError, match="tiles of the forward direction"):
        prove(wrong, "forward")
