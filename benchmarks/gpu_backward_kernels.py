"""The backward's kernels one by one on one GPU, in several configs.

    python benchmarks/gpu_backward_kernels.py --out results --kernel grad_query

Times each kernel of a backward alone: `delta`, the lists, the gradient's kernels. Results of all
configs are compared with those of the default; whether that one is right, `patterncc bench` and
tests/gpu say. TFLOP/s are on visible pairs and count the products that the kernel does: 3 for the
query's gradient, 4 for those of key and value. `results/gpu_KERNEL.json` keeps everything.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_cases import CASES, Case, Shape, pattern
from gpu_forward import environment, milliseconds, visible_pairs

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.backward_plan import BackwardPlanner
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.launch import compile_for
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.gpu.steps import bind_all, layout_of, named_operands, run, shapes_of
from patterncc.codegen.ir import Passes
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError

DEFAULT_CASES = ("full", "causal", "window 4096", "window 1024")
PRODUCTS = {"grad_query": 3, "grad_key_value": 4}
TILES = ((64, 64), (64, 32), (32, 64), (64, 128), (128, 64), (128, 32))
CONFIGS = (
    None,
    *(
        KernelConfig(block_q, block_k, warps, stages, "descriptor")
        for block_q, block_k in TILES
        for warps in (4, 8)
        for stages in (2, 3)
        if (warps == 8) == (max(block_q, block_k) == 128)
    ),
)


@cache
def _passes(name: str, block_q: int, block_k: int) -> Passes:
    (case,) = (case for case in CASES if case.name == name)
    return lower_passes(pattern(case.text), block_q, block_k, within=True, tiling=case.tiling)


def planned(
    case: Case,
    kernel: str,
    config: KernelConfig | None,
    target: str,
    layouts: list[Layout],
    multiprocessors: int,
    shapes: dict[str, tuple[int, ...]],
) -> tuple[Launch, ...]:
    """The launches of a backward that computes what one kind of kernel does, in the order of tiles
    that suits the pattern."""
    if config is not None:
        default = planned(case, kernel, None, target, layouts, multiprocessors, shapes)
        config = replace(config, order=own_config(default, kernel).order)
    query, key = layouts[0], layouts[2]
    problem = Problem("bfloat16", query.sizes[3], query.sizes[3], query.sizes[1] // key.sizes[1])
    planner = BackwardPlanner(
        lambda block_q, block_k: (_passes(case.name, block_q, block_k),),
        BackwardConfig(**{kernel: config}),
    )
    return planner.plan(
        problem,
        target,
        layouts,
        environment(case),
        query.sizes[3] ** -0.5,
        shapes,
        multiprocessors=multiprocessors,
        needs_query=kernel == "grad_query",
        needs_key_value=kernel == "grad_key_value",
    )


def own_config(launches: tuple[Launch, ...], kernel: str) -> KernelConfig:
    """The config of a kind of kernel among others."""
    return next(one.source.config for one in launches if one.source.name == kernel)


def compile_one(name: str, *arguments: Any) -> dict[str, list[int]] | str:
    """Fills Triton's cache with the kernels of a case; runs in another process.

    Returns:
        Registers, bytes spilled and shared memory by kernel, or why there is none.
    """
    (case,) = (case for case in CASES if case.name == name)
    try:
        kernels = [
            compile_for(launch.source, arguments[2], aligned=launch.aligned)
            for launch in planned(case, *arguments)
        ]
    except ConfigError as error:
        return str(error)
    return {k.source.name: [k.registers, k.spilled, k.shared] for k in kernels}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_KERNEL.json")
    parser.add_argument("--kernel", choices=tuple(PRODUCTS), default="grad_query")
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=None)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--only", default=",".join(DEFAULT_CASES), help="cases, commas between")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda", 0)
    major, minor = torch.cuda.get_device_capability(device)
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    target, kv_heads = f"cuda:{10 * major + minor}", options.kv_heads or options.heads
    shape = Shape(options.heads, kv_heads, options.length, options.head_dim)
    query, key, value = shape.tensors(device)
    operands = {"query": query, "grad_out": torch.randn_like(query), "key": key, "value": value}
    operands["out"] = torch.empty_like(query)
    layouts = [layout_of(name, tensor) for name, tensor in operands.items()]
    cases = [case for case in CASES if case.name in options.only.split(",")]
    tables = {c.name: c.tables_on(device, options.length, options.heads) for c in cases}
    given: dict[str, tuple[Any, ...]] = {
        case.name: (target, layouts, multiprocessors, shapes_of(tables[case.name]))
        for case in cases
    }
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        jobs = {
            (case.name, config): pool.submit(
                compile_one, case.name, options.kernel, config, *given[case.name]
            )
            for case in cases
            for config in CONFIGS
        }
        compiled = {place: job.result() for place, job in jobs.items()}
    results: list[dict[str, Any]] = []
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "options": {k: str(v) for k, v in vars(options).items() if k != "out"},
        "results": results,
    }
    print(f"{report['device']}, torch {torch.__version__}, triton {triton.__version__}")
    for case in cases:
        pairs = visible_pairs(case.flex(tables[case.name]), options.heads, options.length, device)
        flops = 2 * PRODUCTS[options.kernel] * pairs * options.head_dim
        forward = Forward(lambda q, k, case=case: (_passes(case.name, q, k),))  # type: ignore[misc]
        operands["out"], operands["lse"] = forward(
            query,
            key,
            value,
            env=environment(case),
            scale=options.head_dim**-0.5,
            tables=tables[case.name],
        )
        reference: dict[str, torch.Tensor] = {}
        for config in CONFIGS:
            resources = compiled[case.name, config]
            if isinstance(resources, str):
                continue
            launches = planned(case, options.kernel, config, *given[case.name])
            times, found = _times(launches, operands, tables[case.name])
            reference = reference or found
            for name, gradient in found.items():
                difference = (gradient - reference[name]).norm() / reference[name].norm()
                if not difference < 1e-2:
                    raise AssertionError(f"{case.name} {config}: {name} differs by {difference}")
            own = config or own_config(launches, options.kernel)
            total = sum(ms for name, ms in times.items() if name != "delta")
            row = {"case": case.name, "default": config is None, **asdict(own), "ms": times}
            results.append(row | {"tflops": flops / total / 1e9, "resources": resources})
            tile = f"{own.block_q}x{own.block_k} w{own.num_warps} s{own.num_stages} {own.load}"
            parts = ", ".join(f"{name} {ms:.3f}" for name, ms in times.items())
            mark = " (default)" if config is None else ""
            print(f"{case.name:32}{tile}{mark}: {flops / total / 1e9:.0f} TFLOP/s; ms: {parts}")
    path = options.out / f"gpu_{options.kernel}.json"
    path.write_text(json.dumps(report, indent=1))


def _times(
    launches: tuple[Launch, ...],
    operands: dict[str, torch.Tensor],
    tables: dict[str, torch.Tensor],
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Milliseconds by kernel, those of all passes together, and the gradients in float32."""
    query, key, value = operands["query"], operands["key"], operands["value"]
    operands = {
        **operands,
        "delta": torch.empty_like(operands["lse"]),
        "grad_query": torch.full_like(query, torch.nan),
        "grad_key": torch.full_like(key, torch.nan),
        "grad_value": torch.full_like(value, torch.nan),
    }
    steps = bind_all(launches, tables, query.device, None)
    operands |= named_operands(tables)
    run(steps, operands, query.device)
    names = ("grad_query", "grad_key", "grad_value")
    found = {name: operands[name].float() for name in names}
    written = {name: tensor for name, tensor in found.items() if not tensor.isnan().any()}
    times = {}
    for name in dict.fromkeys(launch.source.name for launch in launches):
        of_name = [step for step in steps if step.planned.source.name == name]
        times[name] = milliseconds(lambda of_name=of_name: run(of_name, operands, query.device))  # type: ignore[misc]
    return times, written


if __name__ == "__main__":
    main()
