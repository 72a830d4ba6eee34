"""`patterncc explain`: what a pattern means and what it costs at one call."""

import argparse

from patterncc.commands import console
from patterncc.commands.inputs import (
    MissingTableError,
    call_of,
    pattern_of,
    problem_of,
    require_tables,
)
from patterncc.dsl.errors import UnsupportedError
from patterncc.explain import explain, outline
from patterncc.explain_text import format_explanation


def run(args: argparse.Namespace) -> int:
    """Prints the explanation."""
    call = call_of(pattern_of(args), args)
    problem, block_q, block_k = problem_of(args), args.block_q or 128, args.block_k or 128
    try:
        require_tables(call)
        with console.progress().status("counting ..."):
            explanation = explain(
                call,
                problem,
                layers=args.layer,
                heads=args.head,
                block_q=block_q,
                block_k=block_k,
            )
    except (MissingTableError, UnsupportedError):
        # What it means can be said all the same; the error follows.
        if not args.json:
            print(format_explanation(outline(call, problem, block_q, block_k)))
        raise
    if args.json:
        console.print_json(explanation.as_json())
    else:
        print(format_explanation(explanation), end="")
    return 0
