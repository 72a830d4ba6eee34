"""What the choice of emitter and tile shape goes by: forward kernels of a call, in turns.

    python benchmarks/gpu_tile_choice.py --out results [terms] [windows]

`terms`: Triton's default and Gluon's tile shapes with score terms. `windows`: the same for patterns
of all lengths of rows, with exact peaks and kept ones. All kernels of a row are timed turn by turn
on one Hopper GPU, rows in one process, after every kernel was compiled in others; their outputs are
compared with one another (tests compare them with float64). `results/gpu_tile_choice.json` keeps
all rounds. Takes a minute on an H200.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton
from gpu_cases import Shape, pattern

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import KernelConfig, default_config, tile_order
from patterncc.codegen.gpu.emitter_choice import emitter_of
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.launch import compile_for
from patterncc.codegen.ir import Passes
from patterncc.codegen.problem import Problem
from patterncc.codegen.score.values import NO_VALUES, ScoreValues
from patterncc.dsl.score.terms import PLAIN, load_terms

TARGET = "cuda:90"
WIDE = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
SMALL = KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon")
LONG = KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon")
TERMS: dict[str, tuple[str | None, str | None]] = {
    "none": (None, None),
    "softcap": ("softcap(score, 50)", None),
    "sink": (None, "sinks[head]"),
    "alibi": ("score + alibi(slopes)", None),
    "all three": ("softcap(score, 50) + alibi(slopes)", "sinks[head]"),
}
ROUNDS = 6


@dataclass(frozen=True)
class Row:
    """What is timed in turns: a pattern, a shape, a name of `TERMS`, and kernels by name."""

    text: str
    shape: Shape
    terms: str
    configs: tuple[tuple[str, KernelConfig], ...]


def _term_rows() -> Iterator[Row]:
    for head_dim in (128, 64):
        triton_config = default_config(Problem("bfloat16", head_dim, head_dim), TARGET)
        first = ("128x128", WIDE) if head_dim == 128 else ("64x128", LONG)
        configs = (("Triton", triton_config), first, ("64x64", SMALL))
        for length in (8192, 2048):
            for text in ("causal", "window(4096)", "window(1024)"):
                if text != "window(4096)" or (length, head_dim) == (8192, 128):
                    for terms in TERMS:
                        yield Row(text, Shape(16, 16, length, head_dim), terms, configs)


def _window_rows() -> Iterator[Row]:
    kernels = [("Triton", default_config(Problem("bfloat16", 128, 128), TARGET))]
    for name, config in (("128x128", WIDE), ("64x64", SMALL)):
        kernels += [(name, config), (f"{name} kept", replace(config, peaks="kept"))]
    for text in (
        *(f"window({width})" for width in (128, 256, 512, 1024, 1536, 2048, 4096)),
        "streaming(64, 1024)",
        "around(512)",
        "causal and chunked(1024)",
        "dilated(512, 8)",
        "ladder(64, 1024, 128, 8)",
        "causal",
        "full",
    ):
        yield Row(text, Shape(16, 16, 16384, 128), "none", tuple(kernels))
    for length in (1024, 2048, 4096, 8192):
        yield Row("causal", Shape(64, 64, length, 128), "none", tuple(kernels))
    for shape in (Shape(16, 16, 4096, 128), Shape(64, 64, 8192, 128), Shape(32, 8, 32768, 128)):
        for text in ("window(512)", "window(1024)"):
            yield Row(text, shape, "none", tuple(kernels))
    for text in ("causal", "window(1024)"):
        for terms in ("softcap", "sink"):
            yield Row(text, Shape(16, 16, 8192, 128), terms, tuple(kernels))


ROWS: dict[str, Callable[[], Iterator[Row]]] = {"terms": _term_rows, "windows": _window_rows}


def passes(text: str, config: KernelConfig) -> Passes:
    """The passes of a pattern in a config's tiles, for rows that end within the keys."""
    return lower_passes(
        pattern(text), config.block_q, config.block_k, within=True, transposed=False
    )


