"""A picture of a search: the time of each trial, the best so far, and which knobs matter."""

from __future__ import annotations

from pathlib import Path

from patterncc.autotune.tuning import TuneResult
from patterncc.dsl.errors import ConfigError
from patterncc.plot import FORMATS, require_matplotlib
from patterncc.tuning import importances

_BLUE, _ORANGE, _GREY = "#1f5a94", "#ec8e24", "#9aa3ad"


def check_output(path: str) -> None:
    """Checks that a picture can be written to a path, before the search.

    Raises:
        ConfigError: It has another suffix, its folder is not there, or matplotlib is missing.
    """
    require_matplotlib()
    if not Path(path).absolute().parent.is_dir():
        raise ConfigError(f"--plot {path} is in a folder that is not there")
    if Path(path).suffix not in FORMATS:
        raise ConfigError(f"--plot {path} has no suffix of a picture", FORMATS)


def plot_search(name: str, result: TuneResult, path: str) -> None:
    """Draws a search.

    Args:
        name: Of the pattern.
        result: What was found.
        path: A `.png`, `.svg` or `.pdf` file.

    Raises:
        OSError: It cannot be written.
    """
    from matplotlib.figure import Figure  # here, because it takes a second to load
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(10, 4), layout="constrained")
    trials, knobs = figure.subplots(1, 2, width_ratios=(2, 1))
    best = float("inf")
    steps = []
    for number, trial in enumerate(result.search.trials, 1):
        best = min(best, trial.seconds)
        steps.append(best * 1e3)
        if trial.seconds < float("inf"):
            colour = _ORANGE if trial.proposed_by == "seed" else _BLUE
            trials.plot(number, trial.seconds * 1e3, "o", color=colour, markersize=4)
        else:
            trials.axvline(number, color=_GREY, linewidth=0.8, linestyle=":")
    trials.plot(range(1, len(steps) + 1), steps, color=_BLUE, drawstyle="steps-post")
    default = result.entry.default_seconds
    if default is not None:
        trials.axhline(default * 1e3, color=_GREY, linewidth=1)
        # Beside the axes, where no trial is.
        place = trials.get_yaxis_transform()
        trials.text(1.01, default * 1e3, "default", transform=place, va="center", fontsize=8)
    trials.set_yscale("log")
    for axis_formatter in (trials.yaxis.set_major_formatter, trials.yaxis.set_minor_formatter):
        axis_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    trials.tick_params(axis="y", which="both", labelsize=8)
    bad = any(trial.seconds == float("inf") for trial in result.search.trials)
    trials.set_xlabel("trial (orange: seeds" + "; dotted: bad configs)" * bad + ")" * (not bad))
    trials.set_xlim(0.4, len(steps) + 0.6)
    trials.set_ylabel("ms of a call")
    trials.set_title(f"{name}, {result.entry.key.phase} on {result.device.name}", fontsize=10)
    shares = importances(result)
    knobs.barh(list(reversed(shares)), list(reversed(shares.values())), color=_BLUE)
    knobs.set_xlim(0, 1)
    knobs.set_xlabel("share of the variance of log time")
    figure.savefig(path, dpi=160)
