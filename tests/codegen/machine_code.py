"""Machine code of NVIDIA GPUs as text."""

from __future__ import annotations

import re
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


def instruction_at(text: str, address: int) -> str:
    """The instruction at an address of a kernel."""
    found = re.search(rf"/\*{address:04x}\*/\s+(.*?)\s*;", text)
    assert found is not None
    return found[1]


def loop_bodies(code: str) -> list[str]:
    """The lines of each loop: from a label to a branch back to it.

    Args:
        code: What `disassemble` gives.
    """
    lines = code.splitlines()
    labels = {line.strip()[:-1]: number for number, line in enumerate(lines) if line.endswith(":")}
    bodies = []
    for number, line in enumerate(lines):
        branch = re.search(r"\bBRA\b.*?(\.L_x_\d+)", line)
        start = labels.get(branch[1], number) if branch else number
        if start < number:
            bodies.append("\n".join(lines[start : number + 1]))
    return bodies
