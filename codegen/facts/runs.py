"""Sets of positions as few runs: intervals, and intervals that repeat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Run:
    """The positions `start + i * period + j` with `0 <= i < count` and `0 <= j < length`.

    Attributes:
        start: The first position.
        length: Positions of one interval, from 1 on.
        count: Intervals, from 1 on.
        period: From one interval to the next; more than `length`, and `length` for a single one.
    """

    start: int
    length: int
    count: int
    period: int

    @property
    def positions(self) -> int:
        """How many positions there are."""
        return self.length * self.count

    @property
    def last(self) -> int:
        """The last position."""
        return self.start + (self.count - 1) * self.period + self.length - 1


def runs_of(flags: npt.NDArray[np.bool_], first: int = 0) -> tuple[Run, ...]:
    """The positions of flags that are set, in rising order, as few runs.

    Three or more neighbouring intervals of one length at equal distances are one run.

    Args:
        flags: bool `[positions]`.
        first: The position of the first flag.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    if len(starts) == 0:
        return ()
    # The step from each interval to the next; 0 where their lengths differ.
    steps = np.where(np.diff(lengths) == 0, np.diff(starts), 0)
    changes = np.flatnonzero(np.diff(steps)) + 1
    result = []
    i = 0  # the first interval that is in no run yet
    for low, high in zip([0, *changes.tolist()], [*changes.tolist(), len(steps)], strict=True):
        # Intervals low .. high are at equal steps; those before i are taken.
        begin = max(i, low)
        if high > low and steps[low] and high - begin >= 2:
            for single in range(i, begin):
                result.append(_run(first, starts, lengths, single, 1, 0))
            count = high - begin + 1
            result.append(_run(first, starts, lengths, begin, count, int(steps[low])))
            i = high + 1
    for single in range(i, len(starts)):
        result.append(_run(first, starts, lengths, single, 1, 0))
    return tuple(result)


def _run(
    first: int,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    i: int,
    count: int,
    period: int,
) -> Run:
    length = int(lengths[i])
    return Run(first + int(starts[i]), length, count, period or length)


def flags_of(runs: tuple[Run, ...], length: int) -> npt.NDArray[np.bool_]:
    """The inverse of `runs_of`, bool `[length]`."""
    flags = np.zeros(length, dtype=bool)
    for run in runs:
        for i in range(run.length):
            flags[run.start + i : run.last + 1 : run.period] = True
    return flags
