"""What it costs that numbers which are not finite stay with the rows that see them.

    python benchmarks/gpu_isolation.py --out results            # two minutes
    python benchmarks/gpu_isolation.py --out results --forward  # Gluon's kernels alone: 50 seconds

Times calls whose numbers are all finite, turn by turn on the same GPU: forward by Gluon's kernels,
which isolate by default, and with `isolate=False`; forward and backward by Triton's with
`isolate=True`, whose repairs start early, or when the kernel before them has ended, and with False.
Each has a process of its own, so that all compile at once. Before that each isolating process
plants numbers that are not finite and looks at what they reach. `results/gpu_isolation.json` keeps
everything; times are medians of GPU milliseconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton  # noqa: F401  (imported once, before the processes part)

HEADS, LENGTH, SMALL, ODD = 16, 16384, 256, 701


class Case(NamedTuple):
    """Calls to time.

    Attributes:
        text: Of the pattern.
        width: Head dimension.
        emitter: What writes the forward kernels.
        documents: Whether it takes documents, as `doc`.
    """

    text: str
    width: int
    emitter: str
    documents: bool = False


CASES = {
    "causal, Gluon 128x128": Case("causal", 128, "gluon"),
    "causal, Triton": Case("causal", 128, "triton"),
    "window 1024, Gluon": Case("window(1024)", 128, "gluon"),
    "window 1024, Triton": Case("window(1024)", 128, "triton"),
    "causal, D64, Gluon 64x128": Case("causal", 64, "gluon"),
    "window 1024, D64, Gluon": Case("window(1024)", 64, "gluon"),
}
LOOKED_AT = {
    "passes, Gluon": Case("window(512) or dilated(512, 8)", 128, "gluon"),
    "documents, Gluon": Case(
        "pattern p(doc: segments): causal and doc[q] == doc[k]", 128, "gluon", documents=True
    ),
}
"""Cases that are not timed: only what is spread is looked at."""

ISOLATE = {"off": False, "default": None, "isolating": True, "isolating, in turn": True}
"""What `isolate` is, by label."""

LABELS = {"gluon": ("off", "default"), "triton": ("off", "isolating", "isolating, in turn")}
"""What is timed, by emitter."""


def milliseconds(run: Any, turns: int) -> float:
    """The median GPU time of a run."""
    run()
    times = []
    for _ in range(turns):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(200_000)  # the host is ahead when the clock starts
        start.record()
        run()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in times)


def microseconds_of_host(run: Any, turns: int = 300) -> float:
    """Time per call of a loop that waits at its end alone."""
    run()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(turns):
        run()
    took = time.perf_counter() - begin
    torch.cuda.synchronize()
    return took / turns * 1e6


def spread(attn: Any, case: Case) -> list[str]:
    """What numbers that are not finite reach that they must not, in a call of ragged lengths."""
    torch.manual_seed(0)
    tensors = [torch.randn(1, 2, ODD, case.width, device="cuda").bfloat16() for _ in range(4)]

    given = {}
    if case.documents:
        given["doc"] = torch.tensor([0, 63, 250, 250, 400, ODD], dtype=torch.int32)
    mask = attn.mask(ODD, **given).cuda()
    given = {name: table.cuda() for name, table in given.items()}

    def results(parts: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if case.emitter == "gluon":  # its backward is Triton's
            with torch.no_grad():
                return (attn(*parts[:3], **given),)
        leaves = [part.detach().requires_grad_() for part in parts[:3]]
        out = attn(*leaves, **given)
        return (out.detach(), *torch.autograd.grad(out, leaves, parts[3]))

    clean = results(tensors)
    found = []
    for place in (63, 64, 127, 128, 300, ODD - 1):
        for which, number, column in ((2, "nan", None), (1, "inf", None), (2, "-inf", 3)):
            wild = [part.clone() for part in tensors]
            wild[which][0, 1, place, slice(None) if column is None else column] = float(number)
            rows = mask[:, place]
            keys = (mask & rows[:, None]).any(0)
            for name, one, other, touched in zip(
                ("out", "query", "key", "value"),
                results(wild),
                clean,
                (rows, rows, keys, keys),
                strict=False,
            ):
                others = torch.ones(2, ODD, dtype=torch.bool, device="cuda")
                others[1] = ~touched
                if not torch.equal(one[0][others], other[0][others]):
                    worst = (one[0][others] - other[0][others]).abs().max()
                    found.append(f"{name}: differs by {float(worst)} for {which} {number} {place}")
                if (
                    name == "out"
                    and column is None
                    and bool(one[0, 1][rows].isfinite().all(1).any())
                ):
                    found.append(f"{name}: finite where {which} {number} {place} is seen")
    query, key, value, _ = tensors
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = attn(query, key, value, **given)
    value[0, 1, 300] = float("nan")
    graph.replay()
    others = torch.ones(2, ODD, dtype=torch.bool, device="cuda")
    others[1] = ~mask[:, 300]
    if not torch.equal(out[0][others], clean[0][0][others]):
        found.append("a graph does not repair")
    return found


def worker(label: str, case: Case, pipe: Connection) -> None:
    """Times one pattern, as it is told to."""
    import patterncc
    from patterncc import launchers
    from patterncc.codegen.gpu import repair_plan
    from patterncc.codegen.gpu.emitter_choice import EmitterChoice

    if case.emitter == "triton":
        launchers.emitter_choice = lambda *_: EmitterChoice(None, "asked for")  # type: ignore
    repair_plan._LONG = 0
    if label == "isolating, in turn":
        repair_plan._overlaps = lambda _: False
    isolate = ISOLATE[label]
    attn = patterncc.compile(case.text, isolate=isolate)
    begin = time.perf_counter()
    complaints = [] if isolate is False else spread(attn, case)
    print(f"{label:20} {case.text} {case.emitter} {time.perf_counter() - begin:.1f} s", flush=True)
    if case in LOOKED_AT.values():
        pipe.send(complaints)
        return
    inputs: dict[int, tuple[torch.Tensor, ...]] = {}
    for length in (SMALL, LENGTH):
        torch.manual_seed(0)
        parts = torch.randn(4, 1, HEADS, length, case.width, device="cuda").bfloat16()
        inputs[length] = tuple(part.clone() for part in parts)

    def forward(length: int, values: torch.Tensor | None = None) -> Any:
        query, key, value, _ = inputs[length]
        value = value if values is None else values

        def run() -> None:
            with torch.no_grad():
                attn(query, key, value)

        return run

    def backward(length: int) -> Any:
        query, key, value, grad = inputs[length]
        leaves = [part.detach().requires_grad_() for part in (query, key, value)]
        out = attn(*leaves)
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

    for length in inputs:
        forward(length)()
        if case.emitter == "triton":
            backward(length)()
    torch.cuda.synchronize()
    pipe.send(complaints)
    while pipe.recv() != "stop":
        found = {
            "forward": milliseconds(forward(LENGTH), 15),
            "small forward": milliseconds(forward(SMALL), 100),
            "small forward, host (us)": microseconds_of_host(forward(SMALL)),
        }
        if case.emitter == "gluon":
            spoiled = inputs[LENGTH][2].clone()
            spoiled[:, :, LENGTH // 2] = float("nan")
            found["forward, a row is NaN"] = milliseconds(forward(LENGTH, spoiled), 5)
        if case.emitter == "triton":
            found["backward"] = milliseconds(backward(LENGTH), 10)
            found["small backward"] = milliseconds(backward(SMALL), 50)
        pipe.send(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--forward", action="store_true", help="Gluon's kernels alone")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # Forked: none of them imports torch again, and this process never touches the GPU.
    context = multiprocessing.get_context("fork")
    pipes = {}
    cases = {n: c for n, c in CASES.items() if c.emitter == "gluon" or not arguments.forward}
    wanted = [(label, name, case) for name, case in cases.items() for label in LABELS[case.emitter]]
    wanted += [("default", name, case) for name, case in LOOKED_AT.items()]
    for label, name, case in wanted:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(label, case, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes[label, name] = ours
    complaints: dict[str, list[str]] = {}
    for (label, name), pipe in list(pipes.items()):
        try:
            complaints[f"{label}: {name}"] = pipe.recv()
        except EOFError:  # its process has said why
            complaints[f"{label}: {name}"] = ["failed"]
            del pipes[label, name]
    times: dict[str, dict[str, dict[str, list[float]]]] = {}
    for turn in range(arguments.rounds):
        for name, case in cases.items():
            labels = LABELS[case.emitter]
            for label in labels if turn % 2 == 0 else reversed(labels):
                if (label, name) not in pipes:
                    continue
                pipes[label, name].send("time")
                for what, one in pipes[label, name].recv().items():
                    here = times.setdefault(name, {}).setdefault(what, {})
                    here.setdefault(label, []).append(one)
    document = {"heads": HEADS, "length": LENGTH, "times": times, "complaints": complaints}
    (arguments.out / "gpu_isolation.json").write_text(json.dumps(document, indent=1))
    for name, by_kind in times.items():
        for what, by_label in by_kind.items():
            best = {label: min(found) for label, found in by_label.items()}
            print(f"{name:26} {what:25}", end="")
            for label, found in best.items():
                more = f" ({found / best['off'] - 1:+.1%})" if label != "off" else ""
                print(f" {label} {found:.4f}{more}", end="")
            print(flush=True)
    for where, texts in complaints.items():
        print(where, texts[:4] if texts else "stays", len(texts))


if __name__ == "__main__":
    main()
