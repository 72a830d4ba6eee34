"""What the benchmark finds of one peer at one request, as values that travel between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal, TypeAlias

from patterncc.bench.request import Phase

State: TypeAlias = Literal[
    "ready", "timed", "absent", "cannot", "refused", "wrong", "unfused", "out of memory", "crashed",
    "hung",
]  # fmt: skip
"""`absent`: not usable here; `cannot`: not this pattern; `refused`: it raised an error."""

FAULTS: frozenset[State] = frozenset(
    {"refused", "wrong", "unfused", "out of memory", "crashed", "hung"}
)
"""States of a peer that should have worked."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """How far results are from float64.

    Attributes:
        errors: By what was compared (`output`, `grad_query`, ...): its largest error, in units of
            what is allowed of a result of this type.
        rows: Rows of each head that were compared, and their gradients passed on.
    """

    errors: Mapping[str, float]
    rows: int

    @property
    def worst(self) -> tuple[str, float]:
        """What is furthest off, and how far."""
        name = max(self.errors, key=lambda one: self.errors[one])
        return name, self.errors[name]


@dataclass(frozen=True, slots=True)
class Reading:
    """One peer at one request.

    Attributes:
        state: What became of it.
        reason: Why there are no times; "" if there are.
        note: What a reader of the numbers should know.
        judgement: Of its results; `None` where there are none.
        first_seconds: Of binding, compiling and the first call of every phase.
        mask_seconds: Of making what describes the mask, until the device has done it.
        mask_bytes: What that keeps on the device.
        peak_bytes: By phase: what a call allocates at most at one time, inputs apart; on GPUs.
        phases: What it can do of what was asked.
        seconds: By phase: every timed call.
        host: By phase: what the host took to issue each of them.
        clocks: MHz of the multiprocessors, read while calls were running; on GPUs that tell.
    """

    state: State
    reason: str = ""
    note: str = ""
    judgement: Judgement | None = None
    first_seconds: float | None = None
    mask_seconds: float | None = None
    mask_bytes: int | None = None
    peak_bytes: Mapping[Phase, int] = field(default_factory=dict)
    phases: tuple[Phase, ...] = ()
    seconds: Mapping[Phase, tuple[float, ...]] = field(default_factory=dict)
    host: Mapping[Phase, tuple[float, ...]] = field(default_factory=dict)
    clocks: tuple[int, ...] = ()

    def median(self, phase: Phase) -> float | None:
        """The median time of a phase; `None` where it has none."""
        found = self.seconds.get(phase)
        return median(found) if found and self.state == "timed" else None

    def timed(self, phase: Phase, round_: Round) -> Reading:
        """With another round of a phase."""
        seconds = {**self.seconds, phase: self.seconds.get(phase, ()) + round_.seconds}
        host = {**self.host, phase: self.host.get(phase, ()) + round_.host}
        clocks = self.clocks if round_.clock is None else (*self.clocks, round_.clock)
        return replace(self, state="timed", seconds=seconds, host=host, clocks=clocks)


@dataclass(frozen=True, slots=True)
class Round:
    """Calls of one phase, timed one after another.

    Attributes:
        seconds: Of each of them, on the device.
        host: What the host took to issue each.
        clock: MHz of the multiprocessors meanwhile; `None` where nobody tells.
    """

    seconds: tuple[float, ...]
    host: tuple[float, ...]
    clock: int | None = None
