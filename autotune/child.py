"""The other end of `worker`: answers questions about configs until nobody asks any more."""

from __future__ import annotations

import faulthandler
import importlib
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from patterncc.autotune.measurement import Measurement
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.dsl.errors import PatternccError, TuningError

_SPOILING = (
    "cuda error",
    "cudaerror",
    "hip error",
    "illegal memory access",
    "illegal instruction",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
)
"""Errors after which a process cannot use the device any more."""


class Measurer(Protocol):
    """What measures configs, made once for each process."""

    def measure(self, config: KernelConfig, best: float) -> Measurement: ...

    def race(self, configs: Sequence[KernelConfig]) -> tuple[Measurement, ...]: ...


def serve(handle: int) -> None:
    """Answers on a connection until it closes.

    Args:
        handle: File descriptor of the connection.
    """
    faulthandler.enable()
    connection = Connection(handle)
    try:
        maker, limit = connection.recv()
    except EOFError:
        return
    # A thread of C that needs no lock of Python's: ends this process should its parent be gone.
    faulthandler.dump_traceback_later(limit, exit=True)
    try:
        module = importlib.import_module(maker.module)
        measurer: Measurer = getattr(module, maker.function)(*maker.arguments)
    except PatternccError as error:
        connection.send({"value": error, "spoilt": True})
        return
    except Exception as error:
        connection.send({"value": RuntimeError(describe(error)), "spoilt": True})
        return
    connection.send({"value": None, "spoilt": False})
    faulthandler.cancel_dump_traceback_later()
    while True:
        try:
            method, arguments, limit = connection.recv()
        except EOFError:
            return
        faulthandler.dump_traceback_later(limit, exit=True)
        value, spoilt = _answer(measurer, method, arguments)
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.flush()
        try:
            connection.send({"value": value, "spoilt": spoilt})
        except BrokenPipeError:
            return


def _answer(measurer: Measurer, method: str, arguments: tuple[Any, ...]) -> tuple[Any, bool]:
    """What a method returns, and whether this process had better end."""
    if method != "measure":
        try:
            return getattr(measurer, method)(*arguments), False
        except PatternccError as error:
            return error, False
        except Exception as error:
            return TuningError(f"{method} failed: {describe(error)}"), True
    try:
        return measurer.measure(*arguments), False
    except Exception as error:  # of any library below
        text = describe(error)
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            # What was allocated may still be held by the traceback, or by a library's cache.
            return Measurement("out of memory", (), text), True
        spoilt = not isinstance(error, PatternccError) and any(
            sign in text.lower() for sign in _SPOILING
        )
        return Measurement("refused", (), text), spoilt


def describe(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return f"{name}: {lines[0][:300]}" if lines else name
