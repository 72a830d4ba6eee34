"""Sweeps as Triton text: many short loops over tiles become one loop whose tile number is
arithmetic on its counter.

A loop of its own for each sweep would drain and refill the load pipeline at every end. So the
counters of the pieces are laid end to end, and the tile number is selected by comparing the counter
with the ends of the pieces. Bounds are computed in 64 bits, once per program; only the counter and
the tile number are 32 bits wide. A sweep of many residue classes is laid out in the same way, with
a class in each lane of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from patterncc.codegen.evaluation import evaluate
from patterncc.codegen.gpu.bound_source import integer_text, share_bounds
from patterncc.codegen.gpu.box_source import box_lines, box_tile
from patterncc.codegen.gpu.scalar_source import ExpressionWriter
from patterncc.codegen.gpu.separate import ROWS, Held, separate
from patterncc.codegen.ir import RESIDUE, Kind, Sweep
from patterncc.dsl.build import add, any_of, multiply, substitute
from patterncc.dsl.mask import (
    FALSE,
    TRUE,
    Const,
    Entry,
    Expr,
    IntExpr,
    Member,
    Param,
    Segment,
    Var,
    walk,
)

UNROLLED_CLASSES = 4
"""Most residue classes of a sweep that are laid out as pieces of their own; more become the lanes
of a vector."""

WARP = 32
"""Most lanes of a piece in the shared loop: a sum over more makes the warps wait for each other, so
such pieces get a loop of their own."""


_MIDDLE = {"k_tile": 1 << 12, "k_last": 128 * (1 << 12) + 127, "q_offset": 0, "residue": 0}
_MIDDLE |= {"q_len": 1 << 20, "kv_len": 1 << 20}
_SOME = 512
"""Where pieces are put in order: a key tile of a call, and any other number."""


@dataclass(frozen=True, slots=True)
class TileLoop:
    """One loop over tiles.

    Attributes:
        kind: Whether its tiles need the mask.
        setup: Lines that compute what `count` and `tile` read, before the loop.
        count: The number of tiles, an expression.
        tile: The tile number as an expression of the counter `step`.
        classes: How many times the loop is run, `residue_wide` counting from 0: more than once only
            where no lanes were asked for, and `setup` then is of one time.
        first, following: Lines that load the number of the first tile before the loop, and that of
            the next one in it, where the numbers are in memory; of a gathered tile the numbers of
            its runs.
        place: Where in the row of `tiles` the number of the tile at `step` is, if it is in memory.
    """

    kind: Kind
    setup: tuple[str, ...]
    count: str
    tile: str
    classes: int = 1
    first: tuple[str, ...] = ()
    following: tuple[str, ...] = ()
    place: str = ""


@dataclass(frozen=True, slots=True)
class LoopNest:
    """The loops of a program.

    Attributes:
        common: Lines that compute what several bounds share.
        loops: Partial tiles first.
        documents: The numbers of the documents that bounds look up, by segments and position.
    """

    common: tuple[str, ...]
    loops: tuple[TileLoop, ...]
    documents: Mapping[tuple[str, IntExpr], str]


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of a loop's counter: a sweep, or one class of it, or all its classes as lanes; or
    several sweeps that start at the same tile, of which one at most visits any.

    Attributes:
        numbers: Which sweeps of the program it stands for.
        sweep: What it does.
        residue: The class, where a sweep was taken apart.
        others: Sweeps that differ from it in their guard and their end.
    """

    numbers: tuple[int, ...]
    sweep: Sweep
    residue: int | None = None
    others: tuple[Sweep, ...] = ()

    @property
    def label(self) -> str:
        """Ends the names of its bounds."""
        return f"{self.numbers[0]}" if self.residue is None else f"{self.numbers[0]}_{self.residue}"

    @property
    def lanes(self) -> int:
        """Lanes of its bounds; 1 where they are scalars."""
        return 1 if self.sweep.classes == 1 else 1 << (self.sweep.classes - 1).bit_length()

    @property
    def comment(self) -> str:
        """Where it comes from."""
        sweep = self.sweep
        which = f"sweep{'s' * (len(self.numbers) > 1)} {', '.join(map(str, self.numbers))}"
        tiles = "consecutive tiles" if sweep.stride == 1 else f"tiles {sweep.stride} apart"
        if self.residue is not None:
            tiles += f", residue {self.residue}"
        elif sweep.classes > 1:
            tiles += f", {sweep.classes} residue classes"
        if sweep.repeats:
            tiles = f"a box of tiles, {len(sweep.repeats) + 1} loops"
        return f"# {sweep.kind} {which}: {tiles}"


