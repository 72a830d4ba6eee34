"""What a run of the benchmark is asked, and what it found, as values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from patterncc.bench.machine import Machine
from patterncc.bench.readings import Reading
from patterncc.bench.request import Phase, Request

_ROUNDS = {"cpu": 5, "cuda": 10}  # of every phase of every peer, where no number is asked for


@dataclass(frozen=True, slots=True)
class Options:
    """How to run.

    Attributes:
        phases: What to time. `fresh` is timed of packed documents alone.
        rounds: Rounds of every phase; a usual number if not given.
        timeout: Seconds that a process may take for one answer, compiling included, and the pauses
            in which others are timed.
        jobs: Processes that get ready at the same time.
        within: Seconds after which no request is begun any more; infinite if all are to be.
        aims: By phase: how many times as fast as the best peer patterncc is to be.
    """

    phases: tuple[Phase, ...]
    rounds: int | None = None
    timeout: float = 300.0
    jobs: int = 1
    within: float = math.inf
    aims: Mapping[Phase, float] = field(default_factory=dict)

    def phases_of(self, request: Request) -> tuple[Phase, ...]:
        """The phases that a request has."""
        return tuple(phase for phase in self.phases if phase != "fresh" or request.packed)

    def rounds_on(self, device: str) -> int:
        """Rounds on a device."""
        return self.rounds or _ROUNDS[device.partition(":")[0]]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a person who waits is told.

    Attributes:
        stage: What is being done.
        done, total: Steps of the whole run.
    """

    stage: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Result:
    """All peers at one request.

    Attributes:
        request: The call.
        readings: By the name of the peer, in the order of the table.
        phases: What was timed.
        ended: When its timing ended, in UTC; "" where nobody needs to know.
    """

    request: Request
    readings: dict[str, Reading]
    phases: tuple[Phase, ...]
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Attributes:
        machine: Where it ran.
        device: Its name to torch.
        started: When, in UTC.
        ceilings: FLOP/s of a matrix product of each type, before, between and after all requests.
        options: How it ran.
        results: In the order of the requests.
        interrupted: Whether Ctrl-C ended it; then only some requests have a result.
        left: Names of the requests that were not begun, as the time was over.
    """

    machine: Machine
    device: str
    started: str
    ceilings: dict[str, list[float]]
    options: Options
    results: list[Result]
    interrupted: bool = False
    left: tuple[str, ...] = ()
