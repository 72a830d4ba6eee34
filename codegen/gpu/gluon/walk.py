"""How the programs of a Gluon kernel share the query tiles of a call.

An *item* is a query tile of a head of a batch entry. A program computes several, one after another:
while it computes the end of one, the keys of the next are on their way and their first scores are
being computed. Each multiprocessor has one program of `turns` items, and neighbouring programs
take neighbouring items at any time, so that their keys are in the cache; items that are left over
have a program each. Programs go back and forth over the items, so that where these differ after
all, as at the start of a window, each program gets long and short ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.class_source import placed_tile_lines
from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.launches import ceildiv
from patterncc.codegen.ir import DENSE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import KernelConfig, Order
    from patterncc.codegen.gpu.launches import Call

HEADS = "head_count"
"""What the kernel calls the number of heads."""

PARAMETERS = tuple(
    KernelParameter(name, "i32") for name in ("tile_count", HEADS, "long_programs", "long_turns")
)
"""Of a kernel: query tiles of a head, heads, how many programs are long, how many items a long one
takes."""


@dataclass(frozen=True, slots=True)
class Walk:
    """Who computes what in one call.

    Attributes:
        tiles: Query tiles of a head.
        heads: Heads.
        batch: Batch entries.
        turns: Items of a long program.
        long: Long programs.
    """

    tiles: int
    heads: int
    batch: int
    turns: int
    long: int

    @property
    def items(self) -> int:
        """All items."""
        return self.tiles * self.heads * self.batch

    @property
    def grid(self) -> tuple[int, int, int]:
        """A program for each long walk, and one for each item that these leave."""
        return (self.items - (self.turns - 1) * self.long, 1, 1)

    @property
    def numbers(self) -> dict[str, int]:
        """Values of `PARAMETERS`."""
        values = (self.tiles, self.heads, self.long, self.turns)
        return {p.name: value for p, value in zip(PARAMETERS, values, strict=True)}


def walk_of(call: Call, config: KernelConfig) -> Walk:
    """How the programs of a kernel share a call's query tiles: a long one for each multiprocessor,
    whose registers and shared memory it fills.

    Args:
        call: The call.
        config: Of its kernel.
    """
    tiles = ceildiv(call.q_len, config.block_q)
    items = tiles * call.heads * call.batch
    turns = max(ceildiv(items, call.multiprocessors), 1)
    return Walk(tiles, call.heads, call.batch, turns, items // turns)


def turn_lines() -> Iterator[str]:
    """Before the loop over a program's items: their number, `turns`."""
    yield "program = tl.program_id(0)"
    yield "turns = tl.where(program < long_programs, long_turns, 1)"


def item_lines(order: Order) -> Iterator[str]:
    """The query tile, the head and the batch entry of the item at `turn`."""
    yield "# The item: long programs go back and forth."
    yield "back = long_programs - 1 - program"
    yield "item = turn * long_programs + tl.where(turn % 2 == 0, program, back)"
    yield "after = (long_turns - 1) * long_programs + program"
    yield "item = tl.where(program < long_programs, item, after)"
    yield "pair = item // tile_count"
    yield f"batch = pair // {HEADS}"
    yield f"head = pair % {HEADS}"
    yield "place = item % tile_count"
    yield from placed_tile_lines(DENSE, order, "place", "tile_count")