def emit_loops(
    sweeps: Sequence[Sweep],
    *,
    lanes: bool = True,
    held: Held = ROWS,
    ranked: bool = False,
    in_order: bool = False,
) -> LoopNest:
    """The loops that run all sweeps: at most two for each kind of tile, unless `in_order`.

    Args:
        sweeps: Of a program, in one direction.
        lanes: May classes be lanes, so that `step` must be a scalar? Otherwise each sweep of many
            classes is a loop that is run for one after the other.
        held: The side of a tile that the kernel keeps.
        ranked: Tiles are places in a list of tiles: that of tile `n`, visited or not, is
            `ranks[n]`, for `n` up to `run_count`. Sweeps then have one class and visit consecutive
            tiles.
        in_order: Visit tiles in about the order of their numbers, where that takes more loops, and
            not partial ones first; at most two for each piece of it.
    """
    pieces = list(_pieces(sweeps))
    shared = share_bounds([sweep for p in pieces for sweep in (p.sweep, *p.others)], held)
    if in_order:
        # Neighbours of one kind share a loop.
        pieces = sorted(pieces, key=_place)
        together = [list(run) for _, run in groupby(pieces, lambda piece: piece.sweep.kind)]
    else:
        kinds = ("partial", "full")
        together = [[piece for piece in pieces if piece.sweep.kind == kind] for kind in kinds]
    loops = []
    for of_kind in together:
        if lanes:
            groups = [[p for p in of_kind if (p.lanes > WARP) == wide] for wide in (False, True)]
        else:
            groups = [[p for p in of_kind if p.sweep.classes == 1]]
            groups += [[p] for p in of_kind if p.sweep.classes > 1]
        loops += [_loop(shared.writer, g, lanes=lanes, ranked=ranked) for g in groups if g]
    return LoopNest(tuple(shared.lines), tuple(loops), shared.documents)


def _place(piece: _Piece) -> int:
    """About where a piece starts, seen from a key tile in the middle of a long call."""
    sweep = piece.sweep
    start = add(multiply(Const(sweep.stride), sweep.lo), sweep.phase)
    leaves = [leaf for leaf in walk(start) if isinstance(leaf, (Var, Param))]
    if any(isinstance(node, (Entry, Member, Segment)) for node in walk(start)):
        return 0
    return int(evaluate(start, {leaf.name: _MIDDLE.get(leaf.name, _SOME) for leaf in leaves}))


def _merge(sweeps: Sequence[Sweep]) -> Iterator[_Piece]:
    """Joins sweeps that differ in their guard alone: sweeps are disjoint, so no two such guards
    hold for one tile."""
    alike: dict[Sweep, list[int]] = {}
    for number, sweep in enumerate(sweeps):
        alike.setdefault(replace(sweep, guard=TRUE), []).append(number)
    for sweep, numbers in alike.items():
        guard = any_of(*(sweeps[number].guard for number in numbers))
        if guard != FALSE:
            yield _Piece(tuple(numbers), replace(sweep, guard=guard))


def _pieces(sweeps: Sequence[Sweep]) -> Iterator[_Piece]:
    for piece in _one_start(_merge(sweeps)):
        classes = piece.sweep.classes
        if classes == 1 or classes > UNROLLED_CLASSES:
            yield piece
            continue
        for residue in range(classes):
            one = _at_class(piece.sweep, residue)
            if one.guard != FALSE:
                yield _Piece(piece.numbers, one, residue)


