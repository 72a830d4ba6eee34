"""Gathered keys beside listed tiles, for patterns whose tables decide key by key.

    python benchmarks/gpu_gathered.py --out FOLDER

Each case is lowered twice, with key tiles gathered where counted work says so and with tiles of
consecutive keys alone. Kernels are compiled in other processes first. Some rows of some heads are
checked against float64, the two results against each other; then calls are timed, and in calls of
their own the kernels that list and those that compute.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gathered_cases import CASES, DEVICE, DTYPE, Case, Tables, lowered, table_shapes

from patterncc.codegen.choice import tiling_names
from patterncc.codegen.gpu.bound_launch import BoundLaunch
from patterncc.codegen.gpu.forward import Forward, ReadyForward
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.launch import compile_for
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.problem import Problem

PROBLEM = Problem("bfloat16", 128, 128)


def launches(case: Case, gather: bool, target: str) -> tuple[Launch, ...]:
    """What a call of a case launches."""
    sizes = {"query": case.rows, "key": case.length, "value": case.length, "out": case.rows}
    layouts = [
        Layout(name, 0, (1, case.heads, n, 128), (case.heads * n * 128, n * 128, 128, 1), 2)
        for name, n in sizes.items()
    ]
    env = {"q_offset": case.length - case.rows, "layer": 0, **case.numbers}
    planner = Planner(lowered(case, gather), case.config)
    return planner.plan(PROBLEM, target, layouts, env, 128**-0.5, table_shapes(case))


def compile_one(job: tuple[Launch, str]) -> tuple[str, int, int]:
    """Fills Triton's cache with a kernel; runs in another process."""
    launch, target = job
    kernel = compile_for(launch.source, target, aligned=launch.aligned)
    return launch.source.digest, kernel.registers, kernel.spilled


def compile_all(cases: Iterable[Case], target: str, workers: int) -> dict[str, Any]:
    """Compiles the kernels of all cases, each once."""
    found = {
        launch.source.digest: launch
        for case in cases
        for gather in (False, True)
        for launch in launches(case, gather, target)
    }
    jobs = [(launch, target) for launch in found.values()]
    with multiprocessing.get_context("fork").Pool(min(workers, len(jobs))) as pool:
        resources = pool.map(compile_one, jobs, chunksize=1)
    return {
        digest: {"kernel": found[digest].source.name, "registers": registers, "spilled": spilled}
        for digest, registers, spilled in resources
    }


def milliseconds(call: Callable[[], Any], budget: float = 0.25) -> float:
    """The median time of a call on the GPU."""
    call()
    torch.cuda.synchronize()
    times: list[float] = []
    started = time.monotonic()
    while len(times) < 3 or (len(times) < 15 and time.monotonic() - started < budget):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


class TimedLaunch:
    """A launch that waits for its kernel, and how long that took."""

    def __init__(self, step: BoundLaunch) -> None:
        self.planned, self.rooms, self._step = step.planned, step.rooms, step
        self.milliseconds = 0.0

    def __call__(self, operands: Any, stream: int) -> None:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        self._step(operands, stream)
        end.record()
        torch.cuda.synchronize()
        self.milliseconds = start.elapsed_time(end)


def kernel_milliseconds(ready: ReadyForward, tensors: Any, tables: Tables) -> dict[str, float]:
    """The times of a call's kernels by their names, each kernel waited for."""
    steps = tuple(map(TimedLaunch, ready.steps or ()))
    replace(ready, steps=steps)(*tensors, tables)
    times: dict[str, float] = defaultdict(float)
    for step in steps:
        source = step.planned.source
        resumes = " of a later pass" if "starts from an earlier one" in source.text else ""
        times[source.name + resumes] += step.milliseconds
    return dict(times)


