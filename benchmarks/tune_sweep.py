"""Every config of a search space, measured: what a search is compared with.

    python benchmarks/tune_sweep.py --pattern "streaming(4, 4096)" --head-dim 128 --out sweep.json

The order of tiles is the one that starts with the longest and registers are left to the compiler;
all tile shapes, warps, stages and ways to load remain. Every output is checked, as in a tuning run.
Configs are compiled in parallel first, those that spill among them, so that the file says what
static pruning leaves out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from patterncc.autotune.cost import CostModel, usual_constants
from patterncc.autotune.job import Job
from patterncc.autotune.prune import compile_all
from patterncc.autotune.space import CPU, phase_named
from patterncc.autotune.tuning import DEFAULTS, space_for
from patterncc.autotune.worker import Maker, Worker
from patterncc.codegen.gpu.config import tile_order
from patterncc.codegen.problem import Problem
from patterncc.dsl import load


def job_of(options: argparse.Namespace) -> Job:
    pattern = load(options.pattern)
    kv_heads = options.kv_heads or options.heads
    return Job(
        pattern.structure,
        Problem(options.dtype, options.head_dim, options.head_dim, options.heads // kv_heads),
        1,
        options.heads,
        kv_heads,
        options.length,
        options.length,
        numbers={p.name: p.value for p in pattern.numbers if p.value is not None},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pattern", default="streaming(4, 4096)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    job, phase = job_of(options), phase_named("forward")
    begin = time.monotonic()
    maker = Maker("patterncc.autotune.measure", "DeviceMeasurer", (job, phase.name, options.device))
    with Worker(maker) as worker:
        device = worker.ask("describe")
        space = space_for(job, phase, device)
        default = DEFAULTS[phase.name](job, device)
        model = CostModel(job, device.target, usual_constants(device.target))
        order = tile_order(job.passes(64, 64)[0])
        chosen = [
            config
            for _, config in model.ranked(space.configs)
            if device.target == CPU or (config.order == order and config.max_registers is None)
        ]
        compiled = {}
        if device.target != CPU:
            compiled = compile_all(
                job,
                phase.name,
                chosen,
                device.target,
                processes=max(1, (os.cpu_count() or 2) - 1),
                timeout=options.seconds * 0.5,
            )
        after_compiling = time.monotonic() - begin
        runs: list[dict[str, Any]] = []
        for config in chosen:
            if time.monotonic() - begin > options.seconds:
                break
            found = worker.measure(config)
            static = compiled.get(config)
            runs.append(
                {
                    "config": asdict(config),
                    "state": found.state,
                    "seconds": found.median if found.usable else None,
                    "least": min(found.seconds, default=None),
                    "calls": len(found.seconds),
                    "reason": found.reason,
                    "predicted": model.predict(config).seconds,
                    "resources": asdict(static.resources)
                    if static is not None and static.resources is not None
                    else None,
                }
            )
    document = {
        "device": asdict(device),
        "pattern": options.pattern,
        "problem": asdict(job.problem),
        "heads": job.heads,
        "length": job.q_len,
        "default": asdict(default),
        "configs": len(chosen),
        "compile_seconds": after_compiling,
        "seconds": time.monotonic() - begin,
    }
    lines = ",\n  ".join(json.dumps(run) for run in runs)  # one run a line
    head = json.dumps(document, indent=1).removesuffix("\n}")
    options.out.write_text(f'{head},\n "runs": [\n  {lines}\n ]\n}}\n')
    print(f"{len(runs)} of {len(chosen)} configs in {document['seconds']:.0f} s")


if __name__ == "__main__":
    main()
