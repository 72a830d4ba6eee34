"""What a well-formed `BlockProgram` is: checked after lowering and after every pass."""

from __future__ import annotations

from patterncc.codegen.ir import (
    CALL_KV_LEN,
    CALL_Q_LEN,
    DENSE,
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
    """Checks tile shape, loops, symbols and divisors.

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
    directions: tuple[Direction, ...] = ("forward", "transposed")
    for direction in directions[: 1 if program.transposed is None else 2]:
        for number, sweep in enumerate(program.sweeps(direction)):
            problem = _problem(program, direction, sweep)
            if problem:
                raise InternalError(
                    f"after {stage}: {direction} sweep {number}: {problem}", repr(sweep)
                )


def _problem(program: BlockProgram, direction: Direction, sweep: Sweep) -> str | None:
    if sweep.stride < 1 or sweep.classes < 1:
        return "stride and classes are positive"
    allowed = _SCALARS | _TILE[direction]
    if sweep.classes > 1:
        allowed |= {RESIDUE.name}
    if program.tiling != DENSE:
        allowed |= {Q_CLASS.name, CALL_Q_LEN.name, CALL_KV_LEN.name}
    parts: tuple[Expr, ...] = (sweep.lo, sweep.hi, sweep.phase, sweep.guard)
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
