"""FlexAttention's time of a call that is tuned, which says what tuning is worth.

It compiles in a process of its own while candidates compile, and is timed once, when nothing else
is being measured.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDoneError
from statistics import median
from typing import TYPE_CHECKING

from patterncc.autotune.worker import Maker, Worker
from patterncc.bench.peers import peers_named
from patterncc.dsl.errors import PatternccError

if TYPE_CHECKING:
    from patterncc.bench.readings import Reading, Round
    from patterncc.bench.request import Request

_LIMIT = 300.0  # seconds for one answer of its process


class FlexAttention:
    """FlexAttention at one request, beside a tuning run. To be closed when the run is over.

    Args:
        request: The call, on a GPU.
        patience: Seconds from now that a search waits for it to be ready.
    """

    def __init__(self, request: Request, patience: float) -> None:
        (spec,) = (peer for peer in peers_named("flex") if peer.name == "flex")
        maker = Maker("patterncc.bench.subject", "Subject", (spec, request, ("forward",)))
        self._worker = Worker(maker, _LIMIT)
        self._end = time.monotonic() + patience
        self._patience = patience
        self._pool = ThreadPoolExecutor(1)
        self._ready: Future[Reading] = self._pool.submit(self._worker.ask, "prepare")
        self.seconds: float | None = None
        """Of a call, once it is timed."""
        self.why_not = "it is not ready yet"
        """Why it is not timed; "" if it is."""

    def settle(self) -> None:
        """Waits until it is ready or patience is at an end, times it, and ends its process."""
        try:
            reading = self._ready.result(max(self._end - time.monotonic(), 0.0))
            if reading.state == "ready":
                measured: Round = self._worker.ask("time", "forward")
                self.seconds, self.why_not = median(measured.seconds), ""
            else:
                self.why_not = reading.reason
        except NotDoneError:
            self.why_not = f"it was not compiled within {self._patience:.0f} s"
        except PatternccError as error:
            self.why_not = str(error).partition("\n")[0]
        self.close()

    def close(self) -> None:
        """Ends its process."""
        self._worker.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def words(self, seconds: float) -> str:
        """How fast something is that takes so long beside it, or why that is not known."""
        if self.seconds is None:
            return f"FlexAttention: {self.why_not}"
        return f"{self.seconds / seconds:.2f}x FlexAttention"
