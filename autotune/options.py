"""What a tuning run is told, and what it tells while it works."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from patterncc.autotune.search import Limits
from patterncc.autotune.study import Sampler, Trial
from patterncc.codegen.gpu.config import KernelConfig


@dataclass(frozen=True, slots=True)
class Options:
    """How to tune.

    Attributes:
        limits: When the search ends.
        sampler: What proposes configs.
        storage: As in `study.Place`; None keeps the study beside the store until it is done, so
            that a run which was killed goes on where it was.
        measure_limit: Seconds that one config may take.
        processes: How many compile at a time.
        folder: Where generated sources are written; the user's cache by default.
    """

    limits: Limits = field(default_factory=Limits)
    sampler: Sampler = "model"
    storage: str | None = None
    measure_limit: float = 60.0
    processes: int = field(default_factory=lambda: max(1, (os.cpu_count() or 2) - 1))
    folder: Path | None = None


USUAL = Options()
"""Where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a tuning run is at.

    Attributes:
        stage: In a few words.
        done, total: Of the stage; 0 where there is nothing to count.
        trial: The last one.
        best: The best config so far, and its time in seconds.
        default: The default's time in seconds; infinite until it was timed.
    """

    stage: str
    done: int = 0
    total: int = 0
    trial: Trial | None = None
    best: tuple[KernelConfig, float] | None = None
    default: float = math.inf


Report: TypeAlias = Callable[[Progress], None]
"""Told what is being done."""


def silent(progress: Progress) -> None:
    """Tells nobody."""
