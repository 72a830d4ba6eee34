"""How long a call takes, on a CPU or a GPU, one number a call."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

BUDGET = 1.0  # seconds of calls where no count is asked for
_LEAST, _MOST = 3, 100


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of repeated calls, in seconds.

    Attributes:
        first: Of the first call, with whatever it had to compile.
        seconds: Of the calls after it.
    """

    first: float
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median."""
        return median(self.seconds)

    @property
    def least(self) -> float:
        """The least."""
        return min(self.seconds)


def measure(
    function: Callable[[], object], device: torch.device, repeats: int | None = None
) -> Timing:
    """Times calls of a function.

    Args:
        function: What to call; it may return before a GPU has done what it asked for.
        device: Where it works.
        repeats: Calls after the first; as many as fit in `BUDGET` if not given, 3 at least.
    """
    first = _once(function, device)
    seconds = [_once(function, device)]  # the second call may still settle something
    if repeats is None:
        repeats = min(_MOST, max(_LEAST, int(BUDGET / max(seconds[0], 1e-6))))
    seconds = [_once(function, device) for _ in range(repeats)]
    return Timing(first, tuple(seconds))


def _once(function: Callable[[], object], device: torch.device) -> float:
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
