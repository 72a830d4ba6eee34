"""Patterns whose keys come in runs narrower than a tile: what narrower key tiles gain, on one GPU.

    python benchmarks/gpu_key_tiles.py [--length N] [--json]

A run of 32 keys out of 128 makes every tile of 64 keys partial and half of it vain; in tiles of 32
keys it is a progression of full tiles. Whether that is worth the shorter steps of the kernel is
what this measures: the forward in milliseconds, and the area of the visited tiles over the visible
pairs. Patterns without runs show what narrow tiles cost.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
import triton
from rich.console import Console
from rich.table import Table

from patterncc.call import Call
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.facts.counts import count_tiles
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.codegen.gpu.config import KernelConfig, check_config, loads, tile_order
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.ir import Passes
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError

HEADS = 16
PATTERNS = {
    "sparse_fixed, runs of 32": "sparse_fixed",
    "chunks and runs of 32": "causal and (chunked(128) or k // 32 % 4 == 3)",
    "window and runs of 32, 1 in 16": "causal and (window(512) or k // 32 % 16 == 3)",
    "window and runs of 16, 1 in 8": "causal and (window(512) or k // 16 % 8 == 3)",
    "causal": "causal",
    "window of 1024": "window(1024)",
}
TILES = (
    (64, 64, 4, 3),
    (64, 32, 4, 3),
    (64, 32, 4, 4),
    (64, 32, 4, 6),
    (64, 16, 4, 6),
    (128, 64, 8, 3),
    (128, 32, 8, 4),
    (128, 32, 4, 4),
)


@dataclass(frozen=True)
class Row:
    """One pattern in tiles of one shape.

    Attributes:
        name: Of the pattern.
        tile: Rows, keys, warps, stages.
        milliseconds: Of a forward call, median.
        waste: Area of the visited tiles over the visible pairs.
        full: The part of the visited tiles that needs no mask.
    """

    name: str
    tile: tuple[int, int, int, int]
    milliseconds: float
    waste: float
    full: float


def lowered(text: str, tile: tuple[int, int, int, int]) -> Passes:
    """The passes of a pattern in tiles of a shape."""
    return lower_passes(
        load(text), *tile[:2], sizes={"heads": HEADS}, within=True, transposed=False
    )


def counted(text: str, passes: Passes, length: int) -> tuple[float, float]:
    """Waste, and the part of the tiles that are full, over all heads."""
    pattern = load(text)
    call = Call.of(pattern, length, heads=HEADS)
    pairs = pair_program(pattern, call.sizes, transposed=False)
    visible = visited = full = area = 0
    for head in range(HEADS):
        env = call.env(head)
        visible += int(count_pairs(pairs, env).rows.sum())
        for program in passes:
            tiles = count_tiles(program, env)
            visited += tiles.visited
            full += tiles.full
            area += tiles.visited * program.block_q * program.block_k
    return area / visible, full / visited


def measure(name: str, length: int) -> Iterator[Row]:
    """Times one pattern in tiles of all shapes.

    Raises:
        AssertionError: Results differ by more than rounding.
    """
    text = PATTERNS[name]
    problem = Problem("bfloat16", 128, 128)
    major, minor = torch.cuda.get_device_capability()
    target = f"cuda:{10 * major + minor}"
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(1, HEADS, length, 128, device="cuda", dtype=torch.bfloat16, generator=generator)
        for _ in range(3)
    )
    numbers = {each.name: each.value for each in load(text).numbers if each.value is not None}
    env = {"q_offset": 0, "layer": 0, **numbers}
    load_by = loads(target)[0]
    expected: torch.Tensor | None = None
    for tile in TILES:
        passes = lowered(text, tile)
        config = KernelConfig(*tile, load_by, tile_order(passes[0]))  # type: ignore[arg-type]
        try:
            check_config(config, problem, target)
        except ConfigError:
            continue

        def lower(block_q: int, block_k: int, passes: Passes = passes) -> Sequence[Passes]:
            return [passes]

        forward = Forward(lower, config=config)

        def run(forward: Forward = forward) -> tuple[torch.Tensor, torch.Tensor]:
            return forward(query, key, value, env=env, scale=128**-0.5)

        out, _ = run()
        expected = out if expected is None else expected
        error = (out.float() - expected.float()).abs().max().item()
        assert error < 0.02, f"{name}, {tile}: {error}"
        time = float(triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median"))
        yield Row(name, tile, time, *counted(text, passes, length))


def show(found: Sequence[Row], length: int) -> None:
    """Prints the results for a person."""
    table = Table(title=f"forward, {length:,} tokens, {HEADS} heads, head_dim 128, bf16")
    for column in ("pattern", "tile", "ms", "waste", "full"):
        table.add_column(column, justify="left" if column == "pattern" else "right")
    for row in found:
        rows, keys, warps, stages = row.tile
        tile = f"{rows}x{keys}, {warps} warps, {stages} stages"
        cells = (f"{row.milliseconds:.3f}", f"{row.waste:.2f}", f"{row.full:.0%}")
        table.add_row(row.name, tile, *cells)
    Console(width=110).print(table)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = [row for name in PATTERNS for row in measure(name, options.length)]
    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    if options.json:
        print(json.dumps({"machine": machine, "rows": [asdict(row) for row in found]}, indent=2))
        return
    show(found, options.length)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))


if __name__ == "__main__":
    main()
