"""Gradients of the tables that score terms read: which sums kernels must leave, and what becomes of
those."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
from patterncc.codegen.score.values import Rows, ScoreValues, add_at, add_sink_gradients
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.score.printer import real_text

if TYPE_CHECKING:
    from patterncc.dsl.score.nodes import Lookup
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


def add_table_gradients(
    gradients: Mapping[str, torch.Tensor],
    wanted: WantedSums,
    terms: ScoreTerms,
    values: ScoreValues,
    rows: Rows,
    operands: Mapping[str, torch.Tensor],
) -> None:
    """Adds the gradients of tables, in a fixed order.

    Args:
        gradients: By table, what is added to: float32, contiguous.
        wanted: The sums that kernels have left.
        terms, values: The terms, and what they read.
        rows: The rows of the call.
        operands: `lse` and `delta`, and the sums by their names.
    """
    if not gradients:
        return
    delta = operands["delta"]
    evaluate = rows.evaluator(values, delta)
    for entry in wanted.rows:
        if entry.lookup.table in gradients:
            places, inside = evaluate.places(entry.lookup)
            add_at(gradients[entry.lookup.table], places, inside, operands[entry.name])
    for one in (*wanted.keys, *wanted.distances):
        if one.lookup.table in gradients:
            sums = operands[one.name]
            q, k = _positions(one.lookup, rows, sums)
            places, inside = rows.evaluator(values, delta, q, k).places(one.lookup)
            shares = sums.flatten(2)
            add_at(gradients[one.lookup.table], places, inside, shares)
    add_sink_gradients(gradients, terms, values, rows, operands["lse"], delta)


def _positions(lookup: Lookup, rows: Rows, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions that choose the entry of each sum of a head: a query's and a key's.

    A distance `d` is that of the query `d` from the key 0.
    """
    tiles, parts, block = sums.shape[2:]
    device = sums.device
    columns = torch.arange(block, device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    if reach_of(lookup) == "key":
        return zero, (torch.arange(tiles, device=device)[:, None] * block + columns).flatten()
    offset = rows.env["q_offset"]
    diagonals = torch.arange(tiles, device=device) - (ceildiv(rows.kv_len, block) - 1)
    first = offset + diagonals[:, None, None] * block
    part = torch.arange(parts, device=device)[:, None] * block
    return (first + part - columns).flatten(), zero
