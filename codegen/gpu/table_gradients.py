"""Gradients of the tables that score terms read, from the sums that kernels leave for each row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from patterncc.codegen.gpu.score_source import RowEntry, row_entries
from patterncc.codegen.ir import DENSE
from patterncc.codegen.score_values import Rows, ScoreValues, add_at, add_sink_gradients
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.score_printer import real_text

if TYPE_CHECKING:
    import torch

    from patterncc.dsl.score_terms import ScoreTerms


def wanted_entries(terms: ScoreTerms, tables: Collection[str]) -> tuple[RowEntry, ...]:
    """The entries of tables of which kernels must sum gradients; none if no table needs them.

    Args:
        terms: The terms.
        tables: Names of the tables whose gradients are asked for.

    Raises:
        UnsupportedError: An entry of one of them is at a key's position, of which no kernel sums
            gradients.
    """
    entries = row_entries(terms, DENSE)
    summed = {entry.lookup for entry in entries}
    read = [lookup for lookup, _ in terms.table_slopes() if lookup.table in tables]
    for lookup in read:
        if lookup not in summed:
            raise UnsupportedError(
                f"the gradient of `{real_text(lookup)}`, which is read at a key's position, has no "
                "GPU kernel",
                f"detach `{lookup.table}`, or compute on the CPU",
            )
    return entries if read else ()


def add_table_gradients(
    gradients: Mapping[str, torch.Tensor],
    entries: tuple[RowEntry, ...],
    terms: ScoreTerms,
    values: ScoreValues,
    rows: Rows,
    operands: Mapping[str, torch.Tensor],
) -> None:
    """Adds the gradients of tables, in a fixed order.

    Args:
        gradients: By table, what is added to: float32, contiguous.
        entries: Those that kernels have summed.
        terms, values: The terms, and what they read.
        rows: The rows of the call.
        operands: `lse` and `delta`, and the sums of entries by their names, float32
            `[batch, heads, q_len]`.
    """
    if not gradients:
        return
    evaluate = rows.evaluator(values, operands["delta"])
    for entry in entries:
        if entry.lookup.table in gradients:
            places, inside = evaluate.places(entry.lookup)
            add_at(gradients[entry.lookup.table], places, inside, operands[entry.name])
    add_sink_gradients(gradients, terms, values, rows, operands["lse"], operands["delta"])
