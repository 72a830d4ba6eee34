"""The vmap rule of the operators: the new axis becomes part of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from patterncc import pipeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def fold(
    operator: Callable[..., Any], tensors: int, info: Any, in_dims: tuple[Any, ...], *arguments: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Runs an operator over a new axis: in one call with the axis in front of the batch, unless the
    pattern reads `batch` or a table has the axis, too; then call by call.

    Args:
        operator: What to run. Its results all start with the batch.
        tensors: How many of its arguments, tensors or None that start with the batch, come before
            the pattern. The last argument is the list of tables.
        info: Of vmap: `batch_size`.
        in_dims: The place of the axis in each argument, None where it has none.
        *arguments: Of the operator.
    """
    size = info.batch_size
    pattern, *others, tables = arguments[tensors:]
    table_dims: list[int | None] = in_dims[-1] or [None] * len(tables)
    stacked = [
        None
        if tensor is None
        else tensor.expand(size, *tensor.shape)
        if dim is None
        else tensor.movedim(dim, 0)
        for tensor, dim in zip(arguments[:tensors], in_dims, strict=False)
    ]
    if "batch" in pipeline.resolve(pattern).reads or any(dim is not None for dim in table_dims):
        found = []
        for index in range(size):
            parts = [None if tensor is None else tensor[index] for tensor in stacked]
            own = [
                table if dim is None else table.select(dim, index)
                for table, dim in zip(tables, table_dims, strict=True)
            ]
            found.append(operator(*parts, pattern, *others, own))
        results = tuple(map(torch.stack, zip(*found, strict=True)))
    else:
        batch = next(tensor.shape[1] for tensor in stacked if tensor is not None)
        parts = [None if tensor is None else tensor.flatten(0, 1) for tensor in stacked]
        found = operator(*parts, pattern, *others, tables)
        results = tuple(result.unflatten(0, (size, batch)) for result in found)
    return results, (0,) * len(results)
