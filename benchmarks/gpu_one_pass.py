"""Backward calls in one pass, in any order and in turn, beside two kernels and the default.

    python benchmarks/gpu_one_pass.py --out results

Times whole backward calls, all of a pattern turn by turn on one Hopper GPU: two kernels; one pass
in any order, and in every order of turns and length of chunks that is counted, also where it would
not be chosen; in the chosen order with the sums cleared, and where the first key tile stores; and
the default. Gradients are compared with those of two kernels, and those in turn with themselves;
whether they are right, tests/gpu say. TFLOP/s count five products on visible pairs.
`results/gpu_one_pass.json` keeps everything, with what was counted. Kernels are compiled by other
processes before, all at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from gpu_cases import CASES, Case, Shape, pattern
from gpu_forward import environment, visible_pairs

from patterncc.codegen.backward_tensors import BackwardTensors
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu import one_pass_choice
from patterncc.codegen.gpu.backward import Backward
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.gluon.reasons import HEAD_DIMS
from patterncc.codegen.gpu.turn_choice import ORDERS, UNEVEN_ORDERS, TurnChoice, turn_choices
from patterncc.codegen.ir import Passes

NAMES = (
    *("causal", "full", "window 4096", "window 1024", "sinks 64 + window 4096"),
    *("sinks 64 + window 1024", "ladder", "local strided"),
)
ROUNDS, CALLS = 5, 4
FREE = ("two kernels", "any order")
FIRST = "first: "
"""Before what is timed in both ways of the first turn."""


def cases() -> dict[str, Case]:
    """What may be timed, by name."""
    sinks = Case(
        "sinks 64 + window 1024",
        "streaming(64, 1024)",
        lambda tables: lambda b, h, q, k: (q >= k) & ((k < 64) | (q - k < 1024)),
    )
    return {case.name: case for case in (*CASES, sinks)}


def both_directions(case: Case) -> Callable[[int, int], tuple[Passes, ...]]:
    """Gives the passes of a case with their transposed halves."""

    def passes(block_q: int, block_k: int) -> tuple[Passes, ...]:
        return (lower_passes(pattern(case.text), block_q, block_k, within=True),)

    return passes


Ready = Callable[..., Any]


def ready_call(
    case: Case, tensors: BackwardTensors, options: dict[str, Any], **choices: Any
) -> Any:
    """A call as the default has it, or with choices also where these would not be taken:
    `FIRST_STORES`, or the `TurnChoice` `order`."""
    forced = {"LEAST_STEPS": 0, "LEAST_FASTER": 0.0, "LEAST_FASTER_UNEVEN": 0.0}
    changes = dict(forced) if choices else {}
    if "FIRST_STORES" in choices:
        changes["FIRST_STORES"] = choices.pop("FIRST_STORES")
    if "order" in choices:
        order = choices.pop("order")
        changes["choose_turns"] = lambda *call: order
    changed = patch.multiple(one_pass_choice, **changes) if changes else contextlib.nullcontext()
    with changed:
        return Backward(both_directions(case), **choices).ready(tensors, **options)


class _Counted(Exception):
    """What is to be counted is known."""


def counted(
    case: Case, tensors: BackwardTensors, options: dict[str, Any]
) -> tuple[TurnChoice, ...]:
    """All orders that are counted; none where key tiles take no turns."""
    found: list[TurnChoice] = []

    def noted(*call: Any) -> TurnChoice:
        found.extend(turn_choices(*call))
        raise _Counted

    with (
        patch.multiple(one_pass_choice, LEAST_STEPS=0, choose_turns=noted),
        contextlib.suppress(_Counted),
    ):
        Backward(both_directions(case)).ready(tensors, **options)
    return tuple(found)


def order_name(choice: TurnChoice) -> str:
    """Of an order, as the table has it."""
    chunks = sum(one.programs for one in choice.split)
    return f"{choice.turns} {choice.neighbours}" + (f", {chunks} chunks" if chunks else "")


def plans(
    case: Case, tensors: BackwardTensors, options: dict[str, Any]
) -> Iterator[tuple[str, float | None, Ready]]:
    """The calls to time: name, how much faster than two kernels by count, and what readies it."""
    ready = partial(ready_call, case, tensors, options)
    yield "two kernels", None, partial(ready, one_pass=False)
    yield "any order", None, partial(ready, deterministic=False)
    orders = counted(case, tensors, options)
    for choice in orders:
        yield order_name(choice), choice.faster, partial(ready, order=choice)
    if orders and not orders[0].uneven:
        yield FIRST + "adds", None, partial(ready, deterministic=True, FIRST_STORES=0.0)
        yield FIRST + "stores", None, partial(ready, deterministic=True, FIRST_STORES=math.inf)
    yield "default", None, ready


def compile_some(name: str, shape: Shape, group: str) -> None:
    """Compiles the kernels of the forward, or of all calls whose name starts so, into Triton's
    cache; in a process of its own."""
    case, options = cases()[name], call_options(cases()[name], shape)
    query, key, value = shape.tensors(torch.device("cuda"))
    if group == "forward":
        Forward(both_directions(case))(query, key, value, **options)
        return
    lse = torch.zeros(query.shape[:3], device="cuda")
    tensors = BackwardTensors(torch.zeros_like(query), None, query, key, value, query, lse)
    for plan, _, ready in plans(case, tensors, options):
        if plan.startswith(group):
            ready()


def call_options(case: Case, shape: Shape) -> dict[str, Any]:
    return {"env": environment(case), "scale": shape.head_dim**-0.5}


def milliseconds(runs: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """The time of a call of each, round after round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(ROUNDS):
        for name, run in runs.items():
            run()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(CALLS):
                run()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / CALLS)
    return times


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two gradients, as a share of the second."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def run_case(case: Case, shape: Shape) -> dict[str, Any]:
    """Times and compares one pattern."""
    device = torch.device("cuda")
    query, key, value = shape.tensors(device)
    options = call_options(case, shape)
    out, lse = Forward(both_directions(case))(query, key, value, **options)
    tensors = BackwardTensors(torch.randn_like(out), None, query, key, value, out, lse)
    planned = list(plans(case, tensors, options))
    runs = {name: ready() for name, _, ready in planned}
    faster = {name: number for name, number, _ in planned}
    wanted = runs["two kernels"](tensors)
    pairs = visible_pairs(case.flex({}), shape.heads, shape.length, device)
    times = milliseconds({name: partial(run, tensors) for name, run in runs.items()})
    two = statistics.median(times["two kernels"])
    result: dict[str, Any] = {}
    for name, run in runs.items():
        median = statistics.median(times[name])
        found = run(tensors)[:3]
        same = all(torch.equal(*both) for both in zip(run(tensors)[:3], found, strict=True))
        result[name] = {
            "kernels": [step.planned.source.name for step in run.steps or ()],
            "ms": times[name],
            "tflops": 10 * pairs * shape.head_dim / median / 1e9,
            "faster than two kernels": two / median,
            "faster, counted": faster[name],
            "same bits": same,
            "from two kernels": [distance(*both) for both in zip(found, wanted[:3], strict=True)],
        }
        by_count = "" if faster[name] is None else f" (counted {faster[name]:.2f})"
        print(
            f"{case.name:<24}{name:<28}{median:8.3f} ms {result[name]['tflops']:6.0f}"
            f" {two / median:6.2f}{by_count:<15}{'same bits' if same else 'other bits':<12}"
            f"{max(result[name]['from two kernels']):.1e}  {' + '.join(result[name]['kernels'])}",
            flush=True,
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=16)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--head-dim", type=int, default=128, choices=HEAD_DIMS)
    parser.add_argument("--patterns", nargs="+", default=NAMES, choices=tuple(cases()))
    given = parser.parse_args()
    shape = Shape(given.heads, given.kv_heads, given.length, given.head_dim)
    known, begin = cases(), time.monotonic()
    orders = dict.fromkeys((*ORDERS, *UNEVEN_ORDERS))
    groups = ("forward", *FREE, *(f"{turns} {near}" for turns, near in orders), FIRST)
    workers = min(os.cpu_count() or 1, 16)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        jobs = [
            pool.submit(compile_some, name, shape, group)
            for group in groups
            for name in given.patterns
        ]
        for job in jobs:
            job.result()
    print(f"compiled in {time.monotonic() - begin:.0f} s", flush=True)
    results = {name: run_case(known[name], shape) for name in given.patterns}
    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "heads": [given.heads, given.kv_heads],
        "length": given.length,
        "head_dim": given.head_dim,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(machine | {"patterns": results}, indent=1)
    (given.out / "gpu_one_pass.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
