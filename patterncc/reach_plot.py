"""A picture of how information travels through a stack of layers, in the style of the masks'.

Each row of the picture is the input of one layer; the output of the last is on top. As there, cells
are whole pixels and nothing thin is lost.
"""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from patterncc.codegen.facts.reach import Reach
from patterncc.codegen.facts.runs import flags_of
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.pattern import Pattern
from patterncc.notation import display_text, percent
from patterncc.plot import COLOURS, FORMATS, PALEST, require_matplotlib, tick_label, ticks
from patterncc.reach_text import verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 512  # layers that can be drawn
MOST_LABELS = 33  # rows that are labelled one by one

# Sizes in pixels, as in `patterncc.plot`.
_DPI = 220
_WIDTH = 1024  # most of the panel
_HEIGHT = 780
_LEFT, _RIGHT, _EDGE = 190, 330, 36
_TEXT, _PALE = "#22272e", "#57606a"


def save(reach: Reach, pattern: Pattern, path: Path) -> None:
    """Draws a stack into a file.

    Args:
        reach: What to draw.
        pattern: The pattern it is of.
        path: Ends in one of `patterncc.plot.FORMATS`.

    Raises:
        ConfigError: The path has another end, matplotlib is not installed, or there are too many
            layers.
        OSError: The file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path} does not say what picture to make", FORMATS)
    if reach.layers > MOST_ROWS:
        raise ConfigError(f"{reach.layers} layers are too many to draw; at most {MOST_ROWS}")
    require_matplotlib()
    figure = draw(reach, pattern)
    # Nothing in the file tells when or by which version it was made.
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    figure.savefig(path, dpi=_DPI, metadata=metadata[path.suffix.lower()])


def shares(reach: Reach, columns: int) -> npt.NDArray[np.float64]:
    """The share of the tokens of each cell that reach the last position, `[states, cells]`; tokens
    of a cell are as many as make `columns` cells or fewer.
    """
    size = -(-reach.q_len // columns)
    starts = np.arange(0, reach.q_len, size)
    tokens = np.diff(np.append(starts, reach.q_len))
    rows = [
        np.add.reduceat(flags_of(state.runs, reach.q_len), starts, dtype=np.int64) / tokens
        for state in reach.states
    ]
    return np.stack(rows)


def draw(reach: Reach, pattern: Pattern) -> "Figure":
    """The figure of a stack, laid out in whole pixels."""
    from matplotlib.figure import Figure  # an extra, and slow to load

    image = _image(shares(reach, _WIDTH))
    rows, cells = image.shape[:2]
    wide = max(1, _WIDTH // cells)
    tall = max(2, min(64, _HEIGHT // rows))
    width, height = cells * wide, rows * tall
    total_width = _LEFT + max(width, 512) + _RIGHT
    title = " ".join(display_text(pattern).split())
    lines = textwrap.wrap(title, (total_width - 2 * _EDGE) // 13, max_lines=3, placeholder=" …")
    note = textwrap.wrap(_note(reach), (total_width - 2 * _EDGE) // 11)
    top = 84 + 28 * len(lines) + 20
    total_height = top + height + 96 + 44 + 28 * len(note)

    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI, facecolor="white")
    name = pattern.name or "pattern"
    size = f"{reach.q_len:,} tokens, {reach.layers} layer{'s' if reach.layers > 1 else ''}"
    left, right, upper = _EDGE / total_width, 1 - _EDGE / total_width, 1 - 46 / total_height
    figure.text(left, upper, name, fontsize=10.5, weight="bold", color=_TEXT)
    figure.text(right, upper, size, fontsize=8, ha="right", color=_TEXT)
    for number, line in enumerate(lines):
        y = 1 - (82 + 28 * number) / total_height
        figure.text(left, y, line, fontsize=6.5, family="monospace", color=_PALE)
    for number, line in enumerate(reversed(note)):
        y = (26 + 28 * number) / total_height
        figure.text(left, y, line, fontsize=6.5, color=_PALE)

    box = (
        _LEFT / total_width,
        1 - (top + height) / total_height,
        width / total_width,
        height / total_height,
    )
    axes = figure.add_axes(box)
    enlarged = image.repeat(tall, axis=0).repeat(wide, axis=1)
    gap = 2 if tall >= 10 else 1 if tall >= 5 else 0
    for row in range(rows):
        enlarged[(row + 1) * tall - gap : (row + 1) * tall] = 255
    extent = (0.0, float(cells * -(-reach.q_len // _WIDTH)), float(rows), 0.0)
    axes.imshow(enlarged, extent=extent, aspect="auto", interpolation="nearest")
    _axes(axes, reach)
    _path(axes, reach)
    return figure


def _image(cells: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    empty = np.array(COLOURS["empty"], np.float64)
    full = np.array(COLOURS["full"], np.float64)
    strength = np.where(cells > 0, PALEST + (1 - PALEST) * cells, 0)[..., None]
    mixed: npt.NDArray[np.uint8] = np.rint(empty + (full - empty) * strength).astype(np.uint8)
    return mixed


def _axes(axes: "Axes", reach: Reach) -> None:
    """Positions below, layers on the left, shares on the right."""
    places = ticks(reach.q_len)
    axes.xaxis.set_ticks(places, [tick_label(place) for place in places])
    axes.set_xlabel("token position", fontsize=7.5, color=_TEXT, labelpad=3)
    rows = len(reach.states)
    step = 1 if rows <= MOST_LABELS else -(-rows // MOST_LABELS)
    chosen = [row for row in range(rows) if row % step == 0 or row == rows - 1]
    names = ["output" if row == 0 else f"layer {reach.states[row].layer}" for row in chosen]
    axes.yaxis.set_ticks([row + 0.5 for row in chosen], names)
    axes.tick_params(labelsize=6.5, length=3, width=0.6, color="#9aa3ad", labelcolor=_TEXT, pad=2)
    for row in chosen:
        state = reach.states[row]
        words = f"{percent(state.reached / reach.q_len)}, from {state.earliest:,}"
        if row == 0:
            words = "the last position"
        axes.annotate(
            words,
            (1, row + 0.5),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            fontsize=6.5,
            va="center",
            color=_PALE,
            annotation_clip=False,
        )
    for spine in axes.spines.values():
        spine.set(linewidth=0.6, color="#9aa3ad", position=("outward", 72 / _DPI))


def _path(axes: "Axes", reach: Reach) -> None:
    """The way of the earliest token that reaches the last position."""
    red, green, blue = COLOURS["partial"]
    colour = f"#{red:02x}{green:02x}{blue:02x}"
    places = [position + 0.5 for position in reach.path]
    heights = [row + 0.5 for row in range(len(reach.path))]
    for row in range(1, len(places)):
        hop = places[row - 1] != places[row]
        axes.plot(
            places[row - 1 : row + 1],
            heights[row - 1 : row + 1],
            color=colour,
            linewidth=1.1 if hop else 0.7,
            linestyle="-" if hop else (0, (2, 2)),
            clip_on=False,
        )
    if len(places) <= MOST_LABELS:  # on narrower rows they would hide what is behind
        axes.plot(places, heights, "o", color=colour, markersize=2.2, clip_on=False)


def _note(reach: Reach) -> str:
    size = -(-reach.q_len // _WIDTH)
    note = "blue: content that can influence the last position of the output"
    if size > 1:
        note += f", paler where not all {size} tokens of a cell can"
    note += "; orange: the way of the earliest token that can. "
    return note + verdict(reach)[0].upper() + verdict(reach)[1:] + "."
