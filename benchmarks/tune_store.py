"""Makes the tuned configs that come with patterncc, for the device at hand: one command, which can
be broken off and goes on where it was.

    python benchmarks/tune_store.py --out autotune/shipped/h100.json --report tune_h100.json
    python benchmarks/tune_store.py --phases forward --seconds 8 --within 200 --out FILE

Tunes each phase of the patterns that patterncc is compared with its peers on, as `patterncc tune`
does, while what comes next is compiled. The report says after how many seconds a search was within
3% of the best time that it found, or of that of an exhaustive sweep (`--sweeps`, of
`tune_sweep.py`). Every key is kept: where nothing beat the default by more
than noise and 2%, its entry says so, and calls stay with the default. Entries of other keys that
the file has stay in it. On an H200 half an hour is ample; `--seconds` limits each search,
`--within` all of them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tune_sweep import PATTERNS

from patterncc.autotune.entries import Entry, read_collection, write_collection
from patterncc.autotune.job import Job
from patterncc.autotune.key import key_of
from patterncc.autotune.options import Options
from patterncc.autotune.search import Limits
from patterncc.autotune.space import CPU, PHASES, Phase, phase_named
from patterncc.autotune.store import TunedStore
from patterncc.autotune.tuning import Tuner, TuneResult
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.settings import settings
from patterncc.tuned import WRITTEN_BY

MAIN = ("full", "causal", "window(1024)", "streaming(64, 4096)")
SHORT = ("full", "causal", "window(256)", "streaming(64, 256)")
CLOSE = 0.97
"""Of the speed of the best that was found, to which the time is reported."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of some patterns that are tuned."""

    patterns: tuple[str, ...]
    head_dim: int
    heads: int
    kv_heads: int
    length: int
    batch: int = 1


TABLE = (
    Calls(PATTERNS, 128, 16, 16, 16384),
    Calls(MAIN, 64, 16, 16, 16384),
    Calls(MAIN, 128, 32, 8, 32768),
    Calls(SHORT, 128, 16, 16, 2048, batch=16),
    Calls(SHORT, 128, 16, 16, 1024, batch=16),
)
"""The shapes of `patterncc bench --suite design`, `d64`, `gqa` and `short`."""

LEAST_GAIN = 0.02
"""Of a config that is shipped: what wins by less on one board may lose on the next."""


def jobs(options: argparse.Namespace) -> Iterator[tuple[str, Job]]:
    """The calls by name, those that matter most first."""
    for calls in TABLE:
        for text in calls.patterns:
            if options.patterns and text not in options.patterns:
                continue
            pattern, head_dim = load(text), calls.head_dim
            length = options.length or calls.length
            group = calls.heads // calls.kv_heads
            yield (
                f"{text}, D{head_dim}, {calls.heads}:{calls.kv_heads}, {length}",
                Job(
                    pattern.structure,
                    Problem(options.dtype, head_dim, head_dim, group),
                    calls.batch,
                    calls.heads,
                    calls.kv_heads,
                    length,
                    length,
                    numbers={n.name: n.value for n in pattern.numbers if n.value is not None},
                ),
            )


def worth_shipping(entry: Entry) -> Entry:
    """An entry as it is shipped: one that gains too little says that nothing beat the default."""
    if entry.default is None or entry.default_seconds is None or entry.speedup is None:
        return entry
    if entry.speedup > 1 + LEAST_GAIN:
        return entry
    return replace(entry, config=entry.default, seconds=entry.default_seconds)


def best_of_sweeps(path: Path | None) -> dict[tuple[str, str], float]:
    """The least time in seconds that each recorded sweep found, by call and phase."""
    found: dict[tuple[str, str], float] = {}
    for sweep in json.loads(path.read_text()) if path else ():
        problem, heads = sweep["problem"], sweep["heads"]
        shape = f"{heads}:{heads // problem['group']}, {sweep['length']}"
        name = f"{sweep['pattern']}, D{problem['head_dim']}, {shape}"
        times = [run["seconds"] for run in sweep["runs"] if run["seconds"]]
        if times:
            found[name, sweep["phase"]] = min(times)
    return found


