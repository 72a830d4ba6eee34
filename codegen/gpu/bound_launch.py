"""A planned launch bound to its compiled kernel: what is left of it at a call is addresses.

All that stays from call to call is put in its place once, so a launch costs the host little more
than the driver's part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch

from patterncc.codegen.gpu import launch
from patterncc.codegen.gpu.memory import Room

if TYPE_CHECKING:
    from pathlib import Path

    from patterncc.codegen.gpu.launch import DirectLauncher
    from patterncc.codegen.gpu.launches import Described, Launch

Operands: TypeAlias = Mapping[str, torch.Tensor]
"""What pointers and descriptors point to, by name; tables as `table_NAME`."""

_Rooms: TypeAlias = Sequence[tuple[str, Room]]
_BUFFER_DTYPES = {"int32": torch.int32, "float32": torch.float32}

_torch: Any = torch  # the parts of torch that have no types
_capturing: Callable[[], bool] = getattr(_torch._C, "_cuda_isCurrentStreamCapturing", lambda: False)

_MAPS_KEPT = 64
"""Tensor maps of one descriptor, each for another address: layers that share a plan, steps whose
memory comes from the same few blocks."""


class BoundLaunch(Protocol):
    """A launch that can run.

    Attributes:
        planned: What it was made from.
        rooms: Memory that it is the first to need, by name.
    """

    planned: Launch
    rooms: _Rooms

    def __call__(self, operands: Operands, stream: int) -> None:
        """Launches the kernel on a stream of the current device, which is the kernel's."""


def bind(planned: Launch, device: torch.device, folder: Path | None = None) -> BoundLaunch:
    """Binds a launch to its kernel, which is compiled where this process has not yet.

    Args:
        planned: The launch.
        device: Where to run it.
        folder: Where the source is written; the user's cache by default.

    Raises:
        UnsupportedError: Kernels do not run there.
        ConfigError: The device has too little shared memory for the config.
    """
    kernel = launch.kernel_of(planned.source, device, aligned=planned.aligned, folder=folder)
    rooms = [
        (name, Room(shape, _BUFFER_DTYPES[dtype], device)) for name, shape, dtype in planned.buffers
    ]
    if launch.interpreting():
        return InterpretedLaunch(planned, rooms, kernel)
    by_triton = TritonLaunch(planned, rooms, kernel)
    direct = launch.direct_launcher(kernel)
    return by_triton if direct is None else DirectLaunch(planned, direct, by_triton)


class InterpretedLaunch:
    """A launch in Triton's interpreter, which is given tensors."""

    def __init__(self, planned: Launch, rooms: _Rooms, function: Any) -> None:
        self.planned = planned
        self.rooms = rooms
        self._run = function[planned.grid]

    def __call__(self, operands: Operands, stream: int) -> None:
        planned = self.planned
        described = (
            launch.descriptor(operands[one.tensor], one.sizes, one.strides, one.box)
            for one in planned.described
        )
        pointers = (_plain(operands[name]) for name in planned.pointers)
        self._run(*described, *pointers, *_rest(planned, operands))


class TritonLaunch:
    """A launch by Triton's own means, whatever its version and device."""

    def __init__(self, planned: Launch, rooms: _Rooms, kernel: Any) -> None:
        self.planned = planned
        self.rooms = rooms
        self._run = kernel[planned.grid]

    def __call__(self, operands: Operands, stream: int) -> None:
        planned = self.planned
        described = (
            launch.descriptor(operands[one.tensor], one.sizes, one.strides, one.box)
            for one in planned.described
        )
        # An address as a number saves the launcher a question to the driver for each tensor.
        pointers = (operands[name].data_ptr() for name in planned.pointers)
        self._run(*described, *pointers, *_rest(planned, operands), stream=stream)


class DirectLaunch:
    """A launch by the C function beneath Triton's launcher.

    Keeps the tensor maps of the addresses that it met last: a map says where a tensor lies and how,
    nothing of what it holds.
    """

    def __init__(self, planned: Launch, direct: DirectLauncher, by_triton: TritonLaunch) -> None:
        self.planned = planned
        self.rooms = by_triton.rooms
        self._by_triton = by_triton  # where somebody watches
        self._launch = direct.launch
        arguments: list[Any] = [*planned.grid, 0, *direct.options]
        self._stream = len(planned.grid)
        self._early: int | None = None
        if planned.source.starts_early and not planned.follows_long:
            self._early = self._stream + 1 + launch.EARLY
        self._maps: list[tuple[int, _Maps]] = []
        for one, encode in zip(planned.described, direct.encoders, strict=True):
            self._maps.append((len(arguments), _Maps(one, encode)))
            arguments += [None, *one.sizes, *one.strides]
        self._pointers = list(enumerate(planned.pointers, len(arguments)))
        arguments += [0] * len(planned.pointers)
        self._sizes = [
            (len(arguments) + place, name, axis, beyond)
            for place, name, axis, beyond in planned.sizes
        ]
        self._arguments = (*arguments, *planned.rest)

    def __call__(self, operands: Operands, stream: int) -> None:
        if launch.hooked():
            self._by_triton(operands, stream)
            return
        arguments = list(self._arguments)
        arguments[self._stream] = stream
        if self._early is not None:  # the host takes longer for it, the device less: of a graph
            arguments[self._early] = _capturing()
        for place, maps in self._maps:
            arguments[place] = maps[operands[maps.tensor].data_ptr()]
        for place, name in self._pointers:
            arguments[place] = operands[name].data_ptr()
        for place, name, axis, beyond in self._sizes:
            arguments[place] = operands[name].shape[axis] - beyond
        self._launch(*arguments)


class _Maps(dict[int, Any]):
    """The tensor maps of one descriptor, by address."""

    def __init__(self, described: Described, encode: Any) -> None:
        super().__init__()
        self.tensor = described.tensor
        self._view = (described.sizes, described.strides)
        self._encode = encode

    def __missing__(self, address: int) -> Any:
        if len(self) >= _MAPS_KEPT:
            self.clear()
        found = self[address] = self._encode(address, *self._view)
        return found


def _rest(planned: Launch, operands: Operands) -> list[float | int]:
    """The arguments of a launch after its pointers, with the sizes of the tables of a call."""
    rest = list(planned.rest)
    for place, name, axis, beyond in planned.sizes:
        rest[place] = operands[name].shape[axis] - beyond
    return rest


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """What the interpreter takes: it knows no pointer to truth values."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
