"""`patterncc bench`: times patterns beside installed peers, judges all results, and shows them."""

import argparse
import copy
import json
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
from patterncc.commands.inputs import call_of, pattern_of, problem_of, require_tables
from patterncc.commands.run import duration
from patterncc.dsl.errors import ConfigError
from patterncc.explain_text import quantity
from patterncc.notation import percent

if TYPE_CHECKING:
    from patterncc.bench.document import Speed
    from patterncc.bench.race import Options, Progress, Report, Result
    from patterncc.bench.readings import Reading
    from patterncc.bench.request import Phase, Request

_STYLES = {"wrong": "bold red", "unfused": "bold red", "cannot": "dim"}
_TITLES = {"forward": "forward", "backward": "backward", "both": "both", "fresh": "with mask"}


def run(args: argparse.Namespace) -> int:
    """Times and prints; 1 if a result of patterncc is missing or wrong, or a peer's is no result of
    its kernel; 130 after Ctrl-C, with what was found before it."""
    if args.list_peers:
        return _list_peers(args)
    if bool(args.files) == (args.suite is not None):
        raise ConfigError("bench takes patterns, or --suite NAME; --list-peers says who takes part")
    patterns = [pattern_of(_of_one(args, name)) for name in args.files]  # mistakes come first

    from patterncc.bench import chart, race  # they load torch
    from patterncc.bench.document import document, is_sound
    from patterncc.bench.peers import peers_named
    from patterncc.trial import DEFAULT_DTYPE, choose_device

    if args.plot:
        chart.check_output(args.plot)
    peers = peers_named(args.peers)
    options = _options(args)
    device = choose_device(args.device)
    args.dtype = args.dtype or DEFAULT_DTYPE[device.type]
    requests = _requests(args, patterns, str(device))
    with _bar() as report:
        found = race.run(requests, peers, str(device), options, report)
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
    return 0 if is_sound(found) else 1


# ------------------------------------------------------------------------------- what to run


def _of_one(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The arguments as a command for one pattern has them."""
    one = copy.copy(args)
    one.pattern = name
    return one


def _options(args: argparse.Namespace) -> "Options":
    from patterncc.bench.race import Options
    from patterncc.bench.request import PHASES

    asked = args.phases.split(",") if args.phases else list(PHASES)
    unknown = [phase for phase in asked if phase not in PHASES]
    if unknown:
        raise ConfigError(f"--phases has {unknown[0]!r}", PHASES)
    phases = tuple(phase for phase in PHASES if phase in asked)
    jobs = args.jobs or max(1, (os.cpu_count() or 1) // 2)
    return Options(phases, args.repeats, args.timeout, jobs)


def _requests(args: argparse.Namespace, patterns: list[Any], device: str) -> "list[Request]":
    """What the command line asks for: a suite, perhaps at other sizes, or patterns at shapes."""
    from patterncc.bench.suites import Shape, parse_shape, request_of, suite_named

    suite = suite_named(args.suite) if args.suite else None
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
            for subject in suite.patterns
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


# ------------------------------------------------------------------------------- what was found


def print_report(report: "Report") -> None:
    """Prints a table for each request, and one of all of them."""
    out = console.output()
    machine = report.machine
    versions = ", ".join(f"{name} {value}" for name, value in machine.versions.items())
    out.print(Text.assemble((machine.name, "bold"), f" ({report.device}), {report.started}"))
    out.print(Text(versions + (f"; driver {machine.driver}" if machine.driver else "")))
    for dtype, found in report.ceilings.items():
        rates = ", ".join(quantity(rate, "FLOP/s") for rate in found)
        out.print(Text(f"matrix product, {dtype}: {rates}"))
    readings = report.results[0].readings
    absent = [name for name, reading in readings.items() if reading.state == "absent"]
    for name in absent:
        out.print(Text(f"not here: {name}: {readings[name].reason}", "dim"))
    for result in report.results:
        out.print()
        out.print(_heading(result))
        out.print(_table(report, result))
        for name, reading in result.readings.items():
            remark = _remark(reading)
            if remark and name not in absent:
                out.print(Text(f"{name}: {remark}", _STYLES.get(reading.state, "")))
    if len(report.results) > 1:
        for phase in report.options.phases:
            if any(phase in result.phases for result in report.results):
                out.print()
                out.print(_summary(report, phase))


def _heading(result: "Result") -> Text:
    request = result.request
    words = f"  {request.shape}, {request.problem.dtype}; {request.pairs:,} visible pairs a batch"
    words += f" entry, density {percent(request.density)}"
    return Text.assemble((request.name, "bold"), words)


def _table(report: "Report", result: "Result") -> Table:
    """Times, what masks cost, speeds and errors of all peers that were timed."""
    from patterncc.bench.request import PHASES

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    shown = [phase for phase in PHASES if phase in result.phases]
    rated = [phase for phase in shown if phase != "fresh"]
    for phase in shown:
        table.add_column(_TITLES[phase], justify="right", no_wrap=True)
    for title in ("mask", "bytes"):
        table.add_column(title, justify="right", no_wrap=True)
    for phase in rated:
        table.add_column(f"{_TITLES[phase]}\nFLOP/s", justify="right", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    for name, reading in result.readings.items():
        if reading.state != "timed":
            continue
        speeds = {phase: _speed(report, result, name, phase) for phase in shown}
        times = [duration(found.seconds) if found else "-" for found in speeds.values()]
        rates = [_rate(speeds[phase]) for phase in rated]
        mask, memory, error = _costs(reading)
        table.add_row(name, *times, mask, memory, *rates, error)
    return table


def _speed(report: "Report", result: "Result", name: str, phase: "Phase") -> "Speed | None":
    from patterncc.bench.document import speed

    return speed(report, result, name, phase)


def _rate(found: "Speed | None") -> str:
    """Operations in a second, and their share of what a matrix product does."""
    if found is None:
        return "-"
    return f"{quantity(found.flops, '').strip()} {100 * found.of_ceiling:3.0f}%"


def _costs(reading: "Reading") -> tuple[str, str, str]:
    """Of the mask: time and bytes; and the largest error, of what is allowed."""
    if reading.mask_seconds is None or reading.judgement is None:
        return "", "", ""
    memory = quantity(reading.mask_bytes or 0, "B") if reading.mask_bytes else "0 B"
    made = duration(reading.mask_seconds) if reading.mask_bytes else "-"
    return made, memory, f"{reading.judgement.worst[1]:.2f}"


def _remark(reading: "Reading") -> str:
    if reading.state == "timed":
        return reading.note
    return f"{reading.state}: {reading.reason}"


def _summary(report: "Report", phase: "Phase") -> Table:
    """FLOP/s of all peers at all requests in one phase."""
    from patterncc.bench.document import advantage
    from patterncc.bench.request import PHASE_WORDS

    results = [result for result in report.results if phase in result.phases]
    names = [
        name
        for name in results[0].readings
        if any(_speed(report, result, name, phase) for result in results)
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.title = Text(f"{PHASE_WORDS[phase]}, FLOP/s on visible pairs", "bold")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("over the best peer", justify="right", no_wrap=True)
    for result in results:
        cells = []
        for name in names:
            found = _speed(report, result, name, phase)
            cells.append("-" if found is None else quantity(found.flops, "").strip())
        against = advantage(result, phase)
        cells.append("" if against is None else f"{against[0]:.2f}x {against[1]}")
        table.add_row(f"{result.request.name}, {result.request.shape}", *cells)
    return table
