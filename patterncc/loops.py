"""The loops of a block program at one call, as a person writes them: `j ∈ [max(i − 31, 0), i)`.

Bounds are written in the number of the tile alone, and whatever never matters in this call is left
out. The bounds for all lengths at once are the block program's own (`patterncc compile --emit ir`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.codegen.ir import RESIDUE, BlockProgram, Direction, Kind, Sweep
from patterncc.codegen.schedule import Env, evaluate, extents
from patterncc.dsl.build import add, floordiv, maximum, minimum, modulo, multiply, substitute
from patterncc.dsl.mask import (
    Const,
    Entry,
    Expr,
    FloorDiv,
    IntExpr,
    Max,
    Min,
    Mod,
    Param,
    Product,
    Segment,
    Select,
    Sum,
    Var,
    variables,
    walk,
)
from patterncc.notation import mathematics

MOST_CLASSES = 6  # residue classes of one sweep that are written out

# The number of the tile whose loops these are, and the number of the tiles they visit.
ROW: dict[Direction, str] = {"forward": "i", "transposed": "j"}
VISITED: dict[Direction, str] = {"forward": "j", "transposed": "i"}


@dataclass(frozen=True, slots=True)
class Loop:
    """One loop of a tile.

    Attributes:
        kind: Of the tiles it visits.
        tiles: Which tiles, as text.
        when: For which tiles it runs, as text; "" for all.
        visits: Tiles it visits in the whole call.
    """

    kind: Kind
    tiles: str
    when: str
    visits: int

    def __str__(self) -> str:
        return f"{self.kind:<7}  {self.tiles}" + (f"   for {self.when}" if self.when else "")


def loops(program: BlockProgram, env: Env, direction: Direction) -> list[Loop]:
    """The loops of all whole tiles of a call that visit anything, the first tiles first.

    A last tile that is cut short by the length may visit fewer tiles, or have a full one turn
    partial; where it is the only tile, the loops are its.

    Args:
        program: What to show.
        env: As `patterncc.codegen.schedule.forward_tiles` takes it.
        direction: Whose loops.
    """
    length, block, offset = (
        (int(env["q_len"]), program.block_q, int(env["q_offset"]))
        if direction == "forward"
        else (int(env["kv_len"]), program.block_k, 0)
    )
    if int(env["q_len"]) == 0 or int(env["kv_len"]) == 0:
        return []
    if program.patches is not None:
        return _patch_loops(program, env, direction)
    rows = length // block
    row = Var(ROW[direction])
    replace: dict[Expr, IntExpr] = {}
    tables: dict[str, Any] = {}
    for name, value in env.items():
        if np.ndim(value):
            tables[name] = value
        else:
            replace[Var(name)] = replace[Param(name)] = Const(int(value))
    if rows:
        first, last = _multiple(block, row, offset), _multiple(block, row, offset + block - 1)
    else:
        rows, first, last = 1, Const(offset), Const(offset + length - 1)
        replace[row] = Const(0)
    if direction == "forward":
        replace |= {Var("q_first"): first, Var("q_last"): last}
    else:
        replace |= {Var("k_tile"): row if length >= block else Const(0), Var("k_last"): last}

    runs: list[_Run] = []
    more: list[tuple[int, Loop]] = []
    for sweep in program.sweeps(direction):
        live = []
        for residue in range(sweep.classes):
            scope = {**replace, RESIDUE: Const(residue)} if sweep.classes > 1 else replace
            run = _run(sweep, scope, tables, row, rows, VISITED[direction])
            if run is not None:
                live.append(run)
        runs += live[:MOST_CLASSES]
        rest = live[MOST_CLASSES:]
        if rest:
            text = f"… and {len(rest)} more loops of {sweep.stride} tiles a step"
            visits = sum(run.visits for run in rest)
            more.append((rest[0].order, Loop(sweep.kind, text, "", visits)))
    found = [(run.order, run.loop(row.name)) for run in _joined(runs)]
    return [loop for _, loop in sorted(found + more, key=lambda pair: pair[0])]


def _patch_loops(program: BlockProgram, env: Env, direction: Direction) -> list[Loop]:
    """The loops of a program whose tiles are patches: some that lie beside each other."""
    visits: dict[Sweep, int] = {}
    for sweep, _, count, _ in extents(program, env, direction):
        visits[sweep] = visits.get(sweep, 0) + int(count.sum())
    assert program.patches is not None
    axes = len(program.patches.sizes) + 1
    text = f"{VISITED[direction]} ∈ a box of patches along {axes} axes"
    return [Loop(sweep.kind, text, "", count) for sweep, count in visits.items() if count]


def _multiple(factor: int, row: IntExpr, constant: int) -> IntExpr:
    return add(multiply(Const(factor), row), Const(constant))


@dataclass(frozen=True, slots=True)
class _Run:
    """A loop, and which tiles run it: bool `[rows]`. `order`: the last tile that it visits."""

    kind: Kind
    tiles: str
    live: npt.NDArray[np.bool_]
    visits: int
    order: int

    def loop(self, row: str) -> Loop:
        return Loop(self.kind, self.tiles, _when(row, self.live), self.visits)


def _joined(runs: list[_Run]) -> list[_Run]:
    """Loops that read the same as one: the lowering keeps them apart for other lengths."""
    result: dict[tuple[Kind, str], _Run] = {}
    for run in runs:
        other = result.get((run.kind, run.tiles))
        if other is not None:
            run = _Run(
                run.kind,
                run.tiles,
                run.live | other.live,
                run.visits + other.visits,
                max(run.order, other.order),
            )
        result[run.kind, run.tiles] = run
    return list(result.values())


def _run(
    sweep: Sweep,
    replace: Mapping[Expr, IntExpr],
    tables: Env,
    row: Var,
    rows: int,
    visited: str,
) -> _Run | None:
    """One loop with its symbols replaced; `None` if it visits nothing."""
    scope = {**tables, row.name: np.arange(rows, dtype=np.int64)}

    def array(expr: Expr) -> npt.NDArray[Any]:
        return np.broadcast_to(np.asarray(evaluate(expr, scope)), (rows,))

    def here(expr: IntExpr) -> IntExpr:
        return _looked_up(substitute(expr, replace), tables)

    guard = array(substitute(sweep.guard, replace)).astype(bool)
    phase, last = here(sweep.phase), array(here(sweep.phase))
    trips: npt.NDArray[Any] = np.where(guard, 1, 0)
    # The outermost first, the loop over tiles last.
    ranges: list[tuple[int, IntExpr, IntExpr, npt.NDArray[Any]]] = []
    around = [(repeat.step, repeat.lo, repeat.hi) for repeat in reversed(sweep.repeats)]
    for step, lo, hi in [*around, (sweep.stride, sweep.lo, sweep.hi)]:
        low, high = here(lo), here(hi)
        turns = np.maximum(array(high) - array(low), 0)
        trips, last = trips * turns, last + step * (array(high) - 1)
        ranges.append((step, low, high, turns))
    live = trips > 0
    if not live.any():
        return None
    # Tiles that do not run the loop have no say in how its ends are written.
    within = {**tables, row.name: scope[row.name][live]}
    several = []
    for step, low, high, turns in ranges:
        if bool((turns[live] == 1).all()):
            phase = add(phase, multiply(Const(step), low))
        else:
            several.append((step, low, high))
    tiles = _tiles(several, phase, within, visited)
    return _Run(sweep.kind, tiles, live, int(trips.sum()), int(last[live][-1]))


def _tiles(
    ranges: Sequence[tuple[int, IntExpr, IntExpr]], phase: IntExpr, within: Env, visited: str
) -> str:
    """The tiles of loops in loops as text.

    Args:
        ranges: How far apart the tiles of each are, and its ends; those of one turn are not among
            them.
        phase: The tile where all counters are 0.
        within: The tables and the rows of tiles that run them.
        visited: What the text calls the tiles.
    """
    if len(ranges) == 1 and ranges[0][0] == 1:
        ((_, low, high),) = ranges
        low, high = (_simplify(add(end, phase), within) for end in (low, high))
        return f"{visited} ∈ [{mathematics(low)}, {mathematics(high)})"
    tile, texts = _simplify(phase, within), []
    for number, (step, low, high) in enumerate(ranges):
        inner = number == len(ranges) - 1
        counter = Var("n" if inner else f"m_{number}")
        tile = add(tile, multiply(Const(step), counter))
        ends = (mathematics(_simplify(end, within)) for end in (low, high))
        texts.append(f"{counter.name} ∈ [{', '.join(ends)})")
    return ",  ".join([f"{visited} = {mathematics(tile)}", *texts])


def _when(row: str, live: npt.NDArray[np.bool_]) -> str:
    """Which tiles run a loop: "" for all of them, one or two ranges, or a range with gaps."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], live, [False]]).astype(np.int8)))
    runs = [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    if len(runs) <= 2:
        return " or ".join(_range(row, *run, len(live)) for run in runs)
    if steps := _progression(np.flatnonzero(live)):
        return f"{row} = {steps}"
    first, last = runs[0][0], runs[-1][1]
    gaps = _progression(np.flatnonzero(~live[first : last + 1]) + first)
    if not gaps:
        return f"{int(live.sum())} of the {row}"
    hull = _range(row, first, last, len(live))
    return f"{hull}, {row} ≠ {gaps}" if hull else f"{row} ≠ {gaps}"


def _range(row: str, first: int, last: int, rows: int) -> str:
    if first == last:
        return f"{row} = {first}"
    if last == rows - 1:
        return f"{row} ≥ {first}" if first else ""
    return f"{first} ≤ {row} ≤ {last}" if first else f"{row} ≤ {last}"


def _progression(numbers: npt.NDArray[np.int64]) -> str:
    """`5, 13, … 117`, or "" if the steps differ."""
    if len(numbers) <= 2:
        return ", ".join(map(str, numbers))
    steps = np.diff(numbers)
    return f"{numbers[0]}, {numbers[1]}, … {numbers[-1]}" if (steps == steps[0]).all() else ""


# ---------------------------------------------------------------------------- simplification


def _looked_up(expr: IntExpr, tables: Env) -> IntExpr:
    """The expression with the entries of tables that are the same for every tile as numbers."""
    entries: dict[Expr, Expr] = {
        node: Const(int(evaluate(node, tables)))
        for node in walk(expr)
        if isinstance(node, (Entry, Segment)) and not variables(node)
    }
    return substitute(expr, entries)


def _simplify(expr: IntExpr, scope: Env) -> IntExpr:
    """The expression as short as it gets for the values that its one symbol takes in `scope`."""
    match expr:
        case Sum(terms):
            return _summed([_simplify(term, scope) for term in terms], scope)
        case Product(factors):
            return multiply(*(_simplify(factor, scope) for factor in factors))
        case FloorDiv(value, Const(divisor)):
            match _simplify(value, scope):
                case Min(args):  # floors are monotone
                    return _simplify(minimum(*(_divided(arg, divisor) for arg in args)), scope)
                case Max(args):
                    return _simplify(maximum(*(_divided(arg, divisor) for arg in args)), scope)
                case simple:
                    return _divided(simple, divisor)
        case Mod(value, Const(divisor)):
            coefficients, constant = _linear(_simplify(value, scope))
            reduced = [multiply(Const(c % divisor), term) for term, c in coefficients.items()]
            return modulo(add(*reduced, Const(constant % divisor)), Const(divisor))
        case Min(args):
            return minimum(*_undominated([_simplify(arg, scope) for arg in args], scope, -1))
        case Max(args):
            return maximum(*_undominated([_simplify(arg, scope) for arg in args], scope, 1))
        case Select(condition, then, otherwise):
            holds = evaluate(condition, scope)
            if np.all(holds):
                return _simplify(then, scope)
            if not np.any(holds):
                return _simplify(otherwise, scope)
    return expr


def _summed(terms: Sequence[IntExpr], scope: Env) -> IntExpr:
    """A sum, taken into the one extremum that it has: `max(a, b) + c` is `max(a + c, b + c)`."""
    extrema = [term for term in terms if isinstance(term, (Min, Max))]
    if len(extrema) != 1:
        return add(*terms)
    rest = [term for term in terms if term is not extrema[0]]
    shifted = [add(arg, *rest) for arg in extrema[0].args]
    if isinstance(extrema[0], Min):
        return minimum(*_undominated(shifted, scope, -1))
    return maximum(*_undominated(shifted, scope, 1))


def _linear(expr: IntExpr) -> tuple[dict[IntExpr, int], int]:
    """`sum(coefficient * term) + constant`."""
    coefficients: dict[IntExpr, int] = {}
    constant = 0
    for term in expr.terms if isinstance(expr, Sum) else (expr,):
        match term:
            case Const(value):
                constant += value
            case Product((Const(factor), *rest)):
                coefficients[multiply(*rest)] = factor
            case _:
                coefficients[term] = 1
    return coefficients, constant


def _divided(value: IntExpr, divisor: int) -> IntExpr:
    """`value // divisor` with multiples of the divisor taken out, and what is left reduced."""
    coefficients, constant = _linear(value)
    parts: list[IntExpr] = [Const(constant // divisor)]
    inside: dict[IntExpr, int] = {}
    for term, factor in coefficients.items():
        whole, rest = divmod(factor, divisor)
        if rest == 0:
            parts.append(multiply(Const(whole), term))
        else:
            inside[term] = factor
    constant %= divisor
    common = gcd(divisor, *inside.values())
    terms = [multiply(Const(factor // common), term) for term, factor in inside.items()]
    floor = floordiv(add(*terms, Const(constant // common)), Const(divisor // common))
    return add(*parts, floor)


def _undominated(args: list[IntExpr], scope: Env, sign: int) -> list[IntExpr]:
    """The operands of a maximum (`sign` 1) or minimum (-1) that ever decide it."""
    values = [sign * np.asarray(evaluate(arg, scope)) for arg in args]
    kept = list(range(len(args)))
    for i in range(len(args)):
        others = [j for j in kept if j != i]
        if others and bool(np.all(reduce(np.maximum, (values[j] for j in others)) >= values[i])):
            kept = others
    return [args[i] for i in kept]
