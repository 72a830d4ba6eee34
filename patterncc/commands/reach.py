"""`patterncc reach`: how far information travels through a stack of layers."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from patterncc import plot, reach_plot
from patterncc.call import Call
from patterncc.codegen.facts.reach import Reach, reach
from patterncc.commands import console
from patterncc.commands.inputs import pattern_of
from patterncc.dsl.errors import ConfigError
from patterncc.live_text import live_text
from patterncc.reach_text import format_reach


def run(args: argparse.Namespace) -> int:
    """Prints how far, and draws it if asked."""
    path = None if args.output is None else Path(args.output)
    if path is not None:
        if path.suffix.lower() not in plot.FORMATS:
            raise ConfigError(f"--output {path} does not say what picture to make", plot.FORMATS)
        plot.require_matplotlib()
    call = Call.of(
        pattern_of(args), args.q_len, heads=args.heads, kv_heads=args.kv_heads, layers=args.layers
    )
    with console.progress().status("following ..."):
        found = reach(call.pattern, call.q_len, call.layers, call.sizes)
        if path is not None:
            reach_plot.save(found, call.pattern, path)
    if args.json:
        console.print_json({"text": call.pattern.text} | _document(found))
        return 0
    print(format_reach(found, call.pattern.name), end="")
    if path is not None:
        console.output().print(f"wrote {path}", markup=False)
    return 0


def _document(found: Reach) -> dict[str, Any]:
    document = asdict(found)
    document["form"] = live_text(found.form)
    return document
