"""`patterncc explain`: what a pattern means and what it costs at one call."""

import argparse
from dataclasses import replace

from patterncc.call import Call
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
from patterncc.score_text import format_terms, terms_as_json


def run(args: argparse.Namespace) -> int:
    """Prints the explanation."""
    call = call_of(pattern_of(args), args)
    if args.why_config:
        return _why_config(args, call)
    if args.cost:
        return _cost(args, call)
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
                deterministic=args.deterministic,
            )
    except (MissingTableError, UnsupportedError):
        # What it means can be said all the same; the error follows.
        if not args.json:
            print(format_explanation(outline(call, problem, block_q, block_k)))
        raise
    terms = problem.terms
    if args.json:
        shown = {} if terms.plain else {"score_terms": terms_as_json(terms)}
        console.print_json(explanation.as_json() | shown)
    else:
        print(format_explanation(explanation), end="" if terms.plain else "\n")
        if not terms.plain:
            print(format_terms(terms), end="")
    return 0


def _why_config(args: argparse.Namespace, call: Call) -> int:
    """Prints which config the call would run with, and why."""
    require_tables(call)
    # It loads torch, which all else does without.
    from patterncc.tuning import device_of, why_config

    problem = replace(problem_of(args), group=call.heads // call.kv_heads)
    found = why_config(call, problem, device_of(args.device, args.target), args.phase)
    if args.json:
        console.print_json(found.as_json())
    else:
        print("\n".join(found.lines()))
    return 0


def _cost(args: argparse.Namespace, call: Call) -> int:
    """Prints what the cost model expects of the call, as formulas with their numbers."""
    require_tables(call)
    from patterncc.autotune.space import phase_named  # these load torch and sympy
    from patterncc.cost_text import cost_of
    from patterncc.tuning import device_of, job_of

    problem = replace(problem_of(args), group=call.heads // call.kv_heads)
    device = device_of(args.device, args.target)
    found = cost_of(job_of(call, problem), phase_named(args.phase), device)
    if args.json:
        console.print_json(found.as_json())
    else:
        print("\n".join(found.lines()))
    return 0
