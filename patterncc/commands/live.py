"""`patterncc live`: which keys a cache must keep, and how many."""

import argparse

from patterncc import live
from patterncc.call import Call
from patterncc.commands import console
from patterncc.commands.inputs import pattern_of
from patterncc.dsl.errors import ConfigError
from patterncc.live_text import format_report, live_text


def run(args: argparse.Namespace) -> int:
    """Prints the live keys."""
    call = Call.of(
        pattern_of(args), 1, heads=args.heads, kv_heads=args.kv_heads, layers=args.layers
    )
    for name, numbers, size in (
        ("layer", args.layer, call.layers),
        ("kv-head", args.kv_head, call.kv_heads),
    ):
        if numbers and max(numbers) >= size:
            raise ConfigError(f"--{name} {max(numbers)}: there are {size}, from 0")
    with console.progress().status("counting ..."):
        report = live.report(
            call.pattern,
            call.sizes,
            args.at,
            layers=args.layer,
            kv_heads=args.kv_head,
            page_size=args.page_size,
            kv_len=args.kv_len,
        )
    if args.json:
        document = {"text": call.pattern.text, "live": live_text(report.form)}
        console.print_json(document | report.as_json())
    else:
        print(format_report(report), end="")
    return 0
