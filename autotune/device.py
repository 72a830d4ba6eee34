"""What a device is called in keys, and what its kernels are compiled with."""

from __future__ import annotations

import functools
import platform
from importlib import metadata
from pathlib import Path

import torch

from patterncc.autotune.key import Device
from patterncc.autotune.space import CPU
from patterncc.codegen.gpu import launch


def describe(device: str) -> Device:
    """The device of a name such as `cpu` or `cuda:0`.

    Raises:
        UnsupportedError: No kernel runs there.
    """
    if device == "cpu":
        return _processor(torch.get_num_threads())
    return _gpu(device)


@functools.cache
def _gpu(device: str) -> Device:
    place = torch.device(device)
    target = launch.target_of(place)
    properties = torch.cuda.get_device_properties(place)
    return Device(
        torch.cuda.get_device_name(place),
        target,
        f"triton {metadata.version('triton')}",
        int(properties.multi_processor_count),
    )


@functools.cache
def _processor(threads: int) -> Device:
    version = torch.__version__.partition("+")[0]
    return Device(f"{_processor_name()}, {threads} threads", CPU, f"torch {version}", threads)


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
