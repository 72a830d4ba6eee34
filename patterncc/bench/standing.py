"""How many times as fast as its peers patterncc is: at one request, and over a run of many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from patterncc.bench.peers import OWN
from patterncc.bench.report import Report, Result
from patterncc.bench.request import Phase

MANY = 16
"""Requests beyond which a run is shown by how it compares, not by a table and bars of each."""


def advantage(result: Result, phase: Phase) -> tuple[float, str] | None:
    """How many times as fast as the best peer patterncc is, and which peer that is; `None` where
    one of both is missing."""
    own = result.readings[OWN].median(phase) if OWN in result.readings else None
    others = {
        name: seconds
        for name, reading in result.readings.items()
        if name != OWN and (seconds := reading.median(phase)) is not None
    }
    if own is None or not others:
        return None
    best = min(others, key=lambda name: others[name])
    return others[best] / own, best


@dataclass(frozen=True, slots=True)
class Standing:
    """One phase of a run.

    Attributes:
        factors: How many times as fast as the best peer, by the name of the request and its shape,
            the least first.
        without: Requests that have no such number.
        aim: What is aimed at; `None` for nothing in particular.
    """

    factors: Mapping[str, float]
    without: tuple[str, ...]
    aim: float | None

    @property
    def reached(self) -> int:
        """How many requests reach the aim."""
        return self.at_least(self.aim or 1.0)

    def at_least(self, factor: float) -> int:
        """How many requests reach a factor."""
        return sum(found >= factor for found in self.factors.values())

    @property
    def median(self) -> float:
        """Of all factors."""
        return median(self.factors.values())

    @property
    def mean(self) -> float:
        """Their geometric mean."""
        return math.exp(sum(map(math.log, self.factors.values())) / len(self.factors))

    def document(self) -> dict[str, Any]:
        """As a part of the JSON document."""
        return {
            **asdict(self),
            "faster": self.at_least(1.0),
            "reached": self.reached,
            "median": self.median,
            "geometric_mean": self.mean,
        }


def standing_of(report: Report, phase: Phase) -> Standing | None:
    """How a run stands in a phase; `None` where nothing can be compared."""
    results = [result for result in report.results if phase in result.phases]
    found = {label(result): advantage(result, phase) for result in results}
    factors = {name: each[0] for name, each in found.items() if each is not None}
    if not factors:
        return None
    ordered = dict(sorted(factors.items(), key=lambda item: item[1]))
    without = tuple(name for name, each in found.items() if each is None)
    return Standing(ordered, without, report.options.aims.get(phase))


def label(result: Result) -> str:
    """A request in tables of many."""
    return f"{result.request.name}, {result.request.shape}"
