"""What the tests of the checker share."""

from __future__ import annotations

from typing import Any

from patterncc.dsl import diagnose, load


def codes(text: str, **values: Any) -> list[tuple[str, str]]:
    """The codes of the mistakes in a text and the excerpts that they point at."""
    found = []
    for mistake in diagnose(text, values=values).errors:
        assert mistake.span is not None
        found.append((mistake.code, text[mistake.span.start : mistake.span.end]))
    return found


def body(text: str, **values: Any) -> str:
    """The canonical text of a lone body."""
    return load(text, **values).text
