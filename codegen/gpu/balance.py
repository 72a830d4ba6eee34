"""Which key tiles a launch splits, so that no program runs for much longer than the others.

Steps are counted from the closed forms, at the numbers of a call, once for each plan: sinks, global
tokens and rungs are seen by all queries, other keys by a window of them. Knows neither torch nor
triton, and looks into no table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.codegen.gpu.chunk_source import MOST_PROGRESSIONS, Progression, follow_each_other
from patterncc.codegen.gpu.class_source import ROW_CLASS, in_pairs
from patterncc.codegen.gpu.launches import ceildiv
from patterncc.codegen.ir import (
    CALL_KV_LEN,
    CALL_Q_LEN,
    K_LAST,
    K_TILE,
    Q_CLASS,
    BlockProgram,
    Sweep,
)
from patterncc.codegen.patches import boxes, tile_count
from patterncc.codegen.schedule import evaluate
from patterncc.dsl.mask import Expr, variables

Steps = npt.NDArray[np.int64]

LONGEST = 2
"""Times the median of all programs that one may take."""

SHARES = 8
"""Or so many of them may keep a place for programs busy throughout: where there is that much to do,
shorter ones even out nothing more, and chunks leave sums in memory."""

SHORTEST = 8
"""Steps that a program may take in any case: it has as much to do besides."""

_PERIODS_TRIED = 32
_STRAYS = 4  # times the tall tiles that a progression may have to hold them all


def key_tile_steps(
    program: BlockProgram, env: Mapping[str, int], heads: int, group: int, *, strict: bool = False
) -> Steps:
    """How many tiles of queries each key tile sees, over all heads of a group; the most of any
    head of the keys.

    Sweeps whose bounds read what only the device knows, such as a table, are left out, and lists of
    tiles are not looked at.

    Args:
        program: What is launched, with its transposed sweeps.
        env: `q_len`, `kv_len`, `q_offset` of the call, and what the pattern reads.
        heads: Heads of the queries.
        group: Of them for each head of the keys.
        strict: No sweep may be left out.

    Returns:
        int64 `[places]`: tile after tile, and in each the classes of keys.

    Raises:
        KeyError: The classes of keys, or with `strict` the bounds, read what `env` does not have.
    """
    tiling = program.tiling
    tiles = ceildiv(ceildiv(env["kv_len"], tiling.k_step), program.block_k)
    if program.patches is not None:
        tiles = tile_count(program.patches, "k", env)
    steps = np.zeros((tiles, tiling.k_step), np.int64)
    call = {**env, CALL_Q_LEN.name: env["q_len"], CALL_KV_LEN.name: env["kv_len"]}
    call |= {"heads": heads, "kv_heads": heads // group}
    read = _names_read(program)
    kinds = heads // group if read & {"head", "kv_head"} else 1
    together = "head" in read
    for classes in _row_classes(program, call):
        scope = _of_class(program, call, classes, tiles)
        column = classes if in_pairs(tiling) else scope["k_class"] % tiling.k_step
        most = np.zeros(np.broadcast_shapes((tiles, 1), np.shape(classes)), np.int64)
        for kv_head in range(kinds):
            scope["kv_head"] = kv_head
            total: Any = 0
            for head in range(group if together else 1):
                scope["head"] = kv_head * group + head
                total = total + _counted(program, scope, strict)
            most = np.maximum(most, total if together else total * group)
        steps[:, np.ravel(column)] += np.where(scope["exists"], most, 0)
    return steps.ravel()


def most_query_tiles(program: BlockProgram, env: Mapping[str, int], heads: int, group: int) -> int:
    """A bound of the query tiles that one key tile sees, of one head and one class of rows; all
    there are, where that depends on what only the device knows. Arguments as `key_tile_steps`."""
    every = ceildiv(ceildiv(env["q_len"], program.tiling.q_step), program.block_q)
    if program.patches is not None:
        every = tile_count(program.patches, "q", env)
    try:
        steps = key_tile_steps(program, env, heads, group, strict=True)
    except KeyError:
        return every
    most = int(steps.max(initial=0))
    return min(every, most if "head" in _names_read(program) else most // group)


def _names_read(program: BlockProgram) -> set[str]:
    """What the bounds read."""
    sweeps = program.sweeps("transposed")
    parts = [part for sweep in sweeps for part in (*_parts(sweep), *_repeat_ends(sweep))]
    return {name for part in parts for name in variables(part)}


def _row_classes(program: BlockProgram, call: Mapping[str, int]) -> Iterator[Any]:
    """The classes of rows: all at once as a row of an array where they are in pairs with keys."""
    tiling = program.tiling
    if in_pairs(tiling):
        yield np.arange(tiling.q_step, dtype=np.int64)[None, :]
    else:
        yield from range(min(tiling.q_step, call["q_len"]))


def _of_class(
    program: BlockProgram, call: Mapping[str, int], row_class: Any, tiles: int
) -> dict[str, Any]:
    """What bounds read in a class of rows, for each key tile, as in `ir.Tiling`."""
    tiling = program.tiling
    if tiling.q_step == tiling.k_step == 1:
        scope: dict[str, Any] = {**call, "k_class": 0}
    else:
        first = call["q_offset"] + row_class
        scope = {**call, ROW_CLASS.name: row_class, Q_CLASS.name: first % tiling.q_step}
        k_class = evaluate(tiling.k_class, scope)
        scope["k_class"] = k_class
        scope["q_offset"] = first // tiling.q_step
        scope["q_len"] = np.maximum(-(-(call["q_len"] - row_class) // tiling.q_step), 0)
        scope["kv_len"] = np.maximum(-(-(call["kv_len"] - k_class) // tiling.k_step), 0)
    if program.patches is not None:
        found = boxes(program.patches, "k", call)
        scope |= {name: ends[:, None] for name, ends in found.items()}
        return scope | {"exists": np.broadcast_to(call["q_len"] > 0, (tiles, 1))}
    tile = np.arange(tiles, dtype=np.int64)[:, None]
    last = np.minimum(program.block_k * (tile + 1), scope["kv_len"]) - 1
    scope |= {K_TILE.name: tile, K_LAST.name: last}
    scope["exists"] = (last >= program.block_k * tile) & (scope["q_len"] > 0)
    return scope


def _counted(program: BlockProgram, scope: Mapping[str, Any], strict: bool) -> Any:
    """The steps of the sweeps whose bounds are known."""
    total: Any = 0
    for sweep in program.sweeps("transposed"):
        for residue in range(sweep.classes):
            env = {**scope, "residue": residue}
            try:
                guard, low, high = (evaluate(part, env) for part in _parts(sweep)[:3])
            except KeyError:
                if strict:
                    raise
                break
            each = np.where(guard, np.maximum(high - low, 0), 0)
            for repeat in sweep.repeats:
                begin, end = evaluate(repeat.lo, env), evaluate(repeat.hi, env)
                each = each * np.maximum(end - begin, 0)
            total = total + each
    return total


def _repeat_ends(sweep: Sweep) -> Iterator[Expr]:
    for repeat in sweep.repeats:
        yield from (repeat.lo, repeat.hi)


def _parts(sweep: Sweep) -> tuple[Expr, ...]:
    return sweep.guard, sweep.lo, sweep.hi


# ------------------------------------------------------------------------------------ splitting


def split_tiles(steps: Steps, copies: int, at_once: int) -> tuple[Progression, ...]:
    """The key tiles to split, and into how many chunks each.

    A program may take twice as long as the median of all, or the eighth part of what there is to do
    for each that runs at a time. Where so few tiles see anything that most of the device would
    idle, all that are longer than an even share are split.

    Args:
        steps: Of `key_tile_steps`.
        copies: How many times the tiles are computed: heads of the keys, batch entries.
        at_once: Programs that run at a time.
    """
    tall, limit = _tall(steps, copies, at_once)
    runs = progressions(tall, MOST_PROGRESSIONS)
    return tuple(_halved(steps, _in_chunks(steps, runs, limit), limit))


def split_in_turn(
    steps: Steps, copies: int, at_once: int, parts: int
) -> tuple[Progression, ...] | None:
    """The same key tiles in progressions that follow each other, as programs in turn need them.

    Args:
        steps: As in `split_tiles`, and so are those after it.
        copies: As there.
        at_once: As there.
        parts: A chunk may take that part of how long a program may.

    Returns:
        Progressions in their order; None where that takes more than there may be.
    """
    tall, limit = _tall(steps, copies, at_once)
    limit = ceildiv(limit, parts)
    found = _in_chunks(steps, sorted(progressions(tall, MOST_PROGRESSIONS)), limit)
    if not follow_each_other(found):
        found = _in_chunks(steps, _runs(tall), limit)
        if len(found) > MOST_PROGRESSIONS:
            return None
    return tuple(_halved(steps, found, limit))


def _tall(steps: Steps, copies: int, at_once: int) -> tuple[list[int], int]:
    """The key tiles whose programs would take too long, and how many steps one may take."""
    some = steps[steps > 0]
    if not len(some):
        return [], 1
    share = int(some.sum()) * copies // at_once
    if 2 * len(some) * copies <= at_once:
        limit = max(share, SHORTEST)
    else:
        limit = max(LONGEST * int(np.median(some)), share // SHARES, SHORTEST)
    return np.flatnonzero(steps > limit).tolist(), limit


def _in_chunks(steps: Steps, runs: Sequence[tuple[int, int, int]], limit: int) -> list[Progression]:
    return [Progression(*run, _chunks(steps, *run, limit)) for run in runs]


def _runs(places: Sequence[int]) -> list[tuple[int, int, int]]:
    """Arithmetic progressions `(first, step, count)`, one after the other."""
    found: list[tuple[int, int, int]] = []
    for place in places:
        if found:
            first, step, count = found[-1]
            if count == 1 or place == first + step * count:
                found[-1] = first, place - first if count == 1 else step, count + 1
                continue
        found.append((place, 1, 1))
    return found


def _chunks(steps: Steps, first: int, step: int, count: int, limit: int) -> int:
    """Enough for the longest tile of a progression; one, where it only holds tiles that see
    nothing."""
    longest = int(steps[first : first + step * (count - 1) + 1 : step].max())
    return max(ceildiv(longest, limit), 1)


def _halved(steps: Steps, found: list[Progression], limit: int) -> list[Progression]:
    """Cuts progressions in two while there is room, where that spares chunks: rungs see fewer
    queries the later they come."""
    while len(found) < MOST_PROGRESSIONS:
        best: tuple[int, int, list[Progression]] | None = None
        for number, whole in enumerate(found):
            half = whole.count // 2
            if not half:
                continue
            middle = whole.first + whole.step * half
            cuts = ((whole.first, half), (middle, whole.count - half))
            parts = [
                Progression(
                    first, whole.step, count, _chunks(steps, first, whole.step, count, limit)
                )
                for first, count in cuts
            ]
            spared = whole.programs - sum(part.programs for part in parts)
            if spared > 0 and (best is None or spared > best[0]):
                best = spared, number, parts
        if best is None:
            break
        found[best[1] : best[1] + 1] = best[2]
    return found


def progressions(places: Sequence[int], most: int) -> list[tuple[int, int, int]]:
    """A few arithmetic progressions `(first, step, count)` that hold all places, disjoint.

    The longest run from the first place on is taken as often as there is room for; the last
    progression holds all that is left and may hold more. Places for which it would hold far more
    are left out.

    Args:
        places: Rising.
        most: How many progressions there may be.
    """
    left = dict.fromkeys(places)
    found: list[tuple[int, int, int]] = []
    while left and len(found) < most - 1:
        first, *others = list(left)[: 1 + _PERIODS_TRIED]
        runs = [(first, 1, 1)]
        for other in others:
            step, count = other - first, 2
            while first + step * count in left:
                count += 1
            runs.append((first, step, count))
        run = max(runs, key=lambda run: run[2])
        found.append(run)
        for number in range(run[2]):
            del left[run[0] + run[1] * number]
    if left:
        first, *others = left
        step = gcd(*(other - first for other in others)) or 1
        count = (list(left)[-1] - first) // step + 1
        if count <= _STRAYS * len(left) and not _meets((first, step, count), found):
            found.append((first, step, count))
    return found


def _meets(run: tuple[int, int, int], others: Sequence[tuple[int, int, int]]) -> bool:
    """Does a progression share a place with others?"""
    first, step, count = run
    mine = set(range(first, first + step * count, step))
    return any(mine & set(range(a, a + b * n, b)) for a, b, n in others)
