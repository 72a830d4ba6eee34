"""Random masks, tiles, lengths and offsets: is every tile visited that must be, none twice, none
taken as full that is not?

    python -m tests.fuzz.lowering [--checks N] [--seed N] [--processes N] [--out FILE]

A mask and a tile shape are drawn and lowered once, then compared with brute force at ten lengths
and offsets, in both directions, by the check of `tests/codegen/test_lower.py`. Draws go in batches,
each with a seed of its own that is printed with a difference: `--seed S --checks 1` draws its batch
again. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from patterncc.codegen import schedule
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.lower import lower
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Predicate
from tests.codegen.drawing import (
    Shape,
    brute_block_map,
    dense,
    environment,
    masks,
    numbers,
    pattern_of,
    shapes,
)
from tests.codegen.test_lower import assert_exact, transposed_map

CALLS = 10  # of one mask and tile shape
BATCH = 25  # masks

_Call = tuple[Shape, dict[str, int]]


@dataclass
class Found:
    """What a batch has shown.

    Attributes:
        seed: Of the batch.
        checks: Masks with a tile shape, lengths and an offset that were compared, both directions.
        masks: Masks that were lowered, by how: `exact`, `wider` loops, or `refused`.
        slowest: Seconds of processor time of the slowest lowering, and its mask and tile shape.
        differences: What differs, in words.
    """

    seed: int
    checks: int = 0
    masks: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    differences: list[str] = field(default_factory=list)


def run_batch(number: int) -> Found:
    """Draws and checks one batch."""
    found = Found(number)

    @seed(number)
    @settings(
        max_examples=BATCH,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        body=masks,
        tile=shapes(),
        calls=st.lists(st.tuples(shapes(), numbers), min_size=CALLS, max_size=CALLS),
    )
    def batch(body: Predicate, tile: Shape, calls: list[_Call]) -> None:
        here = [
            (replace(shape, block_q=tile.block_q, block_k=tile.block_k), values)
            for shape, values in calls
        ]
        _check_mask(found, body, here)

    batch()
    return found


def _check_mask(found: Found, body: Predicate, calls: list[_Call]) -> None:
    """Lowers a mask for its tile shape and compares it with brute force at each call."""
    programs: dict[bool, BlockProgram] = {}
    tile = calls[0][0]
    for within in (False, True):
        start = time.process_time()
        try:
            programs[within] = lower(
                pattern_of(body), tile.block_q, tile.block_k, within=within, check=True
            )
        except UnsupportedError:
            found.masks["refused"] += 1
            return
        mask = f"{tile.block_q}x{tile.block_k} within={within}: {body}"
        found.slowest = max(found.slowest, (time.process_time() - start, mask))
    found.masks["wider" if any(each.ignored for each in programs.values()) else "exact"] += 1
    for shape, values in calls:
        env = environment(shape, values)
        expected = brute_block_map(dense(body, env), shape)
        for within in {False, shape.within}:
            program = programs[within]
            try:
                assert_exact(schedule.block_map(program, env), expected, program)
                assert_exact(transposed_map(program, env), expected, program)
                _check_once(program, env)
            except AssertionError as error:
                words = str(error).strip().splitlines()
                found.differences.append(f"{shape} {values} within={within}: {body}: {words[:1]}")
        found.checks += 1


def _check_once(program: BlockProgram, env: dict[str, int]) -> None:
    lists = schedule.forward_tiles(program, env)
    for row in range(len(lists.indptr) - 1):
        tiles = lists.tiles[lists.indptr[row] : lists.indptr[row + 1]].tolist()
        assert len(set(tiles)) == len(tiles), f"row {row} visits a tile twice"


def batches(first: int, checks: int, processes: int) -> Iterator[Found]:
    """Batches from a seed on, as they get done, until there were so many checks."""
    with ProcessPoolExecutor(processes) as pool:
        following = first
        done = 0
        pending: set[Future[Found]] = set()
        while done < checks or pending:
            while done < checks and len(pending) < 2 * processes:
                pending.add(pool.submit(run_batch, following))
                following += 1
            future = next(as_completed(pending))
            pending.remove(future)
            found = future.result()
            done += found.checks
            yield found


def main() -> int:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--checks", type=int, default=100_000, help="at least (100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch (0)")
    parser.add_argument("--processes", type=int, default=2, help="at the same time (2)")
    parser.add_argument("--out", type=Path, help="file for what was found, JSON")
    arguments = parser.parse_args()
    total = Found(arguments.seed)
    last, start = arguments.seed, time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("checks", total=arguments.checks)
        for found in batches(arguments.seed, arguments.checks, arguments.processes):
            progress.advance(task, found.checks)
            total.checks += found.checks
            total.masks += found.masks
            total.slowest = max(total.slowest, found.slowest)
            last = max(last, found.seed)
            for difference in found.differences:
                total.differences.append(f"seed {found.seed}: {difference}")
                progress.console.print(total.differences[-1], markup=False)
    document = {
        "checks": total.checks,
        "seeds": [arguments.seed, last],
        "masks": dict(total.masks),
        "slowest_lowering_seconds": round(total.slowest[0], 3),
        "slowest_lowering": total.slowest[1],
        "seconds": round(time.perf_counter() - start),
        "differences": total.differences,
    }
    print(json.dumps(document, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if total.differences else 0


if __name__ == "__main__":
    sys.exit(main())
