"""`patterncc tune`: finds the fastest configs for patterns on this device and keeps them."""

import argparse
import copy
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from patterncc.commands import console
from patterncc.commands.inputs import call_of, pattern_of, problem_of, require_tables
from patterncc.commands.run import duration
from patterncc.dsl import library
from patterncc.dsl.errors import ConfigError, PatternccError

if TYPE_CHECKING:
    from patterncc.autotune.job import Job
    from patterncc.autotune.options import Progress
    from patterncc.autotune.space import Phase
    from patterncc.autotune.tuning import TuneResult
    from patterncc.call import Call
    from patterncc.codegen.problem import Problem
    from patterncc.tuning_rival import FlexAttention

_HEAD_DIM = {"cpu": 64, "cuda": 128}
"""Configs are of use for their own head dimension alone, so on a GPU it is the usual one."""

_FLEX_SHARE = 0.3
"""Of the time for a pattern, that a search waits for FlexAttention to be compiled."""


def run(args: argparse.Namespace) -> int:
    """Tunes each phase of each pattern; 1 if one of them could not be, 130 after Ctrl-C."""
    if args.calibrate:
        return _calibrate(args)
    if bool(args.files) == args.library:
        raise ConfigError("tune takes patterns, or --library for all that patterncc has")
    if args.timeout <= 0:
        raise ConfigError(f"--timeout is {args.timeout:g} s", ("more than 0",))
    if not 0 <= args.gain < 1:
        raise ConfigError(f"--gain is {args.gain:g}", ("a share, from 0 to 1",))
    if args.target:
        if args.plot:
            raise ConfigError("--plot draws a search, and nothing is searched for a --target")
        return _survey(args)
    names = library.names() if args.library else args.files
    requests = [_of_one(args, name) for name in names]
    patterns = [pattern_of(each) for each in requests]  # mistakes in a text come before all work

    from patterncc import trial, tuning_plot  # they load torch

    device = trial.choose_device(args.device)
    phases = _phases(args.phase, device.type)
    if args.plot and len(requests) * len(phases) > 1:
        raise ConfigError("--plot draws one search; tune one pattern and phase at a time with it")
    if args.plot:
        tuning_plot.check_output(args.plot)
    works: list[_Work] = []
    for request, pattern in zip(requests, patterns, strict=True):
        lengths = trial.DEFAULT_TABLE_LENGTH if pattern.tables else trial.DEFAULT_LENGTH
        request.q_len = request.q_len or lengths[device.type]
        request.dtype = request.dtype or trial.DEFAULT_DTYPE[device.type]
        request.head_dim = request.head_dim or _HEAD_DIM[device.type]
        name = pattern.name or request.pattern
        works += _works(request, name, pattern, phases)
    return _tune_all(args, works, str(device))


def _phases(text: str, device: str) -> tuple["Phase", ...]:
    """The phases of `--phase`; of `all` those that the device has something to tune in.

    Raises:
        ConfigError: There is no such phase, or nothing to tune in one that was named.
    """
    from patterncc.autotune.space import CPU, PHASES, phase_named

    if text == "all":
        return tuple(phase for phase in PHASES.values() if phase.cpu or device != CPU)
    named = tuple(phase_named(name) for name in dict.fromkeys(text.split(",")))
    for phase in named:
        if device == CPU:
            phase.knobs(CPU)
    return named


@dataclass(frozen=True)
class _Work:
    """A phase of a call that is to be tuned, or why it cannot be."""

    name: str
    phase: "Phase"
    job: "Job | PatternccError"
    call: "Call | None"


def _works(
    args: argparse.Namespace, name: str, pattern: Any, phases: tuple["Phase", ...]
) -> list[_Work]:
    """The phases of one pattern."""
    from patterncc.tuning import job_of

    try:
        call, problem = _call_and_problem(args, pattern)
        job = job_of(call, problem, batch=args.batch, layer=args.layer, seed=args.seed)
    except PatternccError as error:
        return [_Work(name, phase, error, None) for phase in phases]
    return [_Work(name, phase, job, call) for phase in phases]


def _flex(
    args: argparse.Namespace, work: _Work, device: str, alone: bool
) -> "FlexAttention | None":
    """FlexAttention beside a search, where it is asked for or usual.

    Raises:
        ConfigError: It is asked for where it cannot be compared.
    """
    comparable = work.phase.name == "forward" and device != "cpu"
    if args.flex and not comparable:
        raise ConfigError(
            "--flex compares the forward on a GPU; FlexAttention computes all gradients in one "
            "kernel, and on a CPU `patterncc bench` times it"
        )
    wanted = comparable and alone if args.flex is None else args.flex
    if not wanted or isinstance(work.job, PatternccError) or work.call is None:
        return None
    from patterncc.bench.request import Request
    from patterncc.tuning_rival import FlexAttention

    job = work.job
    request = Request(work.name, work.call, job.problem, device, job.batch, job.layer, job.seed)
    return FlexAttention(request, _FLEX_SHARE * args.timeout)


