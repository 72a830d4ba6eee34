"""Which entries of tables score terms read, found once for all calls that are alike.

The indexes of an entry are integers of coordinates and numbers, so where a table is read is known
before any tensor is. Most tables hold a number for each head and are read as they lie: no index is
needed then, neither to read them nor to sum their gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patterncc.codegen.score.elementwise import RealEvaluator, flat_index
from patterncc.dsl.mask import variables

if TYPE_CHECKING:
    from patterncc.codegen.score.values import Rows, ScoreValues
    from patterncc.dsl.score.nodes import Lookup

MOST_PLACES = 1 << 16
"""Most places of one entry that are kept from call to call: half a megabyte of indexes."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a table is read.

    Attributes:
        table: The shape of the table.
        shape: That of the places; it broadcasts with `[batch, heads, positions]`.
        flat: The entry of the flat table at each place, int64 `[places]`, and the number of entries
            where the index is outside; None where the places are the entries, in their order.
        inside: Whether all indexes are inside.
        distinct: Whether no entry is read at two places.
    """

    table: tuple[int, ...]
    shape: tuple[int, ...]
    flat: Tensor | None
    inside: bool
    distinct: bool

    def read(self, table: Tensor) -> Tensor:
        """The entries at all places; 0 outside."""
        if self.flat is None:
            return table.reshape(self.shape)
        entries = table.reshape(-1)
        if not self.inside:
            entries = torch.nn.functional.pad(entries, (0, 1))
        return entries.index_select(0, self.flat).view(self.shape)

    def sums(self, shares: Tensor) -> Tensor:
        """What each entry of the table gets of shares `[batch, heads, positions]`, added up in a
        fixed order; those outside are dropped."""
        shape = (1,) * (shares.dim() - len(self.shape)) + self.shape
        # First along axes on which all go to the same entry: fewer numbers to sort, and in the
        # order of a sum.
        alone = [axis for axis, size in enumerate(shape) if size == 1]
        shares = shares.sum(alone, keepdim=True) if alone else shares.clone()
        if self.flat is None:
            return shares.reshape(self.table)
        count = prod(self.table)
        found = shares.new_zeros(count + 1)
        numbers = shares.reshape(-1)
        if self.distinct:
            found.scatter_(0, self.flat, numbers)
        elif found.device.type == "cpu":
            # Of two functions that do the same, on each device the one that adds in order.
            found.index_add_(0, self.flat, numbers)
        else:
            found.index_put_((self.flat,), numbers, accumulate=True)
        return found[:count].view(self.table)


def reading_at(evaluate: RealEvaluator, lookup: Lookup, table: Sequence[int]) -> Reading:
    """Where an evaluator reads a table of a shape, computed where its tensors are."""
    places, inside = evaluate.places(lookup)
    flat = torch.where(inside, flat_index(places, table), prod(table))
    return Reading(tuple(table), tuple(flat.shape), flat.flatten(), False, False)


def known_reading(
    rows: Rows,
    values: ScoreValues,
    lookup: Lookup,
    device: torch.device,
    q: Tensor | None = None,
    k: Tensor | None = None,
) -> Reading | None:
    """Where an entry is read in all calls that are alike; None where the places are too many to be
    kept. Computed on the host.

    Args:
        rows: The rows of the calls.
        values: What terms read there; of the tables, the shapes.
        lookup: The entry.
        device: Where it is read.
        q, k: Positions, on the CPU; as of `Rows.evaluator`.
    """
    names = frozenset().union(*map(variables, lookup.indexes))
    count = rows.heads if names & {"head", "kv_head"} else 1
    count *= rows.batch if "batch" in names else 1
    if names & {"q", "k"}:
        count *= rows.q_len if q is None else max(q.numel(), 1 if k is None else k.numel())
    if count > MOST_PLACES:
        return None
    table = tuple(values.tables[lookup.table].shape)
    like = torch.empty(0, device="cpu")
    found = reading_at(rows.evaluator(values, like, q, k), lookup, table)
    flat, entries = found.flat, prod(table)
    assert flat is not None
    known = flat[flat < entries]
    inside, distinct = len(known) == len(flat), len(torch.unique(known)) == len(known)
    if inside and torch.equal(flat, torch.arange(entries, device="cpu")):
        return Reading(table, found.shape, None, True, True)
    return Reading(table, found.shape, flat.to(device), inside, distinct)
