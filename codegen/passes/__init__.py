"""Passes over the block IR: named pure functions `BlockProgram -> BlockProgram`, run in the order
of `PASSES`.
"""

from __future__ import annotations

from collections.abc import Callable

from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.passes.prune import prune
from patterncc.codegen.passes.simplify import simplify
from patterncc.codegen.verify import verify

Pass = Callable[[BlockProgram], BlockProgram]

PASSES: tuple[tuple[str, Pass], ...] = (
    ("simplify", simplify),  # first: constants that fold let `prune` see loops that never run
    ("prune", prune),
)


def run_passes(program: BlockProgram, *, after: str | None = None) -> BlockProgram:
    """Runs all passes, or those up to and including `after`, and verifies what comes out of each.

    Raises:
        InternalError: If a pass leaves a program that is not well formed.
    """
    verify(program, "lowering")
    for name, function in PASSES:
        program = function(program)
        verify(program, name)
        if name == after:
            break
    return program
