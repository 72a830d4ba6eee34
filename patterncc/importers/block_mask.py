"""FlexAttention's `BlockMask`: which blocks are computed, and what is known of their insides.

A `BlockMask` holds two lists of blocks: full ones, and partial ones whose pairs its `mask_mod`, a
Python function, decides. Lists are imported exactly. A function cannot be: a pattern has to be
given that says the same, and partial blocks without one are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import noop_mask

from patterncc.arguments import shape_text
from patterncc.dsl import load
from patterncc.dsl.errors import ArgumentError, UnsupportedError
from patterncc.importers.imported import Imported


def block_mask(mask: Any, *, inside: str | None = None) -> Imported:
    """A pattern from FlexAttention's `BlockMask`.

    Args:
        mask: The `BlockMask`.
        inside: What `mask_mod` says, as a pattern without parameters, such as `causal` or
            `window(512)`. It is applied in partial blocks, at the positions that FlexAttention
            counts: rows from the first row of the call. Needed unless there are no partial blocks
            or the `mask_mod` is FlexAttention's own that lets everything pass.

    Returns:
        A pattern with the tables `full` and `partial`, as far as the mask has such blocks: bool
        `[rows, columns]`, with axes for batch and heads in front where they differ. Its rows are
        those of calls of the lengths of the mask.

    Raises:
        ArgumentError: A list is not what it should be; the message names the table and the index.
        UnsupportedError: There are partial blocks, whose `mask_mod` is not known.
        PatternError: `inside` is no pattern.
    """
    rows, columns = (int(size) for size in mask.BLOCK_SIZE)
    q_len, kv_len = (int(length) for length in mask.seq_lengths)
    blocks = -(-kv_len // columns)
    partial = _listed("kv", mask.kv_num_blocks, mask.kv_indices, blocks)
    full = None
    if mask.full_kv_num_blocks is not None:
        full = _listed("full_kv", mask.full_kv_num_blocks, mask.full_kv_indices, blocks)
        both = (full & partial).nonzero()
        if len(both):
            *front, row, column = both[0].tolist()
            raise ArgumentError(
                f"`kv_indices` and `full_kv_indices` both list block {column} "
                f"in row {row} of batch {front[0]}, head {front[1]}"
            )
    if partial.shape[2] != -(-q_len // rows):
        raise ArgumentError(
            f"`kv_num_blocks` is {shape_text(mask.kv_num_blocks)}; "
            f"{q_len} queries in blocks of {rows} have {-(-q_len // rows)} rows"
        )
    within = _inside(mask.mask_mod, inside, bool(partial.any()))
    if within == "true":
        full = partial if full is None else full | partial
        partial = torch.zeros_like(partial)
    return _imported(full, partial, within, (rows, columns), q_len != kv_len)


def _inside(mask_mod: Any, inside: str | None, needed: bool) -> str:
    """What partial blocks are cut to, as an expression."""
    if inside is not None:
        pattern = load(inside)
        if pattern.parameters:
            names = ", ".join(parameter.name for parameter in pattern.parameters)
            raise ArgumentError(
                f"`inside` has the parameters {names}; write it as an expression without any, "
                "such as window(512)"
            )
        return pattern.text
    if not needed or mask_mod is noop_mask:
        return "true"
    name = getattr(mask_mod, "__qualname__", repr(mask_mod))
    raise UnsupportedError(
        f"the mask has partial blocks, and what `{name}` does in them cannot be read",
        "give a pattern that says the same, for instance inside='causal'",
    )


def _imported(
    full: Tensor | None, partial: Tensor, within: str, size: tuple[int, int], shifted: bool
) -> Imported:
    # An axis of one entry stands for all; so it does where all entries are alike.
    axes = []
    for place, axis in ((0, "batch"), (1, "head")):
        tables = [table for table in (full, partial) if table is not None]
        if any(table.shape[place] > 1 for table in tables):
            axes.append(axis)
    values: dict[str, Any] = {}
    terms = []
    row = "(q - (kv_len - q_len))" if shifted else "q"
    where = ", ".join([*axes, f"{row} // {size[0]}", f"k // {size[1]}"])
    parameters = []
    for name, table in (("full", full), ("partial", partial)):
        if table is None or not bool(table.any()):
            continue
        values[name] = _squeezed(table, axes)
        parameters.append(f"{name}: bool[{', '.join([*axes, '*', '*'])}]")
        cut = f" and ({within})" if name == "partial" else ""
        if cut and shifted:
            cut += f" at ({row}, k)"
        terms.append(f"{name}[{where}]{cut}")
    if not terms:
        raise ArgumentError("the mask lists no block at all, so no query would see a key")
    text = f"pattern block_mask({', '.join(parameters)}):\n    {' or '.join(terms)}\n"
    return Imported(text, values)


def _squeezed(table: Tensor, axes: list[str]) -> Tensor:
    """Without the axes for batch and heads that are not among `axes`."""
    if "head" not in axes:
        table = table[:, 0]
    if "batch" not in axes:
        table = table[0]
    return table.contiguous()


def _listed(prefix: str, counts: Tensor, indices: Tensor, columns: int) -> Tensor:
    """The blocks of one list: bool `[batch, heads, rows, columns]`."""
    names = f"{prefix}_num_blocks", f"{prefix}_indices"
    for name, table, axes in ((names[0], counts, 3), (names[1], indices, 4)):
        if table is None or table.dim() != axes or table.shape[:3] != counts.shape:
            found = "missing" if table is None else shape_text(table)
            raise ArgumentError(
                f"`{name}` is {found}; it must be [batch, heads, rows"
                + (", columns]" if axes == 4 else "]")
            )
    counts, indices = counts.cpu().long(), indices.cpu().long()
    width = indices.shape[3]
    wrong = ((counts < 0) | (counts > min(width, columns))).nonzero()
    if len(wrong):
        place = wrong[0].tolist()
        raise ArgumentError(
            f"`{names[0]}{place}` is {int(counts[tuple(place)])}; "
            f"a row has 0 .. {min(width, columns)} blocks"
        )
    used = torch.arange(width) < counts[..., None]
    wrong = (used & ((indices < 0) | (indices >= columns))).nonzero()
    if len(wrong):
        place = wrong[0].tolist()
        raise ArgumentError(
            f"`{names[1]}{place}` is {int(indices[tuple(place)])}; "
            f"the key blocks are 0 .. {columns - 1}"
        )
    times = torch.zeros(*counts.shape, columns, dtype=torch.int64)
    times.scatter_add_(3, torch.where(used, indices, 0), used.long())
    twice = (times > 1).nonzero()
    if len(twice):
        *row, column = twice[0].tolist()
        used_row, listed_row = used[tuple(row)].tolist(), indices[tuple(row)].tolist()
        again = [n for n in range(width) if used_row[n] and listed_row[n] == column][1]
        raise ArgumentError(f"`{names[1]}{[*row, again]}` is {column}, which the row has already")
    return times > 0
