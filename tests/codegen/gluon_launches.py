"""Calls of which Gluon's kernels run in the emulator and Triton's in its interpreter, in the
interpreter's worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch

from patterncc.codegen.gpu import bound_launch
from patterncc.codegen.gpu.gluon.reasons import HOPPER
from patterncc.codegen.gpu.memory import Room
from tests.codegen.gluon_emulator import run_launch

if TYPE_CHECKING:
    from patterncc.codegen.gpu.bound_launch import BoundLaunch, Operands
    from patterncc.codegen.gpu.launches import Launch


class _EmulatedLaunch:
    """A launch of a Gluon kernel."""

    def __init__(self, planned: Launch, device: torch.device) -> None:
        self.planned = planned
        self.rooms: Sequence[tuple[str, Room]] = [
            (name, Room(shape, getattr(torch, dtype), device))
            for name, shape, dtype in planned.buffers
        ]

    def __call__(self, operands: Operands, stream: int) -> None:
        run_launch(self.planned, operands)


def _bind(planned: Launch, device: torch.device, folder: Path | None = None) -> BoundLaunch:
    if planned.source.config.emitter == "gluon":
        return _EmulatedLaunch(planned, device)
    return bound_launch.bind(planned, device, folder)


@contextmanager
def emulation() -> Iterator[None]:
    """Forward calls are planned as for `HOPPER`, and run here."""
    with (
        patch("patterncc.codegen.gpu.forward.target_of", return_value=HOPPER),
        patch("patterncc.codegen.gpu.steps.bind", _bind),
        # The interpreter's own limits: it runs none of these kernels.
        patch("patterncc.codegen.gpu.launch.interpreting", return_value=False),
    ):
        yield