def _one_start(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
    """Joins sweeps that start at the same tile: they are disjoint, so one at most visits it."""
    alike: dict[tuple[Any, ...], _Piece] = {}
    for number, piece in enumerate(pieces):
        sweep = piece.sweep
        start: tuple[Any, ...] = (sweep.kind, sweep.lo, sweep.stride, sweep.phase)
        if sweep.classes > 1 or sweep.repeats:
            start = (number,)
        if start in alike:
            first = alike[start]
            numbers = first.numbers + piece.numbers
            alike[start] = replace(first, numbers=numbers, others=(*first.others, sweep))
        else:
            alike[start] = piece
    yield from alike.values()


def _at_class(sweep: Sweep, residue: int) -> Sweep:
    """One class of a sweep, as a sweep of its own."""
    at: dict[Expr, IntExpr] = {RESIDUE: Const(residue)}
    return Sweep(
        sweep.kind,
        substitute(sweep.lo, at),
        substitute(sweep.hi, at),
        substitute(sweep.guard, at),
        sweep.stride,
        substitute(sweep.phase, at),
    )


# ------------------------------------------------------------------------------------ one loop


def _loop(
    writer: ExpressionWriter, pieces: Sequence[_Piece], *, lanes: bool, ranked: bool
) -> TileLoop:
    """Lays the pieces end to end."""
    first = pieces[0].sweep
    setup: list[str] = []
    before = ""  # the counter at which the next piece starts
    for piece in pieces:
        setup += (
            _lanes(writer, piece, before)
            if piece.lanes > 1 and lanes
            else _stretch(writer, piece, before, ranked)
        )
        before = f"end_{piece.label}"
    tile = _tile_number(pieces, lanes=lanes)
    return TileLoop(first.kind, tuple(setup), before, tile, 1 if lanes else first.classes)


def _stretch(writer: ExpressionWriter, piece: _Piece, before: str, ranked: bool) -> Iterator[str]:
    """The lines of a piece with scalar bounds."""
    label, sweep = piece.label, piece.sweep
    if sweep.repeats:
        yield piece.comment
        yield from box_lines(writer, sweep, label, before)
        return
    yield piece.comment

    def bound(expr: IntExpr, plain: str) -> str:
        if not ranked:
            return plain
        return (
            f"tl.load(ranks + tl.minimum(tl.maximum({integer_text(writer, expr)}, 0), run_count))"
        )

    yield f"first_{label} = {bound(sweep.lo, integer_text(writer, sweep.lo))}"
    lengths = []
    for one in (sweep, *piece.others):
        end = bound(one.hi, writer.integer(one.hi).operand())
        length = f"tl.maximum({end} - first_{label}, 0)"
        guard = separate(one.guard)
        if guard != TRUE:
            length = f"tl.where({writer.predicate(guard)}, {length}, 0)"
        lengths.append(length)
    yield f"end_{label} = ({' + '.join([*([before] if before else []), *lengths])}).to(tl.int32)"
    start = f"first_{label} - {before}" if before else f"first_{label}"
    yield f"shift_{label} = {_shift(writer, sweep, start)}"


def _lanes(writer: ExpressionWriter, piece: _Piece, before: str) -> Iterator[str]:
    """The lines of a piece whose bounds are vectors with a lane for each residue class."""
    label, sweep = piece.label, piece.sweep
    yield f"{piece.comment} as lanes"
    yield f"residue_wide = tl.arange(0, {piece.lanes}).to(tl.int64)"
    yield f"first_{label} = {integer_text(writer, sweep.lo)}"
    guard = separate(sweep.guard)
    exists = f"(residue_wide < {sweep.classes})"
    if guard != TRUE:
        exists = f"{exists} & {writer.predicate(guard)}"
    length = f"tl.maximum({writer.integer(sweep.hi).operand()} - first_{label}, 0)"
    yield f"length_{label} = tl.where({exists}, {length}, 0).to(tl.int32)"
    start = f" + {before}" if before else ""
    yield f"ends_{label} = tl.cumsum(length_{label}, 0){start}"
    yield f"starts_{label} = ends_{label} - length_{label}"
    yield f"end_{label} = tl.max(ends_{label}, 0)"
    yield f"shift_{label} = {_shift(writer, sweep, f'first_{label} - starts_{label}')}"


def _shift(writer: ExpressionWriter, sweep: Sweep, start: str) -> str:
    """What to add to the scaled counter to get the tile number."""
    if sweep.stride != 1:
        start = f"({start}) * {sweep.stride}"
    if sweep.phase != Const(0):
        start = f"{start} + {writer.integer(sweep.phase).operand()}"
    return f"({start}).to(tl.int32)"


def _tile_number(pieces: Sequence[_Piece], *, lanes: bool) -> str:
    """The tile at counter `step`; a common stride is multiplied once, outside of the selection."""
    strides = {piece.sweep.stride for piece in pieces}
    repeated = any(piece.sweep.repeats for piece in pieces)
    common = strides.pop() if len(strides) == 1 and not repeated else None
    tile = ""
    for number in range(len(pieces) - 1, -1, -1):
        piece = pieces[number]
        label = piece.label
        place = f"shift_{label}"
        if piece.sweep.repeats:
            before = f"end_{pieces[number - 1].label}" if number else ""
            place = box_tile(piece.sweep, label, before)
        elif common is None:
            place = f"{_scaled_step(piece.sweep.stride)} + {place}"
        if piece.lanes > 1 and lanes:
            here = f"(starts_{label} <= step) & (step < ends_{label})"
            place = f"tl.sum(tl.where({here}, {place}, 0), 0)"
        tile = f"tl.where(step < end_{label}, {place}, {tile})" if tile else place
    return tile if common is None else f"{_scaled_step(common)} + {tile}"


def _scaled_step(stride: int) -> str:
    return "step" if stride == 1 else f"step * {stride}"
