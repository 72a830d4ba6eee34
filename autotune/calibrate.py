"""Fits the constants of the cost model to measured times, and says how well it orders configs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from patterncc.autotune.cost import Constants, CostModel, constants_from
from patterncc.autotune.measurement import Resources
from patterncc.codegen.gpu.config import KernelConfig

_SHARES = ("small", "hidden_one", "hidden_within", "hidden_two", "hidden_more")  # between 0 and 1
_GIVEN = ("multiprocessors", "launch")
"""Not fitted: the first is known, the second too small a part of any call that is worth timing."""
_STEPS = (0.5, 0.2, 0.08, 0.03, 0.01)  # in the logarithm of a constant
_ROUNDS = 6  # of each step
_SLOW_POWER = 4  # twice the best time counts a sixteenth
_LEAST_WEIGHT = 0.02


@dataclass(frozen=True, slots=True)
class Observation:
    """A measured time.

    Attributes:
        model: Of the call; its constants are not looked at.
        config: What was timed.
        seconds: Of a call.
        resources: Of its kernels, where they are known.
    """

    model: CostModel
    config: KernelConfig
    seconds: float
    resources: Resources | None = None

    @property
    def predicted(self) -> float:
        """What the model says with the constants that it has, in seconds."""
        return self.model.predict(self.config, self.resources).seconds


def fit(
    observations: Sequence[Observation], start: Constants, only: Sequence[str] | None = None
) -> Constants:
    """The constants under which predicted times are closest to measured ones: least squares of the
    logarithm of their ratio, by a search along one constant after the other. A config counts the
    less the slower it is than the best of its call: it need not be known how bad bad ones are.

    Deterministic. A constant that no observation depends on keeps its value.

    Args:
        observations: What was measured.
        start: Where the search begins.
        only: The constants to fit; all that can be where None.
    """
    best_of: dict[int, float] = {}
    for one in observations:
        call = id(one.model)
        best_of[call] = min(best_of.get(call, math.inf), one.seconds)
    weighted = [
        (one, weight)
        for one in observations
        if (weight := (best_of[id(one.model)] / one.seconds) ** _SLOW_POWER) > _LEAST_WEIGHT
    ]
    values = asdict(start)
    names = [name for name in only or values if name not in _GIVEN]
    best = _loss(weighted, constants_from(values))
    for step in _STEPS:
        for _ in range(_ROUNDS):
            before = best
            for name in names:
                for direction in (1, -1):
                    moved = {**values, name: _moved(name, values[name], direction * step)}
                    loss = _loss(weighted, constants_from(moved))
                    while loss < best:
                        best, values = loss, moved
                        moved = {**values, name: _moved(name, values[name], direction * step)}
                        loss = _loss(weighted, constants_from(moved))
            if before - best < 1e-5:
                break
    return constants_from(values)


def _moved(name: str, value: float, step: float) -> float:
    if name in _SHARES:
        return min(0.98, max(0.02, value + step / 2))
    return value * math.exp(step)


def _loss(weighted: Sequence[tuple[Observation, float]], constants: Constants) -> float:
    total = weights = 0.0
    for one, weight in weighted:
        one.model.constants = constants
        total += weight * math.log(one.predicted / one.seconds) ** 2
        weights += weight
    return total / weights


@dataclass(frozen=True, slots=True)
class Quality:
    """How well the model does on the configs of one call.

    Attributes:
        configs: How many were measured.
        rank_correlation: Spearman's, of predicted and measured times.
        first: Measured time of the config that the model puts first, over the best.
        first_eight: Best measured time of its first eight, over the best.
        error: Standard deviation of the logarithm of predicted over measured time.
    """

    configs: int
    rank_correlation: float
    first: float
    first_eight: float
    error: float


def quality(observations: Sequence[Observation]) -> Quality:
    """Judges the model, with the constants that it has, on the measured configs of one call."""
    predicted = np.array([one.predicted for one in observations])
    measured = np.array([one.seconds for one in observations])
    order = np.argsort(predicted, kind="stable")
    best = measured.min()
    return Quality(
        len(observations),
        rank_correlation(predicted, measured),
        float(measured[order[0]] / best),
        float(measured[order[:8]].min() / best),
        float(np.std(np.log(predicted / measured))),
    )


def rank_correlation(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Spearman's coefficient, with equal ranks for equal numbers; 0 where all are equal."""
    ranks = [_ranks(one), _ranks(other)]
    spread = [float(np.std(each)) for each in ranks]
    if 0.0 in spread:
        return 0.0
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean()))) / (
        spread[0] * spread[1]
    )


def _ranks(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    ranks: npt.NDArray[np.float64] = (first + (counts - 1) / 2)[inverse]
    return ranks


def mean_quality(qualities: Iterable[Quality], field: Callable[[Quality], float]) -> float:
    """The mean of a number over calls."""
    return fmean(map(field, qualities))
