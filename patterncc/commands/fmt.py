"""`patterncc fmt`: patterns in the one standard form, comments kept."""

import argparse
import difflib
from pathlib import Path

from patterncc.commands import console
from patterncc.commands.inputs import STANDARD_INPUT, read_file
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.formatter import format_source


def run(args: argparse.Namespace) -> int:
    """Prints files in the standard form, writes them back, or says which differ (then 1)."""
    if args.write and STANDARD_INPUT in args.files:
        raise ConfigError("--write cannot write standard input back; leave it out to print")
    changed = []
    # All are read before any is written: a mistake in one leaves the others as they are.
    texts = [read_file(name) for name in args.files]
    formatted = [format_source(text.text, text.file) for text in texts]
    for name, text, new in zip(args.files, texts, formatted, strict=True):
        if new != text.text:
            changed.append(name)
        if args.check:
            _show_difference(name, text.text, new)
        elif args.write:
            if new != text.text:
                Path(name).write_text(new, encoding="utf-8", newline="")
                print(f"wrote {name}")
        else:
            print(new, end="")
    return 1 if args.check and changed else 0


def _show_difference(name: str, old: str, new: str) -> None:
    out = console.output()
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), name, f"{name} in the standard form", lineterm=""
    )
    for line in lines:
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        out.print(line, style=style, markup=False)
