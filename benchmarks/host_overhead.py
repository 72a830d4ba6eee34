"""What a call costs the host: microseconds until it returns, for a problem too small for the device
to be the limit.

    python benchmarks/host_overhead.py [--rounds N] [--case NAME] [--json]

Each case is timed in short loops, one case after the other, round by round, so that whatever slows
the machine down slows all of them; the device is idle when a loop begins and its queue is never
full. Beside the calls stand operators that do nothing, registered as patterncc's are and by
`torch.library.custom_op`, and torch's own attention. Without a GPU only the host's part is timed,
on CPU tensors, with all but the driver's launch. The exit code says whether a call in eager
inference costs at most 12 us more than an operator that does nothing, which is asked for on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import patterncc

LIMIT = 12.0  # us of an eager call in inference above an operator that does nothing
EMPTY, DECORATED = "an operator that does nothing", "the same by torch.library.custom_op"
INFERENCE = "inference"
BATCH, HEADS, LENGTH, HEAD_DIM = 1, 4, 128, 64
FORWARDS, BACKWARDS = 100, 25  # in a loop: their launches all fit into the device's queue

_torch: Any = torch  # the parts of torch that have no types
_library = _torch.library.Library("host_overhead", "DEF")

Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """Microseconds of the calls of one case.

    Attributes:
        case: What was called.
        median: Over the rounds.
        least: Of them.
        above_empty: The median above that of an operator that does nothing.
        above_decorated: The same for an operator made by `torch.library.custom_op`.
    """

    case: str
    median: float
    least: float
    above_empty: float
    above_decorated: float


def empty_operators(query: Tensor, key: Tensor, value: Tensor) -> dict[str, Run]:
    """Operators that do nothing, and one that only makes room for results."""
    dispatch = query.device.type.upper()
    inputs = "Tensor query, Tensor key, Tensor value"
    _library.define(f"nothing({inputs}) -> ()")
    _library.define(f"room({inputs}) -> (Tensor, Tensor)")
    _library.impl("nothing", lambda *_: None, dispatch)

    def room(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)

    _library.impl("room", room, dispatch)

    def nothing(query: Tensor, key: Tensor, value: Tensor) -> None:
        pass

    by_decorator: Any = torch.library.custom_op("host_overhead::decorated", mutates_args=())(
        nothing
    )
    operators = torch.ops.host_overhead
    bare, with_room = operators.nothing.default, operators.room.default
    return {
        EMPTY: lambda: bare(query, key, value),
        DECORATED: lambda: by_decorator(query, key, value),
        "one that makes room for out and lse": lambda: with_room(query, key, value),
    }


def cases(device: str) -> dict[str, Callable[[], Run]]:
    """What makes each case ready to be timed, by name; all of it without a graph unless it says
    so."""

    def draw(heads: int = HEADS) -> Tensor:
        shape = (BATCH, heads, LENGTH, HEAD_DIM)
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    query, key, value = draw(), draw(), draw()
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    window = patterncc.compile("pattern w(n = 64): 0 <= q - k < n")
    streaming = patterncc.compile("streaming(sinks = 4, window = 64)")
    union = patterncc.compile("window(512) or dilated(512, 8)")
    by_head = patterncc.compile("pattern by_head(w: int[head]): 0 <= q - k < w[head]")
    packed = patterncc.compile("packed")
    scored: Any = patterncc.compile(
        "causal", score="softcap(score, 20) + slopes[head] * (k - q)", sink="sinks[head]"
    )
    widths = torch.full((HEADS,), 64, dtype=torch.int32, device=device)
    wide = widths.long()
    doc = torch.tensor([0, 30, 100, LENGTH], dtype=torch.int32, device=device)
    read = {"slopes": torch.zeros(HEADS, device=device), "sinks": torch.zeros(HEADS, device=device)}
    learned = {name: table.clone().requires_grad_() for name, table in read.items()}
    sdpa = torch.nn.functional.scaled_dot_product_attention
    side = torch.randn_like(query)
    # Documents that no step before had, in another number from step to step.
    drawn = [torch.arange(count + 1, dtype=torch.int32) for count in range(8, LENGTH)]
    turns = itertools.cycle([(ends * LENGTH // ends[-1]).to(device) for ends in drawn])

    def step(attn: Any, tables: Callable[[], dict[str, Tensor]]) -> Run:
        return enabled(
            lambda: torch.autograd.grad(attn(*leaves, **tables()), leaves, side),
        )

    def by_operator() -> Run:
        streaming(query, key, value)  # there is an operator since the first call
        operator = torch.ops.patterncc.attn_fwd.default
        options: dict[str, Any] = {
            "pattern": streaming.pattern.structure,
            "scale": None,
            "q_offset": None,
            "layer": 0,
            "layers": None,
            "numbers": [],
            "tables": [],
        }
        return lambda: operator(query, key, value, **options)

    def backward(
        attn: Any,
        inputs: list[Tensor],
        tables: dict[str, Tensor] | None = None,
        *,
        lse: bool = False,
    ) -> Run:
        tables = tables or {}
        with torch.enable_grad():
            found = attn(*inputs, return_lse=True, **tables)
        results = tuple(found) if lse else (found[0],)
        grads = tuple(map(torch.randn_like, results))
        needing = [each for each in (*inputs, *tables.values()) if each.requires_grad]
        return lambda: torch.autograd.grad(results, needing, grads, retain_graph=True)

    simple: dict[str, Run] = {
        INFERENCE: lambda: streaming(query, key, value),
        "and the lse": lambda: streaming(query, key, value, return_lse=True),
        "a run-time number": lambda: window(query, key, value, n=50),
        "two passes": lambda: union(query, key, value),
        "a table of heads, int32": lambda: by_head(query, key, value, w=widths),
        "a table of heads, int64": lambda: by_head(query, key, value, w=wide),
        "packed documents": lambda: packed(query, key, value, doc=doc),
        "score terms": lambda: scored(query, key, value, **read),
        "torch's own attention": lambda: sdpa(query, key, value),
        "a training step": step(streaming, dict),
        "a training step, new documents": step(packed, lambda: {"doc": next(turns)}),
        "a training step, new documents, int64": step(packed, lambda: {"doc": next(turns).long()}),
        "forward of a graph": enabled(lambda: streaming(*leaves)),
        "forward of a graph, score terms": enabled(lambda: scored(*leaves, **learned)),
    }
    return {
        **{name: lambda run=run: run for name, run in simple.items()},  # type: ignore[misc]
        "the operator, all arguments": by_operator,
        "backward": lambda: backward(streaming, leaves),
        "backward of out and lse": lambda: backward(streaming, leaves, lse=True),
        "backward, the query's gradient": lambda: backward(streaming, [leaves[0], key, value]),
        "backward, score terms": lambda: backward(scored, leaves, learned),
    }


def enabled(run: Run) -> Run:
    """The same with a graph."""

    def recorded() -> object:
        with torch.enable_grad():
            return run()

    return recorded


def without_device() -> None:
    """Lets CPU tensors go the way of a GPU's, down to launches that do nothing."""
    from patterncc import gpu_calls, ops  # noqa: F401  the last one defines the operators
    from patterncc.codegen.gpu import backward, forward, launch

    class Kernel:
        def __init__(self, source: Any) -> None:
            self.source = source

        def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
            return lambda *_, **__: None

    def direct_launcher(kernel: Any) -> launch.DirectLauncher:
        described = [one for one in kernel.source.parameters if one.box]
        options = (0, False, False, None, None, (4, 1, 0), None, None, None)
        encoders = tuple((lambda *_: object()) for _ in described)
        return launch.DirectLauncher(lambda *_: None, options, encoders)

    modules: Any = (launch, forward, backward)
    for module in modules:
        module.target_of = lambda device: "cuda:90"
    modules[0].kernel_of = lambda source, device, **_: Kernel(source)
    modules[0].direct_launcher = direct_launcher
    gpu: Any = gpu_calls
    gpu.look_into = lambda call, tables: None  # a GPU's tables are not read
    library = _torch.library.Library("patterncc", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it overrides what runs on CPUs
        for name in ("attn_fwd", "attn_bwd"):
            library.impl(name, getattr(gpu_calls, name), "CPU", allow_override=True)
    globals()["_kept"] = library  # what it registers lives as long as it does
    _torch.Tensor.is_cuda = True  # they say so


def timed(name: str, run: Run, device: str) -> float:
    """Microseconds of one call of a case, the mean of a short loop."""
    calls = BACKWARDS if name.startswith(("backward", "a training step")) else FORWARDS
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return 1e6 * (time.perf_counter() - start) / calls


def measure(rounds: int, device: str, wanted: list[str]) -> list[Row]:
    """Times the cases that are wanted, round by round; all of them if none are named."""
    small = torch.zeros(BATCH, HEADS, LENGTH, HEAD_DIM, device=device, dtype=torch.bfloat16)
    runs = empty_operators(small, small, small)
    for name, make in cases(device).items():
        if not wanted or name in wanted or name == INFERENCE:
            runs[name] = make()
    found: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for number in range(rounds + 2):  # the first two compile and warm up
            for name, run in runs.items():
                took = timed(name, run, device)
                if number >= 2:
                    found[name].append(took)
        with torch.inference_mode():
            name = "inference, in inference_mode"
            found[name] = [timed(name, runs[INFERENCE], device) for _ in range(rounds)]
    medians = {name: statistics.median(times) for name, times in found.items()}
    return [
        Row(
            name,
            medians[name],
            min(times),
            medians[name] - medians[EMPTY],
            medians[name] - medians[DECORATED],
        )
        for name, times in found.items()
    ]


def show(rows: list[Row], machine: dict[str, object]) -> None:
    """Prints the results for a person."""
    console = Console()
    table = Table(title=f"us of a call on the host, {LENGTH} tokens, {HEADS} heads")
    for column in ("case", "median", "least", "above nothing", "above custom_op"):
        left = column == "case"
        table.add_column(column, justify="left" if left else "right", no_wrap=left)
    for row in rows:
        numbers = (row.median, row.least, row.above_empty, row.above_decorated)
        table.add_row(row.case, *(f"{number:.1f}" for number in numbers))
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))


def main() -> int:
    """Measures and prints. Returns 1 if a call costs a GPU's host more than the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40, help="loops of each case (default 40)")
    parser.add_argument("--case", action="append", default=[], help="time this one; repeatable")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "none, launches do nothing",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device == "cpu":
        without_device()
    rows = measure(options.rounds, device, options.case)
    if options.json:
        print(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=1))
    else:
        show(rows, machine)
    above = next(row.above_empty for row in rows if row.case == INFERENCE)
    return int(device == "cuda" and above > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
