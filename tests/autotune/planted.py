"""Measurers for tests of the worker: each tile height of a config does something bad."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from patterncc.autotune.measurement import Measurement
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.dsl.errors import ConfigError

GOOD, EXITS, SEGFAULTS, HANGS, NO_MEMORY, RAISES, SPOILS, WRONG, STUCK_IN_C, FORKS = range(10)


def config(what: int) -> KernelConfig:
    """The config that makes the measurer do something."""
    return KernelConfig(block_q=what)


class Planted:
    """Does as it is told by `block_q`."""

    def __init__(self, notes: str) -> None:
        self.notes = Path(notes)
        self.spoilt = False
        self.spoilings = 0

    def measure(self, config: KernelConfig, best: float) -> Measurement:
        if self.spoilt:
            raise RuntimeError("a spoilt process was asked again")
        match config.block_q:
            case 1:
                print("no more paper", file=sys.stderr)
                os._exit(7)
            case 2:
                import ctypes

                ctypes.string_at(0)
            case 3:
                while True:
                    time.sleep(1)
            case 4:
                raise MemoryError("of 3 TiB")
            case 5:
                raise ConfigError("tiles of this shape cannot be", ("others",))
            case 6:
                self.spoilt = True
                raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
            case 7:
                return Measurement("wrong", (), "12 times what is allowed")
            case 8:
                import ctypes

                ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock
            case 9:
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
                self.notes.write_text(str(child.pid))
                time.sleep(1000)
        return Measurement("timed", (1e-3, 2e-3, 3e-3))

    def race(self, configs: Sequence[KernelConfig]) -> tuple[Measurement, ...]:
        return tuple(self.measure(config, 0.0) for config in configs)

    def add(self, one: int, other: int) -> int:
        return one + other

    def spoil(self, crash: int) -> None:
        if crash:
            os._exit(5)
        self.spoilings += 1

    def spoils(self) -> int:
        return self.spoilings

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def make(notes: str) -> Planted:
    return Planted(notes)


def make_nothing() -> Planted:
    raise ConfigError("there is no such device", ("cpu",))


def make_a_crash() -> Planted:
    os._exit(3)
