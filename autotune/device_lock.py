"""One measurement at a time on a device, whoever measures: two that overlap would time each other.

Of one user; processes of others are not waited for. Loads no torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # elsewhere than on posix, where nothing is measured in processes either
    fcntl = None  # type: ignore[assignment]

PATIENCE = 20.0
"""Seconds that a measurement waits for others, well below the time that one may take: who waited
in vain measures all the same, rather than be taken for a config that hangs."""

_PAUSE = 0.005


@contextmanager
def device_lock(path: Path, patience: float = PATIENCE) -> Iterator[bool]:
    """Waits until no other process is inside for the same path.

    The system ends the lock of a process that dies.

    Args:
        path: A file that all name who measure on a device; made where it is missing.
        patience: Seconds to wait at most.

    Yields:
        Whether nobody else is inside. False after waiting in vain, and where the file cannot be
        made or the system has no locks.
    """
    if fcntl is None:
        yield False
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError:
        yield False
        return
    with file:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # somebody else has it, or the file system has no locks
                if time.monotonic() > end:
                    yield False
                    return
                time.sleep(_PAUSE)
        yield True
