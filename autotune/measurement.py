"""What came of trying a config."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Literal

State = Literal["timed", "slow", "compiled", "wrong", "out of memory", "refused", "crashed", "hung"]
"""`timed`: right, and timed in full. `slow`: right, and given up as much slower than the best.
`compiled`: compiled for a device that was not asked to run it.
`wrong`: its output is not the reference's. `refused`: an error of the compiler, the launcher or the
device. `crashed`: its process died. `hung`: it was killed at the time limit."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What the kernels of a config need, as compiled; of several kernels the most.

    Attributes:
        registers: Per thread.
        spilled: Bytes of local memory per thread; more than 0 means that registers spill.
        shared: Bytes of shared memory per program.
    """

    registers: int
    spilled: int
    shared: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came of trying a config.

    Attributes:
        state: What happened.
        seconds: Times of single calls; empty unless it was right.
        reason: Why it is bad, in one line.
        error: Largest error of an output, in units of what is allowed.
        resources: Of a config that was compiled.
    """

    state: State
    seconds: tuple[float, ...] = ()
    reason: str = ""
    error: float = 0.0
    resources: Resources | None = None

    @property
    def usable(self) -> bool:
        """Whether the output was right, so that its time counts."""
        return self.state in ("timed", "slow")

    @property
    def median(self) -> float:
        """Median time of a call, in seconds; infinite for a bad config."""
        return median(self.seconds) if self.usable and self.seconds else float("inf")
