"""A device that is a formula, for tests of the study; and a process that searches on it."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import zlib
from collections.abc import Mapping

from patterncc.autotune.measurement import Measurement
from patterncc.autotune.search import Limits, SearchResult, search
from patterncc.autotune.space import FORWARD, SearchSpace
from patterncc.autotune.study import Place
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem

SPACE = SearchSpace(
    FORWARD,
    Problem("bfloat16", 128, 128),
    "cuda:90",
    {"order": "reverse", "neighbours": "tiles", "max_registers": None, "emitter": "triton"},
)


def seconds(config: KernelConfig) -> float:
    """The time of a config: least at 128x64, 8 warps, 3 stages, by descriptors."""
    tiles = abs(math.log2(config.block_q / 128)) + 0.7 * abs(math.log2(config.block_k / 64))
    slow = 0.15 * tiles + 0.08 * abs(config.num_stages - 3) + 0.1 * (config.num_warps == 4)
    return 1e-3 * (1 + slow + 0.05 * (config.load == "pointer"))


BEST = KernelConfig(128, 64, 8, 3, "descriptor", "reverse")


def predicted(wrong_by: float = 0.2) -> dict[KernelConfig, float]:
    """A cost model that is off by up to some share, otherwise for each config."""
    return {
        config: seconds(config) * (1 + wrong_by * math.sin(zlib.crc32(_name(config))))
        for config in SPACE.configs
    }


def _name(config: KernelConfig) -> bytes:
    """Of the knobs that the formula knows, so that others change no prediction."""
    knobs = (config.block_q, config.block_k, config.num_warps, config.num_stages, config.load)
    return repr(knobs).encode()


class FakeTimer:
    """Measures by the formula; remembers what it was asked, and how long it would have taken."""

    def __init__(self, bad: Mapping[KernelConfig, Measurement] | None = None) -> None:
        self.asked: list[KernelConfig] = []
        self.bad = dict(bad or {})
        self.now = 0.0

    def __call__(self, config: KernelConfig, best: float) -> Measurement:
        self.asked.append(config)
        self.now += 1.0
        return self.bad.get(config) or Measurement("timed", (seconds(config),))

    def clock(self) -> float:
        return self.now


def share(storage: str, trials: int, die_after: int | None = None) -> SearchResult:
    """One process's part in a study that others share."""
    timer = FakeTimer()

    def measure(config: KernelConfig, best: float) -> Measurement:
        if die_after is not None and len(timer.asked) == die_after:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return timer(config, best)

    return search(
        SPACE,
        measure,
        predicted(),
        limits=Limits(trials, gain=0.0),
        place=Place("shared", storage),
    )


if __name__ == "__main__":
    share(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
