"""Runs the benchmark: a process for each peer at each request. Some get ready while others wait;
whenever all peers of one request are ready, everybody else is paused and these are timed, their
calls interleaved.

One that crashes, hangs or is wrong costs its own line of the table and nothing else.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from patterncc.autotune.worker import Maker, Worker
from patterncc.bench.journal import Journal, Terms
from patterncc.bench.lane import Lane, time_lanes
from patterncc.bench.machine import Machine
from patterncc.bench.peer import PeerSpec
from patterncc.bench.readings import Reading
from patterncc.bench.report import Options, Progress, Report, Result
from patterncc.bench.request import Request

_BETWEEN = 16  # requests after which the matrix product is timed again


def run(
    requests: Sequence[Request],
    peers: Sequence[PeerSpec],
    device: str,
    options: Options,
    report: Callable[[Progress], None] = lambda _: None,
    journal: Journal | None = None,
) -> Report:
    """Times all peers at all requests.

    Args:
        requests: What to time, all on one device.
        peers: Who takes part.
        device: `cpu`, `cuda:0`.
        options: How.
        report: Told how far it is.
        journal: Gets each result as soon as it is there; what it has is not measured again.

    Returns:
        What was found; after Ctrl-C what was found before.

    Raises:
        UnsupportedError: A pattern cannot be counted.
        TuningError: The device itself does not work.
    """
    begin = time.monotonic()
    started = _now()
    ceilings: dict[str, list[float]] = {request.problem.dtype: [] for request in requests}
    found: dict[int, Result] = {}
    with Worker(Maker("patterncc.bench.machine", "make", (device,)), options.timeout) as probe:
        machine: Machine = probe.ask("machine")
        missing: dict[str, str] = probe.ask("missing", tuple(peers))
        rows: list[_Row] = []
        for number, request in enumerate(requests):
            terms = Terms.of(request, peers, options, machine)
            kept = journal.found(terms, request) if journal is not None else None
            if kept is None:
                rows.append(_row(number, request, peers, missing, options, terms))
            else:
                found[number] = kept

        def measure_ceilings() -> None:
            for dtype, rates in ceilings.items():
                rates.append(probe.ask("ceiling", dtype))

        measure_ceilings()
        interrupted = False
        steps = _Steps(sum(len(row.lanes) for row in rows), report)
        race = _Race(rows, options, begin + options.within, steps, measure_ceilings)
        try:
            for row, result in race.results():
                found[row.number] = result
                if journal is not None:
                    journal.keep(row.terms, result)
        except KeyboardInterrupt:
            interrupted = True
        else:
            measure_ceilings()
    left = () if interrupted else tuple(row.request.name for row in rows if row.left)
    results = [found[number] for number in sorted(found)]
    return Report(machine, device, started, ceilings, options, results, interrupted, left)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclass(slots=True)
class _Row:
    """A request and its peers.

    Attributes:
        number: Place in the table.
        lanes: The peers, in the order of the table.
        terms: By which the journal knows it.
        begun: Whether its processes were started; `None` until the first one's turn comes.
        waiting: Lanes that are not ready yet, nor failed.
    """

    number: int
    request: Request
    lanes: list[Lane]
    terms: Terms
    begun: bool | None = None
    waiting: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def left(self) -> bool:
        """Whether there was no time for it."""
        return self.begun is False

    def begin(self, deadline: float) -> bool:
        """Whether it is still measured: all lanes of it, or none."""
        with self.lock:
            if self.begun is None:
                self.begun = time.monotonic() < deadline
            return self.begun


def _row(
    number: int,
    request: Request,
    peers: Sequence[PeerSpec],
    missing: dict[str, str],
    options: Options,
    terms: Terms,
) -> _Row:
    lanes = [Lane.of(spec, request, options.phases_of(request), options.timeout) for spec in peers]
    for lane in lanes:
        if missing[lane.spec.name]:
            lane.reading = Reading("absent", missing[lane.spec.name])
    waiting = sum(lane.reading.state != "absent" for lane in lanes)
    return _Row(number, request, lanes, terms, waiting=waiting)


@dataclass(slots=True)
class _Race:
    """All rows, and who works on them.

    Attributes:
        rows: What to measure.
        options: How.
        deadline: Of the monotonic clock; no row is begun after it.
        steps: Counts lanes.
        between: Called after some rows, while nobody else uses the device.
    """

    rows: list[_Row]
    options: Options
    deadline: float
    steps: _Steps
    between: Callable[[], None]
    ended: bool = False

    def results(self) -> Iterator[tuple[_Row, Result]]:
        """The rows as they are done, first those whose peers are ready first."""
        with contextlib.ExitStack() as stack:
            for row in self.rows:
                for lane in row.lanes:
                    stack.enter_context(lane.worker)
            with ThreadPoolExecutor(max(self.options.jobs, 1)) as pool:
                try:
                    yield from self._as_ready(pool)
                finally:  # after Ctrl-C nobody waits for the others any more
                    self.ended = True
                    pool.shutdown(wait=False, cancel_futures=True)
                    for row in self.rows:
                        for lane in row.lanes:
                            lane.worker.close()

    def _as_ready(self, pool: ThreadPoolExecutor) -> Iterator[tuple[_Row, Result]]:
        futures: dict[Future[None], tuple[_Row, Lane]] = {}
        for row in self.rows:
            for lane in row.lanes:
                if lane.reading.state == "absent":
                    self.steps.skip()
                else:
                    futures[pool.submit(self._prepare, row, lane)] = row, lane
        timed = 0
        for future in as_completed(futures):
            future.result()
            row, lane = futures.pop(future)
            row.waiting -= 1
            self.steps.done(f"{lane.name}: {'left' if row.left else lane.reading.state}")
            if row.waiting or row.left:
                continue
            with self._paused(row):
                self._time(row)
                timed += 1
                if timed % _BETWEEN == 0:
                    self.between()
            yield row, self._result(row)

    def _prepare(self, row: _Row, lane: Lane) -> None:
        if self.ended or not row.begin(self.deadline):
            return
        lane.prepare()
        if lane is row.lanes[0]:
            lane.count()

    @contextlib.contextmanager
    def _paused(self, row: _Row) -> Iterator[None]:
        """Only the processes of a row run. One that a thread starts meanwhile does, too: it loads
        libraries for longer than a row is timed, and does not touch the device before."""
        others = [lane.worker for other in self.rows if other is not row for lane in other.lanes]
        try:
            for worker in others:
                worker.pause()
            yield
        finally:
            for worker in others:
                worker.proceed()

    def _time(self, row: _Row) -> None:
        rounds = self.options.rounds_on(row.request.device)
        time_lanes(row.lanes, self.options.phases_of(row.request), rounds, self.steps.say)

    def _result(self, row: _Row) -> Result:
        for lane in row.lanes:
            lane.recheck()
        _ = row.request.pairs  # where no process could count them; an error ends the run
        readings = {lane.spec.name: lane.reading for lane in row.lanes}
        return Result(row.request, readings, self.options.phases_of(row.request), _now())


class _Steps:
    """Counts what is done, and says so."""

    def __init__(self, total: int, report: Callable[[Progress], None]) -> None:
        self._done, self._total, self._report = 0, total, report

    def say(self, stage: str) -> None:
        self._report(Progress(stage, self._done, self._total))

    def done(self, stage: str) -> None:
        self._done += 1
        self.say(stage)

    def skip(self) -> None:
        self._done += 1
