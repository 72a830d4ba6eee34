"""`KernelConfig`: the tunable choices of one kernel, and the default for a problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """How a kernel is built: tile shape, warps per program, pipeline depth and the way tiles are
    loaded.
    """

    block_q: int = 128
    block_k: int = 128
    num_warps: int = 8
    num_stages: int = 2
    load: Literal["descriptor", "pointer"] = "pointer"
