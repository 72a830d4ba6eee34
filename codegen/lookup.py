"""Tables and segments read at arrays of places, in numpy; outside of them the values are defined.

An index outside of a table reads `MISSING` from one of numbers and false from one of truth values.
A position outside of all documents is a document of its own, as in `dsl.evaluate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.dsl.mask import SegmentKind


def read(table: npt.NDArray[Any], indexes: Sequence[Any], outside: int) -> Any:
    """The elements of a table at places.

    Args:
        table: Of any rank.
        indexes: An integer or an int64 array for each of its axes; they broadcast.
        outside: What is read where an index is outside of its axis.
    """
    inside = reduce(
        np.logical_and,
        [(at >= 0) & (at < size) for at, size in zip(indexes, table.shape, strict=True)],
    )
    if np.all(inside):
        return table[tuple(indexes)]
    if table.size == 0:
        return np.full(np.shape(inside), outside)
    return np.where(inside, table[tuple(np.where(inside, at, 0) for at in indexes)], outside)


def segment(kind: SegmentKind, cu_seqlens: npt.NDArray[np.int64], position: Any) -> Any:
    """The id, start or end of the document of each position.

    Args:
        kind: Which of them.
        cu_seqlens: `[documents + 1]`, from 0, never falling.
        position: An integer or an int64 array.
    """
    documents, total = len(cu_seqlens) - 1, int(cu_seqlens[-1])
    inside = (position >= 0) & (position < total)
    if documents == 0:
        cu_seqlens = np.zeros(2, np.int64)  # so that there is something to read
    document = np.searchsorted(cu_seqlens, position, side="right") - 1
    known = np.where(inside, document, 0)
    match kind:
        case "id":
            own = np.where(position < 0, position, documents + position - total)
            return np.where(inside, document, own)
        case "start":
            return np.where(inside, cu_seqlens[known], position)
        case "end":
            return np.where(inside, cu_seqlens[known + 1], position + 1)
