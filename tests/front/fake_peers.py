"""Peers for tests of the benchmark: each does something that the benchmark has to find out."""

from __future__ import annotations

import os
import sys
import time

import torch
from torch import Tensor

from patterncc.bench.peer import PeerSpec, Ready
from patterncc.bench.request import Request
from patterncc.bench.sdpa import Sdpa
from patterncc.dsl.errors import UnsupportedError

KINDS = (
    "good", "absent", "cannot", "raises", "no-backward", "wrong", "wrong-gradient", "unwritten",
    "drifts", "unfused", "exits", "exits-later", "hangs",
)  # fmt: skip
AT_FIRST = 15  # calls of attention that a peer gets right before it drifts or exits


def spec(kind: str) -> PeerSpec:
    """The peer of a kind."""
    return PeerSpec(kind, f"it is {kind}", __name__, "Fake", (kind,))


class Fake:
    """Attention under a dense mask, with one fault."""

    fused = True

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._calls = 0

    def why_not(self, device: torch.device) -> str:
        return "it is not installed" if self._kind == "absent" else ""

    def bind(self, request: Request) -> Ready:
        if self._kind == "cannot":
            raise UnsupportedError("it knows another mask")
        ready = Sdpa("mask").bind(request)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self._calls += 1
            later = self._calls > AT_FIRST
            if self._kind == "raises" or (self._kind == "no-backward" and query.requires_grad):
                raise ValueError("wrapped") from RuntimeError("no kernel for\nthis")
            if self._kind == "exits" or (self._kind == "exits-later" and later):
                print("no more paper", file=sys.stderr)
                os._exit(7)
            if self._kind == "hangs":
                time.sleep(1000)
            if self._kind == "unfused":
                return _unfused(request, query, key, value)
            out = ready.attend(query, key, value)
            if self._kind == "wrong" or (self._kind == "drifts" and later):
                return out + 0.01 * (torch.arange(out.shape[2]) % 7 == 3)[:, None]
            if self._kind == "unwritten":
                return torch.where(torch.arange(out.shape[2])[:, None] == 5, torch.nan, out)
            if self._kind == "wrong-gradient" and out.requires_grad:
                out.register_hook(lambda grad: 1.01 * grad)  # type: ignore[no-untyped-call]
            return out

        return Ready(attend, ready.rebuild, note="a fake")


def _unfused(request: Request, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Right, but with the scores as a matrix of their own."""
    place = torch.arange(request.call.q_len)
    hidden = place[:, None] < place
    scores = (query @ key.mT * request.scale).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ value
