"""What a well-formed `BlockProgram` is: checked after lowering and after every pass."""

from __future__ import annotations

from math import prod
from typing import Literal

from patterncc.codegen.ir import (
    BOX_NAMES,
    CALL_KV_LEN,
    CALL_Q_LEN,
    DENSE,
    MOST_AXES,
    Q_CLASS,
    RESIDUE,
    BlockProgram,
    Direction,
    Sweep,
)
from patterncc.dsl.errors import InternalError
from patterncc.dsl.mask import (
    COORDINATES,
    SIZES,
    And,
    Const,
    Cover,
    Expr,
    FloorDiv,
    Mod,
    parameters,
    variables,
    walk,
)

_SCALARS = frozenset(COORDINATES + SIZES) - {"q", "k"}
_TILE: dict[Direction, frozenset[str]] = {
    "forward": frozenset({"q_first", "q_last"}),
    "transposed": frozenset({"k_tile", "k_last", "q_offset"}),
}


def verify(program: BlockProgram, stage: str) -> None:
    """Checks tile shape, terms, loops, symbols and divisors.

    Raises:
        InternalError: With the stage that left the program so, and the sweep.
    """
    if program.block_q < 1 or program.block_k < 1:
        raise InternalError(f"after {stage}: tile {program.block_q} x {program.block_k}")
    if program.tiling.q_step < 1 or program.tiling.k_step < 1:
        raise InternalError(f"after {stage}: the steps of a tiling are positive")
    if program.gathered < 1 or (program.gathered > 1 and program.tiling != DENSE):
        raise InternalError(
            f"after {stage}: {program.gathered} runs are gathered of {program.tiling}"
        )
    terms = program.mask.args if isinstance(program.mask, And) else (program.mask,)
    if not set(program.decided) <= set(terms):
        raise InternalError(f"after {stage}: tiles decide what is no term of the mask")
    _verify_patches(program, stage)
    directions: tuple[Direction, ...] = ("forward", "transposed")
    for direction in directions[: 1 if program.transposed is None else 2]:
        for number, sweep in enumerate(program.sweeps(direction)):
            problem = _problem(program, direction, sweep)
            if problem:
                raise InternalError(
                    f"after {stage}: {direction} sweep {number}: {problem}", repr(sweep)
                )


def _verify_patches(program: BlockProgram, stage: str) -> None:
    patches = program.patches
    if patches is None:
        return
    if program.tiling != DENSE or program.listed or program.gathered > 1:
        raise InternalError(f"after {stage}: patches of a program that is listed or not dense")
    axes, numbers = len(patches.sizes) + 1, set(program.scalars)
    sides: tuple[tuple[int, Literal["q", "k"]], ...]
    sides = ((program.block_q, "q"), (program.block_k, "k"))
    for block, side in sides:
        for extents in (patches.held(side), patches.passing(side)):
            fits = all(extent > 0 for extent in extents) and prod(extents) <= block
            if len(extents) != axes or axes > MOST_AXES or not fits:
                raise InternalError(f"after {stage}: a tile of {block} is no patch {extents}")
        before = patches.before(side)
        if len(before) != axes or any(variables(each) - {"layer"} - numbers for each in before):
            raise InternalError(f"after {stage}: no call says where a grid of patches begins")


def _problem(program: BlockProgram, direction: Direction, sweep: Sweep) -> str | None:
    if sweep.stride < 1 or sweep.classes < 1:
        return "stride and classes are positive"
    allowed = _SCALARS | _TILE[direction]
    if sweep.classes > 1:
        allowed |= {RESIDUE.name}
    if program.patches is not None:
        allowed = _SCALARS | BOX_NAMES | {"q_offset"}
    if program.tiling != DENSE:
        allowed |= {Q_CLASS.name, CALL_Q_LEN.name, CALL_KV_LEN.name}
    parts: tuple[Expr, ...] = (sweep.lo, sweep.hi, sweep.phase, sweep.guard)
    for repeat in sweep.repeats:
        if repeat.step < 1:
            return "the step of a repeat is positive"
        parts += (repeat.lo, repeat.hi)
    for part in parts:
        strange = variables(part) - allowed
        if strange:
            return f"reads {', '.join(sorted(strange))}"
        unknown = parameters(part) - set(program.scalars)
        if unknown:
            return f"reads run-time numbers that are not listed: {', '.join(sorted(unknown))}"
        for node in walk(part):
            if isinstance(node, Cover):
                return "bounds are scalar arithmetic"
            if isinstance(node, (FloorDiv, Mod)) and not _positive(node.divisor):
                return "divides by something that is not a positive constant"
    return None


def _positive(expr: Expr) -> bool:
    return isinstance(expr, Const) and expr.value > 0
