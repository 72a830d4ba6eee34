"""Passes over the block IR: named pure functions `BlockProgram -> BlockProgram`, run in the order
of `PASSES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.passes.prune import prune
from patterncc.codegen.passes.simplify import simplify
from patterncc.codegen.verify import verify

Pass = Callable[[BlockProgram], BlockProgram]

PASSES: tuple[tuple[str, Pass], ...] = (
    ("simplify", simplify),  # first: constants that fold let `prune` see loops that never run
    ("prune", prune),
)


def after_each(program: BlockProgram, *, check: bool = False) -> Iterator[tuple[str, BlockProgram]]:
    """The program as lowering leaves it, under the name `lower`, then after every pass.

    Raises:
        InternalError: If `check` finds a program that is not well formed.
    """
    names = ("lower", *(name for name, _ in PASSES))
    functions = (lambda given: given, *(function for _, function in PASSES))
    for name, function in zip(names, functions, strict=True):
        program = function(program)
        if check:
            verify(program, name)
        yield name, program


def run_passes(program: BlockProgram, *, check: bool = False) -> BlockProgram:
    """The program after all passes; see `after_each`."""
    *_, (_, last) = after_each(program, check=check)
    return last
