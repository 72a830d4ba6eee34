"""The vmap rule of the operators: the new axis becomes part of the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from patterncc import signatures
from patterncc.dsl.errors import UnsupportedError
from patterncc.prepared import Options

if TYPE_CHECKING:
    from collections.abc import Callable


_TABLES = Options._fields.index("tables")


def fold(
    operator: Callable[..., Any], tensors: int, info: Any, in_dims: tuple[Any, ...], *arguments: Any
) -> tuple[Any, Any]:
    """Runs an operator over a new axis: in one call with the axis in front of the batch, unless the
    pattern reads `batch` or a table has the axis, too; then call by call.

    Args:
        operator: What to run. Its results all start with the batch.
        tensors: How many of its arguments, tensors or None that start with the batch, come before
            its options.
        info: Of vmap: `batch_size`.
        in_dims: The place of the axis in each argument, None where it has none.
        *arguments: Of the operator.

    Raises:
        UnsupportedError: The call has score terms.
    """
    size = info.batch_size
    options = Options(*arguments[tensors:])
    if options.score is not None:
        raise UnsupportedError(
            "attention with score terms has no rule for torch.func.vmap",
            "make the mapped axis part of the batch",
        )
    tables = options.tables
    table_dims: list[int | None] = in_dims[tensors + _TABLES] or [None] * len(tables)
    stacked = [
        None
        if tensor is None
        else tensor.expand(size, *tensor.shape)
        if dim is None
        else tensor.movedim(dim, 0)
        for tensor, dim in zip(arguments[:tensors], in_dims, strict=False)
    ]
    reads = signatures.resolve(options.pattern).reads
    if "batch" in reads or any(dim is not None for dim in table_dims):
        found = []
        for index in range(size):
            parts = [None if tensor is None else tensor[index] for tensor in stacked]
            own = [
                table if dim is None else table.select(dim, index)
                for table, dim in zip(tables, table_dims, strict=True)
            ]
            found.append(operator(*parts, *_given(options._replace(tables=own))))
        results = [torch.stack(parts) for parts in zip(*found, strict=True)]
        as_list = isinstance(found[0], list)
    else:
        batch = next(tensor.shape[1] for tensor in stacked if tensor is not None)
        parts = [None if tensor is None else tensor.flatten(0, 1) for tensor in stacked]
        once = operator(*parts, *arguments[tensors:])
        results = [result.unflatten(0, (size, batch)) for result in once]
        as_list = isinstance(once, list)
    if as_list:
        return results, [0] * len(results)
    return tuple(results), (0,) * len(results)


def _given(options: Options) -> tuple[Any, ...]:
    """Options as operators take them: only `attn_bwd` has the last one."""
    return options if options.needs is not None else options[:-1]
