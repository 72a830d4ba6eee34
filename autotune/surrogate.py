"""What is expected of configs that were not timed: the cost model, corrected by those that were.

A Gaussian process over the logarithm of measured over predicted time. Configs that share their
knobs are expected to be mispredicted alike, so that a few measurements correct the model for many.
Numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from patterncc.autotune.space import Knob
from patterncc.codegen.gpu.config import KernelConfig

Floats = npt.NDArray[np.float64]

_PRIOR_ERROR = 0.15
"""Standard deviation of the model's error before anything was timed; 0.08 on an H200, for which its
constants were fitted."""
_PRIOR_WEIGHT = 4.0  # measurements that the prior error counts as
_REACH = 3.0  # steps of knobs over which errors are alike
_OWN = 0.3  # share of the variance of an error that a config has to itself
_NOISE = 0.01  # of a measured time


class Surrogate:
    """Expectations over all configs of a space.

    Args:
        knobs: Of the space.
        configs: All of its configs.
        predicted: What the cost model says of each, in seconds.
    """

    def __init__(
        self, knobs: Sequence[Knob], configs: Sequence[KernelConfig], predicted: Sequence[float]
    ) -> None:
        self.configs = tuple(configs)
        self._place = {config: number for number, config in enumerate(self.configs)}
        self._predicted: Floats = np.log(np.asarray(predicted, np.float64))
        self._points = np.array(
            [[_coordinate(knob, config) for knob in knobs] for config in self.configs], np.float64
        ).reshape(len(self.configs), len(knobs))
        self._likeness: dict[int, Floats] = {}
        self._ordered = np.array([knob.ordered for knob in knobs], np.bool_)

    def posterior(self, measured: Mapping[KernelConfig, float]) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the logarithm of each config's time.

        Args:
            measured: Times in seconds, of configs of the space.
        """
        known = np.array([self._place[config] for config in measured], np.int64)
        if len(known) == 0:
            return self._predicted.copy(), np.full(len(self.configs), _PRIOR_ERROR)
        residual = np.log(np.array(list(measured.values()))) - self._predicted[known]
        spread = float(np.sum((residual - residual.mean()) ** 2))
        variance = (spread + _PRIOR_WEIGHT * _PRIOR_ERROR**2) / (len(known) + _PRIOR_WEIGHT)
        rows = np.stack([self._alike(number) for number in known.tolist()])
        among = variance * rows[:, known] + _NOISE**2 * np.eye(len(known))
        sides = np.column_stack([np.ones(len(known)), residual, variance * rows])
        solved = np.linalg.solve(np.linalg.cholesky(among), sides)
        ones, measured_part, across = solved[:, 0], solved[:, 1], solved[:, 2:]
        # The shift common to all is estimated with them: of a device that is faster than the
        # constants say nothing but this is wrong.
        weight = ones @ ones
        shift = float(ones @ measured_part / weight)
        mean = self._predicted + shift + across.T @ (measured_part - shift * ones)
        rest = variance - np.sum(across**2, axis=0) + (1 - across.T @ ones) ** 2 / weight
        return mean, np.sqrt(np.maximum(rest, 1e-12))

    def expected_gains(self, measured: Mapping[KernelConfig, float]) -> Floats:
        """By how much each config is expected to beat the best measured time, relative to it; 0 for
        those that were measured."""
        mean, deviation = self.posterior(measured)
        best = math.log(min(measured.values(), default=math.inf)) if measured else math.inf
        if not math.isfinite(best):
            return np.exp(-mean)  # the fastest first
        ahead = (best - mean) / deviation
        gains = deviation * (ahead * _cumulative(ahead) + _density(ahead))
        gains[[self._place[config] for config in measured]] = 0.0
        return gains

    def _alike(self, number: int) -> Floats:
        """How alike the errors of one config and of each are, from 0 to 1, by steps of knobs."""
        if number not in self._likeness:
            apart = np.abs(self._points - self._points[number])
            distance = np.where(self._ordered, apart, 2.0 * (apart > 0)).sum(axis=1)
            likeness = (1 - _OWN) * np.exp(-distance / _REACH) + _OWN * (distance == 0)
            self._likeness[number] = likeness
        return self._likeness[number]


def _coordinate(knob: Knob, config: KernelConfig) -> int:
    return knob.choices.index(getattr(config, knob.name))


def _density(x: Floats) -> Floats:
    result: Floats = np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    return result


def _cumulative(x: Floats) -> Floats:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
