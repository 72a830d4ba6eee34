"""The visited tiles of one head with the masks of the partial ones, equal masks kept once.

Owns evaluating masks on tiles; how tiles become kernel calls is `plan`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.schedule import evaluate, forward_tiles

FULL = -1  # the mask number of a full tile

_EMPTY = -2  # until empty tiles are dropped
_CHUNK = 1 << 21  # pairs whose masks are evaluated at a time

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MaskedTiles:
    """Visited tiles, by query tile and then by key tile, both ascending.

    Attributes:
        block_q: Rows of a query tile.
        block_k: Keys of a key tile.
        q_tiles: int64 `[visited]`.
        k_tiles: int64 `[visited]`.
        masks: int64 `[visited]`: `FULL`, or a number into `bank`.
        bank: bool `[masks, block_q, block_k]`, all different; false where row or key do not exist.
    """

    block_q: int
    block_k: int
    q_tiles: Ints
    k_tiles: Ints
    masks: Ints
    bank: Bools

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(part.nbytes for part in (self.q_tiles, self.k_tiles, self.masks, self.bank))

    def content(self) -> tuple[bytes, ...]:
        """Equal for heads that see the same."""
        return tuple(part.tobytes() for part in (self.q_tiles, self.k_tiles, self.masks, self.bank))


def masked_tiles(program: BlockProgram, env: Mapping[str, Any]) -> MaskedTiles:
    """The tiles that one head of a call visits.

    Where tables only bound what a program visits, some of its partial tiles are full or empty; they
    are told here, and the empty ones left out.

    Args:
        program: A lowered pattern.
        env: `q_len`, `kv_len`, `q_offset`, and the scalars and tables that the program reads.

    Raises:
        ConfigError: If the call breaks what the program takes for granted.
    """
    lists = forward_tiles(program, env)
    q_tiles = np.repeat(np.arange(len(lists.indptr) - 1), np.diff(lists.indptr))
    masks = np.full(len(q_tiles), FULL, np.int64)
    numbers: dict[bytes, int] = {}
    partial = np.flatnonzero(~lists.full)
    step = max(1, _CHUNK // (program.block_q * program.block_k))
    for first in range(0, len(partial), step):
        some = partial[first : first + step]
        allowed, full = _evaluate(program, env, q_tiles[some], lists.tiles[some])
        bits = np.packbits(allowed, axis=1)
        # Rows of bits compared as single values: far fewer are distinct than there are tiles.
        whole = np.ascontiguousarray(bits).view(np.dtype((np.void, bits.shape[1]))).ravel()
        distinct, inverse = np.unique(whole, return_inverse=True)
        known = [
            numbers.setdefault(value.tobytes(), len(numbers)) if any(value.tobytes()) else _EMPTY
            for value in distinct
        ]
        masks[some] = np.where(full, FULL, np.array(known)[inverse])
    visited = masks != _EMPTY
    pairs = program.block_q * program.block_k
    packed = np.frombuffer(b"".join(numbers), np.uint8).reshape(len(numbers), -1 if numbers else 0)
    bank = np.unpackbits(packed, axis=1, count=pairs).astype(np.bool_)
    return MaskedTiles(
        program.block_q,
        program.block_k,
        q_tiles[visited],
        lists.tiles[visited],
        masks[visited],
        bank.reshape(len(numbers), program.block_q, program.block_k),
    )


def _evaluate(
    program: BlockProgram, env: Mapping[str, Any], q_tiles: Ints, k_tiles: Ints
) -> tuple[Bools, Bools]:
    """The mask on each of some tiles, bool `[tiles, block_q * block_k]`, and which are full."""
    row = q_tiles[:, None, None] * program.block_q + np.arange(program.block_q)[:, None]
    key = k_tiles[:, None, None] * program.block_k + np.arange(program.block_k)
    allowed = evaluate(program.mask, {**env, "q": env["q_offset"] + row, "k": key})
    row_exists = row < env["q_len"]
    seen: Bools = (allowed & row_exists & (key < env["kv_len"])).reshape(len(q_tiles), -1)
    held = seen.sum(axis=1)
    full: Bools = held == row_exists.sum(axis=(1, 2)) * program.block_k
    return seen, full
