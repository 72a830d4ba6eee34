"""Memory for the results of a call, with as little of the host's time as torch allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

_torch: Any = torch  # the parts of torch that have no types


class Room:
    """Uninitialised memory of one shape: contiguous, on one device.

    Args:
        shape: Of the tensors.
        dtype: Of their elements.
        device: Where they are; if it is a GPU, it has to be the current one when they are made.
    """

    __slots__ = ("_arguments", "_make")

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        strides = [1]
        for size in reversed(shape[1:]):
            strides.append(strides[-1] * max(size, 1))
        self._arguments = (tuple(shape), tuple(reversed(strides)), dtype)
        self._make: Callable[..., torch.Tensor] = _allocator(device)

    def __call__(self) -> torch.Tensor:
        """A new tensor."""
        return self._make(*self._arguments)


def _allocator(device: torch.device) -> Callable[..., torch.Tensor]:
    """What makes a tensor of a size, strides and dtype on a device.

    The code that torch.compile generates calls torch's allocator without the dispatcher in between,
    which takes a third of the time. Where a torch has no such function, the public one does.
    """
    guards = getattr(getattr(_torch._C, "_dynamo", None), "guards", None)
    direct = getattr(guards, f"_empty_strided_{device.type}", None)
    if direct is not None:
        return direct  # type: ignore[no-any-return]

    def make(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty_strided(size, stride, dtype=dtype, device=device)

    return make
