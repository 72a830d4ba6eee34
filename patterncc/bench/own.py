"""patterncc itself as one of those that the benchmark times, through its public interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from patterncc.api import Attention
from patterncc.bench.peer import Ready
from patterncc.bench.request import Request


class Own:
    """Attention as a user calls it, with the configurations that the stores have."""

    fused = False  # its executor on CPUs is a loop of kernels; what it computes is judged anyhow

    def why_not(self, device: torch.device) -> str:
        """It runs on every device that the command line takes."""
        return ""

    def bind(self, request: Request) -> Ready:
        """A compiled pattern; all that describes its mask are the tables of the call."""
        call = request.call
        attention = Attention(call.pattern)
        options: dict[str, Any] = {
            "layer": request.layer,
            "layers": call.layers,
            "q_offset": call.q_offset,
        }
        given = request.tables()
        tables = dict(given)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            out: Tensor = attention(query, key, value, **options, **tables)  # type: ignore[call-overload]
            return out

        def rebuild() -> int:
            # New tensors: nothing that was remembered of the old ones helps.
            tables.update({name: table.clone() for name, table in given.items()})
            return sum(table.nbytes for table in tables.values())

        return Ready(attend, rebuild)
