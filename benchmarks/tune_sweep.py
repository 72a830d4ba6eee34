"""Every config of a search space, measured: what a search is compared with.

    python benchmarks/tune_sweep.py --patterns causal "window(1024)" --out sweeps.json

The order of tiles is the default's and registers are left to the default's bound; `--stages` and
`--loads` say which others remain beside all tile shapes and warps. Every output is checked, as in a
tuning run. Configs are compiled in parallel first, the next pattern's while one is measured, those
that spill among them, so that the file says what static pruning leaves out.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from patterncc.autotune.candidates import default_of, space_for
from patterncc.autotune.cost import CostModel, usual_constants
from patterncc.autotune.job import Job
from patterncc.autotune.key import Device
from patterncc.autotune.measurement import Measurement
from patterncc.autotune.prune import CompilePool
from patterncc.autotune.space import CPU, Phase, phase_named
from patterncc.autotune.worker import Maker, Worker
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.dsl import load

# Those that patterncc is compared with its peers on.
PATTERNS = (
    "full",
    "causal",
    "window(4096)",
    "window(1024)",
    "streaming(64, 4096)",
    "dilated(512, 8)",
    "local_strided(64, 16, 8)",
    "ladder(64, 1024, 128, 8)",
)


def job_of(text: str, options: argparse.Namespace) -> Job:
    pattern = load(text)
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


class Sweep:
    """The configs of one pattern, in the order in which the cost model puts them."""

    def __init__(self, text: str, phase: Phase, device: Device, options: argparse.Namespace):
        self.text, self.phase, self.device = text, phase, device
        self.job = job_of(text, options)
        self.default = default_of(self.job, phase, device)
        self.model = CostModel(
            self.job, device.target, usual_constants(device.target, phase), phase
        )
        space = space_for(self.job, phase, device)
        emitters = options.emitters.split(",")
        loads, stages = options.loads.split(","), tuple(map(int, options.stages.split(",")))
        self.configs = [
            config
            for _, config in self.model.ranked(space.configs)
            if device.target == CPU
            or (
                config.emitter in emitters
                and config.order == self.default.order
                and config.neighbours == self.default.neighbours
                and config.max_registers == self.default.max_registers
                and config.load in loads
                and config.num_stages in stages
            )
        ]
        if self.default in self.configs:  # first, so that what is hopeless is known early
            self.configs.remove(self.default)
            self.configs.insert(0, self.default)
        self.compiled: dict[KernelConfig, Measurement] = {}

    def compile(self, pool: CompilePool | None, seconds: float) -> None:
        if pool is not None:
            self.compiled = pool.compile(self.job, self.phase, self.configs, timeout=seconds)

    def measure(self, worker: Worker, end: float) -> list[dict[str, Any]]:
        worker.set_up("turn_to", self.job, self.phase.name)
        runs: list[dict[str, Any]] = []
        best = float("inf")
        for config in self.configs if not self.compiled else self.compiled:
            static = self.compiled.get(config)
            if static is not None and static.resources is None:
                runs.append(self._run(config, static))
                continue
            if time.monotonic() > end:
                break
            found = worker.measure(config, best)
            best = min(best, found.median)
            runs.append(self._run(config, found))
        return runs

    def _run(self, config: KernelConfig, found: Measurement) -> dict[str, Any]:
        static = self.compiled.get(config)
        needs = static.resources if static is not None else None
        return {
            "config": asdict(config),
            "state": found.state,
            "seconds": found.median if found.usable else None,
            "least": min(found.seconds, default=None),
            "calls": len(found.seconds),
            "reason": found.reason,
            "predicted": self.model.predict(config).seconds,
            "resources": asdict(needs) if needs is not None else None,
        }

    def document(self, runs: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "device": asdict(self.device),
            "pattern": self.text,
            "phase": self.phase.name,
            "problem": asdict(self.job.problem),
            "heads": self.job.heads,
            "length": self.job.q_len,
            "default": asdict(self.default),
            "configs": len(self.configs),
            "runs": runs,
        }


def write(path: Path, documents: list[dict[str, Any]]) -> None:
    """One run a line."""
    texts = []
    for document in documents:
        lines = ",\n  ".join(json.dumps(run) for run in document["runs"])
        head = json.dumps({k: v for k, v in document.items() if k != "runs"}, indent=1)
        texts.append(head.removesuffix("\n}") + f',\n "runs": [\n  {lines}\n ]\n}}')
    path.write_text("[\n" + ",\n".join(texts) + "\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--phase", default="forward")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--loads", default="descriptor,pointer")
    parser.add_argument("--emitters", default="triton,gluon")
    parser.add_argument("--stages", default="1,2,3,4,5,6")
    parser.add_argument("--seconds", type=float, default=600.0, help="of all patterns together")
    parser.add_argument("--budget", type=float, default=0.1, help="seconds of timing a config")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--folder", type=Path, help="of generated sources")
    options = parser.parse_args()
    phase = phase_named(options.phase)
    begin = time.monotonic()
    end = begin + options.seconds
    arguments = (options.device, options.folder, options.budget)
    with ExitStack() as stack:
        maker = Maker("patterncc.autotune.measure", "DeviceMeasurer", arguments)
        worker = stack.enter_context(Worker(maker))
        device: Device = worker.ask("describe")
        pool = None
        if device.target != CPU:
            pool = CompilePool(device.target, device.multiprocessors, options.jobs, options.folder)
            stack.enter_context(pool)
        sweeps = [Sweep(text, phase, device, options) for text in options.patterns]
        print(f"{time.monotonic() - begin:5.0f} s: {sum(len(s.configs) for s in sweeps)} configs")
        documents: list[dict[str, Any]] = []
        ahead = stack.enter_context(ThreadPoolExecutor(1))
        futures = [
            ahead.submit(lambda sweep=sweep: sweep.compile(pool, end - time.monotonic()))  # type: ignore[misc]
            for sweep in sweeps
        ]
        for sweep, future in zip(sweeps, futures, strict=True):
            future.result()
            runs = sweep.measure(worker, end)
            documents.append(sweep.document(runs))
            write(options.out, documents)
            times = {
                KernelConfig(**run["config"]): run["seconds"] for run in runs if run["seconds"]
            }
            if times:
                best = min(times, key=times.__getitem__)
                over = times.get(sweep.default, float("nan")) / times[best]
                print(
                    f"{time.monotonic() - begin:5.0f} s: {sweep.text:28}{len(runs):4} of "
                    f"{len(sweep.configs):4}, best {times[best] * 1e3:.3f} ms "
                    f"{best.block_q}x{best.block_k} w{best.num_warps} s{best.num_stages} "
                    f"{best.load}, default {over:.3f} times that"
                )


if __name__ == "__main__":
    main()
