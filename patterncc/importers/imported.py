"""What an importer returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A pattern, and what to call it with.

    Attributes:
        text: Text of the pattern, for `patterncc.compile` or a `.pat` file.
        values: Its tables and run-time numbers by name.
    """

    text: str
    values: dict[str, Any]
