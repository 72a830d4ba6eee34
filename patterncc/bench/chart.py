"""A picture of a run: a bar for each peer at each pattern, and the rate of a matrix product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patterncc.bench.document import advantage, ceiling, speed
from patterncc.bench.peers import PEERS
from patterncc.bench.race import Report
from patterncc.bench.request import PHASE_WORDS
from patterncc.dsl.errors import ConfigError
from patterncc.plot import FORMATS, require_matplotlib

_COLOURS = (
    "#1f5a94", "#ec8e24", "#b9501c", "#3a8f5c", "#7d5ba6", "#b79ad1", "#c9b8b0", "#9aa3ad",
)  # fmt: skip
_COLOUR = {peer.name: colour for peer, colour in zip(PEERS, _COLOURS, strict=True)}
_GREY = "#5b6570"
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
    """Draws a run: TFLOP/s on visible pairs, higher is better.

    Args:
        report: What was found.
        path: A `.png`, `.svg` or `.pdf` file.

    Raises:
        OSError: It cannot be written.
    """
    from matplotlib.figure import Figure  # here, because it takes a second to load

    phases = [phase for phase in report.options.phases if _shown(report, phase)]
    wide = max(7.0, 1.6 * len(report.results) + 2)
    figure = Figure(figsize=(wide, _HEIGHT * max(1, len(phases)) + 0.8), layout="constrained")
    drawn: dict[str, Any] = {}
    for row, phase in enumerate(phases):
        axes = figure.add_subplot(len(phases), 1, row + 1)
        results = [result for result in report.results if phase in result.phases]
        for place, result in enumerate(results):
            names = [n for n in result.readings if speed(report, result, n, phase) is not None]
            width = 0.84 / max(1, len(names))
            for number, name in enumerate(names):
                found = speed(report, result, name, phase)
                assert found is not None
                left = place - 0.42 + (number + 0.5) * width
                rate = found.flops / 1e12
                bars = axes.bar(left, rate, width, color=_COLOUR.get(name, _GREY))
                drawn.setdefault(name, bars)
                digits = f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
                axes.annotate(digits, (left, rate), ha="center", va="bottom", fontsize=6)
            rate = ceiling(report, result) / 1e12
            line = axes.hlines(rate, place - 0.45, place + 0.45, color=_GREY, linewidth=1)
            drawn.setdefault("matrix product", line)
        labels = []
        for result in results:
            against = advantage(result, phase)
            factor = "" if against is None else f"\n{against[0]:.2f}x of {against[1]}"
            labels.append(f"{result.request.name}\n{result.request.shape}{factor}")
        axes.set_xticks(range(len(results)), labels, fontsize=7)
        axes.set_ylabel("TFLOP/s on visible pairs")
        axes.set_title(PHASE_WORDS[phase], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    order = [name for name in (*_COLOUR, "matrix product") if name in drawn]
    figure.legend(
        [drawn[name] for name in order], order, loc="outside upper center", ncols=9, fontsize=8
    )
    words = " ".join(f"{name} {report.machine.versions[name]}" for name in _named(report))
    figure.supxlabel(f"{report.machine.name}; {words}; {report.started}", fontsize=7)
    figure.savefig(path, dpi=160)


def _shown(report: Report, phase: str) -> bool:
    return any(phase in result.phases for result in report.results)


def _named(report: Report) -> list[str]:
    names = ("patterncc", "torch", "triton", "flash-attn-4")
    return [name for name in names if name in report.machine.versions]
