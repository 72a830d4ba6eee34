"""Heads with much and with little to do in one launch: the order of programs, on one GPU.

    python benchmarks/gpu_head_order.py [--heads N] [--kv-heads N] [--json]

Query tiles of one head one after another, or heads of one query tile; from the first tile on or
from the last. What `suited` chooses is marked. Results must be equal to the last bit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import triton
from rich.console import Console
from rich.table import Table

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import (
    KernelConfig,
    Neighbours,
    Order,
    default_config,
    suited,
    with_all_registers,
)
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.ir import BlockProgram, Passes
from patterncc.codegen.problem import Problem
from patterncc.dsl import load

LENGTHS = (8192, 32768, 131072)
ORDERS: tuple[tuple[Neighbours, Order], ...] = (
    ("tiles", "forward"),
    ("tiles", "reverse"),
    ("heads", "forward"),
    ("heads", "reverse"),
)


@dataclass(frozen=True)
class Row:
    """Median milliseconds of one pattern at one length.

    Attributes:
        name, length: Of the calls.
        times: By neighbours and order.
        chosen: What `suited` takes.
    """

    name: str
    length: int
    times: dict[str, float]
    chosen: str


def patterns(heads: int) -> dict[str, str]:
    """Patterns by name: a quarter of the heads sees all earlier keys, the others a window."""
    quarter = heads // 4

    def mixed(full: Sequence[int]) -> str:
        numbers = ", ".join(map(str, full))
        return f"if head in {{{numbers}}} then causal else window(1024)"

    return {
        "causal": "causal",
        "window of 1024": "window(1024)",
        "long heads first": mixed(range(quarter)),
        "long heads last": mixed(range(heads - quarter, heads)),
        "every fourth head long": mixed(range(0, heads, 4)),
        "one long head, the last": mixed([heads - 1]),
    }


def lowered(text: str, heads: int, config: KernelConfig) -> BlockProgram:
    """The one program of a pattern."""
    (program,) = lower_passes(
        load(text),
        config.block_q,
        config.block_k,
        sizes={"heads": heads},
        within=True,
        transposed=False,
    )
    return program


def measure(name: str, text: str, length: int, heads: int, kv_heads: int) -> Row:
    """Times one pattern in all orders.

    Raises:
        AssertionError: Results differ.
    """
    problem = Problem("bfloat16", 128, 128, heads // kv_heads)
    major, minor = torch.cuda.get_device_capability()
    target = f"cuda:{10 * major + minor}"
    base = with_all_registers(default_config(problem, target), target)
    program = lowered(text, heads, base)

    def lower(block_q: int, block_k: int) -> Sequence[Passes]:
        return [(program,)]

    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(1, count, length, 128, device="cuda", dtype=torch.bfloat16, generator=generator)
        for count in (heads, kv_heads, kv_heads)
    )
    times: dict[str, float] = {}
    first: torch.Tensor | None = None
    own = suited(base, problem, target, program)
    for neighbours, order in ORDERS:
        forward = Forward(lower, config=replace(own, neighbours=neighbours, order=order))

        def run(forward: Forward = forward) -> tuple[torch.Tensor, torch.Tensor]:
            return forward(query, key, value, env={"q_offset": 0}, scale=128**-0.5)

        out, _ = run()
        first = out if first is None else first
        assert torch.equal(out, first), f"{name}: {neighbours}, {order} gives other numbers"
        times[f"{neighbours} {order}"] = float(
            triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median")
        )
    return Row(name, length, times, f"{own.neighbours} {own.order}")


def rows(heads: int, kv_heads: int) -> Iterator[Row]:
    """All rows."""
    for name, text in patterns(heads).items():
        for length in LENGTHS:
            yield measure(name, text, length, heads, kv_heads)


def show(found: Sequence[Row]) -> None:
    """Prints the results for a person."""
    table = Table(title="forward, ms: neighbours and order of tiles")
    columns = [" ".join(each) for each in ORDERS]
    for column in ("pattern", "tokens", *columns):
        table.add_column(column, justify="left" if column == "pattern" else "right")
    for row in found:
        cells = (
            f"[bold]{time:.3f}*[/]" if column == row.chosen else f"{time:.3f}"
            for column, time in row.times.items()
        )
        table.add_row(row.name, f"{row.length:,}", *cells)
    Console(width=130).print(table)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = list(rows(options.heads, options.kv_heads))
    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    if options.json:
        print(json.dumps({"machine": machine, "rows": [asdict(row) for row in found]}, indent=2))
        return
    show(found)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))


if __name__ == "__main__":
    main()
