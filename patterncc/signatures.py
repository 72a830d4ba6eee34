"""What a call of a pattern takes, and what its text means: read once and kept.

Holds no tensor and imports no torch.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from patterncc.codegen.lower import DIVIDING_SIZES
from patterncc.dsl import load
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.mask import FloorDiv, Mod, variables, walk

if TYPE_CHECKING:
    from patterncc.dsl.pattern import Pattern

PATTERNS_KEPT = 256  # parsed texts


@dataclass(frozen=True, slots=True)
class Signature:
    """What a call of a pattern takes, in the order in which values travel to a kernel (name order).

    Attributes:
        structure: Canonical text without the run-time defaults: the kernel's identity.
        numbers: Names of the run-time numbers.
        defaults: Their values where the call gives none; `None`: it must.
        tables: Names of the tables and segments.
        fixed: Names of the parameters that were fixed when the pattern was compiled.
    """

    structure: str
    numbers: tuple[str, ...]
    defaults: tuple[int | None, ...]
    tables: tuple[str, ...]
    fixed: tuple[str, ...]

    @staticmethod
    def of(pattern: Pattern) -> Signature:
        """The signature of a pattern."""
        return Signature(
            pattern.structure,
            tuple(parameter.name for parameter in pattern.numbers),
            tuple(parameter.value for parameter in pattern.numbers),
            tuple(parameter.name for parameter in pattern.tables),
            tuple(name for name, _ in pattern.fixed),
        )


def read_source(source: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The text of a source, and its path if it is a file.

    Raises:
        ArgumentError: It is neither a text, a library name nor a path, or the file is not UTF-8.
        OSError: The file cannot be read.
    """
    if isinstance(source, str) and (not source.endswith(".pat") or "\n" in source):
        return source, None
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentError(
            f"`source` is {type(source).__name__}; "
            "it must be a text, a library name, a path or a Pattern"
        )
    path = Path(source)
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except UnicodeDecodeError as error:
        raise ArgumentError(f"`source` is {str(path)!r}, which is not text in UTF-8") from error


def signature_of(source: str | os.PathLike[str]) -> Signature:
    """The signature of a source; texts used lately are parsed only once."""
    return _signature(*read_source(source))


@functools.lru_cache(maxsize=PATTERNS_KEPT)
def _signature(text: str, path: str | None) -> Signature:
    return Signature.of(load(text, file=path))


@dataclass(frozen=True, slots=True)
class Resolved:
    """A structure read back from its text, with what every call asks of it.

    Attributes:
        pattern: What it means.
        numbers: The names of its run-time numbers, in the order in which values travel.
        sizes: Those of `heads`, `kv_heads`, `layers` that it divides by: each value of them is
            another program.
        reads: Coordinates and sizes it reads.
    """

    pattern: Pattern
    numbers: tuple[str, ...]
    sizes: tuple[str, ...]
    reads: frozenset[str]


@functools.lru_cache(maxsize=PATTERNS_KEPT)
def resolve(structure: str) -> Resolved:
    """Reads a structure back from its text; kept for the patterns used last.

    Raises:
        PatternError: It is no pattern.
    """
    pattern = load(structure)
    dividing: set[str] = set()
    for node in walk(pattern.body):
        if isinstance(node, (FloorDiv, Mod)):
            dividing |= variables(node.divisor)
    return Resolved(
        pattern,
        tuple(parameter.name for parameter in pattern.numbers),
        tuple(name for name in DIVIDING_SIZES if name in dividing),
        variables(pattern.body),
    )
