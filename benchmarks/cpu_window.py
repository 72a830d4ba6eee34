"""Times block-sparse attention on the CPU against dense and compiled flex attention.

    python benchmarks/cpu_window.py [--backward] [--tokens N] [--repeat N] [--patterns NAME ...]
                                    [--json FILE]

All contenders run in one process on the same input, one after another in each round, in a new order
each round, so that whatever else the machine does falls on all alike. Dense attention gets the same
boolean mask, flex attention its block mask built beforehand. With `--backward` a run is the output
and then the gradients of query, key and value, of which flex attention has none on the CPU. The
exit code is 1 where a goal of the window pattern is missed: five times as fast as dense attention,
and faster than flex attention.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# Threads that spin while they wait for each other make all contenders depend on what else runs on a
# shared machine, several times over. To be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import patterncc
from patterncc.codegen.cpu import cpu_kernel_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

GOAL = "window"
DENSE_GOAL = 5.0

# Name -> the pattern, and the same as the function of positions that flex attention takes.
PATTERNS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "window": (
        "window(512)",
        lambda q, k: (k <= q) & (q - k < 512),
    ),
    "streaming": (
        "causal and (sinks(64) or window(512))",
        lambda q, k: (k <= q) & ((k < 64) | (q - k < 512)),
    ),
    "local_strided": (
        "local_strided(64, 8, 8)",
        lambda q, k: (k <= q) & ((q // 64 - k // 64 < 8) | ((k // 64 + 1) % 8 == 0)),
    ),
    "chunked": (
        "causal and chunked(512)",
        lambda q, k: (k <= q) & (q // 512 == k // 512),
    ),
    "dilated": (
        "dilated(128, 8)",
        lambda q, k: (k <= q) & (q - k < 1024) & ((q - k) % 8 == 0),
    ),
    "causal": (
        "causal",
        lambda q, k: k <= q,
    ),
}


@dataclass
class Contender:
    """Times of one implementation on one pattern, in milliseconds.

    Attributes:
        name: Of the implementation.
        first: The first call; compiles, plans.
        prepare: Before the first call: what depends on the pattern and the lengths.
        times: Of the rounds.
        busy: Processor time of the rounds, of all threads together; shows what a loaded machine
            hides.
        error: Largest difference of the output, or of a gradient, from that of dense attention in
            float64.
    """

    name: str
    first: float
    prepare: float
    error: float
    times: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    @property
    def least(self) -> float:
        """Of the rounds: closest to what the machine can do."""
        return min(self.times)

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.times)


@dataclass
class Result:
    """One pattern: its density and all contenders, patterncc first, dense attention second."""

    name: str
    text: str
    density: float
    contenders: list[Contender]

    def ratio(self, other: Contender) -> tuple[float, float, float]:
        """How many times as long another takes, of medians, least times and least busy times."""
        ours = self.contenders[0]
        return (
            other.median / ours.median,
            other.least / ours.least,
            min(other.busy) / min(ours.busy),
        )


def milliseconds(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def measure(
    name: str, shape: tuple[int, int, int, int], rounds: int, flex: bool, backward: bool
) -> Result:
    """All contenders on one pattern."""
    text, function = PATTERNS[name]
    query, key, value, grad = (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(4)
    )
    inputs = tuple(x.requires_grad_(backward) for x in (query, key, value))
    tokens = shape[2]
    pattern = patterncc.compile(text)
    mask = pattern.mask(tokens)

    attentions: dict[str, Callable[..., Tensor]] = {
        "patterncc": pattern,
        "dense": partial(scaled_dot_product_attention, attn_mask=mask),
    }
    prepared = {}
    if flex and not backward:
        start = time.perf_counter()
        block_mask = create_block_mask(
            lambda b, h, q, k: function(q, k), None, None, tokens, tokens, device="cpu"
        )
        prepared["flex"] = 1e3 * (time.perf_counter() - start)
        torch.compiler.reset()  # else a few patterns make a compiled function give up
        compiled = torch.compile(flex_attention, dynamic=False)
        attentions["flex"] = partial(compiled, block_mask=block_mask)

    def run(name: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        out = attentions[name](*tensors)
        return torch.autograd.grad(out, tensors, grad.to(out.dtype)) if backward else (out,)

    exact = [x.detach().double().requires_grad_(backward) for x in inputs]
    expected = run("dense", *exact)
    contenders = {}
    for other in attentions:
        first = milliseconds(partial(run, other, *inputs))
        found = zip(run(other, *inputs), expected, strict=True)
        error = max((one - wanted).abs().max().item() for one, wanted in found)
        contenders[other] = Contender(other, first, prepared.get(other, 0.0), error)
    order = list(attentions)
    for _ in range(rounds):
        for other in order:
            busy = time.process_time()
            contenders[other].times.append(milliseconds(partial(run, other, *inputs)))
            contenders[other].busy.append(1e3 * (time.process_time() - busy))
        order = order[1:] + order[:1]
    return Result(name, text, mask.float().mean().item(), list(contenders.values()))


def processor() -> str:
    """What the processor calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show(results: list[Result], machine: dict[str, object]) -> None:
    """Prints the results for a person."""
    table = Table(title=f"{machine['run']} of attention on the CPU, milliseconds")
    for column in ("pattern", "density", "contender", "median", "least", "busy", "times ours"):
        table.add_column(column, justify="left" if column in ("pattern", "contender") else "right")
    for column in ("first call", "prepare", "error"):
        table.add_column(column, justify="right")
    for result in results:
        for contender in result.contenders:
            ours = contender is result.contenders[0]
            ratios = "" if ours else "{:.2f} ({:.2f}, {:.2f})".format(*result.ratio(contender))
            table.add_row(
                result.text if ours else "",
                f"{result.density:.3f}" if ours else "",
                contender.name,
                f"{contender.median:.1f}",
                f"{contender.least:.1f}",
                f"{min(contender.busy):.1f}",
                ratios,
                f"{contender.first:.0f}",
                f"{contender.prepare:.0f}" if contender.prepare else "",
                f"{contender.error:.0e}",
                end_section=contender is result.contenders[-1],
            )
    console = Console(width=max(110, Console().width))
    console.print(table)
    console.print("busy: least processor time of all threads")
    console.print("times ours: of medians (of least times, of least processor times)")
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))


