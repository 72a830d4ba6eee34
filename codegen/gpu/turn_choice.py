"""In which order the programs of a one-pass backward take turns, and whether that is faster than
two kernels: by what is known of a call on the host.

Ways to take turns are compared by when the last program ends (`turn_count`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from patterncc.codegen.gpu.balance import split_in_turn, split_tiles
from patterncc.codegen.gpu.interval import MOST_PROGRAMS
from patterncc.codegen.gpu.turn_count import (
    START,
    end_by_programs,
    end_in_steps,
    first_tiles,
    programs_of_head,
)

if TYPE_CHECKING:
    from patterncc.codegen.gpu.chunk_source import Progression
    from patterncc.codegen.gpu.config import Neighbours
    from patterncc.codegen.ir import BlockProgram
    from patterncc.codegen.turns import Turns

DEARER = 1.1
"""A step in turn, beside one whose share is added in any order."""

TWO_KERNELS = 1.46
"""Steps that two kernels take for a tile, beside the same."""

ROW = 1.6e-4
"""Steps that clearing and rounding the sums of a row take."""

MOST_COUNTED = 1 << 17
"""Programs that are counted, 0.2 s of the host's time at a call of a new shape: of more, those of
some heads and batch entries alone."""

PARTS = (1, 2, 4, 8)
"""Chunks of a key tile that is split may take that part of how long a program may."""

SPLIT_AHEAD = 1.02
"""Where splitting must be beside not splitting, which takes no memory and no kernel more."""

SUM_CHUNKS = 2.0
"""Steps that the kernel takes that adds chunks up."""

CHUNK = 0.03
"""Steps that the sums of one chunk take of a whole device's bandwidth, to be left and read."""

MOST_FOLLOWED = 1 << 11
"""The same where every step of a program is followed, 10 us of the host each, up to seven times."""

AHEAD = {False: 1.0, True: 1.05}
"""Where `falling` must be beside `rising`, by whether query heads share one of the keys: there it
is slower than counted."""


@dataclass(frozen=True, slots=True)
class TurnChoice:
    """How programs of one call take turns.

    Attributes:
        turns: From the first key tile on, or from the last.
        neighbours: Which programs start side by side: key tiles of a head, or heads.
        faster: How many times as fast as two kernels.
        split: The key tiles that are split, progressions that follow each other.
        uneven: Are some key tiles seen by far more rows than others, whether split or not?
    """

    turns: Turns
    neighbours: Neighbours
    faster: float
    split: tuple[Progression, ...] = ()
    uneven: bool = False


ORDERS: tuple[tuple[Turns, Neighbours], ...] = (("rising", "heads"), ("falling", "tiles"))
"""Heavy key tiles first, as under `causal`, and their chains short; or from the last key tile on,
where a window visits a row tile before the key tile below it does."""

UNEVEN_ORDERS: tuple[tuple[Turns, Neighbours], ...] = (("rising", "heads"), ("falling", "heads"))
"""Where some key tiles are seen by far more rows than others: heavy ones first, as rungs are; or
last, with those of all heads side by side, as the chunks of sinks, for which nobody waits."""


def turn_choices(
    program: BlockProgram,
    steps: npt.NDArray[np.int64],
    env: Mapping[str, int],
    heads: int,
    group: int,
    batch: int,
    multiprocessors: int,
) -> Iterator[TurnChoice]:
    """All ways to take turns that there are, counted, for one call; arguments as of
    `choose_turns`."""
    call = _Call(program, steps, env, heads, group, batch, multiprocessors)
    for order, split in product(call.orders, call.splits):
        if call.may(order, split):
            yield call.counted(order, split)


def choose_turns(
    program: BlockProgram,
    steps: npt.NDArray[np.int64],
    env: Mapping[str, int],
    heads: int,
    group: int,
    batch: int,
    multiprocessors: int,
) -> TurnChoice | None:
    """The fastest by count: of all orders with no key tile split and with few chunks, then of
    shorter chunks in the order that was faster. Of equals, the one with the fewest chunks.

    Args:
        program: The pattern, with its transposed sweeps.
        steps: Of `key_tile_steps`, which knew all bounds.
        env: As it was given to that.
        heads: Heads of the query.
        group: Of them for each head of the keys.
        batch: Batch entries.
        multiprocessors: Of the device; each runs a program at a time.

    Returns:
        None where a grid cannot hold the programs.
    """
    call = _Call(program, steps, env, heads, group, batch, multiprocessors)
    found: TurnChoice | None = None
    for order, split in product(call.orders, call.splits[:2]):
        found = call.better(order, split, found)
    if found is None:
        return None
    order = found.turns, found.neighbours
    for split in call.splits[2:]:
        found = call.better(order, split, found)
    return found


