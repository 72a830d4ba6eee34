"""The study: which config is tried next, when to stop, what other processes and earlier runs found.
The only importer of optuna.

Knows neither kernels nor devices: it is given a function that measures.
"""

from __future__ import annotations

import heapq
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from patterncc.autotune.measurement import Measurement, State
from patterncc.autotune.space import SearchSpace
from patterncc.autotune.surrogate import Surrogate
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.dsl.errors import ConfigError

Sampler: TypeAlias = Literal["model", "tpe", "gp", "random"]
SAMPLERS: tuple[Sampler, ...] = ("model", "tpe", "gp", "random")
"""`model`: the largest expected gain over the cost model as corrected by what was timed
(`surrogate`); the others are Optuna's. docs/tuning.md compares them."""

LEAST_TRIALS = 16
"""Configs that are timed before the study may stop early."""
_LOOKED_AHEAD = 10  # trials whose expected gains together must be worth it
_WAITS, _WAIT = 200, 0.01  # times and seconds that a process waits for others to name their config
_REJECTIONS: dict[Sampler, int] = {"tpe": 40, "gp": 3, "random": 40}
"""Illegal or known proposals in a row after which the cost model proposes; the Gaussian process of
Optuna learns nothing from a rejection and proposes the same again."""

Measure: TypeAlias = Callable[[KernelConfig, float], Measurement]


@dataclass(frozen=True, slots=True)
class Trial:
    """A config that was tried.

    Attributes:
        number: In the study, from 0.
        config: What was tried.
        state: What came of it.
        seconds: Median time of a call; infinite for a bad config.
        reason: Why it is bad.
        proposed_by: `seed`, or the sampler.
        elapsed: Seconds from the start of the search to its end; of earlier runs 0.
    """

    number: int
    config: KernelConfig
    state: State
    seconds: float
    reason: str
    proposed_by: str
    elapsed: float


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
        timeout: Seconds of this search; no trial starts after them.
        gain: It stops when the next ten trials together are expected to gain less than this share
            of the time; 0 to go on.
    """

    trials: int = 60
    timeout: float = 300.0
    gain: float = 0.01


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study is kept.

    Attributes:
        name: Of the study.
        storage: A journal file, or the address of a database (`sqlite:///x.db`,
            `postgresql://...`); in memory where None.
    """

    name: str
    storage: str | None = None


def search(
    space: SearchSpace,
    measure: Measure,
    predicted: Mapping[KernelConfig, float],
    *,
    seeds: Sequence[KernelConfig] = (),
    limits: Limits = Limits(),
    sampler: Sampler = "model",
    place: Place = Place("study"),
    seed: int = 0,
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
        report: Told of every trial of this process.
        clock: Seconds.

    Raises:
        ConfigError: There is no such sampler, or nothing to try.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"there is no sampler {sampler!r}", SAMPLERS)
    if not predicted:
        raise ConfigError("there is no legal config to try")
    return _Search(space, predicted, sampler, place, seed, clock).run(
        measure, seeds, limits, report
    )


@dataclass
class _Known:
    """What the study has seen so far, by config."""

    trials: list[Trial] = field(default_factory=list)
    running: set[KernelConfig] = field(default_factory=set)

    @property
    def times(self) -> dict[KernelConfig, float]:
        return {t.config: t.seconds for t in self.trials if math.isfinite(t.seconds)}

    @property
    def taken(self) -> set[KernelConfig]:
        return {trial.config for trial in self.trials} | self.running

    @property
    def best(self) -> float:
        return min(self.times.values(), default=math.inf)


