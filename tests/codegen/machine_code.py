"""Machine code of NVIDIA GPUs, read for what an assembler gets wrong."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from triton import knobs

_INSTRUCTION = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?(?P<name>[A-Z][A-Z0-9_.]*)\s*(?P<operands>[^;]*?)\s*;"
)
_PREDICATE = re.compile(r"!?U?P(T|\d+)")
_UNIFORM = re.compile(r"UR\d+")
_ALL = frozenset(range(63))


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


def unwritten_registers(instructions: str) -> list[str]:
    """Instructions that read a uniform register which none before them in the text has written.

    The text is in the order of addresses, and code begins at its start: whatever a first loop reads
    must have been written before it. Registers of matrix products are not looked at: how many of
    them a product reads depends on its kind. After a call of a function, such as that which divides
    64 bits, any register may be what that returns.
    """
    written: set[int] = set()
    found = []
    for match in _INSTRUCTION.finditer(instructions):
        name, operands = match["name"], [part.strip() for part in match["operands"].split(",")]
        while operands and _PREDICATE.fullmatch(operands[0]):
            operands.pop(0)
        results: set[int] = set()
        if operands and _UNIFORM.fullmatch(operands[0]) and not name.startswith("ST"):
            first = int(operands.pop(0)[2:])
            results = set(range(first, first + _width(name)))
        read = {
            int(register[2:])
            for operand in operands
            if "gdesc" not in operand
            for register in _UNIFORM.findall(operand)
        }
        if read - written:
            found.append(match.group())
        written |= _ALL if name.startswith("CALL") else results
    return found


def _width(name: str) -> int:
    """How many registers a result takes."""
    if ".128" in name:
        return 4
    return 2 if ".64" in name or "WIDE" in name else 1
