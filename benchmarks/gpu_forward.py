"""Forward kernels on one GPU in many configs: TFLOP/s on visible pairs.

    python benchmarks/gpu_forward.py --out results

For each pattern a small list of configs is compiled (in parallel, in other processes), checked
against float64 on sampled rows, and timed; the table shows the default config and the best one.
`results/gpu_forward.json` keeps everything. Takes about 4 minutes on an H100 or H200.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from gpu_cases import CASES, Case, Mask, Shape, lowered, passes, pattern

from patterncc.codegen.gpu.config import KernelConfig, check_config, default_config, tile_order
from patterncc.codegen.gpu.emitter_choice import emitter_of
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.gluon.reasons import reason_against
from patterncc.codegen.gpu.launch import CompiledKernel, compile_for
from patterncc.codegen.gpu.run_list_source import emit_listing
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError

CONFIGS = (
    KernelConfig(128, 128, 8, 2, "descriptor"),
    KernelConfig(128, 128, 8, 3, "descriptor"),
    KernelConfig(128, 64, 8, 3, "descriptor"),
    KernelConfig(128, 64, 8, 4, "descriptor"),
    KernelConfig(128, 64, 4, 3, "descriptor"),
    KernelConfig(64, 128, 4, 2, "descriptor"),
    KernelConfig(64, 64, 4, 3, "descriptor"),
    KernelConfig(64, 64, 4, 2, "descriptor"),
    KernelConfig(128, 128, 8, 2, "pointer"),
    KernelConfig(128, 64, 8, 3, "pointer"),
    KernelConfig(64, 64, 4, 3, "pointer"),
    KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon"),
    KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon"),
    KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon"),
    KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon", peaks="kept"),
    KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon", peaks="kept"),
    KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon", peaks="kept"),
)


def compile_one(
    name: str, problem: Problem, config: KernelConfig, target: str
) -> list[CompiledKernel]:
    """Fills Triton's cache with the kernels of a case; runs in another process."""
    parts = passes(name, config.block_q, config.block_k)
    for program in parts:
        if program.listed:
            compile_for(emit_listing(program, problem, config), target)
    return [
        compile_for(
            emitter_of(config)(
                program, problem, config, resumes=number > 0, hands_on=number < len(parts) - 1
            ),
            target,
        )
        for number, program in enumerate(parts)
    ]


def configs_of(case: Case, problem: Problem, target: str) -> list[KernelConfig]:
    """The configs to try, the default first."""
    first = default_config(problem, target)
    orders = {tile_order(p) for p in passes(case.name, first.block_q, first.block_k)}
    first = replace(first, order="reverse" if "reverse" in orders else "forward")
    found = [first]
    for config in CONFIGS:
        candidate = replace(config, order=first.order)
        try:
            check_config(candidate, problem, target)
        except ConfigError:
            continue
        parts = passes(case.name, config.block_q, config.block_k)
        if config.emitter == "gluon" and any(reason_against(p, problem) for p in parts):
            continue
        if candidate not in found:
            found.append(candidate)
    return found


def milliseconds(run: Callable[[], Any]) -> float:
    """Median time of a call, with the second-level cache flushed before each."""
    return float(triton.testing.do_bench(run, warmup=20, rep=100, return_mode="median"))


def environment(case: Case) -> dict[str, int]:
    """The scalars of a call without offset."""
    numbers = {p.name: p.value for p in pattern(case.text).numbers if p.value is not None}
    return {"q_offset": 0, "layer": 0, **numbers, **case.values}


def visible_pairs(mask: Mask, heads: int, length: int, device: torch.device) -> int:
    """How many pairs all heads see, counted one by one on the device."""
    head = torch.arange(heads, device=device)[:, None, None]
    k = torch.arange(length, device=device, dtype=torch.int32)[None, :]
    total = 0
    for first in range(0, length, 512):
        q = torch.arange(first, min(first + 512, length), device=device, dtype=torch.int32)[:, None]
        total += int(mask(0, head, q, k).expand(heads, len(q), length).sum())
    return total


def error_on_rows(
    mask: Mask,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
) -> tuple[float, float]:
    """Largest error of output and lse against float64, on 48 rows of every head.

    The mask is FlexAttention's, written by hand.
    """
    query, key, value = tensors
    length = key.shape[2]
    generator = np.random.default_rng(0)
    rows = np.unique(np.r_[0, length - 1, generator.integers(0, query.shape[2], 46)])
    picked = torch.from_numpy(rows).to(query.device)
    head = torch.arange(query.shape[1], device=query.device)[:, None, None]
    allowed = mask(0, head, picked[:, None], torch.arange(length, device=query.device)[None, :])
    group = query.shape[1] // key.shape[1]
    keys, values = (t.double().repeat_interleave(group, 1) for t in (key, value))
    scores = query[:, :, picked].double() @ keys.transpose(-1, -2) * scale
    scores = scores.masked_fill(~allowed, -math.inf)
    total = scores.logsumexp(-1)
    expected = torch.softmax(scores, -1).nan_to_num(0.0) @ values
    alive = total.isfinite()
    out_error = (out[:, :, picked].double() - expected).abs().max().item()
    lse_error = (lse[:, :, picked].double() - total)[alive].abs().max().item()
    if not torch.equal(lse[:, :, picked].isneginf(), ~alive):
        raise AssertionError("rows without keys differ")
    return out_error, lse_error


