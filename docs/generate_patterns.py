"""Writes the tables of docs/patterns.md and its pictures from the library.

    python docs/generate_patterns.py            the text, from the numbers in docs/patterns.json
    python docs/generate_patterns.py --count    counts those numbers first, which takes minutes
    python docs/generate_patterns.py --draw     draws the pictures

Only what stands between the marks in docs/patterns.md is replaced. tests/front/test_pattern_docs.py
checks that all of it is up to date.
"""

import argparse
import json
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import patterncc
from patterncc import example_values
from patterncc.call import Call
from patterncc.codegen.problem import Problem
from patterncc.dsl import library, load
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.pattern import Parameter, TableType
from patterncc.explain import explain

DOCS = Path(__file__).resolve().parent
PAGE, NUMBERS, PICTURES = (
    DOCS / "patterns.md",
    DOCS / "patterns.json",
    DOCS / "pictures" / "patterns",
)
BEGIN, END = "<!-- generated: tables -->\n", "<!-- end of tables -->\n"

LENGTH, TILE, HEADS, LAYERS = 16384, 128, 4, 12  # at which waste is counted
SHORTER = 4096  # where each pair has to be looked at
NOT_COUNTED = "not counted"
SHOWN = 64  # tokens of a picture
SIDE = 192  # pixels of a panel

FAMILIES = {
    "Plain ones": "full causal window around sinks prefix tail dilated strided",
    "Sinks and a window": (
        "streaming block_streaming tri_shape triangle_mix duo duo_chunked ladder lacache"
    ),
    "Layers and heads of several kinds": (
        "alternating late_window modernbert gemma3_images llama4 llama4_padded longgen"
        " longgen_blocks masformer local_strided local_stride local_stride_heads local_stride_both"
    ),
    "Chunks and groups": (
        "chunked chunks_back block_causal block_window megalodon gecko s2 s2_wrapped sinklora"
    ),
    "Sparse transformers": (
        "sparse_strided sparse_fixed longformer longformer_tokens bigbird deepspeed_fixed"
        " deepspeed_variable deepspeed_bigbird deepspeed_longformer longnet clustered"
    ),
    "Chosen for a prompt": (
        "blocks causal_blocks vertical_slash minference minference_dilated"
        " minference_dilated_window flexprefill sale hip squeezed nsa infllm_v2 moba landmark"
    ),
    "Chosen in decoding": "quest lserve h2o snapkv eviction",
    "Packed, prefixed and branching sequences": (
        "document packed prefix_lengths block_diffusion tree"
    ),
    "Images and video": (
        "neighborhood_1d neighborhood_causal neighborhood neighborhood_3d swin sliding_tile"
        " sliding_tile_heads"
    ),
}

# Lengths that parameters ask for, where it is not the usual one.
NATURAL = {"neighborhood": 64 * 64, "neighborhood_3d": 16 * 30 * 40, "swin": 56 * 56}
NATURAL["sliding_tile"] = NATURAL["sliding_tile_heads"] = 384 * 5 * 6 * 10


class Drawing(NamedTuple):
    """What a picture shows: parameters small enough to see them, and the heads or layers."""

    values: str = ""
    panels: str = ""  # "layer 0 1" or "head 0 3"
    layers: int = 4
    length: int = SHOWN


