"""The search: which config is tried next, and when to stop.

Knows neither kernels nor devices: it is given a function that measures.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from patterncc.autotune.measurement import Measurement
from patterncc.autotune.space import SearchSpace
from patterncc.autotune.study import (
    IN_MEMORY,
    SAMPLERS,
    Asked,
    Known,
    Place,
    Sampler,
    Study,
    Trial,
)
from patterncc.autotune.surrogate import Surrogate
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.dsl.errors import ConfigError

LEAST_TRIALS = 16
"""Configs that are timed before the study may stop early."""
_LOOKED_AHEAD = 10  # trials whose expected gains together must be worth it
_REJECTIONS: dict[Sampler, int] = {"tpe": 40, "gp": 3, "random": 40}
"""Illegal or known proposals in a row after which the cost model proposes; the Gaussian process of
Optuna learns nothing from a rejection and proposes the same again."""

Measure: TypeAlias = Callable[[KernelConfig, float], Measurement]

Prepare: TypeAlias = Callable[[Sequence[KernelConfig]], Mapping[KernelConfig, float] | None]
"""Told what is open, the most promising first, makes the first of them ready to be measured.
Returns what is open after that, with its prediction, or None where it was ready."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        trials: All trials of the study, in its order, those of other processes among them.
        stopped: Why it ended.
        expected_gain: What the next trials together were expected to gain, at the end.
    """

    trials: tuple[Trial, ...]
    stopped: str
    expected_gain: float

    def ranked(self) -> list[Trial]:
        """The usable trials, the fastest first."""
        return sorted(
            (trial for trial in self.trials if math.isfinite(trial.seconds)),
            key=lambda trial: trial.seconds,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """When a search ends.

    Attributes:
        trials: Configs that the study tries at most, those of earlier runs and other processes
            among them.
        timeout: Seconds of this search; no trial but the first of the study starts after them.
        gain: It stops when the next ten trials together are expected to gain less than this share
            of the time; 0 to go on.
    """

    trials: int = 60
    timeout: float = 300.0
    gain: float = 0.01


def search(
    space: SearchSpace,
    measure: Measure,
    predicted: Mapping[KernelConfig, float],
    *,
    seeds: Sequence[KernelConfig] = (),
    limits: Limits = Limits(),
    sampler: Sampler = "model",
    place: Place = IN_MEMORY,
    seed: int = 0,
    prepare: Prepare = lambda wanted: None,
    report: Callable[[Trial, SearchResult], None] = lambda trial, so_far: None,
    clock: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """Looks for the fastest config.

    A study that exists at `place` is continued; trials of processes that died there are given up.
    Ctrl-C ends the search, not the program: `stopped` says so.

    Args:
        space: What may be tried.
        measure: Tries a config, given the best time so far in seconds.
        predicted: What the cost model says of the legal configs, in seconds; those that are left
            out are never tried.
        seeds: Configs to try first, in this order.
        limits: When to end.
        sampler: What proposes the others.
        place: Where the study is kept.
        seed: Of the sampler.
        prepare: Asked before a config is tried.
        report: Told of every trial of this process.
        clock: Seconds.

    Raises:
        ConfigError: There is no such sampler, or nothing to try.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"there is no sampler {sampler!r}", SAMPLERS)
    if not predicted:
        raise ConfigError("there is no legal config to try")
    study = Study(space, place, sampler, seed)
    found = _Search(space, study, predicted, sampler, prepare, clock)
    return found.run(measure, seeds, limits, report)


