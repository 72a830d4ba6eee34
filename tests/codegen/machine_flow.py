"""Machine code of NVIDIA GPUs, read for what an assembler gets wrong: where what an instruction
reads was written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_LABEL = re.compile(r"(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?\w+)\s+)?([A-Z][^;]*?)\s*;")
_PREDICATE = re.compile(r"!?U?P(T|\d+)")
_UNIFORM = re.compile(r"\bUR(\d+)\b")
_ALL = frozenset(range(63))  # uniform registers


@dataclass(frozen=True, slots=True)
class _Instruction:
    """One instruction.

    Attributes:
        text: With its address.
        name: With all its parts.
        operands: Results first.
        conditional: Is it skipped where a predicate does not hold?
    """

    text: str
    name: str
    operands: tuple[str, ...]
    conditional: bool

    @property
    def written(self) -> range:
        """The uniform registers that it writes."""
        operands = [one for one in self.operands if not _PREDICATE.fullmatch(one)]
        found = _UNIFORM.fullmatch(operands[0]) if operands else None
        if found is None or self.name.startswith(("ST", "UTMA", "SYNCS")):
            return range(0)
        width = 2 if ".64" in self.name or "WIDE" in self.name else 1
        first = int(found[1])
        return range(first, first + (4 if ".128" in self.name else width))

    @property
    def read(self) -> frozenset[int]:
        """The uniform registers that it names besides those that it writes; of matrix products
        none: how many of them a product reads depends on its kind (`described`)."""
        operands = [one for one in self.operands if not _PREDICATE.fullmatch(one)]
        sources = operands[1:] if self.written else operands
        return frozenset(
            int(register)
            for operand in sources
            if "gdesc" not in operand
            for register in _UNIFORM.findall(operand)
        )

    @property
    def described(self) -> range:
        """The uniform registers in which a product finds where its operands lie; those of the left
        one come first and count only where it is in shared memory."""
        if not self.name.startswith("HGMMA"):
            return range(0)
        (place,) = [n for n, one in enumerate(self.operands) if one.startswith("gdesc")]
        found = _UNIFORM.search(self.operands[place])
        assert found is not None
        first = int(found[1])
        return range(first if place == 1 else first + 2, first + 4)


class _Flow:
    """The instructions of a kernel, and which may run before which."""

    def __init__(self, text: str) -> None:
        self.instructions: list[_Instruction] = []
        labels: dict[str, int] = {}
        targets: list[tuple[int, list[str]]] = []
        for line in text.splitlines():
            label = _LABEL.match(line.strip())
            if label:
                labels[label[1]] = len(self.instructions)
            found = _INSTRUCTION.search(line)
            if found is None:
                continue
            name, _, rest = found[3].partition(" ")
            operands = tuple(part.strip() for part in rest.split(","))
            if name.startswith(("BRA", "BRX")):  # targets of the latter stand in a comment
                targets.append((len(self.instructions), re.findall(r"\.L_x_\d+", line)))
            self.instructions.append(_Instruction(found[0], name, operands, found[2] is not None))
        self.before: list[list[int]] = [[] for _ in self.instructions]
        leaving = dict(targets)
        for number, instruction in enumerate(self.instructions):
            after = [labels[label] for label in leaving.get(number, ()) if label in labels]
            if not self._ends(instruction):
                after.append(number + 1)
            for other in after:
                if other < len(self.instructions):
                    self.before[other].append(number)

    @staticmethod
    def _ends(instruction: _Instruction) -> bool:
        """Does what follows in the text never run after it?"""
        if instruction.conditional:
            return False
        name = instruction.name.partition(".")[0]
        by_predicate = any(_PREDICATE.fullmatch(one) for one in instruction.operands[:-1])
        return name in ("EXIT", "BRX", "RET") or (name == "BRA" and not by_predicate)

    def sources(self, number: int, register: int) -> Iterator[int]:
        """The instructions whose value of a register may reach one; -1 where none wrote it."""
        seen: set[int] = set()
        waiting = list(self.before[number])
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            instruction = self.instructions[one]
            if register in instruction.written:
                yield one
                if not instruction.conditional:
                    continue
            if not self.before[one]:
                yield -1
            waiting += self.before[one]


def doubtful_products(text: str) -> list[str]:
    """Matrix products whose operands lie where depends on the way that led to them, or where no
    instruction said: kernels compute the place of each operand on the one way to its product.

    Args:
        text: What `machine_code.disassemble` gives.
    """
    flow = _Flow(text)

    def places(registers: Iterable[int], number: int) -> Iterator[set[int]]:
        yield from (set(flow.sources(number, register)) for register in registers)

    return [
        one.text
        for number, one in enumerate(flow.instructions)
        if any(len(found) != 1 or -1 in found for found in places(one.described, number))
    ]


def unwritten_registers(text: str) -> list[str]:
    """Instructions that read a uniform register which none before them in the text has written.

    The text is in the order of addresses, and code begins at its start: whatever a first loop reads
    must have been written before it. After a call of a function, such as that which divides 64
    bits, any register may be what that returns.

    Args:
        text: As of `doubtful_products`.
    """
    written: frozenset[int] = frozenset()
    found = []
    for instruction in _Flow(text).instructions:
        if instruction.read - written:
            found.append(instruction.text)
        written |= _ALL if instruction.name.startswith("CALL") else set(instruction.written)
    return found
