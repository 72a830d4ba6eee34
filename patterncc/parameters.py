"""The values of a pattern's parameters at a call: put in order, and checked as it declares them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from patterncc.arguments import LIMIT, describe, dtype_text, integer, shape_text
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.pattern import Pattern, SegmentsType, TableType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from patterncc.pipeline import Signature

_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SIZE_OF = {"head": "heads", "kv_head": "kv_heads", "layer": "layers"}  # a table's axis: its length


def bind(signature: Signature, values: Mapping[str, object]) -> tuple[list[int], list[Tensor]]:
    """The values of a pattern's parameters at a call, in the order of its signature.

    Raises:
        ArgumentError: One is missing, unknown or of a wrong type.
    """
    bound = bind_numbers(signature, values)
    tables = []
    for name in signature.tables:
        table = values.get(name)
        if not isinstance(table, Tensor):
            raise ArgumentError(
                f"`{name}` is {describe(table)}; the pattern needs a tensor"
                if name in values
                else f"`{name}` was not given; the pattern needs a tensor at every call"
            )
        tables.append(table)
    return bound, tables


def bind_numbers(signature: Signature, values: Mapping[str, object]) -> list[int]:
    """The run-time numbers of a call, in the order of the signature; tables are passed over.

    Raises:
        ArgumentError: One is missing, unknown or no integer.
    """
    check_names(signature, values)
    bound = []
    for name, default in zip(signature.numbers, signature.defaults, strict=True):
        given = values.get(name, default)
        if given is None:
            raise ArgumentError(
                f"`{name}` was not given and has no default; the pattern needs it at every call"
            )
        bound.append(integer(name, given))
    return bound


def check_names(signature: Signature, names: Iterable[str]) -> None:
    """Checks that a pattern has parameters of some names that a call can give.

    Raises:
        ArgumentError: It has not.
    """
    for name in names:
        if name not in signature.numbers and name not in signature.tables:
            _refuse_name(signature, name)


def bind_arrays(
    pattern: Pattern, values: Mapping[str, object], sizes: Mapping[str, int]
) -> dict[str, npt.NDArray[Any]]:
    """The tables among the values of a call as arrays, int64 or bool; those not given are left out.

    Args:
        pattern: What declares them.
        values: Of the parameters; tables as tensors or as anything that an array can be made of.
        sizes: `heads`, `kv_heads`, `layers`.

    Raises:
        ArgumentError: One is not as the pattern declares it.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for parameter in pattern.tables:
        given = values.get(parameter.name)
        if given is None:
            continue
        table = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
        check_tables(replace(pattern, parameters=(parameter,)), [table], sizes)
        array = table.detach().cpu().numpy()
        arrays[parameter.name] = array if array.dtype == np.bool_ else array.astype(np.int64)
    return arrays


def _refuse_name(signature: Signature, name: str) -> NoReturn:
    if name in signature.fixed:
        raise ArgumentError(
            f"`{name}` is fixed when the pattern is compiled, so a call cannot give it; "
            f"compile the pattern with {name}=..."
        )
    known = ", ".join(f"`{other}`" for other in (*signature.numbers, *signature.tables))
    raise ArgumentError(
        f"`{name}` is not a parameter of the pattern, which takes {known or 'none'}"
    )


def check_tables(pattern: Pattern, tables: Sequence[Tensor], sizes: Mapping[str, int]) -> None:
    """Checks that tables, in name order, have the element types and axes that a pattern declares.

    Args:
        pattern: What declares them.
        tables: One tensor for each of `pattern.tables`.
        sizes: `heads`, `kv_heads`, `layers` as far as they are known.

    Raises:
        ArgumentError: They have not.
    """
    for parameter, table in zip(pattern.tables, tables, strict=True):
        match parameter.type:
            case TableType(element, axes):
                _check_table(parameter.name, element, axes, table, sizes)
            case SegmentsType():
                _check_segments(parameter.name, table)


def _check_table(
    name: str,
    element: str,
    axes: tuple[str | None, ...],
    table: Tensor,
    sizes: Mapping[str, int],
) -> None:
    wanted = (torch.bool,) if element == "bool" else _INTEGER_DTYPES
    if table.dtype not in wanted:
        raise ArgumentError(
            f"`{name}` is {dtype_text(table)}; the pattern needs a table of {element}"
        )
    if table.dim() != len(axes):
        names = ", ".join(axis or "*" for axis in axes)
        raise ArgumentError(
            f"`{name}` has {table.dim()} axes, {shape_text(table)}; "
            f"the pattern needs {len(axes)}, [{names}]"
        )
    for axis, what in enumerate(axes):
        size = sizes.get(_SIZE_OF.get(what or "", ""))
        if size is not None and table.shape[axis] != size:
            raise ArgumentError(
                f"`{name}` has {table.shape[axis]} entries on axis {axis}, [{what}]; "
                f"it needs {size}"
            )
    if (
        element == "int"
        and table.numel() > 0
        and not -LIMIT <= int(table.min()) <= int(table.max()) <= LIMIT
    ):
        raise ArgumentError(f"`{name}` has an entry beyond {LIMIT}")


def _check_segments(name: str, table: Tensor) -> None:
    if table.dtype not in (torch.int32, torch.int64):
        raise ArgumentError(f"`{name}` is {dtype_text(table)}; `cu_seqlens` must be int32 or int64")
    if table.dim() != 1 or table.numel() == 0:
        raise ArgumentError(
            f"`{name}` has shape {shape_text(table)}; "
            "`cu_seqlens` must have one axis, [documents + 1]"
        )
    if int(table[0]) != 0 or bool((table.diff() < 0).any()):
        raise ArgumentError(f"`{name}` must start at 0 and never fall, as `cu_seqlens` do")