class _Search:
    """One process's part in a study."""

    def __init__(
        self,
        space: SearchSpace,
        predicted: Mapping[KernelConfig, float],
        sampler: Sampler,
        place: Place,
        seed: int,
        clock: Callable[[], float],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._predicted = dict(predicted)
        self._surrogate = Surrogate(space.knobs, [*predicted], [*predicted.values()])
        self._kept: tuple[dict[KernelConfig, float], dict[KernelConfig, float]] | None = None
        self._sampler = sampler
        self._clock = clock
        self._start = clock()
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._own_sampler = _optuna_sampler(sampler, seed)
        self._study = optuna.create_study(
            study_name=place.name,
            storage=_storage(place.storage),
            sampler=self._own_sampler,
            direction="minimize",
            load_if_exists=True,
        )

    def run(
        self,
        measure: Measure,
        seeds: Sequence[KernelConfig],
        limits: Limits,
        report: Callable[[Trial, SearchResult], None],
    ) -> SearchResult:
        self._give_up_the_dead()
        waiting = [config for config in dict.fromkeys(seeds) if config in self._predicted]
        while True:
            known = self._known()
            gain = self._expected_gain(known)
            stopped = self._stop(known, gain, limits, bool(set(waiting) - known.taken))
            if stopped:
                return SearchResult(tuple(known.trials), stopped, gain)
            proposal = self._propose(known, waiting)
            if proposal is None:
                return SearchResult(tuple(known.trials), "every config was tried", 0.0)
            trial, config, by = proposal
            trial.set_user_attr("owner", self._owner)
            trial.set_user_attr("by", by)
            trial.set_user_attr("config", self._space.values(config))
            if self._claimed(trial, config):
                trial.set_user_attr("rejected", True)
                self._study.tell(trial, state=TrialState.PRUNED)
                continue
            try:
                found = measure(config, known.best)
            except KeyboardInterrupt:
                self._study.tell(trial, state=TrialState.FAIL)
                return SearchResult(tuple(known.trials), "interrupted", gain)
            except BaseException:
                self._study.tell(trial, state=TrialState.FAIL)
                raise
            done = self._tell(trial, config, found, by)
            now = self._known()
            report(done, SearchResult(tuple(now.trials), "", self._expected_gain(now)))

    # ------------------------------------------------------------------------------- proposals

    def _propose(
        self, known: _Known, waiting: Sequence[KernelConfig]
    ) -> tuple[optuna.trial.Trial, KernelConfig, str] | None:
        """A trial of a config that nobody has tried; None where there is none left."""
        taken = known.taken
        for config in waiting:
            if config not in taken:
                return self._ask_for(config), config, "seed"
        left = [config for config in self._predicted if config not in taken]
        if not left:
            return None
        if self._sampler == "model":
            config = self._most_promising(known, left)
            return self._ask_for(config), config, "model"
        for _ in range(_REJECTIONS[self._sampler]):
            trial = self._study.ask()
            config = self._suggested(trial)
            if config in self._predicted and config not in taken:
                return trial, config, self._sampler
            trial.set_user_attr("rejected", True)
            self._study.tell(trial, state=TrialState.PRUNED)
        config = self._most_promising(known, left)
        return self._ask_for(config), config, "model"

    def _claimed(self, trial: optuna.trial.Trial, config: KernelConfig) -> bool:
        """Whether another process took this config while this one chose it. Of two that chose at
        once the earlier trial goes on, so it has to have said which it is: a moment's wait."""
        values = self._space.values(config)
        for _ in range(_WAITS):
            earlier = [
                other
                for other in self._study.get_trials(deepcopy=False)
                if other.number < trial.number and "rejected" not in other.user_attrs
            ]
            silent = [
                other
                for other in earlier
                if other.state == TrialState.RUNNING and "config" not in other.user_attrs
            ]
            if not silent:
                break
            time.sleep(_WAIT)
        return any(
            other.user_attrs.get("config") == values
            and (other.state == TrialState.RUNNING or "state" in other.user_attrs)
            for other in earlier
        )

    def _most_promising(self, known: _Known, left: Sequence[KernelConfig]) -> KernelConfig:
        gains = self._gains(known)
        # Where none is expected to gain anything the model's order decides.
        return max(left, key=lambda config: (gains[config], -self._predicted[config]))

    def _gains(self, known: _Known) -> dict[KernelConfig, float]:
        """The expected gain of every config; kept until more is known."""
        times = known.times
        if self._kept is None or self._kept[0] != times:
            gains = self._surrogate.expected_gains(times).tolist()
            self._kept = times, dict(zip(self._surrogate.configs, gains, strict=True))
        return self._kept[1]

    def _expected_gain(self, known: _Known) -> float:
        """What the next trials may gain together: an upper bound of what the best of them does."""
        if not known.times:
            return math.inf
        taken = known.taken
        open_ = (gain for config, gain in self._gains(known).items() if config not in taken)
        return float(sum(heapq.nlargest(_LOOKED_AHEAD, open_)))

    def _stop(self, known: _Known, gain: float, limits: Limits, seeds_left: bool) -> str:
        """Why the search ends now; "" where it goes on."""
        if len(known.trials) >= limits.trials:
            return f"{limits.trials} trials"
        if self._clock() - self._start >= limits.timeout:
            return f"{limits.timeout:g} s"
        timed = len(known.times)
        if not seeds_left and timed >= LEAST_TRIALS and gain < limits.gain:
            return f"the next {_LOOKED_AHEAD} trials are expected to gain {gain:.1%}"
        return ""

    # ------------------------------------------------------------------------------- optuna

    def _ask_for(self, config: KernelConfig) -> optuna.trial.Trial:
        """A trial of this very config."""
        self._study.sampler = _Given(self._space, config)
        try:
            trial = self._study.ask()
            suggested = self._suggested(trial)
        finally:
            self._study.sampler = self._own_sampler
        assert suggested == config
        return trial

    def _suggested(self, trial: optuna.trial.Trial) -> KernelConfig:
        values: dict[str, Any] = {}
        for knob in self._space.knobs:
            last = len(knob.choices) - 1
            if last == 0:
                values[knob.name] = knob.choices[0]
            elif knob.ordered:
                values[knob.name] = knob.choices[trial.suggest_int(knob.name, 0, last)]
            else:
                values[knob.name] = trial.suggest_categorical(knob.name, knob.choices)
        return self._space.config(values)

    def _tell(
        self, trial: optuna.trial.Trial, config: KernelConfig, found: Measurement, by: str
    ) -> Trial:
        """Writes a measurement into the study. A bad config is pruned there: a failed trial would
        be asked for again."""
        elapsed = self._clock() - self._start
        trial.set_user_attr("state", found.state)
        trial.set_user_attr("reason", found.reason)
        trial.set_user_attr("elapsed", elapsed)
        if found.usable:
            trial.set_user_attr("seconds", found.median)
            self._study.tell(trial, math.log(found.median))
        else:
            self._study.tell(trial, state=TrialState.PRUNED)
        return Trial(trial.number, config, found.state, found.median, found.reason, by, elapsed)

    def _known(self) -> _Known:
        """The study as it is now, with what other processes did."""
        known = _Known()
        for frozen in self._study.get_trials(deepcopy=False):
            attributes = frozen.user_attrs
            if "config" not in attributes or "rejected" in attributes:
                continue
            config = self._space.config(attributes["config"])
            if config not in self._predicted:
                continue  # of another version's space
            if frozen.state == TrialState.RUNNING:
                known.running.add(config)
            elif "state" in attributes:
                known.trials.append(_trial(frozen, config))
        return known

    def _give_up_the_dead(self) -> None:
        """Fails trials that a process of this machine left when it died."""
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, _, process = frozen.user_attrs.get("owner", "").partition(":")
            if host == socket.gethostname() and not _alive(int(process)):
                self._study.tell(frozen.number, state=TrialState.FAIL, skip_if_finished=True)


class _Given(optuna.samplers.BaseSampler):
    """Samples one config and no other. Unlike the study's queue, which all processes share, it
    cannot give one process the config of another."""

    def __init__(self, space: SearchSpace, config: KernelConfig) -> None:
        self._values = {
            knob.name: knob.choices.index(value) if knob.ordered else value
            for knob in space.knobs
            for value in [getattr(config, knob.name)]
        }

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._values[param_name]


def _trial(frozen: FrozenTrial, config: KernelConfig) -> Trial:
    attributes = frozen.user_attrs
    return Trial(
        frozen.number,
        config,
        attributes["state"],
        attributes.get("seconds", math.inf),
        attributes["reason"],
        attributes.get("by", ""),
        attributes.get("elapsed", 0.0),
    )


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _storage(storage: str | None) -> optuna.storages.BaseStorage | str | None:
    """Optuna's storage of an address: a path is a journal file."""
    if storage is None or "://" in storage:
        return storage
    path = Path(storage).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def _optuna_sampler(sampler: Sampler, seed: int) -> optuna.samplers.BaseSampler:
    if sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    if sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)
