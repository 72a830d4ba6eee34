"""What a call with packed documents does on the host before its kernel runs, up to 806,000 tokens.

    python benchmarks/packed_preparation.py [--calls N] [--json]

Every call is given a `cu_seqlens` that no call had before: with as many documents as the last one,
and with another number of them. The call is timed until it returns, launches among it, the device
idle before it. Beside it stands what takes the same memory and launches one small kernel, timed
after the same wait: caches are as cold, and the driver wakes the device as slowly. Without a GPU
launches do nothing, on CPU tensors of which no page is ever touched. Nothing may depend on the
number of tokens, and no call after the first may take a millisecond; the exit code says whether
that is so.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from host_overhead import without_device
from rich.console import Console
from rich.table import Table
from torch import Tensor

import patterncc

LIMIT = 1.0  # ms of a call after the first
PATTERNS = {
    "packed": "packed",
    "rebased chunks": (
        "pattern rebased(doc: segments):\n"
        "    causal and document(doc) and\n"
        "        (chunked(512) at (q - start(doc, q), k - start(doc, k)))\n"
    ),
}
TOKENS = (8_060, 80_600, 806_000)
DOCUMENTS = 128
HEADS, KV_HEADS, HEAD_DIM = 4, 1, 64

Run = Callable[[Tensor], object]
"""One call, or its host part, with a `cu_seqlens`."""


@dataclass(frozen=True)
class Row:
    """Milliseconds of the calls of one pattern at one number of tokens.

    Attributes:
        pattern, tokens: Of the calls.
        first: Of the first call of the process; compiles.
        again: Median of calls with new documents, as many as before.
        worst: The slowest of those.
        reshaped: Median of calls with another number of documents than any before.
        nothing: Median of what only takes the memory and launches a small kernel; 0 without a GPU.
    """

    pattern: str
    tokens: int
    first: float
    again: float
    worst: float
    reshaped: float
    nothing: float


def boundaries(tokens: int, documents: int, device: str, seed: int) -> Tensor:
    """A `cu_seqlens` `[documents + 1]`, int32, of documents of random lengths."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randint(0, tokens + 1, (documents - 1,), generator=generator).sort().values
    ends = torch.cat([torch.tensor([0]), inner, torch.tensor([tokens])])
    return ends.to(torch.int32).to(device)


def call(text: str, tokens: int, device: str) -> Run:
    """A call on a device."""
    attn = patterncc.compile(text)
    query, key, value = (
        torch.empty(1, heads, tokens, HEAD_DIM, device=device, dtype=torch.bfloat16)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )
    if device == "cuda":
        for tensor in (query, key, value):
            tensor.normal_()

    def run(doc: Tensor) -> object:
        with torch.no_grad():
            return attn(query, key, value, doc=doc)

    return run


def memory_and_launch(tokens: int) -> Run:
    """What any attention has to do: room for its results, and a launch."""
    small = torch.zeros(1, device="cuda")

    def run(doc: Tensor) -> object:
        shape = (1, HEADS, tokens, HEAD_DIM)
        out = torch.empty(shape, device="cuda", dtype=torch.bfloat16)
        lse = torch.empty(shape[:3], device="cuda", dtype=torch.float32)
        return out, lse, small.zero_()

    return run


def measure(name: str, tokens: int, calls: int, device: str) -> Row:
    """Times the calls of one pattern."""
    text = PATTERNS[name]
    run = call(text, tokens, device)

    def timed(documents: int, seed: int, run: Run = run) -> float:
        doc = boundaries(tokens, documents, device, seed)
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run(doc)
        took = 1e3 * (time.perf_counter() - start)
        if device == "cuda":
            torch.cuda.synchronize()
        return took

    first = timed(DOCUMENTS, 0)
    timed(DOCUMENTS, 1)  # the allocator's first blocks
    again = [timed(DOCUMENTS, 2 + number) for number in range(calls)]
    reshaped = [timed(DOCUMENTS + 1 + number, number) for number in range(calls)]
    nothing = [0.0]
    if device == "cuda":
        least = memory_and_launch(tokens)
        nothing = []
        for number in range(calls):
            timed(DOCUMENTS, number)  # leaves the machine as the calls above do
            nothing.append(timed(DOCUMENTS, number, least))
    return Row(
        name,
        tokens,
        first,
        statistics.median(again),
        max(again),
        statistics.median(reshaped),
        statistics.median(nothing),
    )


def rows(calls: int, device: str) -> Iterator[Row]:
    """All rows."""
    for name in PATTERNS:
        for tokens in TOKENS:
            yield measure(name, tokens, calls, device)


def per_token(found: list[Row], name: str) -> float:
    """Nanoseconds that a further token adds to a call with new documents."""
    least, *_, most = [row for row in found if row.pattern == name]
    return 1e6 * (most.again - least.again) / (most.tokens - least.tokens)


def show(found: list[Row], machine: dict[str, object]) -> None:
    """Prints the results for a person."""
    console = Console()
    table = Table(title=f"{DOCUMENTS} documents, ms of a call on the host")
    for column in (
        "pattern",
        "tokens",
        "first",
        "new documents",
        "slowest",
        "another shape",
        "nothing",
    ):
        table.add_column(column, justify="left" if column == "pattern" else "right")
    for row in found:
        times = (row.first, row.again, row.worst, row.reshaped, row.nothing)
        table.add_row(row.pattern, f"{row.tokens:,}", *(f"{time:.3f}" for time in times))
    console.print(table)
    for name in PATTERNS:
        console.print(f"{name}: {per_token(found, name):+.4f} ns for each further token")
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))


def main() -> int:
    """Measures and prints. Returns 1 if a call after the first takes a millisecond."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=50, help="of each kind (default 50)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.calls < 1:
        parser.error("--calls must be at least 1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        without_device()
    found = list(rows(options.calls, device))
    machine: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "none, launches do nothing",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if options.json:
        print(json.dumps({"machine": machine, "rows": [asdict(row) for row in found]}, indent=2))
    else:
        show(found, machine)
    return int(any(max(row.again, row.reshaped) >= LIMIT for row in found))


if __name__ == "__main__":
    sys.exit(main())
