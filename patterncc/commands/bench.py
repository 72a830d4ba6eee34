"""`patterncc bench`: times patterns beside installed peers, judges all results, and shows them."""

import argparse
import copy
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from patterncc.commands import console
from patterncc.commands.bench_text import print_report
from patterncc.commands.inputs import call_of, pattern_of, problem_of, require_tables
from patterncc.dsl.errors import ConfigError

if TYPE_CHECKING:
    from patterncc.bench.report import Options, Progress
    from patterncc.bench.request import Request
    from patterncc.bench.suites import Suite


def run(args: argparse.Namespace) -> int:
    """Times and prints; 1 if a result of patterncc is missing or wrong, a peer's is no result of
    its kernel, or there was no time for all; 130 after Ctrl-C, with what was found before it."""
    if args.list_peers:
        return _list_peers(args)
    if bool(args.files) == (args.suite is not None):
        raise ConfigError("bench takes patterns, or --suite NAME; --list-peers says who takes part")
    if args.only is not None and args.suite is None:
        raise ConfigError("--only is for --suite")
    patterns = [pattern_of(_of_one(args, name)) for name in args.files]  # mistakes come first

    from patterncc.bench import chart, race  # they load torch
    from patterncc.bench.document import document, is_sound
    from patterncc.bench.journal import Journal
    from patterncc.bench.peers import peers_named
    from patterncc.bench.suites import suite_named
    from patterncc.trial import DEFAULT_DTYPE, choose_device

    if args.plot:
        chart.check_output(args.plot)
    suite = suite_named(args.suite) if args.suite else None
    peers = peers_named(args.peers if args.peers or suite is None else suite.peers)
    options = _options(args, suite)
    journal = Journal(Path(args.resume)) if args.resume else None
    device = choose_device(args.device)
    args.dtype = args.dtype or DEFAULT_DTYPE[device.type]
    requests = _requests(args, patterns, suite, str(device))
    with _bar() as report:
        found = race.run(requests, peers, str(device), options, report, journal)
    if args.json:
        console.print_json(document(found))
    elif found.results:
        print_report(found)
    if args.output:
        text = json.dumps(document(found), indent=1, ensure_ascii=False, allow_nan=False)
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    if args.plot and found.results:
        chart.plot_report(found, args.plot)
    if found.interrupted:
        raise KeyboardInterrupt
    return 0 if is_sound(found) and not found.left else 1


# ------------------------------------------------------------------------------- what to run


def _of_one(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The arguments as a command for one pattern has them."""
    one = copy.copy(args)
    one.pattern = name
    return one


def _options(args: argparse.Namespace, suite: "Suite | None") -> "Options":
    from patterncc.bench.report import Options
    from patterncc.bench.request import PHASES

    usual = suite.phases if suite is not None and suite.phases else PHASES
    asked = args.phases.split(",") if args.phases else list(usual)
    unknown = [phase for phase in asked if phase not in PHASES]
    if unknown:
        raise ConfigError(f"--phases has {unknown[0]!r}", PHASES)
    phases = tuple(phase for phase in PHASES if phase in asked)
    jobs = args.jobs or max(1, (os.cpu_count() or 1) // 2)
    return Options(
        phases,
        args.repeats,
        args.timeout,
        jobs,
        within=math.inf if args.within is None else args.within,
        aims={} if suite is None else suite.aims,
    )


def _requests(
    args: argparse.Namespace, patterns: list[Any], suite: "Suite | None", device: str
) -> "list[Request]":
    """What the command line asks for: a suite, perhaps at other sizes or of some patterns alone, or
    patterns at shapes."""
    from patterncc.bench.suites import Shape, parse_shape, request_of

    if args.shapes:
        shapes = [parse_shape(text) for text in args.shapes.split(",")]
    elif suite is not None:
        shapes = list(suite.shapes)
    else:
        shapes = [Shape(1, 16, 16, 16384 if device != "cpu" else 2048, 128)]
    shapes = [_resized(shape, args) for shape in shapes]
    if args.len:
        lengths = dict.fromkeys(args.len)
        shapes = list(
            dict.fromkeys(replace(shape, length=one) for shape in shapes for one in lengths)
        )
    if suite is not None:
        return [
            request_of(subject, shape, args.dtype, device, args.seed)
            for shape in shapes
            for subject in suite.only(args.only)
        ]
    return [
        _request(_of_one(args, name), pattern, shape, device)
        for shape in shapes
        for name, pattern in zip(args.files, patterns, strict=True)
    ]


def _resized(shape: Any, args: argparse.Namespace) -> Any:
    """A shape with the sizes that the command line gives."""
    sizes = {name: getattr(args, name) for name in ("batch", "heads", "kv_heads", "head_dim")}
    if sizes["heads"] and not sizes["kv_heads"]:
        sizes["kv_heads"] = sizes["heads"]
    return replace(shape, **{name: size for name, size in sizes.items() if size})


def _request(args: argparse.Namespace, pattern: Any, shape: Any, device: str) -> "Request":
    from patterncc.bench.request import Request

    args.q_len, args.kv_len, args.q_offset = shape.length, None, None
    args.batch, args.heads, args.kv_heads = shape.batch, shape.heads, shape.kv_heads
    args.head_dim, args.value_head_dim = shape.head_dim, None
    call = call_of(pattern, args)
    require_tables(call)
    problem = replace(problem_of(args), group=call.heads // call.kv_heads)
    name = pattern.name or args.pattern
    return Request(name, call, problem, device, args.batch, args.layer, args.seed)


def _list_peers(args: argparse.Namespace) -> int:
    """Prints who takes part here, and why others do not."""
    from patterncc.autotune.worker import Maker, Worker
    from patterncc.bench.peers import PEERS
    from patterncc.trial import choose_device

    device = str(choose_device(args.device))
    with Worker(Maker("patterncc.bench.machine", "make", (device,)), args.timeout) as probe:
        missing: dict[str, str] = probe.ask("missing", PEERS)
    if args.json:
        console.print_json(
            [
                {"name": peer.name, "summary": peer.summary, "missing": missing[peer.name]}
                for peer in PEERS
            ]
        )
        return 0
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for peer in PEERS:
        why = missing[peer.name]
        style = "dim" if why else ""
        table.add_row(Text(peer.name, style), Text(peer.summary, style), Text(why or "ready"))
    console.output().print(Text(f"peers on {device}"), table)
    return 0


@contextmanager
def _bar() -> Iterator[Any]:
    """A bar on the terminal, and what tells it how far the run is."""
    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=console.progress(), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def report(progress: "Progress") -> None:
            bar.update(
                task, description=progress.stage, completed=progress.done, total=progress.total
            )

        yield report
