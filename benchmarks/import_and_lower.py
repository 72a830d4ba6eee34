"""Times `import patterncc`, and every library pattern from its text to a block program.

    python benchmarks/import_and_lower.py [--repeat N] [--json]

An import is timed in a fresh process. A pattern is timed with everything imported and nothing kept
from an earlier run, as the first call of a program finds it. Limits are those of the README; the
exit code is 1 if one is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from patterncc.codegen.lower import DIVIDING_SIZES, lower
from patterncc.dsl import library, load
from patterncc.dsl.errors import UnsupportedError

ROOT = Path(__file__).resolve().parent.parent
IMPORT_LIMIT = 150.0  # ms
PROGRAM_LIMIT = 100.0  # ms
TILE = 128
SIZES = dict.fromkeys(DIVIDING_SIZES, 8)

# Parameters without a default, by pattern and name; anything else gets ANY_VALUE.
VALUES = {"dilated": {"n": 512, "step": 8}, "strided": {"n": 64}}
ANY_VALUE = 4


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        name: Of the pattern, or of the import.
        median, least: Of the repeats, in milliseconds; of reading and lowering together.
        read: Median of reading alone.
        sweeps: Of the program, forward and transposed; empty where it does not lower.
        note: Why it does not lower.
    """

    name: str
    median: float
    least: float
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
    values = VALUES.get(name, {})
    whole, read = [], []
    sweeps: tuple[int, ...] = ()
    note = ""
    for _ in range(repeat):
        start = time.perf_counter()
        pattern = load(text, **values)
        middle = time.perf_counter()
        try:
            program = lower(pattern, TILE, TILE, sizes=SIZES, within=True)
            sweeps = (len(program.forward), len(program.transposed))
        except UnsupportedError as error:
            note = error.message
        whole.append(1e3 * (time.perf_counter() - start))
        read.append(1e3 * (middle - start))
    return Row(name, statistics.median(whole), min(whole), statistics.median(read), sweeps, note)


def show(imports: list[Row], patterns: list[Row], machine: dict[str, object]) -> None:
    """Prints the results for a person."""
    console = Console()
    table = Table(title="imports in fresh processes, ms")
    for column in ("statement", "median", "least"):
        table.add_column(column, justify="left" if column == "statement" else "right")
    for row in imports:
        table.add_row(row.name, f"{row.median:.1f}", f"{row.least:.1f}")
    console.print(table)
    table = Table(title=f"text to block program, {TILE}x{TILE} tiles, ms")
    for column in ("pattern", "median", "least", "of it reading", "sweeps"):
        table.add_column(column, justify="left" if column == "pattern" else "right")
    table.add_column("not lowered yet", overflow="fold")
    for row in patterns:
        slow = row.median > PROGRAM_LIMIT
        table.add_row(
            row.name,
            f"[red]{row.median:.1f}[/]" if slow else f"{row.median:.1f}",
            f"{row.least:.1f}",
            f"{row.read:.1f}",
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
    pattern_time("causal", 1)  # loads the grammar and the library, and starts isl
    steps = track(library.names(), "patterns", console=Console(stderr=True), transient=True)
    patterns = [pattern_time(name, options.repeat) for name in steps]
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
    late = imports[0].median > IMPORT_LIMIT or any(row.median > PROGRAM_LIMIT for row in patterns)
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
