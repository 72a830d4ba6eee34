"""Pictures of masks as lines of a terminal: two cells to a character where there are colours."""

import numpy as np
import numpy.typing as npt
from rich.style import Style
from rich.text import Text

from patterncc.picture import FULL, PARTIAL, Picture
from patterncc.plot import COLOURS, colours, tick_label

# Without colours: what a tile is, or what a pair in a partial tile is.
UNICODE = {"empty": "·", "hidden": "░", "partial": "▒", "full": "█"}
ASCII = {"empty": ".", "hidden": "-", "partial": "+", "full": "#"}
# Without colours, where tiles share a cell: none, up to a third, two thirds, most, all visited.
UNICODE_SHARES = "·░▒▓█"
ASCII_SHARES = ".:-+#"

_HALF = "▀"  # the upper half in the colour of the letter, the lower in that of the background


def coloured(picture: Picture) -> list[Text]:
    """The picture in colours, two cells a character, one above the other."""
    image = colours(picture)
    if image.shape[0] % 2:
        image = np.concatenate([image, np.full_like(image[:1], 255)])
    lines = []
    for upper, lower in zip(image[::2], image[1::2], strict=True):
        line = Text(no_wrap=True)
        for above, below in zip(upper, lower, strict=True):
            line.append(_HALF, _style(above, below))
        lines.append(line)
    return lines


def _style(above: npt.NDArray[np.uint8], below: npt.NDArray[np.uint8]) -> Style:
    front, back = (f"rgb({','.join(map(str, colour.tolist()))})" for colour in (above, below))
    return Style.parse(f"{front} on {back}")


def plain(picture: Picture, *, unicode: bool = True) -> list[Text]:
    """The picture in characters, two a cell, so that cells look square."""
    if picture.cell_q * picture.cell_k > 1:
        visited = picture.cells.sum(axis=2)
        level = np.where(visited > 0, 1 + np.minimum(3 * visited, 3).astype(int), 0)
        shades = UNICODE_SHARES if unicode else ASCII_SHARES
        return [Text("".join(2 * shades[step] for step in row), no_wrap=True) for row in level]
    letters = UNICODE if unicode else ASCII
    if picture.allowed is not None and picture.states is not None:
        names = np.full(picture.allowed.shape, "empty", dtype=object)
        names[picture.states == PARTIAL] = "hidden"
        names[picture.allowed & (picture.states == PARTIAL)] = "partial"
        names[picture.states == FULL] = "full"
    else:
        names = np.full(picture.cells.shape[:2], "empty", dtype=object)
        names[picture.cells[..., 0] > 0] = "partial"
        names[picture.cells[..., 1] > 0] = "full"
    return [Text("".join(2 * letters[name] for name in row), no_wrap=True) for row in names]


def framed(picture: Picture, lines: list[Text], width: int) -> list[Text]:
    """Lines of `width` columns with the positions of the first and last query and key around."""
    call = picture.call
    rows = [tick_label(call.q_offset), tick_label(call.q_offset + call.q_len)]
    margin = max(map(len, rows))
    result = [Text(f"{'':{margin}} {0:<{width - 1}}{tick_label(call.kv_len)}")]
    for number, line in enumerate(lines):
        label = rows[0] if number == 0 else rows[1] if number == len(lines) - 1 else ""
        result.append(Text(f"{label:>{margin}} ") + line)
    return result


def legend(picture: Picture, *, colour: bool, unicode: bool = True) -> Text:
    """What the colours or characters stand for, with counts."""
    counts = {
        "full": picture.full,
        "partial": picture.partial,
        "empty": picture.tiles - picture.full - picture.partial,
    }
    letters = UNICODE if unicode else ASCII
    shared = picture.cell_q * picture.cell_k > 1
    text = Text()
    for name, count in counts.items():
        if colour:
            text.append("  ", Style.parse(f"on rgb({','.join(map(str, COLOURS[name]))})"))
            text.append(" ")
        elif not shared:
            text.append(f"{letters[name] * 2} ")
        text.append(f"{count:,} {name}   ")
    share = (picture.full + picture.partial) / picture.tiles
    text.append(f"of {picture.block_q} x {picture.block_k} tiles, {share:.2%} visited")
    if shared:
        cell = f"a cell is {picture.cell_q} x {picture.cell_k} tiles"
        shades = UNICODE_SHARES if unicode else ASCII_SHARES
        words = "paler where fewer are visited"
        text.append(f"\n{cell}, {words if colour else f'{shades[1:]} by how many are visited'}")
    return text