def missed(results: list[Result]) -> list[str]:
    """The goals that were not met, as sentences."""
    faults = []
    for result in results:
        for contender in result.contenders[1:]:
            goal = DENSE_GOAL if contender.name == "dense" else 1.0
            ratio, _, _ = result.ratio(contender)
            if result.name == GOAL and ratio < goal:
                faults.append(
                    f"{result.text}: {contender.name} takes {ratio:.2f} times, not {goal}"
                )
    return faults


def main() -> int:
    """Measures and prints. Returns 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=15, help="rounds (default 15)")
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--backward", action="store_true", help="forward and backward together")
    parser.add_argument("--no-flex", action="store_true", help="leave out what must be compiled")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    options = parser.parse_args()
    for name in ("tokens", "heads", "head_dim", "threads", "repeat"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")

    torch.set_num_threads(options.threads)
    shape = (1, options.heads, options.tokens, options.head_dim)
    steps = track(options.patterns, "patterns", console=Console(stderr=True), transient=True)
    flex = not options.no_flex
    results = [measure(name, shape, options.repeat, flex, options.backward) for name in steps]
    machine = {
        "run": "forward and backward" if options.backward else "forward",
        "processor": processor(),
        "threads": options.threads,
        "wait policy": os.environ["OMP_WAIT_POLICY"],
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "patterncc": patterncc.__version__,
        "kernel": cpu_kernel_name(options.backward),
        "batch, heads, tokens, head dim": shape,
        "type": "float32",
        "rounds": options.repeat,
    }
    show(results, machine)
    if options.json is not None:
        found = {"machine": machine, "patterns": [asdict(result) for result in results]}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    faults = missed(results)
    for fault in faults:
        print(fault, file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
