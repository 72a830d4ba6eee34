"""What `patterncc bench` prints of a run: a table for each request; of many, one for each phase."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from patterncc.commands import console
from patterncc.commands.run import duration
from patterncc.explain_text import quantity
from patterncc.notation import percent

if TYPE_CHECKING:
    from patterncc.bench.document import Speed
    from patterncc.bench.readings import Reading
    from patterncc.bench.report import Report, Result
    from patterncc.bench.request import Phase
    from patterncc.bench.standing import Standing

_STYLES = {"wrong": "bold red", "unfused": "bold red", "cannot": "dim"}
_TITLES = {"forward": "forward", "backward": "backward", "both": "both", "fresh": "with mask"}


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
    from patterncc.bench.standing import MANY

    many = len(report.results) > MANY
    for result in report.results:
        if not many:
            out.print()
            out.print(_heading(result))
            out.print(_table(report, result))
        for name, reading in result.readings.items():
            remark = _remark(reading)
            if remark and name not in absent and (not many or reading.state != "timed"):
                prefix = f"{result.request.name}: " if many else ""
                out.print(Text(f"{prefix}{name}: {remark}", _STYLES.get(reading.state, "")))
    if report.left:
        names = ", ".join(report.left)
        out.print(Text(f"not begun within {report.options.within:g} s: {names}", "bold"))
    if len(report.results) > 1:
        for phase in report.options.phases:
            if any(phase in result.phases for result in report.results):
                out.print()
                out.print(_ranking(report, phase) if many else _summary(report, phase))


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
    from patterncc.bench.request import PHASE_WORDS
    from patterncc.bench.standing import advantage, label

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
        table.add_row(label(result), *cells)
    return table


def _ranking(report: "Report", phase: "Phase") -> Table:
    """Times of all requests in one phase, those first where the best peer comes closest."""
    from patterncc.bench.peers import OWN
    from patterncc.bench.request import PHASE_WORDS
    from patterncc.bench.standing import advantage, label, standing_of

    standing = standing_of(report, phase)
    order = list(standing.factors) if standing is not None else []
    results = {label(result): result for result in report.results if phase in result.phases}
    others = [name for name in report.results[0].readings if name != OWN]
    others = [
        name
        for name in others
        if any(result.readings[name].median(phase) for result in results.values())
    ]
    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.title = Text(f"{PHASE_WORDS[phase]}{_standing_words(standing)}", "bold")
    table.add_column("", no_wrap=True)
    for title in ("density", OWN, *others, *(f"{name}\nmask" for name in others)):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("FLOP/s", justify="right", no_wrap=True)
    table.add_column("over the best peer", justify="right", no_wrap=True)
    for name in [*order, *(name for name in results if name not in order)]:
        result = results[name]
        times = [result.readings[peer].median(phase) for peer in (OWN, *others)]
        masks = [_costs(result.readings[peer])[0] for peer in others]
        against = advantage(result, phase)
        table.add_row(
            name,
            percent(result.request.density),
            *("-" if time is None else duration(time) for time in times),
            *masks,
            _rate(_speed(report, result, OWN, phase)),
            "" if against is None else f"{against[0]:.2f}x {against[1]}",
        )
    return table


def _standing_words(standing: "Standing | None") -> str:
    if standing is None:
        return ""
    count = len(standing.factors)
    words = f": {standing.at_least(1.0)} of {count} at least as fast as the best peer"
    if standing.aim is not None:
        words += f", {standing.reached} at least {standing.aim:g} times"
    return f"{words}; median {standing.median:.2f}, geometric mean {standing.mean:.2f}"
