"""Memory for the results of a call, with as little of the host's time as torch allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_torch: Any = torch  # the parts of torch that have no types
# What torch.are_deterministic_algorithms_enabled asks.
filled: Callable[[], bool] = _torch._C._get_deterministic_algorithms


class Room:
    """Uninitialised memory of one shape: contiguous, on one device.

    Args:
        shape: Of the tensors.
        dtype: Of their elements.
        device: Where they are; if it is a GPU, it has to be the current one when they are made.
    """

    __slots__ = ("_arguments", "_device", "_make")

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        strides = [1]
        for size in reversed(shape[1:]):
            strides.append(strides[-1] * max(size, 1))
        self._arguments = (tuple(shape), tuple(reversed(strides)), dtype)
        self._device = device
        self._make = _allocate if device.type == "cuda" else None

    def __call__(self) -> torch.Tensor:
        """A new tensor."""
        # Deterministic algorithms also mean memory that is filled, which is torch's to do.
        if self._make is None or filled():
            size, strides, dtype = self._arguments
            return torch.empty_strided(size, strides, dtype=dtype, device=self._device)
        return self._make(*self._arguments)


def _allocator() -> Callable[..., torch.Tensor] | None:
    """What makes a tensor of a size, strides and dtype on the current GPU; None where torch has no
    such function.

    It is torch's own allocator without the dispatcher in between, which takes a third of the time:
    the code that torch.compile generates calls it.
    """
    guards = getattr(getattr(_torch._C, "_dynamo", None), "guards", None)
    return getattr(guards, "_empty_strided_cuda", None)


_allocate = _allocator()
