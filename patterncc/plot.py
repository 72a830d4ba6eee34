"""Pictures of masks as files: PNG, SVG or PDF through matplotlib, which is an extra.

Every cell is drawn as whole pixels, so nothing thin is lost: the picture of a narrow window at a
million tokens shows an unbroken line.
"""

import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from patterncc.dsl.errors import ConfigError
from patterncc.notation import display_text, percent
from patterncc.picture import FULL, PARTIAL, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

FORMATS = (".png", ".svg", ".pdf")
COLUMNS = 4  # panels in a row

# Colours of a pair or a cell, 0 to 255. Blue and orange stay apart for colour-blind readers.
COLOURS = {
    "full": (31, 90, 148),
    "partial": (236, 142, 36),
    "hidden": (252, 230, 200),  # a pair of a partial tile that is not allowed
    "empty": (240, 242, 245),
}
PALEST = 0.4  # strength of a cell of which next to nothing is visited

# All sizes below are in pixels; a point of text is `_DPI / 72` of them.
_DPI = 220
_PANEL = 1024  # most of a panel's side; that of one of many is half of it
_LEAST = 48  # fewest of a panel's side
_TALL = 260  # height from which the axis of the queries has a name and five positions
_LEFT, _RIGHT, _GAP = 150, 50, 10
_WIDTH = 1000  # fewest of a whole picture: the legend has to fit
_EDGE = 36  # from the edge of the picture to its words
_TEXT = "#22272e"


def require_matplotlib(otherwise: str = "") -> None:
    """Checks that matplotlib is installed.

    Args:
        otherwise: What can be done without it.

    Raises:
        ConfigError: It is not.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "a picture in a file needs matplotlib, which is not installed: "
            "pip install 'patterncc[plot]'" + (f", or {otherwise}" if otherwise else "")
        )


def save(pictures: Sequence[Picture], path: Path) -> None:
    """Draws pictures of one pattern side by side into a file.

    Args:
        pictures: One or more, of one pattern and one length.
        path: Ends in one of `FORMATS`.

    Raises:
        ConfigError: The path has another end, or matplotlib is not installed.
        OSError: The file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path} does not say what picture to make", FORMATS)
    require_matplotlib()
    figure = draw(pictures)
    # Nothing in the file tells when or by which version it was made.
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    figure.savefig(path, dpi=_DPI, metadata=metadata[path.suffix.lower()])


def colours(picture: Picture) -> npt.NDArray[np.uint8]:
    """The colours of pairs where they are drawn, else of cells: uint8 `[rows, columns, 3]`."""
    if picture.allowed is not None and picture.states is not None:
        result = np.empty((*picture.allowed.shape, 3), np.uint8)
        result[:] = COLOURS["empty"]
        result[picture.states == PARTIAL] = COLOURS["hidden"]
        result[picture.allowed & (picture.states == PARTIAL)] = COLOURS["partial"]
        result[picture.states == FULL] = COLOURS["full"]
        return result
    partial, full = picture.cells[..., 0, None], picture.cells[..., 1, None]
    visited = partial + full
    empty = _numbers("empty")
    # The colour of the most; a mixture would be a third one, which the legend does not have.
    hue = np.where(full >= partial, _numbers("full"), _numbers("partial"))
    strength = np.where(visited > 0, PALEST + (1 - PALEST) * np.minimum(visited, 1), 0)
    mixed: npt.NDArray[np.uint8] = np.rint(empty + (hue - empty) * strength).astype(np.uint8)
    return mixed


def _numbers(name: str) -> npt.NDArray[np.float32]:
    return np.array(COLOURS[name], np.float32)


