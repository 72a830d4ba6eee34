"""Backward calls in one pass, in any order and in turn, beside two kernels and the default.

    python benchmarks/gpu_one_pass.py --out results

Times whole backward calls, all of a pattern turn by turn on one Hopper GPU: two kernels; one pass
in any order, in turn, and in turn where the first key tile stores, also where they would not be
chosen; and the default. Gradients are compared with those
of two kernels; whether those are right, tests/gpu say. TFLOP/s count five products on visible
pairs. `results/gpu_one_pass.json` keeps everything.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from gpu_cases import CASES, Case, Shape, lowered, pattern
from gpu_forward import environment, visible_pairs

from patterncc.codegen.backward_tensors import BackwardTensors
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu import one_pass_choice
from patterncc.codegen.gpu.backward import Backward
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.gluon.reasons import HEAD_DIMS
from patterncc.codegen.ir import Passes

NAMES = ("causal", "full", "window 4096", "window 1024")
ROUNDS, CALLS = 5, 4


def both_directions(case: Case) -> Callable[[int, int], tuple[Passes, ...]]:
    """Gives the passes of a case with their transposed halves."""

    def passes(block_q: int, block_k: int) -> tuple[Passes, ...]:
        return (lower_passes(pattern(case.text), block_q, block_k, within=True),)

    return passes


def plans(case: Case, tensors: BackwardTensors, options: dict[str, Any]) -> dict[str, Any]:
    """The calls to time, by name."""

    def ready(**choices: Any) -> Any:
        """As the default, or also where it would not be chosen."""
        forced = {"LEAST_STEPS": 0, "LEAST_FASTER": 0.0}
        stores = choices.pop("FIRST_STORES", one_pass_choice.FIRST_STORES)
        changes = {**(forced if choices else {}), "FIRST_STORES": stores}
        with patch.multiple(one_pass_choice, **changes):
            return Backward(both_directions(case), **choices).ready(tensors, **options)

    return {
        "two kernels": ready(one_pass=False),
        "any order": ready(deterministic=False),
        "in turn, cleared": ready(deterministic=True, FIRST_STORES=0.0),
        "in turn, first stores": ready(deterministic=True, FIRST_STORES=math.inf),
        "default": ready(),
    }


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
    options = {"env": environment(case), "scale": shape.head_dim**-0.5}
    out, lse = Forward(lowered(case.name))(query, key, value, **options)
    tensors = BackwardTensors(torch.randn_like(out), None, query, key, value, out, lse)
    ready = plans(case, tensors, options)
    wanted = ready["two kernels"](tensors)
    pairs = visible_pairs(case.flex({}), shape.heads, shape.length, device)
    times = milliseconds({name: partial(run, tensors) for name, run in ready.items()})
    result: dict[str, Any] = {}
    for name, run in ready.items():
        median = statistics.median(times[name])
        result[name] = {
            "kernels": [step.planned.source.name for step in run.steps or ()],
            "ms": times[name],
            "tflops": 10 * pairs * shape.head_dim / median / 1e9,
            "from two kernels": [
                distance(*both) for both in zip(run(tensors)[:3], wanted[:3], strict=True)
            ],
        }
        print(
            f"{case.name:<14}{name:<22}{median:8.3f} ms {result[name]['tflops']:6.0f}"
            f"  {' + '.join(result[name]['kernels'])}",
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
    given = parser.parse_args()
    shape = Shape(given.heads, given.kv_heads, given.length, given.head_dim)
    cases = {case.name: case for case in CASES}
    results = {name: run_case(cases[name], shape) for name in NAMES}
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
