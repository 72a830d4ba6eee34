"""Times calls on a device: on a GPU by its events, with cold caches, all of them issued before."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from patterncc.bench.readings import Round

_FLUSHED = 1 << 28  # bytes that are overwritten before a call, more than any cache holds
_ROUND = 0.02  # seconds of calls in a round, unless one takes longer
_MOST = 5  # calls in a round
_CYCLES = 2e9  # of a device in a second, or fewer
_SLACK, _WAIT = 1.5, 1e-3  # of the time that the host needs; seconds besides


class Stopwatch:
    """Times rounds of calls.

    Args:
        device: Where they work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flushed: Tensor | None = None
        if device.type == "cuda":
            self._flushed = torch.empty(_FLUSHED, dtype=torch.uint8, device=device)

    def round(
        self, run: Callable[[object], object], prepare: Callable[[], object], expected: float
    ) -> Round:
        """Times some calls, after one that does not count: another process may have had the device.

        Args:
            run: What is timed, given what `prepare` returns.
            prepare: What comes before each call and is not timed.
            expected: About how long a call takes, in seconds.
        """
        calls = max(1, min(_MOST, int(_ROUND / max(expected, 1e-6))))
        if self._flushed is None:
            run(prepare())
            seconds = tuple(_on_host(run, prepare()) for _ in range(calls))
            return Round(seconds, seconds)
        begin = time.perf_counter()
        self._on_device(run, prepare())
        issued = time.perf_counter() - begin
        # The device waits until the host has issued all calls, so that no time of the host is in
        # theirs, however long it takes to launch one.
        torch.cuda._sleep(int(_CYCLES * (calls * _SLACK * issued + _WAIT)))  # type: ignore[no-untyped-call]
        found = [self._on_device(run, prepare()) for _ in range(calls)]
        clock = _clock(self._device)  # the calls are queued, not done
        torch.cuda.synchronize(self._device)
        return Round(
            tuple(float(start.elapsed_time(end)) / 1000 for start, end, _ in found),
            tuple(host for _, _, host in found),
            clock,
        )

    def wall(self, run: Callable[[], object]) -> float:
        """Seconds of one call on the host's clock, until the device has done it."""
        if self._flushed is not None:
            self._flushed.zero_()
        return elapsed(run, self._device)

    def _on_device(
        self, run: Callable[[object], object], prepared: object
    ) -> tuple[torch.cuda.Event, torch.cuda.Event, float]:
        """Events around a call, and how long the host took to issue it."""
        assert self._flushed is not None
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        self._flushed.zero_()
        start.record()
        begin = time.perf_counter()
        run(prepared)
        host = time.perf_counter() - begin
        end.record()
        return start, end, host


def elapsed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call on the host's clock, until the device has done it."""
    _wait(device)
    begin = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - begin


def _on_host(run: Callable[[object], object], prepared: object) -> float:
    begin = time.perf_counter()
    run(prepared)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clock(device: torch.device) -> int | None:
    try:
        return int(torch.cuda.clock_rate(device))
    except Exception:  # no pynvml, or a driver that does not tell
        return None
