"""The best configs of recorded sweeps as entries of the store, in a file for `cache import`.

    python benchmarks/sweep_entries.py sweeps.json --patterns full --out entries.json

A sweep tries more than a search does, so its best config is as good a result. Times are those of
single measurements, not of a comparison in turn.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from patterncc import __version__
from patterncc.autotune.candidates import key_for, space_for
from patterncc.autotune.entries import Entry, write_collection
from patterncc.autotune.job import Job
from patterncc.autotune.key import Device
from patterncc.autotune.space import config_values, phase_named
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.dsl import load


def entry_of(document: dict[str, Any], date: str) -> Entry:
    """The entry of one sweep."""
    pattern, phase = load(document["pattern"]), phase_named(document["phase"])
    device = Device(**document["device"])
    shape = {name: document["problem"][name] for name in ("dtype", "head_dim", "value_head_dim")}
    problem = Problem(**shape, group=document["problem"]["group"])
    numbers = {p.name: p.value for p in pattern.numbers if p.value is not None}
    heads, length = document["heads"], document["length"]
    kv_heads = heads // problem.group
    job = Job(pattern.structure, problem, 1, heads, kv_heads, length, length, numbers=numbers)
    times = {KernelConfig(**run["config"]): run["seconds"] or math.inf for run in document["runs"]}
    best = min(times, key=times.__getitem__)
    default = times.get(KernelConfig(**document["default"]), math.inf)
    sizes = {"batch": 1, "heads": heads, "kv_heads": kv_heads, "q_len": length, "kv_len": length}
    return Entry(
        key_for(job, phase, device),
        config_values(best, phase, device.target),
        times[best],
        default if math.isfinite(default) else None,
        len(times),
        len(space_for(job, phase, device).configs),
        {**sizes, **numbers},
        f"patterncc {__version__}, benchmarks/tune_sweep.py",
        date,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweeps", type=Path)
    parser.add_argument("--patterns", nargs="*", help="those of the file if not given")
    parser.add_argument("--date", required=True, help="of the sweep, ISO 8601, UTC")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    documents = json.loads(options.sweeps.read_text())
    chosen = [d for d in documents if not options.patterns or d["pattern"] in options.patterns]
    entries = [entry_of(document, options.date) for document in chosen]
    write_collection(options.out, entries)
    for entry in entries:
        print(entry.key.pattern, dict(entry.config), f"{entry.seconds * 1e3:.3f} ms")


if __name__ == "__main__":
    main()