def _tune_all(args: argparse.Namespace, works: list[_Work], device: str) -> int:
    """Tunes one after another, while what comes next is compiled."""
    from patterncc import tuning_plot
    from patterncc.autotune.options import Options
    from patterncc.autotune.search import Limits
    from patterncc.settings import kernel_folder
    from patterncc.tuning import document, tuner

    options = Options(
        Limits(args.trials, args.timeout, args.gain),
        args.sampler,
        args.storage,
        folder=Path(kernel_folder()),
    )
    documents: list[dict[str, Any]] = []
    failures, interrupted = 0, False
    with tuner(device, options) as tunes:
        for number, work in enumerate(works):
            try:
                if isinstance(work.job, PatternccError):
                    raise work.job
                flex = _flex(args, work, device, len(works) == 1)
                with closing(flex) if flex else nullcontext(), _bar(work.name, flex) as report:
                    result = tunes.tune(
                        work.job,
                        work.phase,
                        report=report,
                        then=_next(works[number + 1 :]),
                        before=flex.settle if flex else lambda: None,
                    )
            except KeyboardInterrupt:  # not while configs were measured: nothing to keep
                interrupted = True
                break
            except PatternccError as error:
                if len(works) == 1:
                    raise
                failures += 1
                documents.append(
                    {"pattern": work.name, "phase": work.phase.name, "error": _first_line(error)}
                )
                if not args.json:
                    text = Text.assemble((work.name, "bold red"), f", {work.phase.name}: {error}")
                    console.output().print(text)
                continue
            documents.append(document(work.name, result))
            if flex is not None:
                documents[-1]["flex"] = {"seconds": flex.seconds, "why_not": flex.why_not}
            if not args.json:
                _print(work.name, result, flex)
            if args.plot:
                tuning_plot.plot_search(work.name, result, args.plot)
            if result.search.stopped == "interrupted":
                interrupted = True
                break
    if args.json:
        console.print_json(documents)
    if interrupted:
        raise KeyboardInterrupt
    return 1 if failures else 0


def _next(works: list[_Work]) -> "tuple[Job, Phase] | None":
    """The first of these that can be tuned."""
    return next(
        ((work.job, work.phase) for work in works if not isinstance(work.job, PatternccError)),
        None,
    )


def _calibrate(args: argparse.Namespace) -> int:
    """Fits the cost model to the device and keeps its constants."""
    if args.files or args.library:
        raise ConfigError("--calibrate takes no patterns; it has its own")
    from patterncc.trial import choose_device
    from patterncc.tuning import calibrate_device

    with _bar("cost model") as report:
        found, path = calibrate_device(str(choose_device(args.device)), args.phase, report)
    if args.json:
        console.print_json(
            {
                "device": found.device.name,
                "constants": asdict(found.constants),
                "before": {label: asdict(one) for label, one in found.before.items()},
                "after": {label: asdict(one) for label, one in found.after.items()},
                "path": str(path),
            }
        )
        return 0
    out = console.output()
    words = f"{found.measured} configs timed in {duration(found.seconds)}"
    out.print(Text.assemble((found.device.name, "bold"), f": {words}"))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("call", "rank correlation", "first pick over best", "before"):
        table.add_column(title)
    for label, one in found.after.items():
        before = found.before[label]
        earlier = f"{before.rank_correlation:.2f}, {before.first:.2f}x"
        table.add_row(label, f"{one.rank_correlation:.2f}", f"{one.first:.2f}x", earlier)
    out.print(table)
    for name, value in asdict(found.constants).items():
        out.print(Text(f"  {name:16} {value:.4g}"))
    out.print(Text(f"kept in {path}"))
    return 0


def _survey(args: argparse.Namespace) -> int:
    """Compiles the most promising configs for a device that is not here; nothing runs."""
    from patterncc.tuning import survey_call, survey_document

    documents = []
    for name in library.names() if args.library else args.files:
        request = _of_one(args, name)
        pattern = pattern_of(request)
        request.q_len = request.q_len or 16384
        request.dtype = request.dtype or "bfloat16"
        request.head_dim = request.head_dim or _HEAD_DIM["cuda"]
        call, problem = _call_and_problem(request, pattern)
        title = pattern.name or name
        with _bar(title) as report:
            found = survey_call(
                call, problem, args.target, args.phase, args.trials, args.timeout, report
            )
        documents.append({"pattern": title, "target": args.target, **survey_document(found)})
        if not args.json:
            _print_survey(f"{title} on {args.target}", documents[-1]["configs"])
    if args.json:
        console.print_json(documents)
    return 0


