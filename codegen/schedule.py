"""A `BlockProgram` at concrete numbers: which tiles are visited, as arrays. For executors on the CPU, plots, counts, tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.codegen.ir import BlockProgram, Direction
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.mask import (
    Abs,
    And,
    Branch,
    Compare,
    Const,
    Expr,
    FloorDiv,
    Max,
    Min,
    Mod,
    Not,
    Or,
    Param,
    Product,
    Select,
    Sum,
    Truth,
    Var,
)

Env = Mapping[str, Any]


def evaluate(expr: Expr, env: Env) -> Any:
    """The value of a scalar expression; names may be bound to int64 arrays, which broadcast.

    Raises:
        KeyError: For a name that `env` does not bind.
    """

    def go(inner: Expr) -> Any:
        return evaluate(inner, env)

    match expr:
        case Const(value) | Truth(value):
            return value
        case Var(name) | Param(name):
            return env[name]
        case Sum(terms):
            return reduce(lambda a, b: a + b, map(go, terms))
        case Product(factors):
            return reduce(lambda a, b: a * b, map(go, factors))
        case FloorDiv(value, divisor):
            return go(value) // go(divisor)
        case Mod(value, divisor):
            return go(value) % go(divisor)
        case Min(args):
            return reduce(np.minimum, map(go, args))
        case Max(args):
            return reduce(np.maximum, map(go, args))
        case Abs(value):
            return abs(go(value))
        case Select(condition, then, otherwise):
            return np.where(go(condition), go(then), go(otherwise))
        case Compare(op, left, right):
            a, b = go(left), go(right)
            return {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b}[op]
        case And(args):
            return reduce(np.logical_and, map(go, args))
        case Or(args):
            return reduce(np.logical_or, map(go, args))
        case Not(arg):
            return np.logical_not(go(arg))
        case Branch(condition, then, otherwise):
            return np.where(go(condition), go(then), go(otherwise))
    raise TypeError(f"not a scalar expression: {expr!r}")


@dataclass(frozen=True, slots=True)
class TileLists:
    """Visited tiles in compressed rows: row `i` visits `tiles[indptr[i]:indptr[i + 1]]`, ascending.

    Attributes:
        indptr: int64 `[rows + 1]`.
        tiles: int64 `[visited]`.
        full: bool `[visited]`.
    """

    indptr: npt.NDArray[np.int64]
    tiles: npt.NDArray[np.int64]
    full: npt.NDArray[np.bool_]


def forward_tiles(program: BlockProgram, env: Env) -> TileLists:
    """The key tiles of each query tile. `env` needs `q_len`, `kv_len`, `q_offset`, the coordinates and run-time numbers."""
    q_len, kv_len = int(env["q_len"]), int(env["kv_len"])
    rows = -(-q_len // program.block_q)
    if rows == 0 or kv_len == 0:
        return _empty(rows)
    first = env["q_offset"] + program.block_q * np.arange(rows, dtype=np.int64)
    last = np.minimum(first + program.block_q, env["q_offset"] + q_len) - 1
    return _lists(program, "forward", rows, {**env, "q_first": first, "q_last": last})


def transposed_tiles(program: BlockProgram, env: Env) -> TileLists:
    """The query tiles of each key tile."""
    q_len, kv_len = int(env["q_len"]), int(env["kv_len"])
    rows = -(-kv_len // program.block_k)
    if rows == 0 or q_len == 0:
        return _empty(rows)
    tile = np.arange(rows, dtype=np.int64)
    last = np.minimum(program.block_k * (tile + 1), kv_len) - 1
    return _lists(program, "transposed", rows, {**env, "k_tile": tile, "k_last": last})


def block_map(program: BlockProgram, env: Env) -> npt.NDArray[np.uint8]:
    """The map `[query tiles, key tiles]` of one head: 0 empty, 1 partial, 2 full."""
    lists = forward_tiles(program, env)
    columns = -(-int(env["kv_len"]) // program.block_k)
    result = np.zeros((len(lists.indptr) - 1, columns), dtype=np.uint8)
    rows = np.repeat(np.arange(len(lists.indptr) - 1), np.diff(lists.indptr))
    result[rows, lists.tiles] = 1 + lists.full
    return result


def _empty(rows: int) -> TileLists:
    return TileLists(np.zeros(rows + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))


def _lists(program: BlockProgram, direction: Direction, rows: int, env: Env) -> TileLists:
    if not bool(np.all(evaluate(program.assume, env))):
        raise ConfigError(
            "this program was lowered for rows that end within the keys, and these do not"
        )
    row_parts, tile_parts, full_parts = [], [], []
    for sweep in program.sweeps(direction):
        for residue in range(sweep.classes):
            scope = {**env, "residue": residue}
            low = np.broadcast_to(np.asarray(evaluate(sweep.lo, scope), np.int64), (rows,))
            high = np.broadcast_to(np.asarray(evaluate(sweep.hi, scope), np.int64), (rows,))
            count = np.where(evaluate(sweep.guard, scope), np.maximum(high - low, 0), 0)
            count = np.broadcast_to(count, (rows,))
            total = int(count.sum())
            if total == 0:
                continue
            row = np.repeat(np.arange(rows), count)
            step = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
            phase = np.broadcast_to(np.asarray(evaluate(sweep.phase, scope), np.int64), (rows,))
            row_parts.append(row)
            tile_parts.append(sweep.stride * (low[row] + step) + phase[row])
            full_parts.append(np.full(total, sweep.kind == "full"))
    if not row_parts:
        return _empty(rows)
    row, tile = np.concatenate(row_parts), np.concatenate(tile_parts)
    order = np.lexsort((tile, row))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))]).astype(np.int64)
    return TileLists(indptr, tile[order], np.concatenate(full_parts)[order])
