"""Drops sweeps that can never run: a guard that is false, or bounds that are constants and
empty.
"""

from __future__ import annotations

from patterncc.codegen.ir import BlockProgram, Sweep
from patterncc.dsl.mask import FALSE, Const


def prune(program: BlockProgram) -> BlockProgram:
    """The program without loops that are empty whatever the call."""
    return program.map_sweeps(lambda sweeps: filter(_can_run, sweeps))


def _can_run(sweep: Sweep) -> bool:
    if sweep.guard == FALSE:
        return False
    ends = [(sweep.lo, sweep.hi), *((repeat.lo, repeat.hi) for repeat in sweep.repeats)]
    return not any(
        isinstance(low, Const) and isinstance(high, Const) and high.value <= low.value
        for low, high in ends
    )
