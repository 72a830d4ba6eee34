"""Machine code of NVIDIA GPUs as text."""

from __future__ import annotations

import subprocess
from pathlib import Path

from triton import knobs


def disassemble(cubin: str | bytes, folder: Path) -> str:
    """The instructions of a kernel, one in a line.

    Args:
        cubin: The kernel as it is loaded.
        folder: Where a file may be left.
    """
    path = folder / "kernel.cubin"
    assert isinstance(cubin, bytes)
    path.write_bytes(cubin)
    command = [knobs.nvidia.nvdisasm.path, "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
