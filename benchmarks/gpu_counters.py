"""What limits the kernels for Hopper GPUs: counters that Nsight Compute reads.

    python benchmarks/gpu_counters.py --out results

Starts itself below `ncu`, with the clocks as they are, and prints for each kernel how much of the
tensor cores, of the issue slots, of memory and of the second-level cache it uses, and what its
warps wait for. `results/gpu_counters.json` keeps all that was read. Takes a minute on an H200.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Shape, pattern

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.backward import Backward
from patterncc.codegen.gpu.config import KernelConfig, tile_order
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.ir import Passes

WIDE = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
PATTERNS = ("full", "causal", "window(1024)")
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "WarpStateStats")
_USES = (
    "dram__bytes",
    "gpu__dram_throughput",
    "sm__inst_executed_pipe",
    "sm__inst_issued",
    "sm__instruction_throughput",
    "sm__throughput",
)
"""What names of counters of used units start with."""


def make_calls(length: int) -> None:
    """A forward and a backward call of each pattern, the second of each under the profiler."""
    tensors = Shape(16, 16, length, 128).tensors(torch.device("cuda"))
    options: dict[str, Any] = {"env": {"q_offset": 0}, "scale": 128**-0.5}
    for text in PATTERNS:

        def both(block_q: int, block_k: int, text: str = text) -> tuple[Passes, ...]:
            return (lower_passes(pattern(text), block_q, block_k, within=True),)

        def rows(block_q: int, block_k: int, text: str = text) -> tuple[Passes, ...]:
            return (lower_passes(pattern(text), block_q, block_k, within=True, transposed=False),)

        config = replace(WIDE, order=tile_order(rows(128, 128)[0][0]))
        forward, backward = Forward(rows, config=config), Backward(both)
        for number in range(2):
            torch.cuda.synchronize()
            if number:
                torch.cuda.profiler.start()
                print(f"CALL {text}", flush=True)
            out, lse = forward(*tensors, **options)
            backward(out, None, *tensors, out, lse, **options)
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()


def counted(length: int, timeout: float) -> list[dict[str, str]]:
    """The counters of each kernel, by name."""
    command = ["ncu", "--profile-from-start", "off", "--clock-control", "none"]
    command += ["--csv", "--page", "raw", "--print-units", "base"]
    for section in SECTIONS:
        command += ["--section", section]
    command += [sys.executable, __file__, "--calls", "--out", "-", "--length", str(length)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    start = done.stdout.find('"ID"')
    if start < 0:
        raise SystemExit(f"ncu said:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    rows = list(csv.DictReader(io.StringIO(done.stdout[start:])))
    return [row for row in rows if row["ID"]]  # the first holds units


def shown(row: dict[str, str]) -> str:
    """A kernel in a few lines: its time, what it uses, and what its warps wait for most."""

    def number(name: str) -> float:
        try:
            return float(row[name].replace(",", ""))
        except (KeyError, ValueError):
            return float("nan")

    stalls = {
        name.removeprefix("smsp__average_warps_issue_stalled_").removesuffix(
            "_per_issue_active.ratio"
        ): number(name)
        for name in row
        if name.startswith("smsp__average_warps_issue_stalled_")
        and name.endswith("_per_issue_active.ratio")
        and "not_issued" not in name
    }
    most = sorted(stalls.items(), key=lambda item: -item[1])[:6]
    uses = {
        name: number(name)
        for name in row
        if any(part in name for part in ("tensor", "lts__t_sector_hit_rate"))
        or name.startswith(_USES)
    }
    lines = [f"{row['Kernel Name'][:40]} {number('gpu__time_duration.sum') / 1e6:.3f} ms"]
    lines += [f"    {name} {value:.4g}" for name, value in uses.items()]
    lines.append("    waits: " + ", ".join(f"{name} {value:.2f}" for name, value in most))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_counters.json")
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--timeout", type=float, default=300, help="seconds")
    parser.add_argument("--calls", action="store_true", help="only make the calls")
    options = parser.parse_args()
    if options.calls:
        make_calls(options.length)
        return
    rows = counted(options.length, options.timeout)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu_counters.json").write_text(json.dumps(rows))
    for row in rows:
        if not row["Kernel Name"].startswith(("void ", "at::")):
            print(shown(row))


if __name__ == "__main__":
    main()
