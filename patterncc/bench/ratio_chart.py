"""A picture of a run of many patterns: for each phase a row for each of them, by how many times as
fast as the best peer patterncc is, the least at the top."""

from __future__ import annotations

from typing import Any

from patterncc.bench.report import Report
from patterncc.bench.request import PHASE_WORDS, Phase
from patterncc.bench.standing import Standing, label, standing_of

_MET, _MISSED, _LOST = "#1f5a94", "#ec8e24", "#b9501c"
_GREY = "#5b6570"
_ROW = 0.155  # inches


def plot_ratios(report: Report, path: str) -> None:
    """Draws a run.

    Args:
        report: What was found.
        path: A `.png`, `.svg` or `.pdf` file.

    Raises:
        OSError: It cannot be written.
    """
    from matplotlib.figure import Figure  # here, because it takes a second to load

    found = {phase: standing_of(report, phase) for phase in report.options.phases}
    shown = {phase: standing for phase, standing in found.items() if standing is not None}
    rows = max((len(standing.factors) for standing in shown.values()), default=1)
    size = (6.2 * max(1, len(shown)), _ROW * rows + 1.3)
    figure = Figure(figsize=size, layout="constrained")
    for column, (phase, standing) in enumerate(shown.items(), 1):
        _draw(figure.add_subplot(1, len(shown), column), report, phase, standing)
    figure.suptitle("times as fast as the best peer", fontsize=10)
    figure.supxlabel(f"{report.machine.name}; {report.started}", fontsize=7)
    figure.savefig(path, dpi=160)


def _draw(axes: Any, report: Report, phase: Phase, standing: Standing) -> None:
    shapes = {result.request.shape for result in report.results}
    names = {label(result): result.request.name for result in report.results}
    aim = standing.aim or 1.0
    for row, factor in enumerate(standing.factors.values()):
        colour = _MET if factor >= aim else _MISSED if factor >= 1 else _LOST
        axes.barh(row, factor - 1, left=1, height=0.7, color=colour)
        axes.annotate(
            f"{factor:.2f}",
            (factor, row),
            xytext=(3 if factor >= 1 else -3, 0),
            textcoords="offset points",
            ha="left" if factor >= 1 else "right",
            va="center",
            fontsize=6,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
        )
    axes.set_xscale("log")
    factors = list(standing.factors.values())
    axes.set_xlim(min(0.8, factors[0] / 1.5), max(2.0, factors[-1] * 1.25))
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if tick <= factors[-1] * 1.2]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7)
    axes.minorticks_off()
    axes.axvline(1, color=_GREY, linewidth=0.8)
    words = f"{len(factors)} patterns"
    if standing.aim is not None:
        axes.axvline(standing.aim, color=_GREY, linewidth=0.8, linestyle="--", zorder=0.5)
        words = f"{standing.reached} of {len(factors)} reach {standing.aim:g}"
    labels = [names[name] if len(shapes) == 1 else name for name in standing.factors]
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_title(f"{PHASE_WORDS[phase]}: {words}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