def errors(
    case: Case, tensors: tuple[torch.Tensor, ...], tables: Tables, got: tuple[torch.Tensor, ...]
) -> tuple[float, float]:
    """The largest errors of output and lse in some rows, against float64."""
    query, key, value = tensors
    out, lse = got
    k = torch.arange(case.length, device=DEVICE)[None]
    worst = [0.0, 0.0]
    for head in (0, case.heads - 1):
        for first in (0, case.rows // 3 // 64 * 64 + 7, case.rows - 64):
            rows = slice(first, first + 64)
            q = case.length - case.rows + torch.arange(first, first + 64, device=DEVICE)[:, None]
            mask = case.allowed(tables, head, q, k)
            scores = query[0, head, rows].double() @ key[0, head].double().T * 128**-0.5
            scores = scores.masked_fill(~mask, -torch.inf)
            wanted = scores.softmax(1).nan_to_num(0.0) @ value[0, head].double()
            sums = scores.logsumexp(1)
            assert torch.equal(lse[0, head, rows].isneginf(), sums.isneginf())
            alive = sums.isfinite()
            difference = torch.where(alive, lse[0, head, rows].double() - sums, 0.0).abs().max()
            worst[0] = max(worst[0], float((out[0, head, rows].double() - wanted).abs().max()))
            worst[1] = max(worst[1], float(difference))
    return worst[0], worst[1]


def measure(case: Case) -> dict[str, Any]:
    """One case, tiles and gathered."""
    torch.manual_seed(0)
    tables = case.tables(case)
    shape = (1, case.heads)
    query = torch.randn(*shape, case.rows, 128, device=DEVICE, dtype=DTYPE)
    key, value = (
        torch.randn(*shape, case.length, 128, device=DEVICE, dtype=DTYPE) for _ in range(2)
    )
    env = {"q_offset": case.length - case.rows, "layer": 0, **case.numbers}
    result: dict[str, Any] = {"case": case.name, "heads": case.heads, "length": case.length}
    outs = []
    for gather in (False, True):
        forward = Forward(lowered(case, gather), config=case.config)

        tensors = (query, key, value)
        ready = forward.ready(*tensors, env=env, scale=128**-0.5, tables=tables)

        def call(
            ready: ReadyForward = ready, tensors: Any = tensors
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return ready(*tensors, tables)

        got = call()
        outs.append(got[0])
        out_error, lse_error = errors(case, tensors, tables, got)
        block_q, block_k = (64, 64) if case.config is None else (128, 64)
        result["gathered" if gather else "tiles"] = {
            "passes": tiling_names(lowered(case, gather)(block_q, block_k)[0]),
            "ms": milliseconds(call),
            "kernels": kernel_milliseconds(ready, tensors, tables),
            "out_error": out_error,
            "lse_error": lse_error,
        }
    result["difference"] = float((outs[0].float() - outs[1].float()).abs().max())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", default="cuda:90")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument(
        "--only", default="", help="cases whose names start so, separated by semicolons"
    )
    args = parser.parse_args()
    started = time.monotonic()
    cases = [case for case in CASES if case.name.startswith(tuple(args.only.split(";")))]
    kernels = compile_all(cases, args.target, args.workers)
    print(f"{len(kernels)} kernels compiled in {time.monotonic() - started:.1f} s", flush=True)
    for each in kernels.values():
        if each["spilled"]:
            print("  spills:", each, flush=True)
    if args.compile_only:
        return
    results: list[dict[str, Any]] = []
    for case in cases:
        result = measure(case)
        results.append(result)
        for kind in ("tiles", "gathered"):
            one = result[kind]
            parts = ", ".join(f"{name} {ms:.3f}" for name, ms in one["kernels"].items())
            print(
                f"{case.name:<36}{one['passes']:<24}{one['ms']:>8.2f} ms   errors "
                f"{one['out_error']:.4f} {one['lse_error']:.1e}   ({parts})",
                flush=True,
            )
        document = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "kernels": list(kernels.values()),
            "results": results,
        }
        (args.out / "gpu_gathered.json").write_text(json.dumps(document, indent=1))
        torch.cuda.empty_cache()
    print(f"{time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