def _ahead(choice: TurnChoice, other: TurnChoice, group: int) -> float:
    """Times another that was found before that one must be as fast."""
    ahead = AHEAD[group > 1] if choice.turns != other.turns else 1.0
    return ahead * (SPLIT_AHEAD if choice.split and not other.split else 1.0)


class _Call:
    """What is counted of one call, whose arguments are those of `choose_turns`.

    Attributes:
        orders: Which may be taken.
        splits: Key tiles to split, in fewer and in more chunks; first none.
    """

    def __init__(
        self,
        program: BlockProgram,
        steps: npt.NDArray[np.int64],
        env: Mapping[str, int],
        heads: int,
        group: int,
        batch: int,
        multiprocessors: int,
    ) -> None:
        copies = heads // group * batch
        apart = split_tiles(steps, copies, multiprocessors)
        self._uneven = bool(apart)
        self.orders = UNEVEN_ORDERS if apart else ORDERS
        # Chunks take no more memory than the sums of the query's gradient.
        most = group * env["q_len"] // (2 * program.block_k)
        self.splits = [(), *(_splits(steps, copies, multiprocessors, most) if apart else ())]
        self._steps = steps
        self._group = group
        self._first = group * first_tiles(program, env, heads, group)
        counted = MOST_FOLLOWED if apart else MOST_COUNTED
        self._copies = min(copies, max(counted // max(len(steps), 1), 1))
        self._at_once = multiprocessors
        if apart:  # as much of the device as of the heads: how many of one run at a time counts
            self._at_once = max(multiprocessors * self._copies // copies, 1)
        self._whole = self._copies * multiprocessors / self._at_once
        self._rows = ROW * self._whole * group * env["q_len"]
        lengths = [length for *_, length in programs_of_head(steps, self._first, apart)]
        share = float(steps.sum()) * self._copies / self._at_once
        # Of two kernels one is as even as all rows see keys, and the other splits key tiles.
        longest = 0 if apart else max(lengths, default=0)
        two = TWO_KERNELS * max(share, longest)
        two += START * len(lengths) * self._copies / self._at_once
        self._two_kernels = two + _sums(apart, self._whole)

    def may(self, order: tuple[Turns, Neighbours], split: tuple[Progression, ...]) -> bool:
        """Can the grid hold the programs, which are along its second axis beside heads?"""
        chunks = sum(one.programs - one.count for one in split)
        return order[1] == "tiles" or len(self._steps) + chunks <= MOST_PROGRAMS

    def counted(
        self, order: tuple[Turns, Neighbours], split: tuple[Progression, ...]
    ) -> TurnChoice:
        """One way to take turns."""
        turns, neighbours = order
        programs = list(programs_of_head(self._steps, self._first, split))
        if turns == "falling":
            programs.reverse()
        end = end_in_steps if self._uneven else end_by_programs
        ends = DEARER * end(programs, self._copies, self._at_once, neighbours)
        ends += self._rows + _sums(split, self._whole)
        return TurnChoice(turns, neighbours, self._two_kernels / ends, split, self._uneven)

    def better(
        self,
        order: tuple[Turns, Neighbours],
        split: tuple[Progression, ...],
        found: TurnChoice | None,
    ) -> TurnChoice | None:
        """One way to take turns, if there is that way and it is ahead of the one that was found
        before; else that one."""
        if not self.may(order, split):
            return found
        choice = self.counted(order, split)
        if found is None or choice.faster > _ahead(choice, found, self._group) * found.faster:
            return choice
        return found


def _splits(
    steps: npt.NDArray[np.int64], copies: int, multiprocessors: int, most: int
) -> list[tuple[Progression, ...]]:
    """The key tiles to split in fewer and in more chunks, without repetition; of each head no more
    chunks than `most`."""
    found = (split_in_turn(steps, copies, multiprocessors, parts) for parts in PARTS)
    few = (s for s in found if s is not None and sum(one.programs for one in s) <= most)
    return list(dict.fromkeys(few))


def _sums(split: tuple[Progression, ...], copies: float) -> float:
    """What adding up chunks takes."""
    return SUM_CHUNKS + CHUNK * copies * sum(one.programs for one in split) if split else 0.0
