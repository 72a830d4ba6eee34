"""Passes over the block IR: named pure functions `BlockProgram -> BlockProgram`, run in the order
of `PASSES`.
"""

from __future__ import annotations

from collections.abc import Callable

from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.passes.prune import prune
from patterncc.codegen.passes.simplify import simplify
from patterncc.codegen.verify import verify
from patterncc.dsl.errors import ConfigError

Pass = Callable[[BlockProgram], BlockProgram]

PASSES: tuple[tuple[str, Pass], ...] = (
    ("simplify", simplify),  # first: constants that fold let `prune` see loops that never run
    ("prune", prune),
)


def run_passes(
    program: BlockProgram, *, after: str | None = None, check: bool = False
) -> BlockProgram:
    """Runs all passes, or those up to and including `after`.

    Args:
        program: As lowering leaves it.
        after: Name of the last pass to run; all of them where it is `None`.
        check: Whether to verify the program before the first pass and after each.

    Raises:
        ConfigError: If no pass is called `after`.
        InternalError: If `check` finds a program that is not well formed.
    """
    names = tuple(name for name, _ in PASSES)
    if after is not None and after not in names:
        raise ConfigError(f"no pass is called `{after}`", names)
    if check:
        verify(program, "lowering")
    for name, function in PASSES:
        program = function(program)
        if check:
            verify(program, name)
        if name == after:
            break
    return program
