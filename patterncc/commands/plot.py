"""`patterncc plot`: the mask of a pattern as a picture, in a file or in the terminal."""

import argparse
from pathlib import Path

from rich.text import Text

from patterncc import picture, plot, terminal
from patterncc.call import Call
from patterncc.commands import console
from patterncc.commands.inputs import call_of, pattern_of, require_tables
from patterncc.dsl.errors import ConfigError
from patterncc.picture import Picture

MOST_PANELS = 64
TERMINAL_CELLS = 64  # most cells a side in a terminal


def run(args: argparse.Namespace) -> int:
    """Draws the picture, and says where it is."""
    call = call_of(pattern_of(args), args)
    require_tables(call)
    out = console.output()
    if args.output is None:
        colour = out.is_terminal and out.color_system is not None and not args.ascii
        unicode = not args.ascii and out.encoding.startswith("utf")
        cells = min(TERMINAL_CELLS, out.width - 8 if colour else (out.width - 8) // 2)
        for each in _pictures(call, args, cells):
            for line in _map(each, colour=colour, unicode=unicode):
                out.print(line)
        return 0
    path = Path(args.output)
    if path.suffix.lower() not in plot.FORMATS:
        raise ConfigError(f"--output {path} does not say what picture to make", plot.FORMATS)
    plot.require_matplotlib("leave out -o for a map in the terminal")
    with console.progress().status("drawing ..."):
        panels = len(args.layer or (0,)) * len(args.head or (0,))
        plot.save(_pictures(call, args, 512 if panels <= 2 else 256), path)
    out.print(f"wrote {path}", markup=False)
    return 0


def _pictures(call: Call, args: argparse.Namespace, cells: int) -> list[Picture]:
    layers, heads = args.layer or (0,), args.head or (0,)
    if len(layers) * len(heads) > MOST_PANELS:
        raise ConfigError(f"{len(layers) * len(heads)} pictures; the most is {MOST_PANELS}")
    return [
        picture.take(
            call,
            layer=layer,
            head=head,
            block_q=args.block_q,
            block_k=args.block_k,
            most_cells=cells,
        )
        for layer in layers
        for head in heads
    ]


def _map(each: Picture, *, colour: bool, unicode: bool) -> list[Text]:
    call = each.call
    title = f"{call.pattern.name or 'pattern'}, {call.q_len:,} queries, {call.kv_len:,} keys"
    if call.differs_by_layer:
        title += f", layer {each.layer}"
    if call.differs_by_head:
        title += f", head {each.head}"
    lines = terminal.coloured(each) if colour else terminal.plain(each, unicode=unicode)
    width = max((line.cell_len for line in lines), default=0)
    legend = terminal.legend(each, colour=colour, unicode=unicode)
    return [Text(title), *terminal.framed(each, lines, width), legend]
