"""Where commands write: results to standard output; progress to standard error, if a terminal."""

import json
import sys
from typing import Any

from rich.console import Console

PIPE_WIDTH = 120  # columns for what is not a terminal


def output() -> Console:
    """The console of results; without colours unless it is a terminal that wants them."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, highlight=False, soft_wrap=True)


def progress() -> Console:
    """The console of what only a person who waits wants to see."""
    return Console(stderr=True, highlight=False, quiet=not sys.stderr.isatty())


def print_json(document: Any) -> None:
    """Prints one JSON document."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
