"""Processes of a process group, for tests of what ranks do together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RANKS = 2


def run_ranks(module: str, folder: Path, timeout: float) -> list[str]:
    """Runs `work(rank, folder)` of a module in a process of its own for each rank.

    Args:
        module: Its name.
        folder: Where the ranks meet.
        timeout: Seconds for each.

    Returns:
        What each of them printed; all have ended well.
    """
    code = (
        f"import os, sys, pathlib; from {module} import work; "
        "work(int(sys.argv[1]), pathlib.Path(sys.argv[2])); "
        "sys.stdout.flush(); os._exit(0)"  # gloo's threads may abort an ordinary exit
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [printed for printed, _ in outputs]
