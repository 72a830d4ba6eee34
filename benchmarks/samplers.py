"""Samplers compared on recorded sweeps: how close to the best after some trials.

    python benchmarks/samplers.py SWEEP.json... --out benchmarks/results/tune_samplers.json

Reads what `tune_sweep.py` wrote and searches it again and again with a timer that looks times up,
so that no device is needed. Each sampler starts as a tuning run does: with the default config and
the cost model's favourites, unless `--cold`. A config that was refused, wrong or spills counts as
a bad trial.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from patterncc.autotune.measurement import Measurement
from patterncc.autotune.search import Limits, search
from patterncc.autotune.space import SearchSpace, phase_named
from patterncc.autotune.study import SAMPLERS, Sampler
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.dsl.score.terms import PLAIN

AFTER = (5, 10, 20, 40, 60)


class Recorded:
    """A sweep as a space to search and a timer to search it with."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.name = f"{document['pattern']}, D{document['problem']['head_dim']}"
        self.default = KernelConfig(**document["default"])
        self.times: dict[KernelConfig, float] = {}
        self.predicted: dict[KernelConfig, float] = {}
        for run in document["runs"]:
            config = KernelConfig(**run["config"])
            right = run["state"] in ("timed", "slow")
            self.times[config] = run["seconds"] if right else math.inf
            self.predicted[config] = run["predicted"]
        fixed: dict[str, Any] = {}
        if document["device"]["target"] != "cpu":
            first = next(iter(self.times))
            for name in ("order", "neighbours", "max_registers", "emitter"):
                fixed[name] = getattr(first, name)
        terms = {"terms": PLAIN}
        problem = Problem(**{**document["problem"], **terms})
        phase = phase_named(document.get("phase", "forward"))
        self.space = SearchSpace(phase, problem, document["device"]["target"], fixed)
        self.best = min(self.times.values())

    def measure(self, config: KernelConfig, best: float) -> Measurement:
        seconds = self.times[config]
        if math.isfinite(seconds):
            return Measurement("timed", (seconds,))
        return Measurement("refused", (), "recorded as bad")


def one_search(
    recorded: Recorded, sampler: Sampler, seed: int, trials: int, cold: bool, gain: float = 0.0
) -> tuple[list[float], int]:
    """The best time over the best of all, after each trial; and how many trials there were."""
    favourites = sorted(recorded.predicted, key=recorded.predicted.__getitem__)[:3]
    seeds = [] if cold else [recorded.default, *favourites]
    result = search(
        recorded.space,
        recorded.measure,
        recorded.predicted,
        seeds=[config for config in seeds if config in recorded.times],
        limits=Limits(trials, 1e9, gain),
        sampler=sampler,
        seed=seed,
    )
    curve, so_far = [], math.inf
    for trial in result.trials:
        so_far = min(so_far, trial.seconds)
        curve.append(so_far / recorded.best)
    return curve, len(result.trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweeps", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    options = parser.parse_args()
    samplers: list[Sampler] = [each for each in SAMPLERS if each in options.samplers.split(",")]
    rows = []
    documents: list[dict[str, Any]] = []
    for path in options.sweeps:
        found = json.loads(path.read_text())
        documents += found if isinstance(found, list) else [found]
    for recorded in map(Recorded, documents):
        default = recorded.times.get(recorded.default, math.nan) / recorded.best
        print(f"{recorded.name}: {len(recorded.times)} configs, default {default:.3f}x the best")
        for cold in (False, True):
            for sampler in samplers:
                seeds = range(1 if sampler == "model" else options.seeds)
                begin = time.perf_counter()
                curves = [
                    one_search(recorded, sampler, seed, options.trials, cold)[0] for seed in seeds
                ]
                cost = (time.perf_counter() - begin) / len(seeds)
                after = {
                    count: geometric_mean([curve[min(count, len(curve)) - 1] for curve in curves])
                    for count in AFTER
                    if all(math.isfinite(curve[min(count, len(curve)) - 1]) for curve in curves)
                }
                row: dict[str, Any] = {
                    "sweep": recorded.name,
                    "sampler": sampler,
                    "start": "cold" if cold else "seeded",
                    "over_best_after": after,
                    "seconds_of_a_search": cost,
                }
                stopped = [
                    one_search(recorded, sampler, seed, options.trials, cold, 0.01)
                    for seed in seeds
                ]
                row["early_stop"] = {
                    "trials": sum(count for _, count in stopped) / len(stopped),
                    "over_best": geometric_mean([curve[-1] for curve, _ in stopped]),
                }
                rows.append(row)
                words = "  ".join(f"{count}: {value:.3f}" for count, value in after.items())
                early = row["early_stop"]
                print(f"  {row['start']:7}{sampler:7} {words}  | early stop after", end="")
                print(f" {early['trials']:.0f}: {early['over_best']:.3f}  ({cost:.1f} s)")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
