"""The study: what was tried and by whom, kept where other processes see it. The only importer of
optuna.

Decides nothing: `search` does. Knows neither kernels nor devices.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Container
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from patterncc.autotune.measurement import Measurement, State
from patterncc.autotune.space import SearchSpace
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.dsl.errors import ConfigError

Sampler: TypeAlias = Literal["model", "tpe", "gp", "random"]
SAMPLERS: tuple[Sampler, ...] = ("model", "tpe", "gp", "random")
"""`model`: the largest expected gain over the cost model as corrected by what was timed
(`surrogate`); the others are Optuna's. docs/tuning.md compares them."""

_WAITS, _WAIT = 200, 0.01  # times and seconds that a process waits for others to name their config


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
class Place:
    """Where a study is kept.

    Attributes:
        name: Of the study.
        storage: A journal file, or the address of a database (`sqlite:///x.db`,
            `postgresql://...`); in memory where None.
    """

    name: str
    storage: str | None = None


IN_MEMORY = Place("study")
"""Of this process alone."""


@dataclass
class Known:
    """What a study has seen so far, by config."""

    trials: list[Trial] = field(default_factory=list)
    running: set[KernelConfig] = field(default_factory=set)

    @property
    def times(self) -> dict[KernelConfig, float]:
        """Seconds of what was right."""
        return {t.config: t.seconds for t in self.trials if math.isfinite(t.seconds)}

    @property
    def taken(self) -> set[KernelConfig]:
        """What was tried, or is being tried."""
        return {trial.config for trial in self.trials} | self.running

    @property
    def best(self) -> float:
        """The least time in seconds."""
        return min(self.times.values(), default=math.inf)


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial that has begun.

    Attributes:
        config: What it tries.
        by: Who proposed it.
    """

    trial: optuna.trial.Trial
    config: KernelConfig
    by: str


class Study:
    """One process's hold on a study. One that exists at its place is continued.

    Args:
        space: What may be tried.
        place: Where it is kept.
        sampler: Which of Optuna's proposes when asked to.
        seed: Of the sampler.

    Raises:
        ConfigError: The study cannot be opened.
    """

    def __init__(self, space: SearchSpace, place: Place, sampler: Sampler, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._sampler = _optuna_sampler(sampler, seed)
        self._study = self._opened(place)

    def _opened(self, place: Place) -> optuna.Study:
        """The study of a place, made where there is none."""
        try:
            return optuna.create_study(
                study_name=place.name,
                storage=_storage(place.storage),
                sampler=self._sampler,
                direction="minimize",
                load_if_exists=True,
            )
        except OSError:
            raise
        except Exception as error:  # of a database's driver, whichever it is
            if place.storage is None:
                raise
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"the study at {place.storage} cannot be opened: {reason}",
                ("a path, of a journal file", "sqlite:///FILE", "another address of a database"),
            ) from error

    def known(self, predicted: Container[KernelConfig]) -> Known:
        """The study as it is now, with what other processes did, of the configs that are open to
        the search."""
        known = Known()
        for frozen in self._study.get_trials(deepcopy=False):
            attributes = frozen.user_attrs
            if "config" not in attributes or "rejected" in attributes:
                continue
            config = self._space.known_config(attributes["config"])
            if config is None or config not in predicted:
                continue  # of another version's space
            if frozen.state == TrialState.RUNNING:
                known.running.add(config)
            elif "state" in attributes:
                known.trials.append(_trial(frozen, config))
        return known

    def give_up_the_dead(self) -> None:
        """Fails trials that a process of this machine left when it died."""
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            host, _, process = frozen.user_attrs.get("owner", "").partition(":")
            if host == socket.gethostname() and not _alive(int(process)):
                self._study.tell(frozen.number, state=TrialState.FAIL, skip_if_finished=True)

    def ask(self, by: Sampler) -> Asked:
        """A trial of what Optuna's sampler proposes, legal or not."""
        trial = self._study.ask()
        return Asked(trial, self._suggested(trial), by)

    def ask_for(self, config: KernelConfig, by: str) -> Asked:
        """A trial of this very config."""
        self._study.sampler = _Given(self._space, config)
        try:
            trial = self._study.ask()
            suggested = self._suggested(trial)
        finally:
            self._study.sampler = self._sampler
        assert suggested == config
        return Asked(trial, config, by)

    def claim(self, asked: Asked) -> bool:
        """Says which config a trial is about to try; False, and the trial is over, where another
        process took that config meanwhile.

        Of two that chose at once the earlier trial goes on, so it has to have said which it is: a
        moment's wait.
        """
        trial, values = asked.trial, self._space.values(asked.config)
        trial.set_user_attr("owner", self._owner)
        trial.set_user_attr("by", asked.by)
        trial.set_user_attr("config", values)
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
        taken = any(
            other.user_attrs.get("config") == values
            and (other.state == TrialState.RUNNING or "state" in other.user_attrs)
            for other in earlier
        )
        if taken:
            self.reject(asked)
        return not taken

    def reject(self, asked: Asked) -> None:
        """Ends a trial whose config is illegal, known or taken."""
        asked.trial.set_user_attr("rejected", True)
        self._study.tell(asked.trial, state=TrialState.PRUNED)

    def fail(self, asked: Asked) -> None:
        """Ends a trial that was broken off."""
        self._study.tell(asked.trial, state=TrialState.FAIL)

    def tell(self, asked: Asked, found: Measurement, elapsed: float) -> Trial:
        """Writes a measurement into the study. A bad config is pruned there: a failed trial would
        be asked for again.

        Args:
            asked: What was tried.
            found: What came of it.
            elapsed: Seconds since the search began.
        """
        trial = asked.trial
        trial.set_user_attr("state", found.state)
        trial.set_user_attr("reason", found.reason)
        trial.set_user_attr("elapsed", elapsed)
        if found.usable:
            trial.set_user_attr("seconds", found.median)
            self._study.tell(trial, math.log(found.median))
        else:
            self._study.tell(trial, state=TrialState.PRUNED)
        return Trial(
            trial.number, asked.config, found.state, found.median, found.reason, asked.by, elapsed
        )

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
        missing = [name for name in ("scipy", "torch") if find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"the sampler gp of Optuna needs {missing[0]}, which is not installed",
                (f"pip install {missing[0]}", "another sampler"),
            )
        return optuna.samplers.GPSampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)
