"""How long a call takes, on a CPU or a GPU, one number a call."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

BUDGET = 1.0  # seconds of calls where no count is asked for
_LEAST, _MOST = 3, 100


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of repeated calls, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return median(self.seconds)

    @property
    def least(self) -> float:
        """The least."""
        return min(self.seconds)


def race(
    functions: Sequence[Callable[[], object]], device: torch.device, repeats: int | None = None
) -> list[Timing]:
    """Times calls of some functions in turn, so that whatever else the machine does hits them all.

    Args:
        functions: What to call; each may return before a GPU has done what it asked for.
        device: Where they work.
        repeats: Calls of each that count, after one that does not; if not given, as many as fit in
            `BUDGET` for the slowest, and 3 at least.
    """
    slowest = max(once(function, device) for function in functions)
    if repeats is None:
        repeats = min(_MOST, max(_LEAST, int(BUDGET / max(slowest, 1e-6))))
    rounds = [[once(function, device) for function in functions] for _ in range(repeats)]
    return [Timing(seconds) for seconds in zip(*rounds, strict=True)]


def once(function: Callable[[], object], device: torch.device) -> float:
    """The time of one call, in seconds, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        start.record()
        function()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1000
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin
