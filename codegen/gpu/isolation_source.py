"""Numbers that are not finite stay with the rows that see them: what kernels do for that, as Triton
text.

A hidden pair of a partial tile has a weight of 0, and 0 times NaN or infinity is NaN: what a value,
or in the backward a key, query or gradient of the output, holds would reach each row of the tiles
that it lies in. The kernels do not ask for that in their loops. At the end a program looks for a
NaN in its sums and leaves a number that tells. A kernel that repairs runs next: a few programs look
at those numbers and are done, unless there is a NaN; then they compute what is spoiled once more,
some columns at a time, all tiles in the same order.

A careful tile is two products. The first one has 0 in place of every operand that is not finite;
where nothing is left out by that, sums are what the other kernel gives, bit for bit. The second one
has codes in place of numbers and tells what was left out. A factor that is positive has the code
`2^-9`, one that is 0 or NaN, whose product with any infinity is NaN, `2^9`, and that of a hidden
pair 0; plus infinity has `2^-9`, minus infinity 1, NaN `2^9`, a finite number 0. So a sum of codes
counts pairs that give plus infinity in units of `2^-18` and those that give minus infinity in units
of `2^-9`, and is at least 1 if one gives NaN: exact in float32 for tiles of fewer than 512 numbers.

A careful loop ends where nothing is left but NaN, so a diverged model pays for a tile or two.

Forward kernels that Gluon writes do all of that by themselves (`gluon.careful_writer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.codegen.gpu.kernel_text import INDENT

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.sweep_source import TileLoop

SPOILED = KernelParameter("spoiled_ptr", "*i32", 4)
"""For each program of a kernel, by axes 2, 1, 0 of its grid: is there a NaN in its sums?"""

_AXES = ("tiles", "heads", "batch")

GRID_PARAMETERS = tuple(KernelParameter(f"spoiled_{axis}", "i32") for axis in _AXES)
"""The grid of the kernel whose programs left those numbers."""

PLACES = 256
"""How many of them a program that repairs looks at."""

_WARPS = 1056
"""Of all programs that repair, where there are as many to look at: as many as an H200 runs at once
if each thread takes 255 registers."""

LET_NEXT_START = (
    'tl.inline_asm_elementwise("griddepcontrol.launch_dependents; // $0", "=r", [], '
    "dtype=tl.int32, is_pure=False, pack=1)"
)
"""Lets the programs of the next kernel start where there is room, from `cuda:90` on."""

WAIT_FOR_LAST = LET_NEXT_START.replace("launch_dependents", "wait")
"""Waits for the end of the kernel before, and for all that it has written."""

SPOILED_HELPERS = '''\
@triton.jit
def note_spoiled(spoiled_ptr, rows, part: tl.constexpr, parts: tl.constexpr):
    """Leaves whether any test of some rows is true, for this program and this part of its rows; and
    returns it."""
    spoiled = tl.max(rows.to(tl.int32))
    program = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    program = program * tl.num_programs(0) + tl.program_id(0)
    tl.store(spoiled_ptr + program * parts + part, spoiled)
    return spoiled
'''
"""Source of what kernels that may be spoiled call."""

CODE_HELPERS = '''\
@triton.jit
def finite_numbers(numbers):
    """0 in place of what is not finite."""
    return tl.where(tl.abs(numbers) < float("inf"), numbers, 0.0).to(numbers.dtype)


@triton.jit
def number_codes(numbers):
    """The codes of what is not finite."""
    code = tl.where(numbers == float("inf"), 0.001953125, tl.where(numbers < 0.0, 1.0, 512.0))
    return tl.where(tl.abs(numbers) < float("inf"), 0.0, code).to(tl.float16)


@triton.jit
def weight_codes(weights, scores):
    """The codes of weights, which are not negative, of pairs whose score is not minus infinity."""
    codes = tl.where(weights > 0.0, 0.001953125, 512.0)
    return tl.where(scores == float("-inf"), 0.0, codes).to(tl.float16)


@triton.jit
def with_codes(sums, codes):
    """Sums, and what sums of codes say that was left out."""
    scaled = codes * 512.0
    minus = (scaled == tl.floor(scaled)) & (scaled < 512.0)
    left_out = tl.where(minus, float("-inf"), float("nan"))
    left_out = tl.where(scaled < 1.0, float("inf"), left_out)
    return tl.where(scaled > 0.0, sums + left_out, sums)
'''
"""Source of the functions that all that repairs calls."""

REPAIR_HELPERS = (
    CODE_HELPERS
    + '''

@triton.jit
def factor_codes(scores):
    """The codes of factors all of whose products with what is not finite count as NaN."""
    return tl.where(scores == float("-inf"), 0.0, 512.0).to(tl.float16)


@triton.jit
def any_number(sums, exists):
    """Has a row that exists a sum that is not NaN? 1 or 0. A maximum drops NaN where it can."""
    largest = tl.max(sums, 1)[:, None]
    return tl.max((exists[:, None] & (largest == largest)).to(tl.int32))


@triton.jit
def next_spoiled(spoiled, looked_at, program, end):
    """The first spoiled program after one, or the end."""
    return tl.min(tl.where((spoiled != 0) & (looked_at > program), looked_at, end), 0)
'''
)
"""Source of the functions that kernels which repair call."""

COLUMNS = 64
"""Columns that are computed at a time. Their rows take the 128 bytes that rows of the other tiles
take: where tiles of two widths lie at one address one after the other, ptxas 12.8 makes the
addresses of one of them from registers that nothing has written."""


def spoiled_lines(sums: Sequence[str], among: str, *, kept: bool) -> Iterator[str]:
    """Leaves whether sums may be spoiled, for the kernel that repairs.

    Args:
        sums: The parts of what a program has computed.
        among: In which of its rows a NaN may have come from where they do not see, a column; empty
            for all.
        kept: What it stores lies where the sums started from, and must stay as it is if they are
            spoiled: no row exists then.
    """
    yield ""
    yield "# 0 * NaN is NaN: has a number come to rows that do not see it? (Two infinities look"
    yield "# like that, too.)"
    total = " + ".join(f"tl.sum({name}, 1)" for name in sums)
    yield f"row_sums = ({total})[:, None]"
    among = f" & {among}" if among else ""
    spoiled = f"note_spoiled(spoiled_ptr, (row_sums != row_sums){among}, 0, 1)"
    if kept:
        yield f"row_exists = row_exists & ({spoiled} == 0)"
    else:
        yield spoiled


def repair_grid(grid: tuple[int, int, int], num_warps: int) -> tuple[int, int, int]:
    """The grid of a kernel of so many warps that repairs what one with such a grid has spoiled."""
    programs = prod(grid)
    return (max(-(-programs // PLACES), min(programs, _WARPS // num_warps)), 1, 1)


def grid_values(grid: tuple[int, int, int]) -> dict[str, int]:
    """The values of `GRID_PARAMETERS`."""
    return {parameter.name: size for parameter, size in zip(GRID_PARAMETERS, grid, strict=True)}


def repair_config(config: KernelConfig) -> KernelConfig:
    """Of the kernel that repairs what one of that config computes: products of the same shapes."""
    return replace(
        config,
        load="pointer",
        num_stages=1,
        max_registers=255,
        emitter="triton",
    )


def columns_at_once(width: int) -> int:
    """How many columns of so many are computed at a time."""
    return max(16, min(COLUMNS, 1 << (width - 1).bit_length()))


def column_mask(rows: str, width: int) -> str:
    """What to load or store of some columns: the rows' mask, and the columns' where needed."""
    return f"({rows}) & column_exists" if width % columns_at_once(width) else rows


def columns_lines(width: int) -> Iterator[str]:
    """The columns of the part `spoiled_part` of a result of that width."""
    some = columns_at_once(width)
    yield f"columns = spoiled_part * {some} + tl.arange(0, {some})[None, :]"
    if width % some:
        yield f"column_exists = columns < {width}"


def parts_of(width: int) -> int:
    """How many parts a result of that width is computed in."""
    return -(-width // columns_at_once(width))


def unsettled_text(width: int, exists: str) -> str:
    """Is there a number among `sums` of some columns that is not NaN?"""
    sums = "sums"
    if width % columns_at_once(width):
        sums = 'tl.where(column_exists, sums, float("nan"))'
    return f"any_number({sums}, {exists})"


def repair_lines(blocks: Iterable[str], parts: int, work: Iterable[str]) -> Iterator[str]:
    """The body of a kernel that repairs.

    Args:
        blocks: Lines that name the tile's sizes.
        parts: How many parts a result is computed in.
        work: Lines that compute and store the part `spoiled_part` of what a spoiled program
            computes. Where they ask for the program's place in the grid, they get that one's.
    """
    yield from blocks
    yield "# The programs whose sums are spoiled; what they computed is computed in parts."
    yield "spoiled_programs = spoiled_tiles * spoiled_heads * spoiled_batch"
    yield f"looked_at = tl.program_id(0) + tl.num_programs(0) * tl.arange(0, {PLACES})"
    yield "spoiled = tl.load(spoiled_ptr + looked_at, mask=looked_at < spoiled_programs, other=0)"
    yield "spoiled_program = next_spoiled(spoiled, looked_at, -1, spoiled_programs)"
    yield "spoiled_part = 0"
    yield "while spoiled_program < spoiled_programs:"
    lines = [
        "program_0 = spoiled_program % spoiled_tiles",
        "program_1 = spoiled_program // spoiled_tiles % spoiled_heads",
        "program_2 = spoiled_program // (spoiled_tiles * spoiled_heads)",
    ]
    for line in work:
        for number, name in enumerate(_AXES):
            line = line.replace(f"tl.program_id({number})", f"program_{number}")
            line = line.replace(f"tl.num_programs({number})", f"spoiled_{name}")
        lines.append(line)
    following = "next_spoiled(spoiled, looked_at, spoiled_program, spoiled_programs)"
    lines += [
        "",
        "spoiled_part += 1",
        f"if spoiled_part == {parts}:",
        f"{INDENT}spoiled_part = 0",
        f"{INDENT}spoiled_program = {following}",
    ]
    yield from indented(lines)


def all_tiles_loop(loops: int, tile: Iterable[str], unsettled: str) -> Iterator[str]:
    """The loop over the tiles of so many loops.

    Args:
        loops: How many `all_tiles_lines` has counted.
        tile: Lines for the tile at `turn`.
        unsettled: Has anything but NaN been left by it? Empty: all tiles are visited.
    """
    last = f"until_{loops - 1}"
    yield "turn = 0"
    yield f"tiles_left = {last}"
    yield "while turn < tiles_left:"
    lines = [*tile, "turn += 1"]
    if unsettled:
        lines.append(f"tiles_left = tl.where({unsettled} > 0, tiles_left, turn)")
    yield from indented(lines)


def all_tiles_lines(counts: Iterable[str]) -> Iterator[str]:
    """Where loops of so many tiles each end if one counter runs through all of them: `until_0`,
    `until_1`, ..., of which the last one is the number of tiles."""
    before = ""
    for number, count in enumerate(counts):
        yield f"until_{number} = {before}{count}"
        before = f"until_{number} + "


def step_text(loops: Sequence[TileLoop], counter: str, begins: Sequence[str] = ()) -> str:
    """The counter of the loop that a counter of all of them is in."""
    before = ["", *(f" - until_{number}" for number in range(len(loops) - 1))]
    begins = [f"{begin} + " for begin in begins] or [""] * len(loops)
    steps = [f"{begin}{counter}{less}" for begin, less in zip(begins, before, strict=True)]
    return _choice(steps, counter)


def tile_text(loops: Sequence[TileLoop], counter: str) -> str:
    """The number of the tile at `step` of the loop that `counter` is in."""
    if loops[0].place:
        return f"tl.load(tiles + {_choice([loop.place for loop in loops], counter)})"
    return _choice([loop.tile for loop in loops], counter)


def _choice(texts: Sequence[str], counter: str) -> str:
    """The text of the loop that a counter of all of them is in."""
    choice = texts[-1]
    for number, text in reversed(list(enumerate(texts[:-1]))):
        choice = f"tl.where({counter} < until_{number}, {text}, {choice})"
    return choice


def indented(lines: Iterable[str]) -> Iterator[str]:
    """Lines one step further in."""
    return (INDENT + line if line else "" for line in lines)
