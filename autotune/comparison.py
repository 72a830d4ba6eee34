"""The last comparison of a tuning run: the best configs and the default, timed in turn, and whether
one of them beats the default by more than noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from patterncc.codegen.gpu.config import KernelConfig

LEAST_GAIN = 0.005
"""Of the default's time: less is not worth another kernel, however sure it is."""

_SURE = 3.0  # standard errors
_OF_MEDIAN = math.sqrt(math.pi / 2)  # its standard error over the mean's, of normal numbers
_OF_DEVIATION = 1.4826  # standard deviation over the median absolute deviation, of normal numbers


@dataclass(frozen=True, slots=True)
class Gain:
    """By how much a config beats another one.

    Attributes:
        share: Of the other's time; negative where it is slower.
        error: Standard error of that.
    """

    share: float
    error: float

    @property
    def sure(self) -> bool:
        """Whether it is more than noise, and worth it."""
        return self.share > max(LEAST_GAIN, _SURE * self.error)


@dataclass(frozen=True)
class Comparison:
    """Configs that were timed in turn.

    Attributes:
        rounds: Seconds of each config, one for each round, so that the numbers of a round stand
            for the same clocks and the same noise.
        default: The config of untuned calls; None where it does not work.
    """

    rounds: Mapping[KernelConfig, Sequence[float]]
    default: KernelConfig | None

    @property
    def ranked(self) -> tuple[tuple[KernelConfig, float], ...]:
        """Config and median time, the fastest first."""
        times = [(config, median(seconds)) for config, seconds in self.rounds.items()]
        return tuple(sorted(times, key=lambda pair: pair[1]))

    @property
    def winner(self) -> KernelConfig:
        """The fastest config; the default where that is not slower by more than noise."""
        best = self.ranked[0][0]
        if self.default is None or self.gain(best).sure:
            return best
        return self.default

    def gain(self, config: KernelConfig) -> Gain:
        """By how much a config beats the default, from the ratios of the two in each round: their
        median, and its standard error by the median absolute deviation.

        There must be a default.
        """
        assert self.default is not None
        pairs = zip(self.rounds[config], self.rounds[self.default], strict=True)
        logs = [math.log(ours / other) for ours, other in pairs]
        middle = median(logs)
        deviation = _OF_DEVIATION * median(abs(one - middle) for one in logs)
        return Gain(1 - math.exp(middle), _OF_MEDIAN * deviation / math.sqrt(len(logs)))
