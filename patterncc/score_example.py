"""What score terms read in a call from the command line: given, or drawn as an example.

Loads no torch.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.call import Call
from patterncc.codegen.gpu.interval import RANGES, Interval, interval
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.score.nodes import lookups
from patterncc.dsl.score.terms import PLAIN, ScoreTerms

Array = npt.NDArray[Any]

MOST_ENTRIES = 1 << 24  # of a table that is drawn
_SPREAD = 0.5  # standard deviation of its entries: enough to change weights, too little to saturate


@dataclass(frozen=True, slots=True)
class Scores:
    """Score terms with all that they read.

    Attributes:
        terms: The terms.
        numbers: By name.
        tables: By name, float64.
        drawn: Names of the tables that were drawn.
    """

    terms: ScoreTerms = PLAIN
    numbers: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    tables: Mapping[str, Array] = field(default_factory=lambda: MappingProxyType({}))
    drawn: tuple[str, ...] = ()


PLAIN_SCORES = Scores()


def scores_of(
    terms: ScoreTerms,
    call: Call,
    numbers: Mapping[str, float],
    tables: Mapping[str, Array],
    *,
    batch: int = 1,
    seed: int = 0,
) -> Scores:
    """Score terms with what was given for them; tables that were not are drawn.

    A drawn table has as many entries on each axis as the call can read there.

    Args:
        terms: The terms.
        call: What they are read in.
        numbers: Given, by name.
        tables: Given, by name.
        batch: Batch size.
        seed: Of what is drawn.

    Raises:
        ConfigError: A number is missing or nothing reads it, a table has another number of axes, or
            one to be drawn would be too large.
    """
    for name in terms.numbers:
        if name not in numbers:
            raise ConfigError(
                f"the score reads the number `{name}`: give it with --number {name}=X"
            )
    for name in numbers:
        if name not in terms.numbers:
            raise ConfigError(f"--number {name}: no score term reads it", terms.numbers)
    found: dict[str, Array] = {}
    for name, rank in terms.tables.items():
        if name not in tables:
            # By the name, so that another table does not change what is drawn.
            generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
            found[name] = _SPREAD * generator.standard_normal(_shape(name, terms, call, batch))
            continue
        table = tables[name]
        if table.ndim != rank:
            raise ConfigError(
                f"--table {name} has {table.ndim} axes, {list(table.shape)}; the score reads {rank}"
            )
        if not np.issubdtype(table.dtype, np.number) or np.iscomplexobj(table):
            raise ConfigError(f"--table {name} holds {table.dtype}; the score reads real numbers")
        found[name] = np.ascontiguousarray(table, np.float64)
    drawn = tuple(name for name in found if name not in tables)
    return Scores(terms, dict(numbers), found, drawn)


def _shape(name: str, terms: ScoreTerms, call: Call, batch: int) -> tuple[int, ...]:
    """How many entries the call can read on each axis of a table.

    Raises:
        ConfigError: Too many.
    """
    ranges = _ranges(call, batch)
    shape = [1] * terms.tables[name]
    for expr in terms.exprs:
        for entry in lookups(expr):
            if entry.table == name:
                sizes = (interval(index, ranges).high + 1 for index in entry.indexes)
                shape = list(map(max, shape, sizes))
    size = 1
    for entries in shape:
        size *= entries
    if size > MOST_ENTRIES:
        raise ConfigError(
            f"the table `{name}` would have {size:,} entries, {shape}; "
            f"more than {MOST_ENTRIES:,} are not drawn: give it with --table {name}=FILE"
        )
    return tuple(shape)


def _ranges(call: Call, batch: int) -> dict[str, Interval]:
    """What each name can be in a call."""
    last = call.q_offset + call.q_len - 1
    ranges = {
        **RANGES,
        "q": Interval(call.q_offset, last),
        "k": Interval(0, call.kv_len - 1),
        "head": Interval(0, call.heads - 1),
        "kv_head": Interval(0, call.kv_heads - 1),
        "layer": Interval(0, call.layers - 1),
        "batch": Interval(0, batch - 1),
    }
    sizes = {"q_len": call.q_len, "kv_len": call.kv_len, "q_offset": call.q_offset, **call.sizes}
    return ranges | {name: Interval(size, size) for name, size in sizes.items()}
