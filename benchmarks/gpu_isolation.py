"""What it costs that numbers which are not finite stay with the rows that see them.

    python benchmarks/gpu_isolation.py --out results

Times forward and backward of calls whose numbers are all finite, by Triton's kernels with and
without `PATTERNCC_ISOLATE`, turn by turn on the same GPU: each of both has a process for each
pattern, so that all compile at once. Then, isolating, calls with numbers that are not finite.
`results/gpu_isolation.json` keeps everything; times are medians of GPU milliseconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import triton  # noqa: F401  (imported once, before the processes part)

PATTERNS = {
    "causal": "causal",
    "window 1024": "window(1024)",
    "streaming": "streaming(64, 4096)",
    "dilated": "dilated(512, 8)",
}
HEADS, LENGTH, WIDTH = 16, 16384, 128
SMALL = 256


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
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / turns * 1e6


def worker(isolates: bool, text: str, pipe: Connection) -> None:
    """Times one pattern, as it is told to."""
    os.environ["PATTERNCC_ISOLATE"] = "1" if isolates else "0"
    import patterncc
    from patterncc import pipeline
    from patterncc.codegen.gpu.emitter_choice import EmitterChoice

    # Kernels of Gluon do not isolate: neither process takes them.
    pipeline.emitter_choice = lambda *_: EmitterChoice(None, "asked for")  # type: ignore
    attn = patterncc.compile(text)
    inputs: dict[int, tuple[torch.Tensor, ...]] = {}
    for length in (SMALL, LENGTH):
        torch.manual_seed(0)
        parts = torch.randn(4, 1, HEADS, length, WIDTH, device="cuda").bfloat16()
        inputs[length] = tuple(part.clone() for part in parts)

    def forward(length: int) -> Any:
        query, key, value, _ = inputs[length]

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
        backward(length)()
    torch.cuda.synchronize()
    pipe.send("ready")
    while (order := pipe.recv()) != "stop":
        found: dict[str, float] = {}
        if order == "time":
            found["forward"] = milliseconds(forward(LENGTH), 30)
            found["backward"] = milliseconds(backward(LENGTH), 20)
            found["small forward"] = milliseconds(forward(SMALL), 100)
            found["small backward"] = milliseconds(backward(SMALL), 50)
            found["small forward, host (us)"] = microseconds_of_host(forward(SMALL))
        else:
            query, key, value, grad = (part.clone() for part in inputs[LENGTH])
            kinds = {
                "all NaN": [query, key, value, grad],
                "grad_out NaN": [grad],
                "a column of value NaN": [value[..., :1]],
                "a row of each NaN": [part[..., 5000, :] for part in (query, key, value, grad)],
            }
            for name, places in kinds.items():
                kept = inputs[LENGTH]
                for place in places:
                    place.fill_(float("nan"))
                inputs[LENGTH] = (query, key, value, grad)
                found[f"{name}: forward"] = milliseconds(forward(LENGTH), 5)
                found[f"{name}: backward"] = milliseconds(backward(LENGTH), 5)
                inputs[LENGTH] = kept
                for part, right in zip((query, key, value, grad), kept, strict=True):
                    part.copy_(right)
        pipe.send(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    labels = {"isolating": True, "usual": False}
    # Forked: none of them imports torch again, and this process never touches the GPU.
    context = multiprocessing.get_context("fork")
    pipes = {}
    for label, isolates in labels.items():
        for name, text in PATTERNS.items():
            ours, theirs = context.Pipe()
            process = context.Process(target=worker, args=(isolates, text, theirs), daemon=True)
            process.start()
            pipes[label, name] = ours
    for pipe in pipes.values():
        assert pipe.recv() == "ready"
    times: dict[str, dict[str, dict[str, list[float]]]] = {}
    for _ in range(3):
        for name in PATTERNS:
            for label in labels:
                pipes[label, name].send("time")
                for what, one in pipes[label, name].recv().items():
                    times.setdefault(name, {}).setdefault(what, {}).setdefault(label, []).append(
                        one
                    )
    wild = {}
    for name in PATTERNS:
        pipes["isolating", name].send("wild")
        wild[name] = pipes["isolating", name].recv()
    arguments.out.mkdir(parents=True, exist_ok=True)
    document = {"heads": HEADS, "length": LENGTH, "width": WIDTH, "times": times, "wild": wild}
    (arguments.out / "gpu_isolation.json").write_text(json.dumps(document, indent=1))
    for name, by_kind in times.items():
        for what, by_label in by_kind.items():
            best = {label: min(found) for label, found in by_label.items()}
            ratio = best["isolating"] / best["usual"] - 1
            print(f"{name:12} {what:26} {best} {ratio:+.2%}", flush=True)
        for what, found in wild[name].items():
            kind = what.rsplit(": ")[-1]
            factor = found / min(by_kind[kind]["isolating"])
            print(f"{name:12} {what:34} {found:8.3f} ms, {factor:.2f} times")


if __name__ == "__main__":
    main()
