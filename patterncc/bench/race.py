"""Runs the benchmark: a process for each peer at each request, all that are compared ready before
any is timed, their calls interleaved.

One that crashes, hangs or is wrong costs its own line of the table and nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace

from patterncc.autotune.worker import Maker, Worker, WorkerLostError
from patterncc.bench.machine import Machine
from patterncc.bench.peer import PeerSpec
from patterncc.bench.readings import Reading, Round
from patterncc.bench.request import Phase, Request
from patterncc.dsl.errors import TuningError

_ROUNDS = {"cpu": 5, "cuda": 10}  # of every phase of every peer, where no number is asked for


@dataclass(frozen=True, slots=True)
class Options:
    """How to run.

    Attributes:
        phases: What to time. `fresh` is timed of packed documents alone.
        rounds: Rounds of every phase; a usual number if not given.
        timeout: Seconds that a process may take for one answer, compiling included.
        jobs: Processes that get ready at the same time, at least those of one request.
    """

    phases: tuple[Phase, ...]
    rounds: int | None = None
    timeout: float = 300.0
    jobs: int = 1

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
    """

    request: Request
    readings: dict[str, Reading]
    phases: tuple[Phase, ...]


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
    """

    machine: Machine
    device: str
    started: str
    ceilings: dict[str, list[float]]
    options: Options
    results: list[Result]
    interrupted: bool = False


@dataclass(slots=True)
class _Lane:
    """A peer at a request, and the process that runs it."""

    spec: PeerSpec
    request: Request
    phases: tuple[Phase, ...]
    worker: Worker
    reading: Reading = field(default_factory=lambda: Reading("refused", "it was not run"))

    @property
    def name(self) -> str:
        return f"{self.request.name}, {self.spec.name}"

    def prepare(self) -> None:
        try:
            self.reading = self.worker.ask("prepare")
        except WorkerLostError as error:
            self._lose(error)
        except TuningError as error:  # there is no process to ask
            self.reading = Reading("refused", error.message)
        if self.reading.state != "ready":
            self.worker.close()

    def time(self, phase: Phase) -> None:
        if phase not in self.reading.phases or self.reading.state not in ("ready", "timed"):
            return
        try:
            found: Round = self.worker.ask("time", phase)
        except WorkerLostError as error:
            self._lose(error)
        except TuningError as error:
            self._end("refused", error.message)
        else:
            self.reading = self.reading.timed(phase, found)

    def recheck(self) -> None:
        if self.reading.state == "timed":
            try:
                state, reason = self.worker.ask("recheck")
            except WorkerLostError as error:
                self._lose(error)
            except TuningError as error:
                self._end("refused", error.message)
            else:
                self.reading = replace(self.reading, state=state, reason=reason)
        self.worker.close()

    def _lose(self, error: WorkerLostError) -> None:
        self._end("hung" if error.state == "hung" else "crashed", error.message)

    def _end(self, state: str, reason: str) -> None:
        self.reading = replace(self.reading, state=state, reason=reason)  # type: ignore[arg-type]
        self.worker.close()


def run(
    requests: Sequence[Request],
    peers: Sequence[PeerSpec],
    device: str,
    options: Options,
    report: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Times all peers at all requests.

    Args:
        requests: What to time, all on one device.
        peers: Who takes part.
        device: `cpu`, `cuda:0`.
        options: How.
        report: Told how far it is.

    Returns:
        What was found; after Ctrl-C what was found before.

    Raises:
        UnsupportedError: A pattern cannot be counted.
        TuningError: The device itself does not work.
    """
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    steps = _Steps(len(requests) * len(peers), report)
    for request in requests:
        _ = request.pairs  # a pattern that cannot be counted stops the run before it starts
    ceilings: dict[str, list[float]] = {request.problem.dtype: [] for request in requests}
    results: list[Result] = []
    with Worker(Maker("patterncc.bench.machine", "make", (device,)), options.timeout) as probe:
        machine: Machine = probe.ask("machine")
        missing: dict[str, str] = probe.ask("missing", tuple(peers))
        _measure_ceilings(probe, ceilings)
        interrupted = False
        try:
            for group in _groups(requests, len(peers), options.jobs):
                for result in _run_group(group, peers, missing, options, steps):
                    results.append(result)
                _measure_ceilings(probe, ceilings)
        except KeyboardInterrupt:
            interrupted = True
    return Report(machine, device, started, ceilings, options, results, interrupted)


def _measure_ceilings(probe: Worker, ceilings: dict[str, list[float]]) -> None:
    for dtype, found in ceilings.items():
        found.append(probe.ask("ceiling", dtype))


def _groups(requests: Sequence[Request], peers: int, jobs: int) -> Iterator[Sequence[Request]]:
    """Requests that get ready together: as many as there are jobs for."""
    size = max(1, jobs // max(1, peers))
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


def _run_group(
    requests: Sequence[Request],
    peers: Sequence[PeerSpec],
    missing: dict[str, str],
    options: Options,
    steps: _Steps,
) -> Iterator[Result]:
    """Gets all processes of some requests ready, then times one request after the other."""
    with contextlib.ExitStack() as stack:
        lanes: dict[str, list[_Lane]] = {}
        for number, request in enumerate(requests):
            lanes[str(number)] = [
                _lane(spec, request, options, missing[spec.name], stack) for spec in peers
            ]
        waiting = [lane for row in lanes.values() for lane in row if lane.reading.state != "absent"]
        steps.skip(len(requests) * len(peers) - len(waiting))
        with ThreadPoolExecutor(max(options.jobs, 1)) as pool:
            ready = {pool.submit(lane.prepare): lane for lane in waiting}
            try:
                for future in as_completed(ready):
                    future.result()
                    steps.done(f"{ready[future].name}: {ready[future].reading.state}")
            except BaseException:  # nobody waits for the others any more
                for lane in waiting:
                    lane.worker.close()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        for request, row in zip(requests, lanes.values(), strict=True):
            _time(request, row, options, steps)
            readings = {lane.spec.name: lane.reading for lane in row}
            yield Result(request, readings, options.phases_of(request))


def _lane(
    spec: PeerSpec,
    request: Request,
    options: Options,
    missing: str,
    stack: contextlib.ExitStack,
) -> _Lane:
    phases = options.phases_of(request)
    maker = Maker("patterncc.bench.subject", "make", (spec, request, phases))
    lane = _Lane(spec, request, phases, stack.enter_context(Worker(maker, options.timeout)))
    if missing:
        lane.reading = Reading("absent", missing)
    return lane


def _time(request: Request, row: Sequence[_Lane], options: Options, steps: _Steps) -> None:
    """Rounds of all peers in turn, in alternating order, so that whatever else happens to the
    device hits them all."""
    rounds = options.rounds_on(request.device)
    for phase in options.phases_of(request):
        for number in range(rounds):
            steps.say(f"{request.name}: {phase}, round {number + 1} of {rounds}")
            for lane in row if number % 2 else reversed(row):
                lane.time(phase)
    for lane in row:
        lane.recheck()


class _Steps:
    """Counts what is done, and says so."""

    def __init__(self, total: int, report: Callable[[Progress], None]) -> None:
        self._done, self._total, self._report = 0, total, report

    def say(self, stage: str) -> None:
        self._report(Progress(stage, self._done, self._total))

    def done(self, stage: str) -> None:
        self._done += 1
        self.say(stage)

    def skip(self, count: int) -> None:
        self._done += count
