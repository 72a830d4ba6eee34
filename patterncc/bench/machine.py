"""What the numbers were taken on: device, versions, and the rate of a plain matrix product there.

Used in a child process, so that the one that waits for results never touches the device.
"""

from __future__ import annotations

import importlib
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median

import torch

from patterncc import __version__
from patterncc.bench.peer import Peer, PeerSpec
from patterncc.bench.stopwatch import Stopwatch
from patterncc.trial import machine_name

_PACKAGES = (
    "torch",
    "triton",
    "flash-attn-4",
    "nvidia-cutlass-dsl",
    "quack-kernels",
    "nvidia-cudnn-cu13",
    "nvidia-cudnn-cu12",
)
_SIZE = {"cpu": 1024, "cuda": 8192}  # of the square matrices
_ROUNDS = 3
_DRIVER = ("nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader")


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and what runs on it.

    Attributes:
        name: In words.
        versions: Of packages, Python and CUDA, and of the code that computes.
        driver: Driver and power limit; "" where nothing tells.
    """

    name: str
    versions: dict[str, str]
    driver: str


class Probe:
    """Looks at the device of a process.

    Args:
        device: `cpu`, `cuda:0`.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

    def machine(self) -> Machine:
        """The device and the versions."""
        versions = {"patterncc": __version__, "python": platform.python_version()}
        for package in _PACKAGES:
            try:
                versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
        if torch.version.cuda is not None:
            versions["cuda"] = torch.version.cuda
        if commit := _commit():
            versions["commit"] = commit
        driver = _output(*_DRIVER) if self._device.type == "cuda" else ""
        return Machine(machine_name(self._device), versions, driver)

    def missing(self, peers: Sequence[PeerSpec]) -> dict[str, str]:
        """Why peers cannot be used here, by their names; "" for those that can."""
        return {spec.name: self._why_not(spec) for spec in peers}

    def _why_not(self, spec: PeerSpec) -> str:
        try:
            module = importlib.import_module(spec.module)
            peer: Peer = getattr(module, spec.function)(*spec.arguments)
        except ImportError as error:  # of a torch that is too old for it
            return f"it cannot be loaded: {error}"
        return peer.why_not(self._device)

    def ceiling(self, dtype: str) -> float:
        """FLOP/s of a large square matrix product on random numbers: the median of some rounds."""
        size = _SIZE[self._device.type]
        generator = torch.Generator(self._device).manual_seed(0)
        left, right = (
            torch.randn(size, size, generator=generator, device=self._device).to(
                getattr(torch, dtype)
            )
            for _ in range(2)
        )
        watch = Stopwatch(self._device)
        seconds: list[float] = []
        for _ in range(_ROUNDS):
            seconds += watch.round(lambda _: left @ right, lambda: None, 1e-3).seconds
        return 2.0 * size**3 / median(seconds)


def _commit() -> str:
    """The commit of a checkout that this file is part of; "" if it is none's."""
    folder, name = str(Path(__file__).parent), Path(__file__).name
    if not _output("git", "-C", folder, "ls-files", "--error-unmatch", name):
        return ""
    return _output("git", "-C", folder, "rev-parse", "--short", "HEAD")


def _output(*command: str) -> str:
    """What a command prints, in one line; "" if there is no such command or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return " ".join(done.stdout.split())


def make(device: str) -> Probe:
    """The probe of a process."""
    return Probe(device)
