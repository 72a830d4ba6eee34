"""Block masks as lists of blocks: CSR and BSR."""

from __future__ import annotations

import torch
from torch import Tensor

from patterncc.arguments import shape_text
from patterncc.dsl.errors import ArgumentError
from patterncc.importers.imported import Imported


def csr_blocks(
    crow_indices: Tensor,
    col_indices: Tensor,
    *,
    size: int | tuple[int, int],
    columns: int,
    causal: bool = False,
) -> Imported:
    """A pattern from compressed rows of blocks.

    Args:
        crow_indices: Where the columns of each block row begin, integers `[rows + 1]` or
            `[heads, rows + 1]`: from 0, never falling, up to the number of blocks.
        col_indices: The columns, integers `[blocks]` or `[heads, blocks]`; those of one row
            different, in any order.
        size: Tokens of a block, or of its queries and of its keys.
        columns: Block columns.
        causal: Whether pairs after the query are cut off in the blocks as well.

    Returns:
        A pattern with the table `keep`, bool `[rows, columns]` or `[heads, rows, columns]`.

    Raises:
        ArgumentError: An index is out of range, out of order or repeated; the message names it.
    """
    for name, indices in (("crow_indices", crow_indices), ("col_indices", col_indices)):
        if indices.dtype not in (torch.int32, torch.int64) or indices.dim() not in (1, 2):
            raise ArgumentError(
                f"`{name}` is {indices.dtype} {shape_text(indices)}; "
                "it must be integers with one axis, or two with heads first"
            )
    if crow_indices.dim() != col_indices.dim():
        raise ArgumentError("`crow_indices` and `col_indices` must both have heads, or neither")
    by_head = crow_indices.dim() == 2
    starts, listed = crow_indices.cpu().long(), col_indices.cpu().long()
    if not by_head:
        starts, listed = starts[None], listed[None]
    if len(starts) != len(listed):
        raise ArgumentError(
            f"`crow_indices` has {len(starts)} heads and `col_indices` {len(listed)}"
        )
    if starts.shape[1] < 2 or columns < 1:
        raise ArgumentError(
            f"there are no blocks in {max(0, starts.shape[1] - 1)} rows of {columns} columns"
        )
    heads = range(len(starts))
    keep = torch.stack([_csr(starts[h], listed[h], columns, h if by_head else None) for h in heads])
    return keep_pattern(keep if by_head else keep[0], ("head",) if by_head else (), size, causal)


def _csr(starts: Tensor, listed: Tensor, columns: int, head: int | None) -> Tensor:
    """The table of one head: bool `[rows, columns]`."""
    front = "" if head is None else f"{head}, "
    places = starts.tolist()
    if places[0] != 0:
        raise ArgumentError(f"`crow_indices[{front}0]` is {places[0]}; it must be 0")
    for row in range(1, len(places)):
        if places[row] < places[row - 1]:
            raise ArgumentError(
                f"`crow_indices[{front}{row}]` is {places[row]}, "
                f"less than the one before, {places[row - 1]}"
            )
    if places[-1] != len(listed):
        raise ArgumentError(
            f"`crow_indices[{front}{len(places) - 1}]` is {places[-1]}; "
            f"it must be the number of blocks, {len(listed)}"
        )
    outside = ((listed < 0) | (listed >= columns)).nonzero()
    if len(outside):
        place = int(outside[0])
        raise ArgumentError(
            f"`col_indices[{front}{place}]` is {int(listed[place])}; "
            f"the columns are 0 .. {columns - 1}"
        )
    rows = torch.repeat_interleave(torch.arange(len(places) - 1), starts.diff())
    keep = torch.zeros(len(places) - 1, columns, dtype=torch.bool)
    keep[rows, listed] = True
    if int(keep.sum()) != len(listed):
        seen: dict[tuple[int, int], int] = {}
        for place, pair in enumerate(zip(rows.tolist(), listed.tolist(), strict=True)):
            if pair in seen:
                raise ArgumentError(
                    f"`col_indices[{front}{place}]` is {pair[1]}, "
                    f"which row {pair[0]} has at {seen[pair]} already"
                )
            seen[pair] = place
    return keep


def bsr(mask: Tensor, *, causal: bool = False) -> Imported:
    """A pattern from a `torch.sparse_bsr` tensor, whose blocks are all or nothing.

    Args:
        mask: `[q_len, kv_len]` in the layout `torch.sparse_bsr`; what is not 0 may be seen.
        causal: Whether pairs after the query are cut off in the blocks as well.

    Returns:
        A pattern with the table `keep`, bool `[rows, columns]`.

    Raises:
        ArgumentError: It has another layout, an index is wrong, or a block has pairs of both kinds,
            for which a table of blocks has no place.
    """
    if mask.layout != torch.sparse_bsr or mask.dim() != 2:
        raise ArgumentError(
            f"`mask` is {mask.layout} {shape_text(mask)}; it must be torch.sparse_bsr with two axes"
        )
    values = mask.values()
    rows, columns = values.shape[1:]
    nonzero = (values != 0).flatten(1)
    mixed = (nonzero.any(1) & ~nonzero.all(1)).nonzero()
    if len(mixed):
        place = int(mixed[0])
        raise ArgumentError(
            f"`values[{place}]` has {int(nonzero[place].sum())} pairs of {rows * columns}; "
            "blocks must be all or nothing: write what holds inside them as a pattern, and combine"
        )
    starts, listed = mask.crow_indices().cpu(), mask.col_indices().cpu()
    imported = csr_blocks(
        starts, listed, size=(rows, columns), columns=mask.shape[1] // columns, causal=causal
    )
    keep = imported.values["keep"]
    assert isinstance(keep, Tensor)
    row_of = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    keep[row_of, listed] = nonzero.all(1).cpu()  # a stored block may be all zeros
    return imported


def keep_pattern(
    keep: Tensor, axes: tuple[str, ...], size: int | tuple[int, int], causal: bool
) -> Imported:
    """A pattern of one table of blocks.

    Args:
        keep: bool `[*axes, rows, columns]`.
        axes: Names of the axes before those of the blocks.
        size: Tokens of a block, or of its queries and of its keys.
        causal: Whether pairs after the query are cut off.

    Raises:
        ArgumentError: The size of a block is not positive.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if min(rows, columns) < 1:
        raise ArgumentError(f"`size` is {size}; it must be 1 or more")
    declared = ", ".join([*axes, "*", "*"])
    indexes = ", ".join([*axes, f"q // {rows}", f"k // {columns}"])
    body = f"keep[{indexes}]"
    if causal:
        body = f"causal and {body}"
    return Imported(f"pattern listed(keep: bool[{declared}]):\n    {body}\n", {"keep": keep})