def ordered(text: str, config: KernelConfig) -> KernelConfig:
    """The config with the order of query tiles that an untuned call has."""
    return replace(config, order=tile_order(passes(text, config)[0]))


def compile_one(job: tuple[str, int, int, str, KernelConfig]) -> str | None:
    """Fills Triton's cache with the kernels of a call; gives what stands against them, in words."""
    text, head_dim, group, terms, config = job
    problem = Problem("bfloat16", head_dim, head_dim, group, terms=_terms(terms))
    parts = passes(text, config)
    try:
        for number, program in enumerate(parts):
            source = emitter_of(config)(
                program,
                problem,
                ordered(text, config),
                resumes=number > 0,
                hands_on=number < len(parts) - 1,
            )
            compile_for(source, TARGET)
    except Exception as error:
        return f"{text}, {terms}, {config}: {type(error).__name__}: {str(error)[:300]}"
    return None


def _terms(name: str) -> Any:
    score, sink = TERMS[name]
    return PLAIN if score is None and sink is None else load_terms(score, sink)


def call_of(row: Row, config: KernelConfig, tensors: Any) -> Callable[[], torch.Tensor]:
    """A call of a row with a config."""
    terms = _terms(row.terms)
    own = ordered(row.text, config)
    forward = Forward(lambda q, k: (passes(row.text, config),), config=own, terms=terms)
    tables = {
        name: torch.linspace(0.01, 0.5, row.shape.heads, device="cuda") for name in terms.tables
    }
    values = ScoreValues({}, tables) if tables or row.terms != "none" else NO_VALUES
    env, scale = {"q_offset": 0, "layer": 0}, row.shape.head_dim**-0.5
    return lambda: forward(*tensors, env=env, scale=scale, score_values=values)[0]


def measured(row: Row) -> dict[str, Any]:
    """The times of a row, in milliseconds, and how far its outputs are apart."""
    tensors = row.shape.tensors(torch.device("cuda"))
    runs: dict[str, Callable[[], torch.Tensor]] = {}
    outputs: list[torch.Tensor] = []
    for name, config in row.configs:
        run = call_of(row, config, tensors)
        try:
            outputs.append(run().float())
        except Exception as error:
            print(f"{row.text}, {row.terms}, {name}: {type(error).__name__}: {str(error)[:200]}")
            continue
        runs[name] = run
    gap = max(float((out - outputs[0]).abs().max()) for out in outputs)
    del outputs
    calls = 3 if row.shape.length > 8192 else 10
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            run()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / calls)
    return {
        "pattern": row.text,
        "shape": asdict(row.shape),
        "terms": row.terms,
        "gap": gap,
        "ms": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", nargs="*", default=list(ROWS), help="terms, windows or both")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu_tile_choice.json")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--after", type=Path, help="a file to wait for before anything is timed")
    options = parser.parse_args()
    rows = [row for what in options.what for row in ROWS[what]()]
    started = time.perf_counter()
    jobs = dict.fromkeys(
        (row.text, row.shape.head_dim, row.shape.heads // row.shape.kv_heads, row.terms, config)
        for row in rows
        for _, config in row.configs
    )
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        failures = [each for each in pool.map(compile_one, jobs, chunksize=1) if each]
    print(f"{len(jobs)} kernels in {time.perf_counter() - started:.0f} s", *failures, sep="\n")
    while options.after and not options.after.exists():
        time.sleep(0.2)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    results = []
    for row in rows:
        results.append(measured(row))
        shape = row.shape
        medians = {name: statistics.median(ms) for name, ms in results[-1]["ms"].items()}
        least = min(medians.values())
        print(
            f"{row.text:28.28} {shape.length:6} {shape.heads}:{shape.kv_heads} d{shape.head_dim:<4}"
            f"{row.terms:10} {results[-1]['gap']:.0e} ",
            *(f"{n} {ms:.4f}{'*' if ms == least else ' '}" for n, ms in medians.items()),
            flush=True,
        )
    report = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "rows": results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu_tile_choice.json").write_text(json.dumps(report))
    print(f"all in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