class _Search:
    """One process's part in a study."""

    def __init__(
        self,
        space: SearchSpace,
        study: Study,
        predicted: Mapping[KernelConfig, float],
        sampler: Sampler,
        prepare: Prepare,
        clock: Callable[[], float],
    ) -> None:
        self._study = study
        self._knobs = space.knobs
        self._open(predicted)
        self._sampler = sampler
        self._prepare = prepare
        self._clock = clock
        self._start = clock()

    def _open(self, predicted: Mapping[KernelConfig, float]) -> None:
        """Takes what may be tried from now on."""
        self._predicted = dict(predicted)
        self._surrogate = Surrogate(self._knobs, [*predicted], [*predicted.values()])
        self._kept: tuple[dict[KernelConfig, float], dict[KernelConfig, float]] | None = None

    def run(
        self,
        measure: Measure,
        seeds: Sequence[KernelConfig],
        limits: Limits,
        report: Callable[[Trial, SearchResult], None],
    ) -> SearchResult:
        study = self._study
        study.give_up_the_dead()
        waiting = [config for config in dict.fromkeys(seeds) if config in self._predicted]
        while True:
            known = study.known(self._predicted)
            gain = self._expected_gain(known)
            left = (set(waiting) - known.taken) & set(self._predicted)
            stopped = self._stop(known, gain, limits, bool(left))
            if stopped:
                return SearchResult(tuple(known.trials), stopped, gain)
            try:
                asked = self._propose(known, waiting)
            except KeyboardInterrupt:
                return SearchResult(tuple(known.trials), "interrupted", gain)
            if asked is None:
                return SearchResult(tuple(known.trials), "every config was tried", 0.0)
            if not study.claim(asked):
                continue
            try:
                found = measure(asked.config, known.best)
            except KeyboardInterrupt:
                study.fail(asked)
                return SearchResult(tuple(known.trials), "interrupted", gain)
            except BaseException:
                study.fail(asked)
                raise
            done = study.tell(asked, found, self._clock() - self._start)
            now = study.known(self._predicted)
            report(done, SearchResult(tuple(now.trials), "", self._expected_gain(now)))

    def _propose(self, known: Known, waiting: Sequence[KernelConfig]) -> Asked | None:
        """A trial of a config that nobody has tried; None where there is none left."""
        study, taken = self._study, known.taken
        for config in waiting:
            if config not in taken and self._ready(config):
                return study.ask_for(config, "seed")
        if self._sampler != "model" and not taken.issuperset(self._predicted):
            for _ in range(_REJECTIONS[self._sampler]):
                asked = study.ask(self._sampler)
                config = asked.config
                if config in self._predicted and config not in taken and self._ready(config):
                    return asked
                study.reject(asked)
        best = self._most_promising(known)
        return None if best is None else study.ask_for(best, "model")

    def _ready(self, config: KernelConfig) -> bool:
        """Makes one config ready; whether it is still open then."""
        opened = self._prepare([config])
        if opened is not None:
            self._open(opened)
        return config in self._predicted

    def _most_promising(self, known: Known) -> KernelConfig | None:
        """What is expected to gain most, ready to be measured; None where nothing is left."""
        taken = known.taken
        while left := [config for config in self._predicted if config not in taken]:
            gains = self._gains(known)
            # Where none is expected to gain anything the model's order decides.
            left.sort(key=lambda config: (-gains[config], self._predicted[config]))
            opened = self._prepare(left)
            if opened is None:
                return left[0]
            self._open(opened)
        return None

    def _gains(self, known: Known) -> dict[KernelConfig, float]:
        """The expected gain of every config; kept until more is known."""
        times = {each: known.times[each] for each in known.times if each in self._predicted}
        if self._kept is None or self._kept[0] != times:
            gains = self._surrogate.expected_gains(times).tolist()
            self._kept = times, dict(zip(self._surrogate.configs, gains, strict=True))
        return self._kept[1]

    def _expected_gain(self, known: Known) -> float:
        """What the next trials may gain together: an upper bound of what the best of them does."""
        if not known.times:
            return math.inf
        taken = known.taken
        open_ = (gain for config, gain in self._gains(known).items() if config not in taken)
        return float(sum(heapq.nlargest(_LOOKED_AHEAD, open_)))

    def _stop(self, known: Known, gain: float, limits: Limits, seeds_left: bool) -> str:
        """Why the search ends now; "" where it goes on."""
        if len(known.trials) >= limits.trials:
            return f"{limits.trials} trials"
        if known.trials and self._clock() - self._start >= limits.timeout:
            return f"{limits.timeout:g} s"
        timed = len(known.times)
        if not seeds_left and timed >= LEAST_TRIALS and gain < limits.gain:
            return f"the next {_LOOKED_AHEAD} trials are expected to gain {gain:.1%}"
        return ""
