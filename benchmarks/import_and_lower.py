"""Times `import patterncc`, and every library pattern from its text to a block program.

    python benchmarks/import_and_lower.py [--repeat N] [--json]

An import is timed in a fresh process. A pattern is timed with everything imported and its own text
not parsed before, as the first call of a program finds it; one that takes too long is stopped.
Patterns are timed in seconds of the processor, which other work on the machine disturbs less, and
next to each of them the same reference pattern, so that runs can be compared. The exit code is 1 if
a limit is exceeded.
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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track
from rich.table import Table

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.lower import DIVIDING_SIZES, lower, with_transposed
from patterncc.dsl import library, load
from patterncc.dsl.errors import UnsupportedError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from patterncc.codegen.ir import BlockProgram, Passes

ROOT = Path(__file__).resolve().parent.parent
IMPORT_LIMIT = 150.0  # ms
PROGRAM_LIMIT = 100.0  # ms
REFERENCE = "streaming"
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
            direction together. None where it was stopped.
        both: Least of reading and lowering both directions.
        first: Least of reading and lowering all that a first call looks at: every way to split the
            pattern into passes, of which it chooses.
        training: The same, and the transposed direction of what was chosen.
        read: Least of reading alone.
        reference: Least of reading and lowering the forward direction of `REFERENCE`, meanwhile.
        sweeps: Of the program, forward and transposed; empty where it does not lower.
        note: Why it does not lower.
    """

    name: str
    median: float | None
    least: float | None
    both: float | None = None
    first: float | None = None
    training: float | None = None
    read: float | None = None
    reference: float | None = None
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


def processor_time(task: Callable[[], object]) -> float:
    """Milliseconds of the processor that a task takes; a refusal should come in time as well."""
    start = time.process_time()
    with suppress(UnsupportedError):
        task()
    return 1e3 * (time.process_time() - start)


def pattern_time(name: str, repeat: int) -> Row:
    """Times a library pattern from its text to block programs, for rows within the keys."""
    text = library.source(name).text

    def forward(source: str = text) -> BlockProgram:
        return lower(load(source), TILE, TILE, sizes=SIZES, within=True, transposed=False)

    def passes(transposed: bool) -> Passes:
        return lower_passes(load(text), TILE, TILE, sizes=SIZES, within=True, transposed=transposed)

    tasks: dict[str, Callable[[], object]] = {
        "forward": forward,
        "both": lambda: with_transposed(forward()),
        "first": lambda: passes(False),
        "training": lambda: passes(True),
        "read": lambda: load(text),
        "reference": lambda: forward(library.source(REFERENCE).text),
    }
    times: dict[str, list[float]] = {each: [] for each in tasks}
    for _ in range(repeat):
        for each, task in tasks.items():
            times[each].append(processor_time(task))
    least = {each: min(values) for each, values in times.items()}
    sweeps: tuple[int, ...] = ()
    note = ""
    try:
        program = with_transposed(forward())
        sweeps = tuple(len(each) for each in (program.forward, program.transposed or ()))
    except UnsupportedError as error:
        note = error.message.partition(":")[0]
    return Row(
        name,
        statistics.median(times["forward"]),
        least.pop("forward"),
        **least,
        sweeps=sweeps,
        note=note,
    )


def _child(name: str, repeat: int, answer: Connection) -> None:
    pattern_time(REFERENCE, 1)  # builds the parser and starts isl
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


def _late(time: float | None, limit: float) -> bool:
    return time is None or time > limit


def show(imports: list[Row], patterns: list[Row], machine: dict[str, object]) -> None:
    """Prints the results for a person."""
    console = Console()
    table = Table(title="imports in fresh processes, ms")
    for column in ("statement", "median", "least"):
        table.add_column(column, justify="left" if column == "statement" else "right")
    for row in imports:
        table.add_row(row.name, _number(row.median), _number(row.least))
    console.print(table)
    table = Table(title=f"text to block programs, {TILE}x{TILE} tiles, ms of the processor")
    table.add_column("pattern")
    for column in ("forward", "least", "both", "first call", "training", "reading"):
        table.add_column(column, justify="right")
    table.add_column(REFERENCE, justify="right")
    table.add_column("sweeps", justify="right")
    table.add_column("not lowered yet", overflow="fold")
    for row in patterns:
        least = _number(row.least)
        table.add_row(
            row.name,
            _number(row.median),
            f"[red]{least}[/]" if _late(row.least, PROGRAM_LIMIT) else least,
            *map(_number, (row.both, row.first, row.training, row.read, row.reference)),
            " + ".join(map(str, row.sweeps)),
            row.note,
        )
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))


def main() -> int:
    """Measures and prints. Returns 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="runs of each (default 5)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="library patterns to time")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")

    statements = ("import patterncc", "import patterncc.dsl", "from patterncc import compile")
    imports = [import_time(statement, options.repeat) for statement in statements]
    steps = track(
        options.only or library.names(), "patterns", console=Console(stderr=True), transient=True
    )
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
    late = any(_late(row.least, PROGRAM_LIMIT) for row in patterns)
    return int(late or _late(imports[0].median, IMPORT_LIMIT))


if __name__ == "__main__":
    sys.exit(main())