def panel_pixels(image: npt.NDArray[Any], most: int) -> tuple[int, int]:
    """Pixels for each cell, down and across: as many as fit, and enough to see a few rows."""
    height, width = image.shape[:2]
    fit = max(1, most // max(height, width))
    return max(fit, -(-_LEAST // height)), max(fit, -(-_LEAST // width))


def draw(pictures: Sequence[Picture]) -> "Figure":
    """The figure of some pictures of one pattern, laid out in whole pixels."""
    from matplotlib.figure import Figure  # an extra, and slow to load

    images = [colours(picture) for picture in pictures]
    scale = panel_pixels(images[0], _PANEL if len(pictures) <= 2 else _PANEL // 2)
    height, width = images[0].shape[0] * scale[0], images[0].shape[1] * scale[1]
    columns = min(len(pictures), COLUMNS)
    rows = -(-len(pictures) // columns)
    used = columns * width + (columns - 1) * (_LEFT + _GAP)
    total_width = max(_LEFT + used + _RIGHT, _WIDTH)

    title = _title(pictures[0], total_width)
    top = 84 + 28 * len(title)
    caption = 36 if len(pictures) > 1 else 0
    below = 76  # positions and the name of the axis
    note = textwrap.wrap(_note(pictures), (total_width - 2 * _EDGE) // 11)
    total_height = top + rows * (caption + height + below) + 78 + 28 * len(note)

    figure = Figure(figsize=(total_width / _DPI, total_height / _DPI), dpi=_DPI, facecolor="white")
    _write_title(figure, pictures[0], title, total_width, total_height)
    left_edge = max(_LEFT, (total_width - used) // 2)
    for number, (picture, image) in enumerate(zip(pictures, images, strict=True)):
        row, column = divmod(number, columns)
        left = left_edge + column * (width + _LEFT + _GAP)
        upper = top + row * (caption + height + below) + caption
        box = (
            left / total_width,
            1 - (upper + height) / total_height,
            width / total_width,
            height / total_height,
        )
        axes = figure.add_axes(box)
        _panel(axes, picture, image, scale, first_column=column == 0, last_row=row == rows - 1)
        if caption:
            axes.set_title(_caption(picture), fontsize=7, color=_TEXT, pad=4)
    _legend(figure, pictures, note, total_width, total_height)
    return figure


def _panel(
    axes: "Axes",
    picture: Picture,
    image: npt.NDArray[np.uint8],
    scale: tuple[int, int],
    *,
    first_column: bool,
    last_row: bool,
) -> None:
    call = picture.call
    # Enlarged here, so that the pixels of the file are those of the array.
    enlarged = image.repeat(scale[0], axis=0).repeat(scale[1], axis=1)
    by_pair = picture.allowed is not None
    down = 1 if by_pair else picture.block_q * picture.cell_q
    across = 1 if by_pair else picture.block_k * picture.cell_k
    extent = (0.0, float(image.shape[1] * across), float(image.shape[0] * down), 0.0)
    axes.imshow(enlarged, extent=extent, aspect="auto", interpolation="nearest")
    _grid(axes, picture, scale, extent)
    tall = enlarged.shape[0] >= _TALL
    for axis, length, offset in (
        (axes.xaxis, call.kv_len, 0),
        (axes.yaxis, call.q_len, call.q_offset),
    ):
        places = ticks(length) if tall or axis is axes.xaxis else [0, length]
        axis.set_ticks(places, [tick_label(place + offset) for place in places])
    axes.tick_params(labelsize=6.5, length=3, width=0.6, color="#9aa3ad", labelcolor=_TEXT, pad=2)
    if last_row:
        axes.set_xlabel("key position", fontsize=7.5, color=_TEXT, labelpad=3)
    if first_column and tall:
        axes.set_ylabel("query position", fontsize=7.5, color=_TEXT, labelpad=3)
    for spine in axes.spines.values():
        # Outside of the pixels: a sink may be one of them wide.
        spine.set(linewidth=0.6, color="#9aa3ad", position=("outward", 72 / _DPI))


def _grid(
    axes: "Axes",
    picture: Picture,
    scale: tuple[int, int],
    extent: tuple[float, float, float, float],
) -> None:
    """Lines between tiles where they are far enough apart."""
    by_pair = picture.allowed is not None
    if picture.cell_q > 1 or picture.cell_k > 1:
        return
    tall = scale[0] * (picture.block_q if by_pair else 1)
    wide = scale[1] * (picture.block_k if by_pair else 1)
    if wide >= 12:
        for x in range(picture.block_k, int(extent[1]), picture.block_k):
            axes.axvline(x, color="white", linewidth=0.5, alpha=0.9)
    if tall >= 12:
        for y in range(picture.block_q, int(extent[2]), picture.block_q):
            axes.axhline(y, color="white", linewidth=0.5, alpha=0.9)


def ticks(length: int) -> list[int]:
    """Where to write positions: the quarters of a power of two, else round numbers."""
    if length <= 4:
        return list(range(length))
    quarter = length // 4
    if quarter & (quarter - 1) == 0 and length % 4 == 0:
        return [0, quarter, 2 * quarter, 3 * quarter, length]
    step = 10 ** max(0, len(str(length)) - 1)
    while length / step < 4:
        step = step // 2 if step % 2 == 0 else max(1, step // 5)
    return list(range(0, length + 1, step))


def tick_label(position: int) -> str:
    """A position: `4096`, `64K`, `1M`; a K is 1024."""
    for size, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if abs(position) >= 10 * 1024 and position % size == 0:
            return f"{position // size}{letter}"
    return str(position)


# ------------------------------------------------------------------------------------- words


def _caption(picture: Picture) -> str:
    call = picture.call
    parts = [f"layer {picture.layer}"] if call.differs_by_layer else []
    parts += [f"head {picture.head}"] if call.differs_by_head else []
    share = (picture.full + picture.partial) / picture.tiles
    return ", ".join([*parts, f"{share:.1%} of tiles"])


def _title(picture: Picture, width: int) -> list[str]:
    text = " ".join(display_text(picture.call.pattern).split())
    return textwrap.wrap(text, (width - 2 * _EDGE) // 13, max_lines=3, placeholder=" …")


def _write_title(
    figure: "Figure", picture: Picture, title: Sequence[str], width: int, height: int
) -> None:
    name = picture.call.pattern.name or "pattern"
    call = picture.call
    rows = "token" if call.q_len == 1 else "tokens"
    size = f"{call.q_len:,} {rows}"
    if call.kv_len != call.q_len or call.q_offset:
        size = f"{call.q_len:,} queries from position {call.q_offset:,}, {call.kv_len:,} keys"
    figure.text(_EDGE / width, 1 - 46 / height, name, fontsize=10.5, weight="bold", color=_TEXT)
    figure.text(1 - _EDGE / width, 1 - 46 / height, size, fontsize=8, ha="right", color=_TEXT)
    for number, line in enumerate(title):
        y = 1 - (82 + 28 * number) / height
        figure.text(_EDGE / width, y, line, fontsize=6.5, family="monospace", color="#57606a")


def _legend(
    figure: "Figure", pictures: Sequence[Picture], note: Sequence[str], width: int, height: int
) -> None:
    first = pictures[0]
    one = len(pictures) == 1
    counts = {
        "full": first.full,
        "partial": first.partial,
        "empty": first.tiles - first.full - first.partial,
    }
    handles = []
    for state, count in counts.items():
        label = f"{count:,} {state}" if one else state
        handles.append(_swatch(state, label))
    if first.allowed is not None:
        handles.append(_swatch("hidden", "masked in a partial tile"))
    figure.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=((_EDGE - 8) / width, (26 + 28 * len(note)) / height),
        ncols=len(handles),
        fontsize=7,
        frameon=False,
        labelcolor=_TEXT,
        borderpad=0,
        handlelength=1.2,
        columnspacing=1.6,
    )
    for number, line in enumerate(reversed(note)):
        y = (24 + 28 * number) / height
        figure.text(_EDGE / width, y, line, fontsize=6.5, color="#57606a")


def _note(pictures: Sequence[Picture]) -> str:
    """What the legend does not say in colours."""
    first = pictures[0]
    note = f"tiles of {first.block_q} × {first.block_k}"
    if len(pictures) == 1:
        note += f", {percent((first.full + first.partial) / first.tiles)} visited"
        if first.pairs is not None:
            density = first.pairs / (first.call.q_len * first.call.kv_len)
            note += f"; {first.pairs:,} visible pairs, density {percent(density)}"
    if first.cell_q > 1 or first.cell_k > 1:
        note += f"; a cell is {first.cell_q} × {first.cell_k} tiles, paler where fewer are visited"
    return note


def _swatch(state: str, label: str) -> "Patch":
    from matplotlib.patches import Patch  # an extra, and slow to load

    red, green, blue = COLOURS[state]
    colour = f"#{red:02x}{green:02x}{blue:02x}"
    return Patch(facecolor=colour, edgecolor="#9aa3ad", linewidth=0.4, label=label)
