"""A run of the benchmark as one JSON document, and the numbers that tables and pictures show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from patterncc.bench.peers import OWN
from patterncc.bench.readings import FAULTS, Reading
from patterncc.bench.report import Report, Result
from patterncc.bench.request import Phase
from patterncc.bench.standing import advantage, standing_of


@dataclass(frozen=True, slots=True)
class Speed:
    """One phase of one peer.

    Attributes:
        seconds: The median.
        flops: Operations on visible pairs in a second; with `fresh` the time of the mask is in it.
        of_ceiling: Share of the rate of a matrix product of this type, measured in the same run.
    """

    seconds: float
    flops: float
    of_ceiling: float


def speed(report: Report, result: Result, peer: str, phase: Phase) -> Speed | None:
    """What a peer does in a phase; `None` where it has no time."""
    seconds = result.readings[peer].median(phase)
    if seconds is None:
        return None
    rate = result.request.flops(phase) / seconds
    return Speed(seconds, rate, rate / ceiling(report, result))


def ceiling(report: Report, result: Result) -> float:
    """FLOP/s of a matrix product of the type of a request: the median of the run."""
    return median(report.ceilings[result.request.problem.dtype])


def is_sound(report: Report) -> bool:
    """Whether patterncc did everything that was asked, and right, and no peer passed off something
    else for its kernel."""
    for result in report.results:
        for name, reading in result.readings.items():
            if name == OWN and (reading.state != "timed" or reading.phases != result.phases):
                return False
            if reading.state in ("wrong", "unfused"):
                return False
    return True


def document(report: Report) -> dict[str, Any]:
    """What `--json` prints."""
    options = report.options
    return {
        "machine": asdict(report.machine),
        "device": report.device,
        "started": report.started,
        "ceilings": report.ceilings,
        "options": {"phases": options.phases, "rounds": options.rounds_on(report.device)},
        "interrupted": report.interrupted,
        "left": list(report.left),
        "standings": {
            phase: standing.document()
            for phase in options.phases
            if (standing := standing_of(report, phase)) is not None
        },
        "results": [_result(report, result) for result in report.results],
    }


def _result(report: Report, result: Result) -> dict[str, Any]:
    request = result.request
    call, problem = request.call, request.problem
    return {
        "name": request.name,
        "ended": result.ended,
        "text": call.pattern.text,
        "call": {
            "batch": request.batch,
            "q_len": call.q_len,
            "kv_len": call.kv_len,
            "q_offset": call.q_offset,
            "layer": request.layer,
            **call.sizes,
            "head_dim": problem.head_dim,
            "value_head_dim": problem.value_head_dim,
            "dtype": problem.dtype,
        },
        "examples": dict(call.examples),
        "pairs": request.pairs,
        "density": request.density,
        "flops": {phase: request.flops(phase) for phase in result.phases},
        "ceiling": ceiling(report, result),
        "peers": {name: _reading(report, result, name) for name in result.readings},
        "advantage": {
            phase: {"factor": found[0], "over": found[1]}
            for phase in result.phases
            if (found := advantage(result, phase)) is not None
        },
    }


def _reading(report: Report, result: Result, name: str) -> dict[str, Any]:
    reading = result.readings[name]
    judgement = reading.judgement
    return {
        "state": reading.state,
        "fault": reading.state in FAULTS,
        "reason": reading.reason,
        "note": reading.note,
        "errors": None if judgement is None else _finite(judgement.errors),
        "judged_rows": None if judgement is None else judgement.rows,
        "first_seconds": reading.first_seconds,
        "mask_seconds": reading.mask_seconds,
        "mask_bytes": reading.mask_bytes,
        "peak_bytes": dict(reading.peak_bytes),
        "clock_mhz": _clocks(reading),
        "phases": {
            phase: {
                **asdict(found),
                "least": min(reading.seconds[phase]),
                "host_seconds": median(reading.host[phase]),
                "calls": len(reading.seconds[phase]),
            }
            for phase in result.phases
            if (found := speed(report, result, name, phase)) is not None
        },
    }


def _clocks(reading: Reading) -> dict[str, float] | None:
    if not reading.clocks:
        return None
    clocks = reading.clocks
    return {"least": min(clocks), "median": median(clocks), "most": max(clocks)}


def _finite(errors: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no infinity."""
    return {name: e if math.isfinite(e) else "infinite" for name, e in errors.items()}