DRAWINGS = {
    "around": Drawing("n=6"),
    "window": Drawing("n=16"),
    "sinks": Drawing("n=6"),
    "tail": Drawing("n=8"),
    "prefix": Drawing("n=16"),
    "dilated": Drawing("n=8 step=4"),
    "strided": Drawing("n=8"),
    "streaming": Drawing("sinks=4 window=16"),
    "block_streaming": Drawing("block=8 sinks=1 local=2"),
    "tri_shape": Drawing("sinks=4 window=12 last=8"),
    "triangle_mix": Drawing("start=1 sinks=4 window=12 last=8", "layer 0 1"),
    "duo": Drawing("sinks=4 window=16", "head 0 1 2 3"),
    "duo_chunked": Drawing("chunk=16 sinks=4 window=8", "head 0 1 2 3"),
    "ladder": Drawing("sinks=2 recent=8 rung=4 period=4", "layer 0 1 2 3"),
    "lacache": Drawing("capacity=22 span=2 overlap=0 sinks=2", "layer 0 1 2 3", 8),
    "alternating": Drawing("n=12 period=2", "layer 0 1"),
    "late_window": Drawing("n=12 first=1", "layer 0 1"),
    "modernbert": Drawing("n=5 period=3", "layer 0 1"),
    "gemma3_images": Drawing("n=12 period=2", "layer 0 1"),
    "llama4": Drawing("chunk=16 period=2", "layer 0 1"),
    "llama4_padded": Drawing("chunk=16 period=2", "layer 0 1"),
    "longgen": Drawing("sinks=4 window=12", "layer 0 1", 3),
    "longgen_blocks": Drawing("block=4 local=2 stride=4", "layer 0 1", 3),
    "masformer": Drawing("first=1 block=16", "layer 0 1"),
    "local_strided": Drawing("block=4 local=2 stride=4"),
    "local_stride": Drawing("block=4 local=2 stride=4", "head 0 1 2 3"),
    "local_stride_heads": Drawing("block=4 local=2 stride=4", "head 0 3"),
    "local_stride_both": Drawing("block=4 left=2 right=2 stride=4"),
    "chunked": Drawing("n=16"),
    "chunks_back": Drawing("n=12 m=1"),
    "block_causal": Drawing("n=8"),
    "block_window": Drawing("block=8 before=1 after=1"),
    "megalodon": Drawing("chunk=16"),
    "gecko": Drawing("chunk=16"),
    "s2": Drawing("group=16", "head 0 2"),
    "s2_wrapped": Drawing("group=16", "head 0 2"),
    "sinklora": Drawing("group=16 sinks=4", "head 0 3"),
    "sparse_strided": Drawing("local=8 stride=8"),
    "sparse_fixed": Drawing("context=16 block=4", "head 0 1 2 3"),
    "longformer": Drawing("window=6 globals=2"),
    "longformer_tokens": Drawing("window=6"),
    "bigbird": Drawing("block=4", "head 0 1"),
    "deepspeed_fixed": Drawing("block=4 turns=4", "head 0 1 2 3"),
    "deepspeed_variable": Drawing("block=4"),
    "deepspeed_bigbird": Drawing("block=4"),
    "deepspeed_longformer": Drawing("block=4"),
    "longnet": Drawing("segment=32 ratio=4", "head 0 1 2 3"),
    "blocks": Drawing("size=4", "head 0 1"),
    "causal_blocks": Drawing("size=4", "head 0 1"),
    "vertical_slash": Drawing("", "head 0 1"),
    "minference": Drawing("block=8", "head 0 1"),
    "minference_dilated": Drawing("sinks=4 reach=40"),
    "minference_dilated_window": Drawing("sinks=4 window=12 reach=40"),
    "flexprefill": Drawing("block=4", "head 0 2"),
    "sale": Drawing("rows=8 columns=4"),
    "hip": Drawing("rows=8 columns=4 sinks=4 window=8"),
    "nsa": Drawing("block=4", "head 0 1"),
    "infllm_v2": Drawing("block=4 local=2 dense=0", "head 0 1"),
    "moba": Drawing("chunk=8", "head 0 1"),
    "landmark": Drawing("block=8", "head 0 1"),
    "quest": Drawing("page=4 dense=1", "layer 0 1"),
    "lserve": Drawing("page=4 sinks=4 window=16", "head 0 1 2 3"),
    "h2o": Drawing("recent=12", "head 0 1"),
    "snapkv": Drawing("window=4", "head 0 1"),
    "squeezed": Drawing("", "head 0 1"),
    "block_diffusion": Drawing("block=8"),
    "tree": Drawing("nodes=24"),
    "neighborhood_1d": Drawing("kernel=13"),
    "neighborhood_causal": Drawing("kernel=13 stride=4"),
    "neighborhood": Drawing("height=8 width=8 kernel=3"),
    "neighborhood_3d": Drawing(
        "frames=4 height=4 width=4 frame_kernel=3 row_kernel=3 column_kernel=3"
    ),
    "swin": Drawing("height=8 width=8 window=4", "layer 0 1"),
    "sliding_tile_heads": Drawing("tile=2 depth=2 rows=3 columns=5 text=4", "head 0 1"),
    "sliding_tile": Drawing(
        "tile=2 depth=2 rows=3 columns=5 depth_window=1 row_window=3 column_window=3 text=4"
    ),
}

