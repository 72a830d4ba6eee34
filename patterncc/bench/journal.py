"""Results of the benchmark as they come, one line each, so that a run which was stopped goes on
where it was.

What is not measured again was measured under the same terms: the same call, peers, phases and
rounds, on a device of the same name, with the same versions and the same code of patterncc.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import patterncc
from patterncc import autotune, codegen, dsl
from patterncc.bench.machine import Machine
from patterncc.bench.peer import PeerSpec
from patterncc.bench.readings import Judgement, Reading
from patterncc.bench.report import Options, Result
from patterncc.bench.request import Request
from patterncc.dsl.errors import ConfigError

_AGAIN = frozenset({"crashed", "hung", "out of memory"})
"""States that another run may not have."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a result was measured under, as text that is equal for equal terms."""

    text: str

    @classmethod
    def of(
        cls, request: Request, peers: Sequence[PeerSpec], options: Options, machine: Machine
    ) -> Terms:
        """The terms of a request in a run."""
        call, problem = request.call, request.problem
        tables = hashlib.sha256()
        for name, table in sorted(call.tables.items()):
            tables.update(f"{name} {table.dtype} {table.shape} ".encode())
            tables.update(table.tobytes())
        found = {
            "name": request.name,
            "pattern": call.pattern.text,
            "numbers": {number.name: number.value for number in call.pattern.numbers},
            "tables": tables.hexdigest(),
            "shape": request.shape,
            "dtype": problem.dtype,
            "layers": call.layers,
            "layer": request.layer,
            "seed": request.seed,
            "peers": [peer.name for peer in peers],
            "phases": options.phases_of(request),
            "rounds": options.rounds_on(request.device),
            "device": machine.name,
            "versions": machine.versions,
            "code": code_digest(),
        }
        return cls(json.dumps(found, sort_keys=True))


@functools.cache
def code_digest() -> str:
    """Of all modules of patterncc: a changed kernel is measured anew, committed or not."""
    found = hashlib.sha256()
    for package in (patterncc, dsl, codegen, autotune):
        folder = Path(package.__path__[0])
        for path in sorted(folder.rglob("*.py")):
            found.update(f"{package.__name__} {path.relative_to(folder)} ".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


class Journal:
    """A file of results.

    Args:
        path: The file; made with the first result.

    Raises:
        ConfigError: It is something else.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, Mapping[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                kept = json.loads(line)
                self._found[kept["terms"]] = kept["result"]
            except (ValueError, LookupError, TypeError):
                raise ConfigError(f"--resume {path} has a line that is no result") from None

    def found(self, terms: Terms, request: Request) -> Result | None:
        """The result that was measured under some terms; `None` if there is none, or a peer of it
        might do better in another run."""
        kept = self._found.get(terms.text)
        if kept is None:
            return None
        readings = {name: _reading(fields) for name, fields in kept["readings"].items()}
        if any(reading.state in _AGAIN for reading in readings.values()):
            return None
        request.take_pairs(kept["pairs"])
        return Result(request, readings, tuple(kept["phases"]), kept["ended"])

    def keep(self, terms: Terms, result: Result) -> None:
        """Adds a result.

        Raises:
            OSError: It cannot be written.
        """
        fields = {
            "readings": {name: asdict(reading) for name, reading in result.readings.items()},
            "pairs": result.request.pairs,
            "phases": result.phases,
            "ended": result.ended,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"terms": terms.text, "result": fields}) + "\n")


def _reading(fields: Mapping[str, Any]) -> Reading:
    judgement = fields["judgement"]
    return Reading(
        **{
            **fields,
            "judgement": None if judgement is None else Judgement(**judgement),
            "phases": tuple(fields["phases"]),
            "seconds": {phase: tuple(each) for phase, each in fields["seconds"].items()},
            "host": {phase: tuple(each) for phase, each in fields["host"].items()},
            "clocks": tuple(fields["clocks"]),
        }
    )
