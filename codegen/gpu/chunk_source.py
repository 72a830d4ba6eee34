"""Key tiles that are split among programs, as Triton text.

A few key tiles may see far more queries than the others: sinks, global tokens, rungs. Their places
among all tiles form a few arithmetic progressions, `Progression`, which come to a kernel as numbers
of the call. The grid's first axis starts with the chunks of those tiles: each computes a share of
the steps of its tile and leaves float32 sums, which `sum_chunks` adds up in the order of the
chunks. After them come programs for all tiles, of which those of split tiles have nothing to do.

Where key tiles take turns (`patterncc.codegen.turns`) a chunk stands at the place of its key tile
instead: no program may wait for one that is started later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.kernel_text import INDENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.codegen.gpu.config import Order

MOST_PROGRESSIONS = 6
"""Of split tiles in one launch."""

_FIELDS = ("first", "step", "count", "chunks")

CHUNK_PARAMETERS = (
    *(
        KernelParameter(f"split_{field}_{number}", "i32")
        for number in range(MOST_PROGRESSIONS)
        for field in _FIELDS
    ),
    KernelParameter("split_programs", "i32"),
)
"""Where the split tiles are, in how many chunks each is computed, and how many chunks there are."""

SUMS = KernelParameter("sums_ptr", "*fp32", 16)
"""What chunks leave: `[batch, kv_heads, chunks of all split tiles, block_k, columns]`."""


@dataclass(frozen=True, slots=True)
class Progression:
    """Split tiles at the places `first`, `first + step`, ... of `count` tiles, each computed in
    `chunks` chunks."""

    first: int
    step: int
    count: int
    chunks: int

    @property
    def programs(self) -> int:
        """How many programs compute them."""
        return self.count * self.chunks


def chunk_values(split: tuple[Progression, ...]) -> dict[str, int]:
    """The values of `CHUNK_PARAMETERS`."""
    unused = Progression(0, 1, 0, 1)
    values = {
        f"split_{field}_{number}": getattr(progression, field)
        for number, progression in enumerate((*split, *[unused] * (MOST_PROGRESSIONS - len(split))))
        for field in _FIELDS
    }
    return values | {"split_programs": sum(progression.programs for progression in split)}


def follow_each_other(split: Sequence[Progression]) -> bool:
    """Is each progression behind the last tile of the one before?"""
    lasts = (one.first + one.step * (one.count - 1) for one in split)
    return all(last < later.first for last, later in zip(lasts, split[1:], strict=False))


KEY_PLACES = "(tl.num_programs(0) - split_programs)"
"""How many tiles there are, as text."""

CHUNK_HELPERS = '''\
@triton.jit
def is_split(place, first, step, count):
    """Is a place one of the progression's?"""
    number = (place - first) // step
    return (place >= first) & (number < count) & (first + number * step == place)


