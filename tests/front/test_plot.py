"""Pictures: what they show is the block map, files have the right colours in the right places."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from patterncc import cli, picture, plot, terminal
from patterncc.call import Call
from patterncc.codegen import reference, schedule
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from patterncc.picture import Picture
from patterncc.plot import COLOURS

matplotlib = pytest.importorskip("matplotlib")

PATTERNS = (
    "streaming(4, 600)",
    "ladder",
    "local_strided(64, 4, 8)",
    "longformer(100, 1, 8)",
    "dilated(40, 8)",
)


def take(text: str, q_len: int, *, layer: int = 0, **options: Any) -> Picture:
    return picture.take(Call.of(load(text), q_len, heads=2, layers=8), layer=layer, **options)


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    """A file as colours, uint8 `[height, width, 3]`."""
    from matplotlib import image

    found: npt.NDArray[np.uint8] = np.rint(255 * image.imread(path)[..., :3]).astype(np.uint8)
    return found


def panel(path: Path, shape: tuple[int, int], scale: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The pixels of the only panel of a picture, found by the grey line around it."""
    found = pixels(path)
    height, width = shape[0] * scale[0], shape[1] * scale[1]
    left = max(plot._LEFT, (found.shape[1] - width) // 2)
    frame = np.array([0x9A, 0xA3, 0xAD])
    column = np.abs(found[:, left + width // 2].astype(int) - frame).sum(axis=1)
    top = int(np.flatnonzero(column < 40)[0]) + 1
    for upper in (top, top + 1):  # the line may take two pixels
        part = found[upper : upper + height, left : left + width]
        if not (np.abs(part[0].astype(int) - frame).sum(axis=1) < 40).all():
            return part
    raise AssertionError("no panel was found")


# ---------------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize(("length", "most"), [(1000, 512), (5000, 16), (4096, 8)])
def test_cells_are_shares_of_the_block_map(text: str, length: int, most: int) -> None:
    found = take(text, length, layer=3, block_q=32, block_k=16, most_cells=most)
    call = found.call
    states = schedule.block_map(call.program(32, 16), call.env(layer=3))
    assert (found.full, found.partial) == ((states == 2).sum(), (states == 1).sum())
    assert found.tiles == states.size
    assert max(found.cells.shape[:2]) <= most
    for i in range(found.cells.shape[0]):
        for j in range(found.cells.shape[1]):
            part = states[
                i * found.cell_q : (i + 1) * found.cell_q, j * found.cell_k : (j + 1) * found.cell_k
            ]
            wanted = [(part == 1).mean(), (part == 2).mean()]
            np.testing.assert_allclose(found.cells[i, j], wanted, atol=1e-6)


@pytest.mark.parametrize("text", PATTERNS)
def test_pairs_are_the_oracle_s(text: str) -> None:
    found = take(text, 200, layer=1)
    mask = reference.mask(found.call.pattern, q_len=200, layer=1, heads=2, layers=8).numpy()
    assert found.allowed is not None and found.pairs == mask.sum()
    np.testing.assert_array_equal(found.allowed, mask)


@pytest.mark.parametrize(
    ("length", "block"),
    [
        (1, 4),
        (64, 8),
        (256, 32),
        (512, 64),
        (513, 128),
        (1 << 20, 128),
        (1 << 21, 128),
        (1 << 30, 1 << 16),
    ],
)
def test_default_tiles(length: int, block: int) -> None:
    assert picture.default_block(length) == block
    assert -(-length // block) <= picture.MOST_TILES


def test_too_many_tiles() -> None:
    with pytest.raises(ConfigError, match="block_q is too small"):
        take("causal", 1 << 20, block_q=16, block_k=16)


def test_a_narrow_window_at_a_million_tokens_is_an_unbroken_line() -> None:
    found = take("window(1)", 1 << 20)
    shown = plot.colours(found)
    diagonal = shown[np.arange(len(shown)), np.arange(len(shown))].astype(int)
    assert (np.abs(diagonal - COLOURS["empty"]).sum(axis=1) > 60).all()
    assert found.partial == 8192 and found.full == 0


def test_a_billion_tokens() -> None:
    found = take("streaming", 1 << 30)
    assert found.cells.shape == (512, 512, 2)
    assert (found.cells[..., 0].diagonal() > 0).all()


# ---------------------------------------------------------------------------- files


def test_the_pixels_of_pairs(tmp_path: Path) -> None:
    found = take("streaming(4, 20)", 64)
    path = tmp_path / "mask.png"
    plot.save([found], path)
    image = plot.colours(found)
    scale = plot.panel_pixels(image, 1024)
    part = panel(path, (64, 64), scale)
    middles = part[scale[0] // 2 :: scale[0], scale[1] // 2 :: scale[1]]
    np.testing.assert_array_equal(middles, image)
    assert tuple(image[0, 63]) == COLOURS["empty"]
    assert tuple(image[0, 0]) == COLOURS["partial"]
    assert tuple(image[0, 1]) == COLOURS["hidden"]  # in the first tile, not allowed
    assert tuple(image[17, 10]) == COLOURS["full"]


@pytest.mark.parametrize("length", [4096, 1 << 16])
def test_the_pixels_of_tiles(tmp_path: Path, length: int) -> None:
    found = take("streaming(4, 2048)", length)
    path = tmp_path / "mask.png"
    plot.save([found], path)
    image = plot.colours(found)
    scale = plot.panel_pixels(image, 1024)
    part = panel(path, (image.shape[0], image.shape[1]), scale)
    middles = part[scale[0] // 2 :: scale[0], scale[1] // 2 :: scale[1]]
    np.testing.assert_array_equal(middles, image)
    states = schedule.block_map(found.call.program(128, 128), found.call.env())
    for state, name in enumerate(("empty", "partial", "full")):
        assert (image[states == state] == COLOURS[name]).all()


@pytest.mark.parametrize("suffix", plot.FORMATS)
def test_files_are_what_they_say_and_the_same_at_every_run(tmp_path: Path, suffix: str) -> None:
    files = []
    for number in range(2):
        path = tmp_path / f"{number}{suffix}"
        plot.save([take("ladder", 2048, layer=layer) for layer in (0, 3)], path)
        files.append(path.read_bytes())
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert files[0].startswith(start)
    if suffix != ".svg":  # matplotlib's names of elements are random
        assert files[0] == files[1]


@pytest.mark.parametrize(
    ("length", "places"),
    [
        (1, [0]),
        (64, [0, 16, 32, 48, 64]),
        (300, [0, 50, 100, 150, 200, 250, 300]),
        (5, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_ticks(length: int, places: list[int]) -> None:
    assert plot.ticks(length) == places


def test_tick_labels() -> None:
    assert [plot.tick_label(n) for n in (0, 4096, 16384, 1 << 20, 3 << 18, 65537, -5)] == [
        "0",
        "4096",
        "16K",
        "1M",
        "768K",
        "65537",
        "-5",
    ]


# ---------------------------------------------------------------------------- the command


def test_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ladder.png"
    argv = ["plot", "ladder", "--q-len", "4K", "--layer", "0..8", "-o", str(path)]
    assert cli.main(argv) == cli.OK
    assert capsys.readouterr().out == f"wrote {path}\n"
    height, width, _ = pixels(path).shape
    assert width > 2 * height * 0.8  # four panels in a row, two rows


def test_command_draws_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plot", "streaming", "--q-len", "16", "-p", "sinks=1", "-p", "window=4"]
    assert cli.main([*argv, "--ascii"]) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "streaming, 16 queries, 16 keys"
    assert lines[2] == " 0 ++------........................"
    assert lines[17].startswith("16 ")
    assert lines[18].endswith("of 4 x 4 tiles, 56.25% visited")
    assert "\x1b" not in "".join(lines)


def test_large_maps_share_cells(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", "causal", "--q-len", "1M"]) == cli.OK
    out = capsys.readouterr().out
    assert "a cell is" in out and len(out.splitlines()) < 80


def test_coloured_maps_have_two_cells_a_character() -> None:
    found = take("streaming(1, 4)", 15)
    lines = terminal.coloured(found)
    assert len(lines) == 8 and {line.cell_len for line in lines} == {15}


def test_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["plot", "causal", "-o", "mask.png"]) == cli.USAGE
    assert "pip install 'patterncc[plot]'" in capsys.readouterr().err
    assert not Path("mask.png").exists()


def test_no_colour_where_it_is_not_wanted() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "patterncc", "plot", "causal", "--q-len", "16"],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "NO_COLOR": "1", "FORCE_COLOR": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in done.stdout
