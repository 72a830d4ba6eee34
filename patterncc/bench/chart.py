"""A picture of a run: a bar for each peer at each pattern, and the rate of a matrix product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patterncc.bench.document import ceiling, speed
from patterncc.bench.peers import PEERS
from patterncc.bench.ratio_chart import plot_ratios
from patterncc.bench.report import Report, Result
from patterncc.bench.request import PHASE_WORDS, Phase
from patterncc.bench.standing import MANY, advantage
from patterncc.dsl.errors import ConfigError
from patterncc.plot import FORMATS, require_matplotlib

_COLOURS = (
    "#1f5a94", "#ec8e24", "#b9501c", "#3a8f5c", "#7d5ba6", "#b79ad1", "#c9b8b0", "#9aa3ad",
)  # fmt: skip
_COLOUR = {peer.name: colour for peer, colour in zip(PEERS, _COLOURS, strict=True)}
_GREY = "#5b6570"
_CEILING = "matrix product"
_HEIGHT = 3.6  # inches of a phase


def check_output(path: str) -> None:
    """Checks that a picture can be written to a path, before anything runs.

    Raises:
        ConfigError: It has another suffix, or matplotlib is missing.
    """
    require_matplotlib()
    if Path(path).suffix not in FORMATS:
        raise ConfigError(f"--plot {path} has no suffix of a picture", FORMATS)


def plot_report(report: Report, path: str) -> None:
    """Draws a run: operations in a second on visible pairs, higher is better; of many patterns,
    which would be too many bars, how patterncc compares with the best peer.

    Args:
        report: What was found.
        path: A `.png`, `.svg` or `.pdf` file.

    Raises:
        OSError: It cannot be written.
    """
    if len(report.results) > MANY:
        plot_ratios(report, path)
        return
    from matplotlib.figure import Figure  # here, because it takes a second to load

    phases = [phase for phase in report.options.phases if _results(report, phase)]
    wide = max(7.0, 1.5 * len(report.results) + 1.5)
    figure = Figure(figsize=(wide, _HEIGHT * max(1, len(phases)) + 0.8), layout="constrained")
    drawn: dict[str, Any] = {}
    for row, phase in enumerate(phases, 1):
        _draw(figure.add_subplot(len(phases), 1, row), report, phase, drawn)
    order = [name for name in (*_COLOUR, _CEILING) if name in drawn]
    order += [name for name in drawn if name not in order]
    figure.legend(
        [drawn[name] for name in order], order, loc="outside upper center", ncols=5, fontsize=8
    )
    words = ", ".join(f"{name} {report.machine.versions[name]}" for name in _named(report))
    figure.supxlabel(f"{report.machine.name}; {words}; {report.started}", fontsize=7)
    figure.savefig(path, dpi=160)


def _draw(axes: Any, report: Report, phase: Phase, drawn: dict[str, Any]) -> None:
    """One phase; `drawn` keeps a bar of each peer for the legend."""
    results = _results(report, phase)
    most = max(ceiling(report, result) for result in results)
    unit, size = ("TFLOP/s", 1e12) if most >= 1e12 else ("GFLOP/s", 1e9)
    timed = [
        [name for name in result.readings if speed(report, result, name, phase) is not None]
        for result in results
    ]
    width = 0.86 / max(1, *map(len, timed))
    for place, (result, names) in enumerate(zip(results, timed, strict=True)):
        for number, name in enumerate(names):
            found = speed(report, result, name, phase)
            assert found is not None
            middle = place + (number + 0.5 - len(names) / 2) * width
            rate = found.flops / size
            drawn.setdefault(name, axes.bar(middle, rate, width, color=_COLOUR.get(name, _GREY)))
            digits = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
            axes.annotate(digits, (middle, rate), ha="center", va="bottom", fontsize=6)
        rate = ceiling(report, result) / size
        line = axes.hlines(rate, place - 0.45, place + 0.45, color=_GREY, linewidth=1)
        drawn.setdefault(_CEILING, line)
    axes.set_xlim(-0.6, max(len(report.results), 2) - 0.4)
    labels = [_label(result, phase) for result in results]
    axes.set_xticks(range(len(results)), labels, fontsize=7)
    axes.set_ylabel(f"{unit} on visible pairs")
    axes.set_title(PHASE_WORDS[phase], fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _label(result: Result, phase: Phase) -> str:
    """The pattern, its shape, and how patterncc compares with the best peer."""
    against = advantage(result, phase)
    factor = "" if against is None else f"\n{against[0]:.2f}x {against[1]}"
    return f"{result.request.name}\n{result.request.shape}{factor}"


def _results(report: Report, phase: Phase) -> list[Result]:
    return [result for result in report.results if phase in result.phases]


def _named(report: Report) -> list[str]:
    names = ("patterncc", "torch", "triton", "flash-attn-4")
    return [name for name in names if name in report.machine.versions]
