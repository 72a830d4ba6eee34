"""A peer at a request, and the process that runs it: one that crashes, hangs or is wrong costs its
own line of the table and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from patterncc.autotune.worker import Maker, Worker, WorkerLostError
from patterncc.bench.peer import PeerSpec
from patterncc.bench.readings import Reading, Round
from patterncc.bench.request import Phase, Request
from patterncc.dsl.errors import PatternccError, TuningError


@dataclass(slots=True)
class Lane:
    """A peer at a request.

    Attributes:
        spec: The peer.
        request: What it computes.
        worker: Its process.
        reading: What was found so far.
    """

    spec: PeerSpec
    request: Request
    worker: Worker
    reading: Reading = field(default_factory=lambda: Reading("refused", "it was not run"))

    @classmethod
    def of(cls, spec: PeerSpec, request: Request, phases: tuple[Phase, ...], limit: float) -> Lane:
        """A lane whose process has not been started.

        Args:
            spec: The peer.
            request: What it computes.
            phases: What will be timed.
            limit: Seconds that the process may take for one answer.
        """
        maker = Maker("patterncc.bench.subject", "make", (spec, request, phases))
        return cls(spec, request, Worker(maker, limit))

    @property
    def name(self) -> str:
        """What a person who waits is told."""
        return f"{self.request.name}, {self.spec.name}"

    def prepare(self) -> None:
        """Starts the process, which makes the peer ready and judges its results."""
        found = self._ask("prepare")
        if found is not None:
            self.reading = found
        if self.reading.state != "ready":
            self.worker.close()

    def count(self) -> None:
        """Has the process count the visible pairs of the request, where it is there and can."""
        if self.reading.state == "ready":
            try:
                self.request.take_pairs(self.worker.ask("pairs"))
            except WorkerLostError as error:
                self._lose(error)
            except PatternccError:
                return  # who needs the number counts, and gets the error

    def settle(self) -> None:
        """Has the process see how long its calls and its mask take."""
        if self.reading.state == "ready":
            found = self._ask("settle")
            if found is not None:
                self.reading = replace(self.reading, mask_seconds=found)

    def time(self, phase: Phase) -> None:
        """Times a round of a phase."""
        if phase not in self.reading.phases or self.reading.state not in ("ready", "timed"):
            return
        found: Round | None = self._ask("time", phase)
        if found is not None:
            self.reading = self.reading.timed(phase, found)

    def recheck(self) -> None:
        """Has the output judged once more, and ends the process."""
        if self.reading.state == "timed":
            found = self._ask("recheck")
            if found is not None:
                state, reason = found
                self.reading = replace(self.reading, state=state, reason=reason)
        self.worker.close()

    def _ask(self, method: str, *arguments: Any) -> Any:
        """The answer of the process; `None`, and the reading says why, if there is none."""
        try:
            return self.worker.ask(method, *arguments)
        except WorkerLostError as error:
            self._lose(error)
        except TuningError as error:  # the method raised, or there is no process to ask
            self._end("refused", error.message)
        return None

    def _lose(self, error: WorkerLostError) -> None:
        self._end("hung" if error.state == "hung" else "crashed", error.message)

    def _end(self, state: str, reason: str) -> None:
        self.reading = replace(self.reading, state=state, reason=reason)  # type: ignore[arg-type]
        self.worker.close()


Say = Callable[[str], None]


def time_lanes(
    lanes: list[Lane], phases: tuple[Phase, ...], rounds: int, say: Say = lambda _: None
) -> None:
    """Times peers at one request: rounds of all in turn, in alternating order, so that whatever
    else happens to the device hits them all.

    Args:
        lanes: The peers, ready; their readings are filled in.
        phases: What to time.
        rounds: Of each phase.
        say: Told what is being done.
    """
    for lane in lanes:
        lane.settle()
    for phase in phases:
        for number in range(rounds):
            say(f"{lanes[0].request.name}: {phase}, round {number + 1} of {rounds}")
            for lane in lanes if number % 2 else reversed(lanes):
                lane.time(phase)
