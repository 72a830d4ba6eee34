"""Turns: one order in which key tiles add to what belongs to a tile of rows, and the number of a
key tile in it, in closed form.

A program for each key tile adds to sums of every row tile that it visits. Where the order must be
the same in every run, number `n` of a row tile waits for those before it. Both directions must then
visit the same pairs of tiles, or a program waits for what never comes: that is proved, of all calls
at once, before a kernel counts on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations
from typing import Literal, TypeAlias

from patterncc.codegen.ir import (
    DENSE,
    K_LAST,
    K_TILE,
    Q_FIRST,
    Q_LAST,
    Q_OFFSET,
    RESIDUE,
    BlockProgram,
    Direction,
    Sweep,
)
from patterncc.codegen.presburger.compare import Inclusion
from patterncc.dsl.build import (
    add,
    all_of,
    any_of,
    compare,
    floordiv,
    maximum,
    minimum,
    multiply,
    substitute,
    subtract,
)
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import (
    Const,
    Entry,
    Expr,
    IntExpr,
    K,
    Member,
    Predicate,
    Q,
    Segment,
    Var,
    walk,
)

Turns: TypeAlias = Literal["rising", "falling"]
"""Whether key tiles add from the first on, or from the last."""

MOST_LOOPS: dict[Direction, int] = {"forward": 12, "transposed": 16}
"""One warp counts tiles of the forward loops while two warpgroups compute one; what is to be proved
grows with the pairs of either."""

_Q_LEN, _KV_LEN = Var("q_len"), Var("kv_len")
_ZERO, _ONE = Const(0), Const(1)
DIRECTIONS: tuple[Direction, Direction] = ("forward", "transposed")


def earlier_tiles(program: BlockProgram, turns: Turns) -> tuple[Sweep, ...]:
    """The key tiles that a row tile visits before `K_TILE`, as loops from 0 to their number.

    They read what forward sweeps do, and `K_TILE`. The number of its turn is the sum of their
    lengths: no two sweeps visit the same tile.
    """
    return tuple(
        Sweep("full", _ZERO, _number(sweep, turns), sweep.guard)
        for one in program.sweeps("forward")
        for sweep in _classes(one)
    )


def _number(sweep: Sweep, turns: Turns) -> IntExpr:
    """How many tiles of a sweep come before, if its guard holds."""
    stride = Const(sweep.stride)
    here = subtract(K_TILE, sweep.phase)
    if turns == "falling":
        low = maximum(sweep.lo, add(floordiv(here, stride), _ONE))
        return maximum(subtract(sweep.hi, low), _ZERO)
    high = minimum(sweep.hi, floordiv(add(here, Const(sweep.stride - 1)), stride))
    return maximum(subtract(high, sweep.lo), _ZERO)


def _classes(sweep: Sweep) -> Iterator[Sweep]:
    """Its residue classes, each a sweep of its own."""
    if sweep.classes == 1:
        yield sweep
        return
    for residue in range(sweep.classes):
        at: dict[Expr, IntExpr] = {RESIDUE: Const(residue)}
        lo, hi, phase = (substitute(part, at) for part in (sweep.lo, sweep.hi, sweep.phase))
        guard = substitute(sweep.guard, at)
        yield Sweep(sweep.kind, lo, hi, guard, sweep.stride, phase)


# ------------------------------------------------------------------------------------ the proof


@lru_cache(maxsize=256)
def turns_reason(program: BlockProgram) -> str | None:
    """Why no order of turns is known for a program, or None: both directions then visit the same
    pairs of tiles, each of them once, whatever the numbers of the call are."""
    if program.tiling != DENSE or program.patches is not None or program.gathered > 1:
        return "rows or keys are visited in classes"
    sweeps = (*program.sweeps("forward"), *program.sweeps("transposed"))
    if program.listed or program.ignored or any(sweep.repeats for sweep in sweeps):
        return "which tiles are visited is no interval or progression"
    for direction in DIRECTIONS:
        most = MOST_LOOPS[direction]
        if sum(sweep.classes for sweep in program.sweeps(direction)) > most:
            return f"more than {most} loops visit its tiles"
    if any(
        isinstance(n, (Entry, Member, Segment)) for s in sweeps for p in _parts(s) for n in walk(p)
    ):
        return "which tiles are visited depends on tables or documents"
    try:
        return None if _agree(program) else "its two directions may visit different tiles"
    except UnsupportedError as error:
        return f"that its two directions visit the same tiles is not proved: {error.message}"


def _parts(sweep: Sweep) -> tuple[Expr, ...]:
    return sweep.guard, sweep.lo, sweep.hi, sweep.phase


def _agree(program: BlockProgram) -> bool:
    """Are the pairs of tiles the same, in and within the call, and each visited once?"""
    call = all_of(program.assume, compare("<=", _ONE, _Q_LEN), compare("<=", _ONE, _KV_LEN))
    rows = all_of(call, _exists(Q, program.block_q, _Q_LEN))
    keys = all_of(call, _exists(K, program.block_k, _KV_LEN))
    forward, transposed = (
        [
            _visited(program, sweep, direction)
            for one in program.sweeps(direction)
            for sweep in _classes(one)
        ]
        for direction in DIRECTIONS
    )
    seen = all_of(any_of(*forward), rows)
    seeing = all_of(any_of(*transposed), keys)
    return (
        Inclusion(seen, seeing, call).holds
        and Inclusion(seeing, seen, call).holds
        and all(Inclusion(one, other, rows).disjoint for one, other in combinations(forward, 2))
        and all(Inclusion(one, other, keys).disjoint for one, other in combinations(transposed, 2))
    )


def _exists(tile: Var, size: int, length: Var) -> Predicate:
    """Has the call a tile of that number?"""
    return all_of(compare("<=", _ZERO, tile), compare("<", multiply(Const(size), tile), length))


def _visited(program: BlockProgram, sweep: Sweep, direction: Direction) -> Predicate:
    """The pairs of a row tile `q` and a key tile `k` that a sweep of one class visits."""
    if direction == "forward":
        size, passing = Const(program.block_q), K
        last = minimum(add(multiply(size, Q), size), _Q_LEN)
        at: dict[Expr, IntExpr] = {
            Q_FIRST: add(Q_OFFSET, multiply(size, Q)),
            Q_LAST: add(Q_OFFSET, last, Const(-1)),
        }
    else:
        size, passing = Const(program.block_k), Q
        last = minimum(add(multiply(size, K), size), _KV_LEN)
        at = {K_TILE: K, K_LAST: add(last, Const(-1))}
    guard = substitute(sweep.guard, at)
    lo, hi, phase = (substitute(part, at) for part in (sweep.lo, sweep.hi, sweep.phase))
    stride = Const(sweep.stride)
    step = floordiv(subtract(passing, phase), stride)
    return all_of(
        guard,
        compare("<=", lo, step),
        compare("<", step, hi),
        compare("==", add(multiply(stride, step), phase), passing),
    )
