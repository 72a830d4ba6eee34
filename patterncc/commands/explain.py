"""`patterncc explain`: what a pattern means and what it costs at one call."""

import argparse

from patterncc.commands import console
from patterncc.commands.inputs import call_of, pattern_of, problem_of
from patterncc.explain import explain
from patterncc.explain_text import format_explanation


def run(args: argparse.Namespace) -> int:
    """Prints the explanation."""
    call = call_of(pattern_of(args), args)
    with console.progress().status("counting ..."):
        explanation = explain(
            call,
            problem_of(args),
            layers=args.layer,
            heads=args.head,
            block_q=args.block_q or 128,
            block_k=args.block_k or 128,
        )
    if args.json:
        console.print_json(explanation.as_json())
    else:
        print(format_explanation(explanation), end="")
    return 0
