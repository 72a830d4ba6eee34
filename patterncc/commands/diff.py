"""`patterncc diff`: whether two patterns are the same in all calls, or one is part of the other."""

import argparse
from dataclasses import asdict
from typing import Any

from patterncc.codegen.facts.compare import Comparison, compare_patterns
from patterncc.commands import console
from patterncc.commands.inputs import read
from patterncc.comparison_text import format_comparison
from patterncc.pairing import known_sizes, load_pair


def run(args: argparse.Namespace) -> int:
    """Prints how they relate; 0 if as expected, else 1."""
    left, right = read(args.pattern), read(args.other)
    first, second = load_pair(
        (left.text, left.file),
        (right.text, right.file),
        (args.name, args.other_name),
        dict(args.param),
    )
    sizes = known_sizes(args.heads, args.kv_heads, args.layers)
    with console.progress().status("comparing ..."):
        comparison = compare_patterns(first, second, sizes=sizes, defaults=args.defaults)
    as_expected = _is(comparison, args.expect)
    if args.json:
        texts = {"left": first.text, "right": second.text}
        verdict = {"expected": args.expect, "ok": as_expected}
        console.print_json(texts | _document(comparison) | verdict)
    else:
        print(format_comparison(comparison, first, second), end="")
    return 0 if as_expected else 1


def _document(comparison: Comparison) -> dict[str, Any]:
    document = asdict(comparison)
    for each in (document, document["at_defaults"]):
        for side in ("left_only", "right_only"):
            if each is not None and each[side] is not None:
                each[side]["values"] = dict(each[side]["values"])
    return document


def _is(comparison: Comparison, expected: str) -> bool:
    match expected:
        case "within":
            return comparison.within
        case "contains":
            return comparison.contains
        case _:
            return comparison.relation == expected
