"""`KernelSource`: the text of a generated kernel and what its launcher must know; the entry of the
Triton emitters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.table_source import Table
    from patterncc.codegen.problem import Problem


REPAIR = "repair_"
"""What the names of kernels start with that repair others."""


@dataclass(frozen=True, slots=True)
class KernelParameter:
    """One run-time parameter of a kernel.

    Attributes:
        name: As in the kernel's text.
        type: Triton's name of its type: `*bf16`, `i64`, `fp32`, `tensordesc<bf16[1, 1, 128, 64]>`.
            Pointers are called after their tensor, `out_ptr`.
        multiple: What its value is a multiple of in the aligned variant (bytes of an address,
            elements of a stride);
            1 where nothing is promised. Nothing else about a value ever specialises a kernel.
        box: The block shape of a tensor descriptor; empty for other parameters.
    """

    name: str
    type: str
    multiple: int = 1
    box: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelSource:
    """A generated kernel.

    Attributes:
        name: Of the kernel's function.
        text: The Python module that holds it.
        parameters: In the order of the function's signature.
        problem, config: What it was generated for.
        tables: The pattern's tables that it reads.
        starts_early: Its programs may start before the kernel before it has ended, and wait for
            that themselves.
        digest: Hash of the text: two sources with one digest are one kernel.
    """

    name: str
    text: str
    parameters: tuple[KernelParameter, ...]
    problem: Problem
    config: KernelConfig
    tables: tuple[Table, ...] = ()
    starts_early: bool = False
    digest: str = field(init=False, repr=False, compare=False)

    def beginning_with(self, line: str, *, starts_early: bool = False) -> KernelSource:
        """The same kernel with one more line at its start."""
        before, start, after = self.text.partition(f"\ndef {self.name}(\n")
        signature, end, body = after.partition("\n):\n")
        text = f"{before}{start}{signature}{end}    {line}\n{body}"
        return replace(self, text=text, starts_early=starts_early)

    @property
    def repairs(self) -> bool:
        """Does it compute once more what another kernel has spoiled (`isolation_source`)?"""
        return self.name.startswith(REPAIR)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.sha256(self.text.encode()).hexdigest()[:32])