# Larger ones, that the text of the page shows.
LARGE = {"lacache": Drawing("capacity=96", "layer 0 1", layers=32, length=512)}


# ------------------------------------------------------------------------------------- the text


def page(text: str, numbers: dict[str, Any]) -> str:
    """The page with its tables made anew."""
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"{PAGE} has lost its marks, {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + "\n" + "\n".join(tables(numbers)) + "\n" + END + after


def tables(numbers: dict[str, Any]) -> Iterator[str]:
    """The lines of the tables, a family at a time."""
    for family, names in FAMILIES.items():
        yield f"### {family}"
        yield ""
        yield "| | pattern | text | loops | waste |"
        yield "| --- | --- | --- | --- | --- |"
        for name in names.split():
            yield f"| {' | '.join(row(name, numbers[name]))} |"
        yield ""


def row(name: str, counted: dict[str, Any]) -> list[str]:
    """The cells of a pattern."""
    panels = max(1, len(DRAWINGS.get(name, Drawing()).panels.split()) - 1)
    width = SIDE // 2 if panels == 1 else SIDE
    picture = f'<img src="pictures/patterns/{name}.png" alt="{name}" width="{width}">'
    about = [f"**{name}**", library.summary(name), escaped(library.notes(name))]
    about.append(f"*{escaped(library.origin(name))}*")
    text = "<br>".join(f"`{line}`" for line in lines(name))
    return [
        picture,
        "<br>".join(part for part in about if part),
        text,
        counted["loops"],
        counted["waste"],
    ]


def escaped(words: str) -> str:
    """Words of a comment, as Markdown reads them."""
    return words.replace("*", r"\*").replace("|", r"\|")


def lines(name: str) -> list[str]:
    """The text of the pattern itself without its comment; helper patterns come first."""
    text = library.source(name).text
    return [" ".join(line.split()) for line in text.splitlines() if line and line[0] != "#"]


# ----------------------------------------------------------------------------------- the counts


def count(name: str) -> dict[str, str]:
    """How a pattern is lowered, and the area of the tiles it visits for each visible pair."""
    lengths = [NATURAL.get(name, LENGTH), SHORTER]
    if any(reads_positions(parameter) for parameter in load(name).tables):
        lengths = [SHORTER]  # each pair may have to be looked at
    for length in lengths:
        found = count_at(name, length)
        if found["waste"] != NOT_COUNTED:
            break
    return found


def reads_positions(table: Parameter) -> bool:
    """Whether a table may be read at a position, not only at a head, a layer or a sequence."""
    return isinstance(table.type, TableType) and not {None, "token"}.isdisjoint(table.type.axes)


def count_at(name: str, length: int) -> dict[str, str]:
    """`count` at one length; the waste is `NOT_COUNTED` where too many pairs would be looked at."""
    layers = example_values.USUAL_LAYERS.get(name, LAYERS)
    call = call_of(name, {}, length, layers)
    try:
        ways = call.candidates(TILE, TILE)
    except (ConfigError, UnsupportedError) as error:
        return {"loops": f"no: {error.message}", "waste": ""}
    passes = min(ways, key=lambda way: way.cost).passes
    loops = "exact" if not any(program.ignored for program in passes) else "bounds and mask"
    if len(passes) > 1:
        loops += f", {len(passes)} passes"
    try:
        found = explain(call, Problem("bfloat16", 128, 128))
    except UnsupportedError:
        return {"loops": loops, "waste": NOT_COUNTED}
    useful = sum(len(group.members) * group.work.useful_flops for group in found.groups)
    computed = sum(len(group.members) * group.work.computed_flops for group in found.groups)
    waste = f"{computed / useful:.2f}" if useful else ""
    if length != LENGTH:
        waste += f" at {length:,}"
    return {"loops": loops, "waste": waste}


