"""What the benchmark asks of whoever computes attention: patterncc itself, and its peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from patterncc.bench.request import Attend, Request


@dataclass(frozen=True, slots=True)
class Ready:
    """Attention under the mask of one request.

    Attributes:
        attend: The output from query, key and value.
        rebuild: Makes whatever describes the mask anew, as a caller has to whose documents changed,
            and has `attend` use it. Returns the bytes that it keeps on the device.
        tokens_first: Whether tensors are `[batch, length, heads, head_dim]`, else heads come before
            the length.
        note: What a reader of the numbers should know.
    """

    attend: Attend
    rebuild: Callable[[], int]
    tokens_first: bool = False
    note: str = ""


class Peer(Protocol):
    """Something that computes attention, made in the process that times it."""

    @property
    def fused(self) -> bool:
        """Whether one kernel does scores, softmax and output, which is then held to be true."""

    def why_not(self, device: torch.device) -> str:
        """Why it cannot be used on a device, whatever the pattern; "" if it can."""

    def bind(self, request: Request) -> Ready:
        """What computes a request.

        Raises:
            UnsupportedError: It cannot do the pattern, in words for the reader of a table.
        """


@dataclass(frozen=True, slots=True)
class PeerSpec:
    """Names the function that makes a peer, so that only the process that uses it loads it.

    Attributes:
        name: As in `--peers`.
        summary: What it is.
        module: Where the function is.
        function: Its name.
        arguments: What it is called with; they are pickled.
    """

    name: str
    summary: str
    module: str
    function: str
    arguments: tuple[str, ...] = ()
