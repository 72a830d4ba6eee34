"""How well the cost model orders configs, on times that were recorded on an H200.

    python benchmarks/cost_model.py --out benchmarks/results/cost_model_h200.json
    python benchmarks/cost_model.py --judge benchmarks/results/tune_sweeps_h200.json

Reads the sweeps in `benchmarks/results`. The patterns are dealt out to five folds; the constants of
the device are fitted to four of them and the model is judged on the fifth; then they are fitted to
all. Needs no GPU. About five minutes. `--judge` takes the constants as they are and says how well
they do on the sweeps of a file.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
from gpu_cases import CASES

from patterncc.autotune.calibrate import Observation, fit, mean_quality, quality
from patterncc.autotune.cost import H200, Constants, CostModel, usual_constants
from patterncc.autotune.job import Job
from patterncc.autotune.measurement import Resources
from patterncc.autotune.space import phase_named
from patterncc.codegen.gpu.config import KernelConfig, default_config
from patterncc.codegen.problem import Problem
from patterncc.dsl import load

RESULTS = Path(__file__).parent / "results"
TARGET = "cuda:90"
# Far from where the fit ends.
START = replace(H200, products=7e12, softmax=2e11, rows=1e10, mask=4e11, start=1.5e-6, drain=4e-7)
FOLDS = 5
LENGTH, HEADS = 16384, 16
FIELDS = ("block_q", "block_k", "num_warps", "num_stages", "load", "order", "max_registers")


def job_of(text: str, head_dim: int, case: str = "") -> Job:
    """The recorded call of a pattern."""
    pattern = load(text)
    numbers = {each.name: each.value for each in pattern.numbers if each.value is not None}
    tables: dict[str, Any] = {}
    for each in CASES:
        if each.name == case:
            given = each.tables(LENGTH, HEADS) if each.tables else {}
            tables = {name: np.asarray(table) for name, table in given.items()}
            numbers |= {name: v for name, v in each.values.items() if name != "layer"}
    return Job(
        pattern.structure,
        Problem("bfloat16", head_dim, head_dim),
        1,
        HEADS,
        HEADS,
        LENGTH,
        LENGTH,
        numbers=numbers,
        tables=tables,
    )


def recorded() -> dict[str, list[Observation]]:
    """The measured times by call: `causal, D128 (sweep)`."""
    models: dict[tuple[str, int, str], CostModel] = {}
    found: dict[str, list[Observation]] = defaultdict(list)

    def add(
        label: str,
        text: str,
        head_dim: int,
        config: dict[str, Any],
        ms: float,
        case: str,
        resources: Resources | None = None,
    ) -> None:
        place = (text, head_dim, case if load(text).tables else "")
        if place not in models:
            models[place] = CostModel(job_of(text, head_dim, case), TARGET, H200)
        kept = {name: config[name] for name in FIELDS if name in config}
        found[label].append(Observation(models[place], KernelConfig(**kept), ms / 1000, resources))

    for run in json.loads((RESULTS / "gpu_sweep_h200.json").read_text()):
        label = f"{run['pattern']}, D{run['D']} (sweep)"
        add(label, run["pattern"], run["D"], run["config"], run["ms"], "")
    first = json.loads((RESULTS / "gpu_forward_h200.json").read_text())
    # Strides were not yet taken in their own variables there.
    first["results"] = [each for each in first["results"] if "dilated" not in each["case"]]
    for path in sorted(RESULTS.glob("tune_sweep_*_h200.json")):
        sweep = json.loads(path.read_text())
        head_dim = sweep["problem"]["head_dim"]
        for run in sweep["runs"]:
            if run["state"] == "timed":
                label = f"{sweep['pattern']}, D{head_dim} (every config)"
                needs = Resources(**run["resources"]) if run["resources"] else None
                ms = 1e3 * run["seconds"]
                add(label, sweep["pattern"], head_dim, run["config"], ms, "", needs)
    reports = [first]
    reports += json.loads((RESULTS / "gpu_passes_and_tables_h200.json").read_text())["reports"]
    for report in reports:
        for result in report["results"]:
            if "dense tiles" in result["case"]:
                continue  # a choice of tiling that no config makes
            for run in result["runs"]:
                label = f"{result['case']}, D{report['options']['head_dim']}"
                head_dim = int(report["options"]["head_dim"])
                needs = Resources(*(_most(run[n]) for n in ("registers", "spilled", "shared")))
                add(label, result["text"], head_dim, run, run["ms"], result["case"], needs)
    return dict(found)


def judge(path: Path) -> None:
    """How well the present constants order the configs of recorded sweeps."""
    for sweep in json.loads(path.read_text()):
        phase = phase_named(sweep["phase"])
        job = job_of(sweep["pattern"], sweep["problem"]["head_dim"])
        model = CostModel(job, TARGET, usual_constants(TARGET, phase), phase)
        found = [
            Observation(
                model,
                KernelConfig(**{name: run["config"][name] for name in FIELDS}),
                run["seconds"],
                Resources(**run["resources"]) if run["resources"] else None,
            )
            for run in sweep["runs"]
            if run["seconds"]
        ]
        print(f"{sweep['pattern']:28}", *(f"{v:7.3f}" for v in asdict(quality(found)).values()))


def _most(number: int | list[int]) -> int:
    """Of several kernels the most."""
    return max(number) if isinstance(number, list) else number


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--judge", type=Path, help="a file of tune_sweep.py")
    options = parser.parse_args()
    if options.judge:
        judge(options.judge)
        return
    calls = recorded()
    everything = [one for observations in calls.values() for one in observations]
    rows: list[dict[str, Any]] = []
    without: dict[int, Constants] = {}
    texts = sorted({one.model._job.structure for one in everything})
    fold = {text: number % FOLDS for number, text in enumerate(texts)}
    for label, observations in calls.items():
        text = observations[0].model._job.structure
        others = [one for one in everything if fold[one.model._job.structure] != fold[text]]
        if fold[text] not in without:
            without[fold[text]] = fit(others, START)
        constants = without[fold[text]]
        for one in observations:
            one.model.constants = constants
        left_out = quality(observations)
        job = observations[0].model._job
        default = default_config(job.problem, TARGET, job.passes(64, 64)[0])
        times = {one.config: one.seconds for one in observations}
        row = {"call": label, "fitted to the others": asdict(left_out)}
        row["default"] = times[default] / min(times.values()) if default in times else None
        rows.append(row)
        print(f"{label:60}", *(f"{v:7.3f}" for v in asdict(left_out).values()), row["default"])
    constants = fit(everything, START)
    qualities = []
    for row, observations in zip(rows, calls.values(), strict=True):
        for one in observations:
            one.model.constants = constants
        qualities.append(quality(observations))
        row["fitted to all"] = asdict(qualities[-1])
    print(constants)
    defaults = [row["default"] for row in rows if row["default"]]
    summary = {
        "observations": len(everything),
        "calls": len(rows),
        "mean rank correlation, left out": float(
            np.mean([row["fitted to the others"]["rank_correlation"] for row in rows])
        ),
        "mean rank correlation, fitted to all": mean_quality(
            qualities, lambda one: one.rank_correlation
        ),
        "first pick over best, left out": geometric_mean(
            [row["fitted to the others"]["first"] for row in rows]
        ),
        "best of first eight over best, left out": geometric_mean(
            [row["fitted to the others"]["first_eight"] for row in rows]
        ),
        "default config over best": geometric_mean(defaults),
        "default config in": len(defaults),
    }
    print(json.dumps(summary, indent=1))
    if options.out:
        document = {"summary": summary, "constants": asdict(constants), "calls": rows}
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
