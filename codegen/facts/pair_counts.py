"""How many keys each row sees and how many rows see each key, exactly.

Lowered for tiles of one query and one key every visited tile is a visible pair, so the counts are
sums of trip counts: no pair is enumerated at any length. Where the loops say too little (a term
that reads a table by position, or is too intricate) the mask is looked at: once for all rows and
keys of which it reads the same (`q // 384`), where that makes few pairs; else pair by pair, inside
the partial ones of larger tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patterncc.codegen import schedule
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.lower import lower
from patterncc.codegen.schedule import Env
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Expr, Predicate, children, variables
from patterncc.dsl.pattern import Pattern

MOST_PAIRS = 1 << 28  # that are looked at one by one
_AT_ONCE = 1 << 20
_TILE = 64
_LEAST_ALIKE = 16  # pairs of positions for each pair of kinds

Counts = npt.NDArray[np.int64]


def pair_program(
    pattern: Pattern, sizes: Mapping[str, int], *, within: bool = False, transposed: bool = True
) -> BlockProgram:
    """The program to count a pattern's pairs with.

    Args:
        pattern: What to count.
        sizes: `heads`, `kv_heads`, `layers`, as `lower` takes them.
        within: As in `lower`.
        transposed: Whether keys will be counted, too.

    Raises:
        UnsupportedError: For a pattern that cannot be lowered.
    """
    pairs = lower(pattern, 1, 1, sizes=sizes, within=within, transposed=transposed)
    if pairs.listed or pairs.ignored:
        return lower(pattern, _TILE, _TILE, sizes=sizes, within=within, transposed=False)
    return pairs


@dataclass(frozen=True, slots=True)
class PairCounts:
    """Visible pairs of one head of a call.

    Attributes:
        rows: How many keys each row sees, int64 `[q_len]`.
        keys: How many rows see each key, int64 `[kv_len]`; None where it was not asked for.
    """

    rows: Counts
    keys: Counts | None


def count_pairs(program: BlockProgram, env: Env) -> PairCounts:
    """The visible pairs of one head.

    Args:
        program: As `pair_program` gives it.
        env: As `schedule.forward_tiles` takes it.

    Raises:
        UnsupportedError: More than `MOST_PAIRS` pairs have to be looked at.
    """
    if program.listed or program.ignored:
        return counts_of_kinds(program.mask, env) or _looked_at(program, env)
    rows, partial = schedule.tile_counts(program, env)
    assert not partial.any(), "a pair is allowed or it is not"
    if program.transposed is None:
        return PairCounts(rows, None)
    return PairCounts(rows, schedule.tile_counts(program, env, "transposed")[0])


def counts_of_kinds(mask: Predicate, env: Env) -> PairCounts | None:
    """Both counts from one pair of each kind of rows and each kind of keys; None where kinds are so
    many that looking into tiles may be quicker.

    Args:
        mask: Without covers.
        env: As `schedule.evaluate` takes it, with the lengths and the offset of the call.
    """
    offset = int(env["q_offset"])
    rows = offset + np.arange(int(env["q_len"]), dtype=np.int64)
    keys = np.arange(int(env["kv_len"]), dtype=np.int64)
    if not (rows.size and keys.size):
        return None
    first_row, row_kind, row_count = _kinds(mask, "q", rows, env)
    first_key, key_kind, key_count = _kinds(mask, "k", keys, env)
    if len(first_row) * len(first_key) * _LEAST_ALIKE > rows.size * keys.size:
        return None
    of_rows, of_keys = np.empty_like(row_count), np.zeros_like(key_count)
    step = max(1, _AT_ONCE // len(first_key))
    for start in range(0, len(first_row), step):
        some = slice(start, start + step)
        q, k = rows[first_row[some], None], keys[None, first_key]
        seen = schedule.evaluate(mask, {**env, "q": q, "k": k})
        seen = np.broadcast_to(np.asarray(seen, np.int64), (len(q), k.shape[1]))
        of_rows[some] = seen @ key_count
        of_keys += row_count[some] @ seen
    return PairCounts(of_rows[row_kind], of_keys[key_kind])


def _kinds(mask: Predicate, name: str, at: Counts, env: Env) -> tuple[Counts, Counts, Counts]:
    """Positions of one side by what a mask reads of them: the number of the first one of each kind,
    the kind of each position, and how many there are of each kind."""
    other = "k" if name == "q" else "q"
    parts = list(dict.fromkeys(_reading(mask, name, other)))
    values = [np.asarray(schedule.evaluate(part, {**env, name: at})) for part in parts]
    read = np.zeros((at.size, len(values) + 1), np.int64)
    for number, value in enumerate(values):
        read[:, number] = value
    _, first, kind, count = np.unique(
        read, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    return first, kind.reshape(-1), count


def _reading(expr: Expr, name: str, other: str) -> Iterator[Expr]:
    """The largest parts of an expression that read one side's position and not the other's."""
    read = variables(expr)
    if name not in read:
        return
    if other not in read:
        yield expr
        return
    for child in children(expr):
        yield from _reading(child, name, other)


def _looked_at(program: BlockProgram, env: Env) -> PairCounts:
    """Both counts from the tiles: whole ones as they are, partial ones pair by pair."""
    block_q, block_k = program.block_q, program.block_k
    q_len, kv_len, offset = int(env["q_len"]), int(env["kv_len"]), int(env["q_offset"])
    lists = schedule.forward_tiles(program, env)
    tile_rows, tile_columns = len(lists.indptr) - 1, -(-kv_len // block_k)
    row = np.repeat(np.arange(tile_rows), np.diff(lists.indptr))
    rows = np.zeros((tile_rows, block_q), np.int64)
    keys = np.zeros((tile_columns, block_k), np.int64)
    heights = np.minimum(q_len - block_q * row, block_q)
    rows += block_k * np.bincount(row[lists.full], minlength=tile_rows)[:, None]
    np.add.at(keys, lists.tiles[lists.full], heights[lists.full, None])
    partial = ~lists.full
    looked_at = int(partial.sum()) * block_q * block_k
    if looked_at > MOST_PAIRS:
        raise UnsupportedError(
            f"the pattern leaves {looked_at} pairs to look at one by one, more than {MOST_PAIRS}: "
            "ask about fewer rows"
        )
    for some, tiles in _chunks(row[partial], lists.tiles[partial], block_q * block_k):
        q = block_q * some[:, None, None] + np.arange(block_q)[:, None]
        k = block_k * tiles[:, None, None] + np.arange(block_k)
        seen = schedule.evaluate(program.mask, {**env, "q": offset + q, "k": k})
        seen = np.broadcast_to(seen, (len(some), block_q, block_k)) & (q < q_len) & (k < kv_len)
        np.add.at(rows, some, seen.sum(2))
        np.add.at(keys, tiles, seen.sum(1))
    return PairCounts(rows.reshape(-1)[:q_len], keys.reshape(-1)[:kv_len])


def _chunks(rows: Counts, tiles: Counts, area: int) -> Iterator[tuple[Counts, Counts]]:
    step = max(1, _AT_ONCE // area)
    for start in range(0, len(rows), step):
        yield rows[start : start + step], tiles[start : start + step]
