"""How the programs of a Gluon kernel share the query tiles of a call.

An *item* is a query tile of a head of a batch entry. A program computes several, one after another:
while it computes the end of one, the keys of the next are on their way and their first scores are
being computed. Long programs take `turns` items each, back and forth over the items so that each
gets early and late ones; short programs, which start last, take one and fill what is left.

Items are counted in sections of heads: in a section the tiles with most keys come first, those of
all its heads side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from patterncc.codegen.classes import row_classes
from patterncc.codegen.gpu.class_source import placed_tile_lines
from patterncc.codegen.gpu.gluon.warps import programs_of
from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.launches import ceildiv
from patterncc.codegen.schedule import extents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patterncc.codegen.gpu.config import KernelConfig, Order
    from patterncc.codegen.gpu.launches import Call
    from patterncc.codegen.ir import BlockProgram, Tiling

HEADS = "head_count"
"""What the kernel calls the number of heads."""

PARAMETERS = tuple(
    KernelParameter(name, "i32")
    for name in ("tile_count", HEADS, "pair_count", "section_pairs", "long_programs", "long_turns")
)
"""Of a kernel: query tiles of a head (of all classes of rows), heads, heads of all batch entries,
how many of these a section has, how many programs are long, how many items a long one takes."""


@dataclass(frozen=True, slots=True)
class Walk:
    """Who computes what in one call.

    Attributes:
        tiles: Query tiles of a head.
        heads: Heads.
        pairs: Heads of all batch entries.
        section: How many of these make a section.
        turns: Items of a long program.
        long: Long programs.
    """

    tiles: int
    heads: int
    pairs: int
    section: int
    turns: int
    long: int

    @property
    def items(self) -> int:
        """All items."""
        return self.tiles * self.pairs

    @property
    def grid(self) -> tuple[int, int, int]:
        """A program for each long walk, and one for each item that these leave."""
        return (self.items - (self.turns - 1) * self.long, 1, 1)

    @property
    def numbers(self) -> dict[str, int]:
        """Values of `PARAMETERS`."""
        values = (self.tiles, self.heads, self.pairs, self.section, self.long, self.turns)
        return {p.name: value for p, value in zip(PARAMETERS, values, strict=True)}


def turn_lines() -> Iterator[str]:
    """Before the loop over a program's items: their number, `turns`."""
    yield "program = tl.program_id(0)"
    yield "turns = tl.where(program < long_programs, long_turns, 1)"


def item_lines(tiling: Tiling, order: Order) -> Iterator[str]:
    """The query tile, the head and the batch entry of the item at `turn`."""
    yield "# The item: long programs go back and forth."
    yield "back = long_programs - 1 - program"
    yield "item = turn * long_programs + tl.where(turn % 2 == 0, program, back)"
    yield "after = (long_turns - 1) * long_programs + program"
    yield "item = tl.where(program < long_programs, item, after)"
    yield "section = item // (section_pairs * tile_count)"
    yield "first_pair = section * section_pairs"
    yield "within = item - first_pair * tile_count"
    yield "side = tl.minimum(section_pairs, pair_count - first_pair)"
    yield "pair = first_pair + within % side"
    yield f"batch = pair // {HEADS}"
    yield f"head = pair % {HEADS}"
    yield "place = within // side"
    yield from placed_tile_lines(tiling, order, "place", "tile_count")


# ------------------------------------------------------------------------------------ of a call

_EVEN = 1.2
"""Items are alike where the longest visits at most so many times the tiles of the mean one."""

_LONG_SHARE = 0.75
"""Share of the items of long programs where items differ; the others fill the end."""

_LONG_WAVES = 3
"""How often each place for a program gets a long one then."""

_SECTION_BYTES = 16 << 20
"""Keys and values of a section: what the second-level cache keeps beside all else."""


def walk_of(program: BlockProgram, call: Call, config: KernelConfig) -> Walk:
    """How the programs of a kernel share a call's query tiles.

    Where items are alike, a program for each place on the device takes its share of all. Where they
    differ, long programs take a part of the items, and the device gives the rest one by one to
    whoever is ready.

    Args:
        program: The pass.
        call: The call.
        config: Of its kernel.
    """
    step = program.tiling.q_step
    tiles = step * ceildiv(ceildiv(call.q_len, step), config.block_q)
    pairs = call.heads * call.batch
    items = tiles * pairs
    places = call.multiprocessors * programs_of(config, call.problem)
    even = _is_even(program, call)
    if even:
        turns = ceildiv(items, places)
        long = items // turns
    else:
        turns = max(int(items * _LONG_SHARE) // (places * _LONG_WAVES), 1)
        long = int(items * _LONG_SHARE) // turns
    section = 1
    if config.neighbours == "heads":
        section = pairs
    elif not even and config.order == "reverse":
        problem = call.problem
        per_head = 2 * call.kv_len * (problem.head_dim + problem.value_head_dim)
        section = min(max(_SECTION_BYTES // per_head, 1) * problem.group, pairs)
    return Walk(tiles, call.heads, pairs, section, turns, long)


def _is_even(program: BlockProgram, call: Call) -> bool:
    """Do all query tiles visit about as many key tiles? Of classes of rows the first one tells."""
    env = {**call.env, "heads": call.heads, "kv_heads": call.heads // call.problem.group}
    one = next(iter(row_classes(program, env)))
    try:
        counts = [count for _, _, count, _ in extents(program, one.env)]
    except KeyError:  # only the device knows: by head, or by a table
        return False
    if not counts:
        return True
    total = sum(counts[1:], counts[0])
    return float(total.max()) <= _EVEN * float(total.mean())