@triton.jit
def share(count, chunk, chunks):
    """Where a chunk's share of so many steps starts."""
    return (count.to(tl.int64) * chunk // chunks).to(tl.int32)
'''
"""Source of the functions that `place_lines` and the loops call."""


def place_lines(order: Order) -> Iterator[str]:
    """The place of a program's key tile among all tiles, and which part of its steps is its own.

    They define `key_place`, `chunk` of `chunks`, `split` (it leaves sums) and `idle` (the tile is
    split and this program is for the whole of it).
    """
    yield "# One program: a key tile of a head of the keys of a batch entry, or a chunk of one."
    yield "program = tl.program_id(0) - split_programs"
    yield f"key_place = {'program' if order == 'forward' else f'{KEY_PLACES} - 1 - program'}"
    yield "chunk = 0"
    yield "chunks = 1"
    yield "idle = program < 0"
    yield "split = program < 0"
    yield "if split_programs > 0:"
    yield f"{INDENT}left = tl.program_id(0)"
    for number in range(MOST_PROGRESSIONS):
        first, step, count, parts = (f"split_{field}_{number}" for field in _FIELDS)
        yield f"{INDENT}inside = (left >= 0) & (left < {count} * {parts})"
        yield f"{INDENT}key_place = tl.where(inside, {first} + left // {parts} * {step}, key_place)"
        yield f"{INDENT}chunk = tl.where(inside, left % {parts}, chunk)"
        yield f"{INDENT}chunks = tl.where(inside, {parts}, chunks)"
        yield f"{INDENT}left -= {count} * {parts}"
    tests = (
        f"is_split(key_place, {', '.join(f'split_{field}_{number}' for field in _FIELDS[:3])})"
        for number in range(MOST_PROGRESSIONS)
    )
    yield f"{INDENT}idle = (split == 0) & ({' | '.join(tests)})"


def turn_place_lines() -> Iterator[str]:
    """The same in the order of key tiles, the chunks of one side by side, of progressions that
    `follow_each_other`; also `sums_place`, which of all chunks it is. No program is idle.

    Before a program stand as many key tiles as programs, less one for each chunk but the first of
    its tile: those of whole periods of a progression, and of the period that it is in.
    """
    yield "# One program: a key tile of a head of the keys of a batch entry, or a chunk of one."
    yield "program = tl.program_id(0)"
    yield "key_place = program"
    yield "chunk = 0"
    yield "chunks = 1"
    yield "sums_place = 0"
    yield "idle = program < 0"
    yield "split = program < 0"
    yield "others = 0"
    yield "before = 0"
    for number in range(MOST_PROGRESSIONS):
        first, step, count, parts = (f"split_{field}_{number}" for field in _FIELDS)
        yield f"left = program - others - {first}"
        yield f"period = left // ({step} + {parts} - 1)"
        yield f"within = left - period * ({step} + {parts} - 1)"
        yield f"here = (left >= 0) & (period < {count})"
        yield f"inside = here & (within < {parts})"
        yield f"passed = period * ({parts} - 1) + tl.minimum(within, {parts} - 1)"
        yield f"passed = tl.where(here, passed, {count} * ({parts} - 1))"
        yield "key_place = key_place - tl.where(left >= 0, passed, 0)"
        yield "chunk = tl.where(inside, within, chunk)"
        yield f"chunks = tl.where(inside, {parts}, chunks)"
        yield f"sums_place = tl.where(inside, before + period * {parts} + within, sums_place)"
        yield "split = split | inside"
        yield f"others += {count} * ({parts} - 1)"
        yield f"before += {count} * {parts}"


def split_place_lines(parts: int) -> Iterator[str]:
    """The same for a kernel whose programs each add up one of so many parts of the keys of a split
    tile: `key_place`, `part`, `chunks`, and the first of its chunks, `sums_row`."""
    yield "# One program: some keys of a split tile of a head of the keys of a batch entry."
    yield f"part = tl.program_id(0) % {parts}"
    yield f"tile = tl.program_id(0) // {parts}"
    yield "before = 0"
    place, row, chunks = "0", "0", "1"
    found = []
    for number in range(MOST_PROGRESSIONS):
        first, step, count, pieces = (f"split_{field}_{number}" for field in _FIELDS)
        yield f"inside_{number} = (tile >= 0) & (tile < {count})"
        yield f"place_{number} = {first} + tile * {step}"
        yield f"row_{number} = before + tile * {pieces}"
        yield f"before += {count} * {pieces}"
        yield f"tile -= {count}"
        found.append((f"inside_{number}", f"place_{number}", f"row_{number}", pieces))
    for inside, at, first_row, pieces in reversed(found):
        place = f"tl.where({inside}, {at}, {place})"
        row = f"tl.where({inside}, {first_row}, {row})"
        chunks = f"tl.where({inside}, {pieces}, {chunks})"
    yield f"key_place = {place}"
    yield f"sums_row = {row}"
    yield f"chunks = {chunks}"