def _print_survey(title: str, rows: list[dict[str, Any]]) -> None:
    from patterncc.autotune.words import config_words

    out = console.output()
    out.print(Text(title, "bold"))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("predicted", "config", "registers", "spilled", "shared", ""):
        table.add_column(column, justify="left" if column in ("config", "") else "right")
    for row in rows:
        needs = row["resources"] or {}
        predicted = row["predicted_seconds"]
        table.add_row(
            "-" if predicted is None else duration(predicted),
            config_words(row["config"]),
            *(str(needs.get(name, "-")) for name in ("registers", "spilled", "shared")),
            row["reason"],
        )
    out.print(table)


def _of_one(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The arguments as a command for one pattern has them."""
    one = copy.copy(args)
    one.pattern = name
    return one


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _call_and_problem(args: argparse.Namespace, pattern: Any) -> tuple["Call", "Problem"]:
    call = call_of(pattern, args)
    require_tables(call)
    return call, replace(problem_of(args), group=call.heads // call.kv_heads)


@contextmanager
def _bar(name: str, flex: "FlexAttention | None" = None) -> Iterator[Any]:
    """A bar on the terminal, and what tells it how far the search is."""
    columns = (
        TextColumn("{task.fields[name]}: {task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        # What a narrow terminal has no room for is the end of this.
        TextColumn(
            "{task.fields[note]}",
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
    )
    with Bar(*columns, console=console.progress(), transient=True, expand=True) as bar:
        task = bar.add_task("starting", name=name, note="", total=None)

        def report(progress: "Progress") -> None:
            bar.update(
                task,
                description=progress.stage,
                completed=progress.done,
                total=progress.total or None,
                note=_note(progress, flex),
            )

        yield report


def _note(progress: "Progress", flex: "FlexAttention | None") -> str:
    """The best so far, and by how much it beats the default and FlexAttention."""
    if progress.best is None:
        return ""
    config, seconds = progress.best
    note = f"best {duration(seconds)}"
    if progress.default < float("inf"):
        note += f", {progress.default / seconds:.2f}x the default"
    if flex is not None:
        note += f", {flex.words(seconds)}"
    return f"{note} ({config.block_q}x{config.block_k})"


def _print(name: str, result: "TuneResult", flex: "FlexAttention | None") -> None:
    from patterncc.autotune.prune import survivors
    from patterncc.autotune.words import config_words
    from patterncc.tuning import counts

    entry, out = result.entry, console.output()
    key, call = entry.key, entry.call
    out.print(Text.assemble((name, "bold"), f", {key.phase} on {key.device}, {key.compiler}"))
    size = f"batch {call['batch']}, {call['heads']} heads, {call['q_len']:,} tokens"
    out.print(Text(f"{key.dtype}, {size}, head_dim {key.head_dim}"))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(3):
        table.add_column(overflow="fold")
    table.add_row("best", duration(entry.seconds), config_words(entry.config))
    values = {knob: getattr(result.default, knob) for knob in entry.config}
    if entry.default_seconds is None:
        table.add_row("default", "does not work", config_words(values))
    elif not entry.beats_default:
        table.add_row("default", "", "is the best: nothing beat it by more than noise")
    else:
        speed = f"{config_words(values)}; the best is {entry.speedup:.2f}x as fast"
        table.add_row("default", duration(entry.default_seconds), speed)
    if flex is not None and flex.seconds is not None:
        speed = f"FlexAttention; the best is {flex.seconds / entry.seconds:.2f}x as fast"
        table.add_row("flex", duration(flex.seconds), speed)
    elif flex is not None:
        table.add_row("flex", "-", f"FlexAttention was not timed: {flex.why_not}")
    states = ", ".join(f"{count} {state}" for state, count in counts(result).items())
    table.add_row("trials", str(entry.trials), f"{states}; of {entry.legal:,} legal configs")
    if result.compiled:
        worth = f"{len(survivors(result.compiled))} of them worth running"
        table.add_row("compiled", str(len(result.compiled)), worth)
    interrupted = result.search.stopped == "interrupted"
    why = "by Ctrl-C; the same command goes on" if interrupted else f"after {result.search.stopped}"
    table.add_row("stopped", duration(result.seconds), why)
    table.add_row("before", "", _before(result))
    table.add_row("kept in", "", str(result.path))
    out.print(table)


def _before(result: "TuneResult") -> str:
    found = result.found
    return "; ".join([found.reason, *found.differences])
