"""What an importer returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A pattern, and what to call it with.

    Attributes:
        text: Text of the pattern, for `patterncc.compile` or a `.pat` file.
        values: Its tables and run-time numbers by name.
    """

    text: str
    values: dict[str, Any]

    def to(self, device: torch.device | str) -> Self:
        """The same with its tables on a device: that of the tensors of a call."""
        moved = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in self.values.items()
        }
        return replace(self, values=moved)
