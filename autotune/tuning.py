"""A tuning run from call to store: predict, prune, search, compare once more, keep.

The device is touched by child processes alone.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from patterncc.autotune import records
from patterncc.autotune.candidates import Candidates, find_candidates
from patterncc.autotune.comparison import Comparison
from patterncc.autotune.entries import Entry
from patterncc.autotune.job import Job
from patterncc.autotune.key import ConfigKey, Device
from patterncc.autotune.measurement import Measurement
from patterncc.autotune.opened import OpenConfigs
from patterncc.autotune.options import USUAL, Options, Progress, Report, silent
from patterncc.autotune.prune import CompilePool
from patterncc.autotune.search import Limits, SearchResult, search
from patterncc.autotune.space import CPU, Phase, config_values
from patterncc.autotune.store import Found, TunedStore
from patterncc.autotune.study import Place, Trial
from patterncc.autotune.words import config_words
from patterncc.autotune.worker import Maker, Worker
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.dsl.errors import TuningError

_FINALISTS = 4  # compared once more, in turn, with the default


@dataclass(frozen=True)
class TuneResult:
    """What a tuning run found.

    Attributes:
        entry: What was kept.
        path: Its file; None where it was not kept.
        device: Where it ran.
        found: What the store had before.
        search: All trials.
        predicted: What the cost model said, in seconds, of configs that were open to the search.
        compiled: What static pruning found of those that were compiled, before it and for it.
        comparison: The best few and the default, timed in turn.
        default: The config of untuned calls.
        prepared: Seconds until the search began: processes started, candidates compiled.
        seconds: Of the whole run.
    """

    entry: Entry
    path: Path | None
    device: Device
    found: Found
    search: SearchResult
    predicted: Mapping[KernelConfig, float]
    compiled: Mapping[KernelConfig, Measurement]
    comparison: Comparison
    default: KernelConfig
    prepared: float
    seconds: float

    @property
    def finals(self) -> tuple[tuple[KernelConfig, float], ...]:
        """Config and time in seconds of the last comparison, the fastest first."""
        return self.comparison.ranked


class Tuner:
    """Tunes phases of calls on one device, one after another. To be used with `with`.

    Its processes stay from one run to the next, and while one call is searched the next one that
    was announced is compiled.

    Args:
        device_name: `cpu`, `cuda:0`.
        store: Where neighbours are found and results are kept.
        options: How to tune.
        written_by: Name and version of the program, for the entries.

    Raises:
        TuningError: Processes cannot measure here at all.
        ConfigError: There is no such device, or results cannot be kept.
    """

    def __init__(
        self,
        device_name: str,
        store: TunedStore,
        *,
        options: Options = USUAL,
        written_by: str = "patterncc",
    ) -> None:
        store.require_writable()
        self._store, self._options, self._written_by = store, options, written_by
        maker = Maker("patterncc.autotune.measure", "DeviceMeasurer", (device_name, options.folder))
        self._worker = Worker(maker, options.measure_limit)
        self._ahead = ThreadPoolExecutor(1)
        self._pool: CompilePool | None = None
        if device_name != CPU:
            # They load torch while the one that measures does.
            self._pool = CompilePool(None, 0, options.processes, options.folder)
            self._ahead.submit(self._pool.start)
        try:
            self.device: Device = self._worker.ask("describe")
        except BaseException:
            self.close()
            raise
        if self._pool is not None:
            self._pool.aim(self.device.target, self.device.multiprocessors)
        self._announced: tuple[Job, Phase, Future[Candidates]] | None = None

    def __enter__(self) -> Tuner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends its processes."""
        if self._pool is not None:
            self._pool.close()
        self._ahead.shutdown(cancel_futures=True)
        if self._pool is not None:
            self._pool.close()  # what was about to start then
        self._worker.close()

    def announce(self, job: Job, phase: Phase) -> None:
        """Begins to predict and compile what will be tuned next."""
        future = self._ahead.submit(self._candidates, job, phase, silent)
        self._announced = job, phase, future

    def tune(
        self,
        job: Job,
        phase: Phase,
        *,
        report: Report = silent,
        then: tuple[Job, Phase] | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> TuneResult:
        """Finds the fastest config of a phase of a call and keeps it.

        Ctrl-C ends the search; what was found until then is compared and kept.

        Args:
            job: The call.
            phase: What is tuned.
            report: Told what is being done.
            then: What will be tuned next.
            before: Called when the search is about to begin, and the device idle.

        Raises:
            TuningError: No config worked; it lists why.
            UnsupportedError: The call cannot be run there.
            ConfigError: The phase has nothing to tune there.
        """
        start = time.monotonic()
        options, worker = self._options, self._worker
        report(Progress("starting"))
        candidates = self._of(job, phase, report)
        ready = time.monotonic()
        if then is not None:
            self.announce(*then)
        before()
        worker.set_up("turn_to", job, phase.name)
        default, limits = candidates.default, options.limits
        spent = candidates.seconds + time.monotonic() - ready
        place, journal = _place(candidates.key, job, options, self._store)
        prepared = time.monotonic() - start
        opened = candidates.opened
        searched = search(
            candidates.space,
            worker.measure,
            opened.predicted,
            seeds=candidates.seeds,
            limits=Limits(limits.trials, max(limits.timeout - spent, 0.0), limits.gain),
            sampler=options.sampler,
            place=place,
            prepare=lambda wanted: self._prepared(opened, wanted),
            report=lambda trial, so_far: report(_progress(trial, so_far, limits, default)),
        )
        if not searched.ranked():
            values = candidates.space.values
            raise TuningError(
                f"no config of {phase.name} worked on {self.device.name}",
                tuple((config_words(values(t.config)), t.reason) for t in searched.trials),
            )
        report(Progress("comparing the best"))
        comparison = _compared(worker, searched, default)
        entry = _entry(candidates, searched, comparison, self.device, self._written_by)
        path = self._store.put(entry)
        if journal is not None and searched.stopped != "interrupted":
            journal.unlink(missing_ok=True)
        return TuneResult(
            entry,
            path,
            self.device,
            candidates.found,
            searched,
            opened.predicted,
            opened.compiled,
            comparison,
            default,
            prepared,
            time.monotonic() - start,
        )

    def _prepared(
        self, opened: OpenConfigs, wanted: Sequence[KernelConfig]
    ) -> Mapping[KernelConfig, float] | None:
        """Compiles what a search asks for, in the thread that works ahead, so that no two compile
        at a time."""
        if opened.ready(wanted[0]):
            return None
        return self._ahead.submit(opened.prepare, wanted).result()

    def _of(self, job: Job, phase: Phase, report: Report) -> Candidates:
        """The candidates of a call, as announced or found now."""
        if self._announced is not None and self._announced[:2] == (job, phase):
            report(Progress("compiling"))
            found, self._announced = self._announced[2].result(), None
            return found
        return self._ahead.submit(self._candidates, job, phase, report).result()

    def _candidates(self, job: Job, phase: Phase, report: Report) -> Candidates:
        return find_candidates(
            job, phase, self.device, self._store, self._pool, self._options, report
        )


def tune(
    job: Job,
    phase: Phase,
    device_name: str,
    store: TunedStore,
    *,
    options: Options = USUAL,
    report: Report = silent,
    written_by: str = "patterncc",
) -> TuneResult:
    """Finds the fastest config of one phase of one call and keeps it; arguments and errors as of
    `Tuner` and `Tuner.tune`."""
    report(Progress("starting"))
    with Tuner(device_name, store, options=options, written_by=written_by) as tuner:
        return tuner.tune(job, phase, report=report)


def _entry(
    candidates: Candidates,
    searched: SearchResult,
    comparison: Comparison,
    device: Device,
    written_by: str,
) -> Entry:
    """What is kept of a search."""
    job, phase = candidates.job, candidates.phase
    times, best, default = dict(comparison.ranked), comparison.winner, comparison.default
    return Entry(
        candidates.key,
        config_values(best, phase, device.target),
        times[best],
        None if default is None else times[default],
        len(searched.trials),
        len(candidates.space.configs),
        {
            "batch": job.batch,
            "heads": job.heads,
            "kv_heads": job.kv_heads,
            "q_len": job.q_len,
            "kv_len": job.kv_len,
            **job.numbers,
        },
        written_by,
        datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        None if default is None else config_values(default, phase, device.target),
    )


def _place(
    key: ConfigKey, job: Job, options: Options, store: TunedStore
) -> tuple[Place, Path | None]:
    """Where the study is kept, and its file if it goes when the study is done."""
    call = {
        "key": key.as_json(),
        "sizes": [job.batch, job.heads, job.kv_heads, job.q_len, job.kv_len, job.q_offset],
        "numbers": dict(sorted(job.numbers.items())),
        "tables": {name: records.array_digest(table) for name, table in job.tables.items()},
    }
    name = f"{key.phase}-{records.digest(call)[:24]}"
    if options.storage is not None:
        return Place(name, options.storage), None
    journal = store.studies / f"{name}.journal"
    return Place(name, str(journal)), journal


def _compared(worker: Worker, searched: SearchResult, default: KernelConfig) -> Comparison:
    """The best few and the default, timed in turn. A single quick measurement picks the luckiest of
    equals, and clocks drift during a search."""
    ranked = searched.ranked()
    finalists = [trial.config for trial in ranked[:_FINALISTS]]
    works = any(trial.config == default for trial in ranked)
    if works and default not in finalists:
        finalists.append(default)
    raced = worker.race(finalists)
    rounds = {one: each.seconds for one, each in zip(finalists, raced, strict=True)}
    return Comparison(rounds, default if works else None)


def _progress(
    trial: Trial, so_far: SearchResult, limits: Limits, default: KernelConfig
) -> Progress:
    ranked = so_far.ranked()
    times = {each.config: each.seconds for each in ranked}
    return Progress(
        "measuring",
        len(so_far.trials),
        limits.trials,
        trial,
        (ranked[0].config, ranked[0].seconds) if ranked else None,
        times.get(default, math.inf),
    )
