"""Gradients of the tables that score terms read: which sums kernels must leave, and what becomes of
those."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from patterncc.codegen.gpu.grad_position_source import (
    PositionEntry,
    Reach,
    position_entries,
    reach_of,
)
from patterncc.codegen.gpu.kernel_terms import RowEntry, row_entries
from patterncc.codegen.gpu.launches import ceildiv
from patterncc.codegen.ir import DENSE
from patterncc.codegen.score.readings import Reading, known_reading, reading_at
from patterncc.codegen.score.values import Rows, ScoreValues, sink_shares
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.score.printer import real_text

if TYPE_CHECKING:
    from patterncc.codegen.score.elementwise import RealEvaluator
    from patterncc.dsl.score.nodes import Lookup, Real
    from patterncc.dsl.score.terms import ScoreTerms


@dataclass(frozen=True, slots=True)
class WantedSums:
    """The sums that kernels leave for the gradients of some tables.

    Attributes:
        rows: Of entries that all pairs of a row read.
        keys: Of entries that are chosen by the key's position.
        distances: Of entries that are chosen by the distance.
    """

    rows: tuple[RowEntry, ...] = ()
    keys: tuple[PositionEntry, ...] = ()
    distances: tuple[PositionEntry, ...] = ()

    @property
    def reaches(self) -> tuple[Reach, ...]:
        """Which kernels by positions there are."""
        found: list[Reach] = []
        found += ["key"] if self.keys else []
        found += ["distance"] if self.distances else []
        return tuple(found)


def wanted_sums(terms: ScoreTerms, tables: Collection[str]) -> WantedSums:
    """The sums for the gradients of some tables; none of a kind that none of them needs.

    Raises:
        UnsupportedError: An entry of one of them is chosen by both positions, of which no kernel
            sums gradients.
    """
    read = [lookup for lookup, _ in terms.table_slopes() if lookup.table in tables]
    found = WantedSums(
        row_entries(terms, DENSE),
        position_entries(terms, "key"),
        position_entries(terms, "distance"),
    )
    groups = [
        group if any(entry.lookup in read for entry in group) else ()
        for group in (found.rows, found.keys, found.distances)
    ]
    summed = {entry.lookup for group in groups for entry in group}
    for lookup in read:
        if lookup not in summed:
            raise UnsupportedError(
                f"the gradient of `{real_text(lookup)}`, which is chosen by more of the positions "
                "than `q`, `k` or `q - k`, has no GPU kernel",
                f"detach `{lookup.table}`, or compute on the CPU",
            )
    return WantedSums(*groups)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class TableGradients:
    """How the gradients of some tables come from what kernels leave; known for all calls of a plan.

    Attributes:
        names: The tables, in the order in which they are asked for.
        terms: Which logits entered the softmax.
        rows: Of the calls.
        wanted: The sums that kernels leave.
        sink: The entries that the sink reads, with its derivatives by them; none where there is no
            row.
        readings: Where entries are read, of those that it is kept of.
        indexed: Whether some of that are indexes on the device.
    """

    names: tuple[str, ...]
    terms: ScoreTerms
    rows: Rows
    wanted: WantedSums
    sink: tuple[tuple[Lookup, Real], ...]
    readings: Mapping[Lookup, Reading]
    indexed: bool

    @staticmethod
    def of(
        names: Sequence[str],
        terms: ScoreTerms,
        rows: Rows,
        values: ScoreValues,
        shapes: Mapping[str, Sequence[int]],
        device: torch.device,
    ) -> TableGradients:
        """Those of the tables called `names`.

        Args:
            names, terms, rows: As the attributes.
            values: What the terms read; of the tables, the shapes.
            shapes: Of what kernels leave, by name.
            device: Where the calls are.
        """
        wanted = wanted_sums(terms, names)
        found: dict[Lookup, Reading | None] = {}
        lookups = [entry.lookup for entry in wanted.rows]
        of_sink = terms.sink_slopes()
        lookups += [lookup for lookup, _ in of_sink]
        for lookup in lookups:
            found[lookup] = known_reading(rows, values, lookup, device)
        for one in (*wanted.keys, *wanted.distances):
            if one.name in shapes:
                places = _positions(one.lookup, rows, shapes[one.name], torch.device("cpu"))
                found[one.lookup] = known_reading(rows, values, one.lookup, device, *places)
        known = {lookup: reading for lookup, reading in found.items() if reading is not None}
        sink = tuple(one for one in of_sink if one[0].table in names and 0 not in rows.shape)
        indexed = any(reading.flat is not None for reading in known.values())
        return TableGradients(tuple(names), terms, rows, wanted, sink, known, indexed)

    def __call__(
        self, values: ScoreValues, operands: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The gradients by name, float32, each of its table's shape; added up in a fixed order.

        Args:
            values: What the terms read.
            operands: `lse` and `delta`, and by their names the sums, of which there are none where
                there is no row or no key.
        """
        delta = operands["delta"]
        # A graph that is captured outlives this plan, and with it what it keeps on the device.
        readings = self.readings
        if self.indexed and _capturing(delta.device):
            readings = {at: one for at, one in readings.items() if one.flat is None}
        evaluate = self.rows.evaluator(values, delta, readings=readings)
        found: dict[str, torch.Tensor] = {}

        def add(lookup: Lookup, shares: torch.Tensor, at: RealEvaluator) -> None:
            name = lookup.table
            reading = readings.get(lookup)
            if reading is None:
                reading = reading_at(at, lookup, values.tables[name].shape)
            sums = reading.sums(shares)
            found[name] = found[name].add_(sums) if name in found else sums

        for entry in self.wanted.rows:
            if entry.lookup.table in self.names and entry.name in operands:
                add(entry.lookup, operands[entry.name], evaluate)
        for one in (*self.wanted.keys, *self.wanted.distances):
            if one.lookup.table in self.names and one.name in operands:
                sums = operands[one.name]
                at = evaluate
                if one.lookup not in readings:
                    places = _positions(one.lookup, self.rows, sums.shape, sums.device)
                    at = self.rows.evaluator(values, delta, *places)
                add(one.lookup, sums.flatten(2), at)
        if self.sink and self.terms.sink is not None:
            by_entry = sink_shares(self.terms.sink, self.sink, evaluate, operands["lse"], delta)
            for lookup, shares in by_entry:
                add(lookup, shares, evaluate)
        for name in self.names:
            if name not in found:
                shape = values.tables[name].shape
                found[name] = torch.zeros(shape, dtype=torch.float32, device=delta.device)
        return found


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _positions(
    lookup: Lookup, rows: Rows, shape: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions that choose the entry of each sum of a head: a query's and a key's.

    A distance `d` is that of the query `d` from the key 0.

    Args:
        lookup: The entry.
        rows: Of the call.
        shape: Of the sums.
        device: Where the positions are made.
    """
    tiles, parts, block = shape[2:]
    columns = torch.arange(block, device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    if reach_of(lookup) == "key":
        return zero, (torch.arange(tiles, device=device)[:, None] * block + columns).flatten()
    offset = rows.env["q_offset"]
    diagonals = torch.arange(tiles, device=device) - (ceildiv(rows.kv_len, block) - 1)
    first = offset + diagonals[:, None, None] * block
    part = torch.arange(parts, device=device)[:, None] * block
    return (first + part - columns).flatten(), zero
