"""Times `import patterncc`, and every library pattern from its text to a block program.

    python benchmarks/import_and_lower.py [--repeat N] [--json]

An import is timed in a fresh process. A pattern is timed with everything imported and its own text
not parsed before, as the first call of a program finds it; one that takes too long is stopped. The
exit code is 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track
from rich.table import Table

from patterncc.codegen.lower import DIVIDING_SIZES, lower
from patterncc.dsl import library, load
from patterncc.dsl.errors import UnsupportedError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

ROOT = Path(__file__).resolve().parent.parent
IMPORT_LIMIT = 150.0  # ms
PROGRAM_LIMIT = 100.0  # ms
TILE = 128
SIZES = dict.fromkeys(DIVIDING_SIZES, 8)
TIME_LIMIT = 30  # s, for all repeats of one pattern

CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        name: Of the pattern, or of the import.
        median, least: Of the repeats, in milliseconds; of reading and lowering the forward
            direction together, which is what a call waits for. None where it was stopped.
        both: Median of reading and lowering both directions, as training needs them.
        read: Median of reading alone.
        sweeps: Of the program, forward and transposed; empty where it does not lower.
        note: Why it does not lower.
    """

    name: str
    median: float | None
    least: float | None
    both: float | None = None
    read: float | None = None
    sweeps: tuple[int, ...] = ()
    note: str = ""


def import_time(statement: str, repeat: int) -> Row:
    """Times an import in fresh processes, the start of the interpreter left out."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    times = []
    for _ in range(repeat):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        times.append(1e3 * float(done.stdout))
    return Row(statement, statistics.median(times), min(times))


def pattern_time(name: str, repeat: int) -> Row:
    """Times a library pattern from its text to a block program, for rows within the keys."""
    text = library.source(name).text
    forward, both, read = [], [], []
    sweeps: tuple[int, ...] = ()
    note = ""
    for times, transposed in ((forward, False), (both, True)):
        for _ in range(repeat):
            start = time.perf_counter()
            pattern = load(text)
            middle = time.perf_counter()
            try:
                program = lower(
                    pattern, TILE, TILE, sizes=SIZES, within=True, transposed=transposed
                )
                sweeps = tuple(len(each) for each in (program.forward, program.transposed or ()))
            except UnsupportedError as error:
                note = error.message.partition(":")[0]
            times.append(1e3 * (time.perf_counter() - start))
            read.append(1e3 * (middle - start))
    medians = map(statistics.median, (both, read))
    return Row(name, statistics.median(forward), min(forward), *medians, sweeps, note)


def _child(name: str, repeat: int, answer: Connection) -> None:
    pattern_time("causal", 1)  # builds the parser and starts isl
    answer.send(pattern_time(name, repeat))


def limited_pattern_time(name: str, repeat: int) -> Row:
    """`pattern_time` in a process of its own, which is stopped if it takes too long."""
    receive, send = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=_child, args=(name, repeat, send))
    child.start()
    send.close()
    try:
        if receive.poll(TIME_LIMIT):
            row: Row = receive.recv()
            return row
        return Row(name, None, None, note=f"stopped after {TIME_LIMIT} s")
    except EOFError:
        return Row(name, None, None, note="failed")
    finally:
        child.kill()
        child.join()


def _number(time: float | None) -> str:
    return "-" if time is None else f"{time:.1f}"


def _late(row: Row, limit: float) -> bool:
    """Whether it took longer than it should; a refusal should come in time as well."""
    return row.median is None or row.median > limit


def show(imports: list[Row], patterns: list[Row], machine: dict[str, object]) -> None:
    """Prints the results for a person."""
    console = Console()
    table = Table(title="imports in fresh processes, ms")
    for column in ("statement", "median", "least"):
        table.add_column(column, justify="left" if column == "statement" else "right")
    for row in imports:
        table.add_row(row.name, _number(row.median), _number(row.least))
    console.print(table)
    table = Table(title=f"text to block program, {TILE}x{TILE} tiles, ms")
    for column in ("pattern", "forward", "least", "both", "of it reading", "sweeps"):
        table.add_column(column, justify="left" if column == "pattern" else "right")
    table.add_column("not lowered yet", overflow="fold")
    for row in patterns:
        median = _number(row.median)
        table.add_row(
            row.name,
            f"[red]{median}[/]" if _late(row, PROGRAM_LIMIT) else median,
            _number(row.least),
            _number(row.both),
            _number(row.read),
            " + ".join(map(str, row.sweeps)),
            row.note,
        )
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))


def main() -> int:
    """Measures and prints. Returns 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")

    statements = ("import patterncc", "import patterncc.dsl", "from patterncc import compile")
    imports = [import_time(statement, options.repeat) for statement in statements]
    steps = track(library.names(), "patterns", console=Console(stderr=True), transient=True)
    patterns = [limited_pattern_time(name, options.repeat) for name in steps]
    machine = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "repeat": options.repeat,
    }
    if options.json:
        results = {"machine": machine, "imports": imports, "patterns": patterns}
        print(json.dumps(results, default=asdict, indent=2))
    else:
        show(imports, patterns, machine)
    late = _late(imports[0], IMPORT_LIMIT) or any(_late(row, PROGRAM_LIMIT) for row in patterns)
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
