"""`KernelConfig`: the tunable choices of one kernel, whether they are legal for a problem, and the default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """How a kernel is built: tile shape, warps per program, pipeline depth and the way tiles are loaded.

    Attributes:
        block_q, block_k: Tile shape.
        num_warps: Warps of one program.
        num_stages: Depth of the load pipeline.
        load: Tensor descriptors (TMA on Hopper and later) or pointers.
        order: Query tiles from the first or from the last; `reverse` starts a causal pattern's longest tiles first.
        max_registers: Registers per thread at most, to fit more programs on a multiprocessor; None leaves it open.
    """

    block_q: int = 128
    block_k: int = 128
    num_warps: int = 8
    num_stages: int = 2
    load: Literal["descriptor", "pointer"] = "pointer"
    order: Literal["forward", "reverse"] = "forward"
    max_registers: int | None = None
