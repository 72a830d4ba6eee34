"""Sweeps as Triton text: many short loops over tiles become one loop whose tile number is arithmetic on its counter.

A loop of its own for each sweep would drain and refill the load pipeline at every end. So the counters of the pieces
are laid end to end, and the tile number is selected by comparing the counter with the ends of the pieces. Bounds are
computed in 64 bits, once per program; only the counter and the tile number are 32 bits wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from patterncc.codegen.ir import RESIDUE, Kind, Sweep
from patterncc.codegen.mask_source import scalar_name
from patterncc.codegen.scalar_source import ExpressionWriter, Text
from patterncc.codegen.separate import separate
from patterncc.dsl.build import substitute
from patterncc.dsl.mask import FALSE, TRUE, Const, IntExpr, Param, Predicate, Var, walk

UNROLLED_CLASSES = 8
"""Most classes of a sweep that are laid out as pieces of the shared loop; more get a loop over the classes."""


@dataclass(frozen=True, slots=True)
class TileLoop:
    """One loop over tiles.

    Attributes:
        kind: Whether its tiles need the mask.
        setup: Lines that compute `count` and what `tile` reads, before the loop.
        count: Number of tiles, an expression.
        tile: The tile number as an expression of the counter `step`.
        classes: Where more than 1, the setup and the loop run inside `for residue in range(classes)`.
    """

    kind: Kind
    setup: tuple[str, ...]
    count: str
    tile: str
    classes: int = 1


def emit_loops(sweeps: Sequence[Sweep], kind: Kind) -> tuple[TileLoop, ...]:
    """The loops that run all sweeps of one kind: a shared one, and one for each sweep of many classes.

    Raises:
        UnsupportedError: A bound reads a table or a segment.
    """
    numbered = [(number, s) for number, s in enumerate(sweeps) if s.kind == kind and s.guard != FALSE]
    shared = [
        (f"{number}" if s.classes == 1 else f"{number}_{residue}", _at_class(s, residue), number)
        for number, s in numbered
        if s.classes <= UNROLLED_CLASSES
        for residue in range(s.classes)
    ]
    loops = [_shared_loop(kind, shared)] if shared else []
    loops += [
        _shared_loop(kind, [(f"{number}", s, number)], s.classes)
        for number, s in numbered
        if s.classes > UNROLLED_CLASSES
    ]
    return tuple(loops)


def _at_class(sweep: Sweep, residue: int) -> Sweep:
    """One class of a sweep, as a sweep of its own."""
    if sweep.classes == 1:
        return sweep
    at = {RESIDUE: Const(residue)}
    return Sweep(
        sweep.kind,
        substitute(sweep.lo, at),
        substitute(sweep.hi, at),
        substitute(sweep.guard, at),
        sweep.stride,
        substitute(sweep.phase, at),
    )


def _shared_loop(
    kind: Kind, pieces: Sequence[tuple[str, Sweep, int]], classes: int = 1
) -> TileLoop:
    """Lays the pieces (label, sweep, number of the sweep in the program) end to end."""
    setup: list[str] = []
    before = "0"  # the counter at which the piece starts
    for label, sweep, number in pieces:
        setup.append(f"# {kind} sweep {number}: {_describe(sweep)}")
        setup.append(f"first_{label} = {_integer(sweep.lo)}")
        length = f"tl.maximum({_integer(sweep.hi)} - first_{label}, 0)"
        guard = separate(sweep.guard)
        if guard != TRUE:
            length = f"tl.where({_WRITER.predicate(guard)}, {length}, 0)"
        shift = f"first_{label}"
        if before != "0":
            length, shift = f"{before} + {length}", f"{shift} - {before}"
        if sweep.stride != 1:
            shift = f"({shift}) * {sweep.stride}"
        if sweep.phase != Const(0):
            shift = f"{shift} + {_WRITER.integer(sweep.phase).operand()}"
        before = f"end_{label}"
        setup.append(f"{before} = ({length}).to(tl.int32)")
        setup.append(f"shift_{label} = ({shift}).to(tl.int32)")
    return TileLoop(kind, tuple(setup), before, _tile_number(pieces), classes)


def _tile_number(pieces: Sequence[tuple[str, Sweep, int]]) -> str:
    """The tile at counter `step`; a common stride is multiplied once, outside of the selection."""
    strides = {sweep.stride for _, sweep, _ in pieces}
    common = strides.pop() if len(strides) == 1 else None
    tile = ""
    for label, sweep, _ in reversed(pieces):
        place = f"shift_{label}" if common else f"{_scaled_step(sweep.stride)} + shift_{label}"
        tile = f"tl.where(step < end_{label}, {place}, {tile})" if tile else place
    return f"{_scaled_step(common)} + {tile}" if common else tile


def _scaled_step(stride: int) -> str:
    return "step" if stride == 1 else f"step * {stride}"


def _describe(sweep: Sweep) -> str:
    """What a reader needs to find the sweep in the program's text."""
    return "consecutive tiles" if sweep.stride == 1 else f"every {sweep.stride}th tile"


def _integer(expr: IntExpr) -> str:
    text = _WRITER.integer(expr)
    return f"tl.cast({text.text}, tl.int64)" if text.bits is None else text.text


def _scalar(expr: IntExpr) -> Text | None:
    """Scalars of the call are widened once, under names of their own."""
    return Text(wide_name(expr), 64) if isinstance(expr, (Var, Param)) else None


def wide_name(leaf: Var | Param) -> str:
    """The name of a scalar's 64-bit copy."""
    return f"{scalar_name(leaf)}_wide"


def scalars_read(sweeps: Sequence[Sweep]) -> tuple[Var | Param, ...]:
    """The scalars that the bounds of the sweeps read, by name; residues are not among them."""
    found: set[Var | Param] = set()
    for sweep in sweeps:
        parts: tuple[IntExpr | Predicate, ...] = (sweep.lo, sweep.hi, sweep.guard, sweep.phase)
        for part in parts:
            found.update(leaf for leaf in walk(part) if isinstance(leaf, (Var, Param)))
    found.discard(RESIDUE)
    return tuple(sorted(found, key=lambda leaf: leaf.name))


_WRITER = ExpressionWriter(_scalar, least_bits=64)