def call_of(name: str, values: dict[str, Any], length: int, layers: int) -> Call:
    """A call of a library pattern, its tables and numbers from its example."""
    sizes = {"heads": HEADS, "kv_heads": HEADS, "layers": layers, "kv_len": length, "batch": 1}
    example = example_values.example(name, load(name, **values), sizes)
    found = example or example_values.Example()
    return Call.of(
        load(name, **{**found.numbers, **values}),
        length,
        heads=HEADS,
        layers=layers,
        tables=found.tables,
    )


# ---------------------------------------------------------------------------------- the pictures

# Hidden, visible, the space between panels.
PALETTE = ((236, 239, 243), (31, 90, 148), (255, 255, 255))
GAP = 8


def draw(name: str, drawing: Drawing | None = None) -> npt.NDArray[np.uint8]:
    """The picture of a pattern as places in the palette: uint8 `[height, width]`."""
    drawing = drawing or DRAWINGS.get(name, Drawing())
    values: dict[str, Any] = {
        key: int(value) for key, value in (v.split("=") for v in drawing.values.split())
    }
    call = call_of(name, values, drawing.length, drawing.layers)
    axis, *places = drawing.panels.split() or ["head", "0"]
    attention = patterncc.Attention(call.pattern)
    scale = max(1, SIDE // drawing.length)
    tensors: dict[str, Any] = {key: torch.from_numpy(table) for key, table in call.tables.items()}
    panels = []
    for place in places:
        mask = attention.mask(
            drawing.length,
            head=int(place) if axis == "head" else 0,
            layer=int(place) if axis == "layer" else 0,
            heads=HEADS,
            layers=drawing.layers,
            **tensors,
        )
        panels.append(mask.numpy().astype(np.uint8).repeat(scale, 0).repeat(scale, 1))
    return tiled(panels)


def tiled(panels: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Panels of one size in rows of two, with a space between them."""
    height, width = panels[0].shape
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    picture = np.full(shape, 2, np.uint8)
    for number, panel in enumerate(panels):
        down, across = (number // 2) * (height + GAP), (number % 2) * (width + GAP)
        picture[down : down + height, across : across + width] = panel
    return picture


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of places in `PALETTE`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    height, width = pixels.shape
    packed = np.zeros((height, math.ceil(width / 4) * 4), np.uint8)
    packed[:, :width] = pixels
    four = packed.reshape(height, -1, 4)  # two bits a pixel
    rows = four[..., 0] << 6 | four[..., 1] << 4 | four[..., 2] << 2 | four[..., 3]
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 2, 3, 0, 0, 0)
    palette = bytes(part for colour in PALETTE for part in colour)
    parts = [
        (b"IHDR", header),
        (b"PLTE", palette),
        (b"IDAT", zlib.compress(data, 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def large_picture(name: str) -> Path:
    """Where the larger picture of a pattern is."""
    return PICTURES.parent / f"{name}-large.png"


def read_png(file: bytes) -> npt.NDArray[np.uint8]:
    """The pixels of a file that `png` wrote, whichever zlib packed them."""
    place, parts = 8, {}
    while place < len(file):
        (size,) = struct.unpack(">I", file[place : place + 4])
        parts[file[place + 4 : place + 8]] = file[place + 8 : place + 8 + size]
        place += size + 12
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, -1)[:, 1:]
    four = np.stack([rows >> shift & 3 for shift in (6, 4, 2, 0)], -1)
    return four.reshape(height, -1)[:, :width]


def main() -> None:
    """Writes what is asked for, and the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", action="store_true", help="count all numbers anew")
    parser.add_argument("--draw", action="store_true", help="draw all pictures anew")
    parser.add_argument("names", nargs="*", help="only these patterns are counted and drawn")
    args = parser.parse_args()
    names = args.names or library.names()
    numbers = json.loads(NUMBERS.read_text(encoding="utf-8")) if NUMBERS.exists() else {}
    if args.count:
        for name in names:
            numbers[name] = count(name)
            print(name, *numbers[name].values(), flush=True)
            ordered = dict(sorted(numbers.items()))
            NUMBERS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    if args.draw:
        PICTURES.mkdir(parents=True, exist_ok=True)
        for name in names:
            (PICTURES / f"{name}.png").write_bytes(png(draw(name)))
        for name, drawing in LARGE.items():
            large_picture(name).write_bytes(png(draw(name, drawing)))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), numbers), encoding="utf-8")


if __name__ == "__main__":
    main()
