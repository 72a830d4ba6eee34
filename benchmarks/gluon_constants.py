"""The cost model's constants of Gluon's kernels, fitted to times that were recorded on an H200.

    python benchmarks/gluon_constants.py --out benchmarks/results/cost_model_gluon_h200.json

Reads `results/gpu_gluon_h200.json` and, of full tiles that keep the peak,
`results/gpu_forward_kept_h200.json`: calls of 4,096 tokens and more, of which the device and not
the launch decides the time. The other constants stay as they are. Patterns are dealt out to five
folds, and each is judged with constants fitted to the others. Needs no GPU. A minute.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Any

from patterncc.autotune.calibrate import Observation, fit
from patterncc.autotune.cost import H200, Constants, CostModel
from patterncc.autotune.job import Job
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.dsl import load

RESULTS = Path(__file__).parent / "results"
FOLDS = 5
LEAST_LENGTH = 4096
PATTERNS = {
    "causal": "causal",
    "full": "full",
    "w4096": "window(4096)",
    "w1024": "window(1024)",
    "w512": "window(512)",
    "w256": "window(256)",
    "w128": "window(128)",
    "stream": "streaming(64, 4096)",
    "dilated": "dilated(512, 8)",
    "dil256": "dilated(256, 16)",
    "union": "window(512) or dilated(512, 8)",
    "ladder": "ladder(64, 1024, 128, 8)",
    "localstr": "local_strided(64, 16, 8)",
    "heads": "if head % 2 == 0 then causal else window(512)",
}
"""Of the names in the record; those with tables and chunks are left out."""

KEPT_PATTERNS = {
    "causal": "causal",
    "full": "full",
    "window 4096": "window(4096)",
    "window 1024": "window(1024)",
    "sinks 64 + window 4096": "streaming(64, 4096)",
    "ladder": "ladder(64, 1024, 128, 8)",
    "local strided": "local_strided(64, 16, 8)",
}
"""Of the names in the record of kept peaks, likewise."""

TRITON = KernelConfig(64, 64, 4, 3, "descriptor", "reverse")
GLUON = replace(TRITON, emitter="gluon")
CONFIGS = {
    "T64": TRITON,
    "G128": replace(GLUON, block_q=128, block_k=128, num_warps=8, num_stages=2),
    "G128x64": replace(GLUON, block_q=128, num_warps=8, num_stages=4),
    "G64": GLUON,
    "G64k128": replace(GLUON, block_k=128, num_stages=2),
}
CONFIGS |= {
    f"{name} kept": replace(CONFIGS[name], peaks="kept") for name in CONFIGS if name != "T64"
}
RELEASED = 2  # the run of the kernels as they are; that before it alone timed 128x64


def recorded() -> dict[str, list[tuple[str, Observation]]]:
    """Name of the config and measured time by call: `causal, D128, 16384`."""
    found: dict[str, list[tuple[str, Observation]]] = defaultdict(list)
    models: dict[str, CostModel] = {}
    for number, run in enumerate(json.loads((RESULTS / "gpu_gluon_h200.json").read_text())["runs"]):
        for row in run["rows"]:
            if row["pattern"] not in PATTERNS or row["length"] < LEAST_LENGTH:
                continue
            label = f"{PATTERNS[row['pattern']]}, D{row['head_dim']}, {row['length']}"
            for name, milliseconds in row["ms"].items():
                of_run = RELEASED - 1 if name == "G128x64" else RELEASED
                if name not in CONFIGS or number != of_run:
                    continue
                if label not in models:
                    models[label] = CostModel(
                        job_of(row, PATTERNS[row["pattern"]]), "cuda:90", H200
                    )
                seconds = median(milliseconds) / 1000
                found[label].append((name, Observation(models[label], CONFIGS[name], seconds)))
    for row in json.loads((RESULTS / "gpu_forward_kept_h200.json").read_text())["rows"]:
        if row["pattern"] not in KEPT_PATTERNS or row["length"] < LEAST_LENGTH:
            continue
        text = KEPT_PATTERNS[row["pattern"]]
        label = f"{text}, kept, D{row['head_dim']}, {row['length']}"
        model = CostModel(job_of(row, text), "cuda:90", H200)
        for name, milliseconds in row["ms"].items():
            if name in CONFIGS:
                one = Observation(model, CONFIGS[name], median(milliseconds) / 1000)
                found[label].append((name, one))
    return dict(found)


def job_of(row: dict[str, Any], text: str) -> Job:
    """The call of a row, of the pattern of a text."""
    pattern = load(text)
    numbers = {each.name: each.value for each in pattern.numbers if each.value is not None}
    problem = Problem("bfloat16", row["head_dim"], row["head_dim"])
    heads, length = row["heads"], row["length"]
    return Job(pattern.structure, problem, 1, heads, heads, length, length, numbers=numbers)


def text_of(label: str) -> str:
    """The pattern of a call."""
    return label.partition(", D")[0].removesuffix(", kept")


def errors(observations: Iterable[Observation], constants: Constants) -> list[float]:
    """Logarithms of predicted over measured time."""
    found = []
    for one in observations:
        one.model.constants = constants
        found.append(math.log(one.predicted / one.seconds))
    return found


def deviation(found: Sequence[float]) -> float:
    """Root of the mean square."""
    return math.sqrt(fmean(error**2 for error in found))


def first_over_best(call: Sequence[Observation], constants: Constants) -> float:
    """The measured time of the config that the model puts first, over the best of the call."""
    for one in call:
        one.model.constants = constants
    first = min(call, key=lambda one: one.predicted)
    return first.seconds / min(one.seconds for one in call)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = [name for name in asdict(H200) if name.startswith("gluon_")]
    calls = recorded()
    texts = sorted({text_of(label) for label in calls})
    fold = {text: number % FOLDS for number, text in enumerate(texts)}

    def of_gluon(labels: Iterable[str]) -> list[Observation]:
        pairs = (pair for label in labels for pair in calls[label])
        return [one for name, one in pairs if name != "T64"]

    left_out: list[float] = []
    firsts: list[float] = []
    for number in range(FOLDS):
        inside = [label for label in calls if fold[text_of(label)] == number]
        others = of_gluon(label for label in calls if label not in inside)
        constants = fit(others, H200, names)
        left_out += errors(of_gluon(inside), constants)
        firsts += [first_over_best([one for _, one in calls[label]], constants) for label in inside]
    everything = of_gluon(calls)
    constants = fit(everything, H200, names)
    by_config: dict[str, list[float]] = defaultdict(list)
    for label, pairs in calls.items():
        head_dim = label.split(", ")[-2]
        for name, one in pairs:
            by_config[f"{head_dim} {name}"] += errors([one], constants)
    summary = {
        "observations": len(everything),
        "calls": len(calls),
        "deviation, constants of the file": deviation(errors(everything, H200)),
        "deviation, fitted to all": deviation(errors(everything, constants)),
        "deviation, left out": deviation(left_out),
        "first pick over best, left out": geometric_mean(firsts),
        "worst first pick over best, left out": max(firsts),
    }
    fitted = {name: value for name, value in asdict(constants).items() if name in names}
    means = {
        name: {"mean error": fmean(found), "deviation": deviation(found)}
        for name, found in sorted(by_config.items())
    }
    document = {"summary": summary, "constants": fitted, "by config": means}
    print(json.dumps(document, indent=1))
    if options.out:
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
