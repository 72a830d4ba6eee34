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


def loops(text: str) -> list[list[str]]:
    """The instructions of each loop, its own jump back the last, as their names with all parts.

    Args:
        text: What `disassemble` gives.
    """
    names: list[str] = []
    labels: dict[str, int] = {}
    found = []
    for line in text.splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            labels[label[1]] = len(names)
            continue
        instruction = re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", line)
        if instruction is None:
            continue
        names.append(instruction[1])
        target = re.search(r"\.L_x_\d+", line) if instruction[1].startswith("BRA") else None
        if target and target[0] in labels:
            found.append(names[labels[target[0]] :])
    return found