def row_of(name: str, result: TuneResult, of_sweep: float | None) -> dict[str, Any]:
    """What is reported of a search; `of_sweep`: seconds of the best of an exhaustive one."""
    entry = result.entry
    best = of_sweep or result.finals[0][1]
    close = [trial.elapsed for trial in result.search.trials if trial.seconds <= best / CLOSE]
    return {
        "call": name,
        "phase": entry.key.phase,
        "best_ms": result.finals[0][1] * 1e3,
        "best_of_sweep_ms": None if of_sweep is None else of_sweep * 1e3,
        "default_ms": None if entry.default_seconds is None else entry.default_seconds * 1e3,
        "beats_default": entry.beats_default,
        "config": dict(entry.config),
        "trials": dict(Counter(trial.state for trial in result.search.trials)),
        "compiled": dict(Counter(found.state for found in result.compiled.values())),
        "seconds_before_search": result.prepared,
        "seconds_to_close": result.prepared + close[0] if close else None,
        "seconds": result.seconds,
        "stopped": result.search.stopped,
        "finals": [
            {"config": repr(config), "rounds_ms": [1e3 * one for one in rounds]}
            for config, rounds in result.comparison.rounds.items()
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the collection to write")
    parser.add_argument("--report", type=Path, help="a JSON file of what each search did")
    parser.add_argument("--sweeps", type=Path, help="a file of tune_sweep.py, to compare with")
    parser.add_argument("--patterns", nargs="+", help="of the table; all if not given")
    parser.add_argument("--phases", nargs="+", default=list(PHASES))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--length", type=int, help="instead of the table's")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each search")
    parser.add_argument("--within", type=float, help="begin no search after so many seconds")
    parser.add_argument("--folder", type=Path, help="of results until now; the user's cache")
    options = parser.parse_args()
    folder = options.folder or settings().cache_dir / "tune_store"
    store = TunedStore(folder)
    limits = Limits(options.trials, options.seconds)
    rows: list[dict[str, Any]] = []
    swept = best_of_sweeps(options.sweeps)
    with Tuner(
        options.device, store, options=Options(limits, folder=folder / "src"), written_by=WRITTEN_BY
    ) as tuner:
        works: list[tuple[str, Job, Phase]] = []
        done = {entry.key for entry, origin in store.entries() if origin == "user"}
        for name, job in jobs(options):
            for phase in map(phase_named, options.phases):
                key = key_of(job.subject(phase.name), tuner.device)
                if key not in done and (phase.cpu or tuner.device.target != CPU):
                    works.append((name, job, phase))
                    done.add(key)
        print(f"{len(works)} searches on {tuner.device.name}, of {len(done)} keys")
        begin = time.monotonic()
        for number, (name, job, phase) in enumerate(works):
            if options.within is not None and time.monotonic() - begin > options.within:
                left = [f"{name} {phase.name}" for name, _, phase in works[number:]]
                print(f"not begun within {options.within:g} s: {'; '.join(left)}")
                break
            then = works[number + 1][1:] if number + 1 < len(works) else None
            result = tuner.tune(job, phase, then=then)
            rows.append(row_of(name, result, swept.get((name, phase.name))))
            row = rows[-1]
            gain = "default" if not row["beats_default"] else f"{result.entry.speedup or 0:.3f}x"
            print(
                f"{name:48}{phase.name:16}{row['best_ms']:9.4f} ms  {gain}  {row['seconds']:.0f} s"
            )
            if options.report:
                options.report.write_text(json.dumps(rows, indent=1) + "\n")
            if result.search.stopped == "interrupted":
                break
    entries = (
        {entry.key: entry for entry in read_collection(options.out)} if options.out.exists() else {}
    )
    entries |= {
        entry.key: worth_shipping(entry) for entry, origin in store.entries() if origin == "user"
    }
    write_collection(options.out, entries.values())
    print(f"{len(entries)} entries in {options.out}")


if __name__ == "__main__":
    main()
