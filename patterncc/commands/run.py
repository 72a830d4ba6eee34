"""`patterncc run`: compiles a pattern, runs it here, checks the result, and its gradients if
asked, and compares times."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from patterncc.commands import console
from patterncc.commands.inputs import (
    call_of,
    pattern_of,
    problem_of,
    require_tables,
    scores_of,
    terms_of,
)
from patterncc.commands.run_document import document
from patterncc.explain_text import quantity
from patterncc.notation import percent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from patterncc.backward_trial import BackwardTrial
    from patterncc.rivals import Dense
    from patterncc.timing import Timing
    from patterncc.trial import Trial


def run(args: argparse.Namespace) -> int:
    """Runs the pattern and prints what was found; 1 if the result is wrong."""
    pattern = pattern_of(args)
    terms_of(args)
    from patterncc import trial  # loads torch: seconds, which a mistake in the text need not wait

    device = trial.choose_device(args.device)
    lengths = trial.DEFAULT_TABLE_LENGTH if pattern.tables else trial.DEFAULT_LENGTH
    args.q_len = args.q_len or lengths[device.type]
    args.dtype = args.dtype or trial.DEFAULT_DTYPE[device.type]
    call = call_of(pattern, args)
    require_tables(call)
    problem = replace(problem_of(args), group=call.heads // call.kv_heads)
    scores = scores_of(args, call)
    with console.progress().status("starting ...") as status:
        found = trial.run(
            call,
            problem,
            device,
            batch=args.batch,
            layer=args.layer,
            seed=args.seed,
            repeats=args.repeats,
            backward=args.backward,
            report=status.update,
            scores=scores,
            deterministic=args.deterministic,
        )
    if args.json:
        console.print_json(document(found))
    else:
        _print(found)
    return 0 if found.right else 1


def _print(found: "Trial") -> None:
    call, problem, tiles, verdict = found.call, found.problem, found.tiles, found.verdict
    out = console.output()
    name = call.pattern.name or "pattern"
    heads = f"{call.heads} heads"
    if call.kv_heads != call.heads:
        heads += f" on {call.kv_heads} key/value heads"
    lengths = f"{call.q_len:,} tokens"
    if call.kv_len != call.q_len:
        lengths = f"{call.q_len:,} queries on {call.kv_len:,} keys"
    size = f"batch {found.batch}, {heads}, {lengths}, head_dim {problem.head_dim}"
    out.print(Text.assemble((name, "bold"), f" on {found.device} ({found.machine})"))
    out.print(Text(f"{problem.dtype}, {size}"))
    for line in _score_lines(found):
        out.print(Text(line))

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    share = percent(tiles.visited / tiles.all)
    table.add_row("density", percent(found.density), f"{tiles.pairs:,} visible pairs")
    partial = tiles.visited - tiles.full
    counts = f"{tiles.full:,} full, {partial:,} partial of {tiles.all:,}"
    table.add_row("visited tiles", share, f"{counts}, {tiles.block_q} x {tiles.block_k}")
    speed = quantity(found.useful_flops / found.timing.median, "FLOP/s")
    table.add_row(
        "time", _median(found.timing), f"{_spread(found.timing)}; {speed} on visible pairs"
    )
    work = "plans the call" if found.device == "cpu" else "compiles the kernel"
    note = f"lowers the pattern and {work}"
    table.add_row("first call", duration(found.first), note)
    _add_dense(table, found.dense, found.timing)
    rows = _rows(verdict.checked, verdict.rows)
    table.add_row(
        "error", f"{verdict.error:.2g}", f"allowed {verdict.tolerance:.2g}; {rows} against float64"
    )
    table.add_row("lse error", f"{verdict.lse_error:.2g}", f"allowed {verdict.lse_tolerance:.2g}")
    if found.backward is not None:
        _add_backward(table, found, found.backward)
    out.print(table)
    out.print(Text("right", "bold green") if found.right else Text("WRONG", "bold red"))


def _score_lines(found: "Trial") -> "Iterator[str]":
    """The score terms, and where what they read is from."""
    scores = found.scores
    if scores.terms.plain:
        return
    logit, _, sink = scores.terms.text.partition("\n")
    yield f"score  {logit}" + (f"; sink  {sink}" if sink else "")
    for name, table in scores.tables.items():
        source = "drawn" if name in scores.drawn else "given"
        yield f"table  {name}: {' x '.join(map(str, table.shape))}, {source}"


def _add_backward(table: Table, found: "Trial", backward: "BackwardTrial") -> None:
    timing, verdict = backward.timing, backward.verdict
    table.add_section()
    speed = quantity(found.useful_backward_flops / timing.median, "FLOP/s")
    table.add_row("backward", _median(timing), f"{_spread(timing)}; {speed} on visible pairs")
    work = "" if found.device == "cpu" else "lowers the pattern and compiles kernels"
    table.add_row("first backward", duration(backward.first), work)
    _add_dense(table, backward.dense, timing, ", backward")
    rows = _rows(verdict.checked, verdict.rows)
    for name, error in verdict.errors.items():
        allowed = f"allowed {verdict.allowed(name):.2g} of the largest entry"
        table.add_row(f"{name} error", f"{error:.2g}", f"{allowed}; from {rows}")


def _add_dense(table: Table, dense: "Sequence[Dense]", own: "Timing", what: str = "") -> None:
    """What dense attention took, beside what the pattern did."""
    for rival in dense:
        name = rival.name + what
        if rival.timing is None:
            table.add_row(name, "not run", rival.skipped)
        else:
            faster = _compare(rival.timing.median / own.median)
            table.add_row(name, _median(rival.timing), f"{_spread(rival.timing)}; {faster}")


def _rows(checked: int, rows: int) -> str:
    count = "all" if checked == rows else f"{checked:,} of {rows:,}"
    return f"{count} rows of every head"


def _median(timing: "Timing") -> str:
    return duration(timing.median)


def _spread(timing: "Timing") -> str:
    return f"least {duration(timing.least)} of {len(timing.seconds)} calls"


def _compare(factor: float) -> str:
    """How much faster the pattern is than something that takes `factor` times as long."""
    if factor >= 1:
        return f"the pattern is {factor:.2f}x as fast"
    return f"the pattern is {1 / factor:.2f}x slower"


def duration(seconds: float) -> str:
    """A time with three digits and a fitting unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