def launch_microseconds(forward: Forward, device: torch.device) -> float:
    """Time of a call on the host, for tensors so small that the device is never the limit."""
    tensors = [torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16, device=device) for _ in range(3)]
    env = {"q_offset": 0}
    samples = []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(50):
            forward(*tensors, env=env, scale=1.0)
        samples.append((time.perf_counter() - start) / 50 * 1e6)
    return statistics.median(samples[5:])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_forward.json")
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=None)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument(
        "--only", default="", help="run cases whose name contains one of these, with commas between"
    )
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda", 0)
    major, minor = torch.cuda.get_device_capability(device)
    target = f"cuda:{10 * major + minor}"
    kv_heads = options.kv_heads or options.heads
    problem = Problem("bfloat16", options.head_dim, options.head_dim, options.heads // kv_heads)
    only = options.only.split(",")
    cases = [case for case in CASES if any(part in case.name for part in only)]
    tried = {case.name: configs_of(case, problem, target) for case in cases}
    start = time.perf_counter()
    kernels = compile_all(cases, tried, problem, target, options.jobs)
    compiled = time.perf_counter() - start
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, ", end="")
    print(f"triton {triton.__version__}, {len(kernels)} kernels compiled in {compiled:.0f} s")
    shape = Shape(options.heads, kv_heads, options.length, options.head_dim)
    tensors = shape.tensors(device)
    results: list[dict[str, Any]] = []
    print(f"{'pattern':44}{'density':>8}{'default':>9}{'best':>7}  {'config':28}")
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "options": {k: str(v) for k, v in vars(options).items() if k != "out"},
        "host_us": launch_microseconds(Forward(lowered("causal")), device),
        "results": results,
    }
    for case in cases:
        result = run_case(case, tensors, tried[case.name], kernels, options)
        result["seconds"] = time.perf_counter() - start
        results.append(result)
        print_row(result)
        (options.out / "gpu_forward.json").write_text(json.dumps(report, indent=1))
    print(f"host time of a call: {report['host_us']:.1f} us")


def compile_all(
    cases: list[Case],
    tried: dict[str, list[KernelConfig]],
    problem: Problem,
    target: str,
    jobs: int,
) -> dict[tuple[str, KernelConfig], list[CompiledKernel]]:
    """Compiles every kernel in other processes; Triton's cache on disk carries them over.

    A config whose kernels turn out to be too large is taken out of `tried`.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {
            (case.name, config): pool.submit(compile_one, case.name, problem, config, target)
            for case in cases
            for config in tried[case.name]
        }
        kernels = {}
        for (name, config), future in futures.items():
            try:
                kernels[name, config] = future.result()
            except ConfigError as error:
                print(f"{name}: {error}")
                tried[name].remove(config)
        return kernels


def run_case(
    case: Case,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    configs: list[KernelConfig],
    kernels: dict[tuple[str, KernelConfig], list[CompiledKernel]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Checks and times one pattern in every config."""
    scale, device = options.head_dim**-0.5, tensors[0].device
    env = environment(case)
    tables = case.tables_on(device, options.length, options.heads)
    mask = case.flex(tables)
    pairs = visible_pairs(mask, options.heads, options.length, device)
    flops = 4 * pairs * options.head_dim
    runs = []
    for config in configs:
        compiled = kernels[(case.name, config)]
        forward = Forward(lowered(case.name), config=config)

        def run(forward: Forward = forward) -> tuple[torch.Tensor, torch.Tensor]:
            return forward(*tensors, env=env, scale=scale, tables=tables)

        out_error, lse_error = error_on_rows(mask, tensors, *run(), scale)
        if not (out_error < 2e-2 and lse_error < 2e-3):
            raise AssertionError(f"{case.name} {config}: errors {out_error}, {lse_error}")
        ms = milliseconds(run)
        runs.append(
            asdict(config)
            | {"ms": ms, "tflops": flops / ms / 1e9, "out_error": out_error, "lse_error": lse_error}
            | {
                "registers": [kernel.registers for kernel in compiled],
                "spilled": [kernel.spilled for kernel in compiled],
                "shared": [kernel.shared for kernel in compiled],
            }
        )
    return {
        "case": case.name,
        "text": case.text,
        "passes": len(kernels[(case.name, configs[0])]),
        "density": pairs / (options.heads * options.length**2),
        "runs": runs,
    }


def print_row(result: dict[str, Any]) -> None:
    default, best = result["runs"][0], max(result["runs"], key=lambda run: run["tflops"])
    config = "{emitter} {block_q}x{block_k} w{num_warps} s{num_stages} {load} {order}".format(
        **best
    ) + (" kept" if best["peaks"] == "kept" else "")
    print(f"{result['case']:44}{result['density']:8.3f}{default['tflops']:9.0f}", end="")
    print(f"{best['tflops']:7.0f}  {config:28}", end="")
    print(f"  ({result['seconds']:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
