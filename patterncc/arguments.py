"""Checks of what a caller passes. Each failure is one sentence that names the argument.

Knows tensors, numbers, tables and the signature of a pattern, and nothing of how it is compiled or
run. The checks of tensors serve fake tensors as well, whose sizes are symbols.
"""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from patterncc.dsl.errors import ArgumentError, UnsupportedError
from patterncc.dsl.pattern import Pattern, SegmentsType, TableType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patterncc.pipeline import Signature

# Of lengths, offsets and run-time numbers: their products with tile counts stay far inside int64.
LIMIT = 1 << 30

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SIZE_OF = {"head": "heads", "kv_head": "kv_heads", "layer": "layers"}  # a table's axis: its length


# ----------------------------------------------------------------------------------------- tensors


def check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Checks that the tensors of a call fit together: shapes, dtype and device.

    Args:
        query: `[batch, heads, q_len, head_dim]`.
        key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
        value: `[batch, kv_heads, kv_len, value_head_dim]`.

    Raises:
        ArgumentError: They do not.
        UnsupportedError: Their dtype has no kernel.
    """
    if not (
        query.dim() == key.dim() == value.dim() == 4
        and query.dtype == key.dtype == value.dtype
        and query.device == key.device == value.device
    ):
        _refuse_tensors(query, key, value)
    batch, heads, q_len, head_dim = query.shape
    key_batch, kv_heads, kv_len, key_dim = key.shape
    value_batch, value_heads, value_len, value_dim = value.shape
    if not (
        batch == key_batch == value_batch
        and head_dim == key_dim
        and kv_heads == value_heads
        and kv_len == value_len
        and kv_heads > 0
        and heads > 0
        and heads % kv_heads == 0
        and head_dim > 0
        and value_dim > 0
        and q_len <= LIMIT
        and kv_len <= LIMIT
        and query.dtype in DTYPES
    ):
        _refuse_tensors(query, key, value)


def refuse_types(query: object, key: object, value: object) -> NoReturn:
    """Names the first argument that is no tensor, where one is known not to be.

    Raises:
        ArgumentError: Always.
    """
    tensors = {"query": query, "key": key, "value": value}
    name = next(name for name, tensor in tensors.items() if not isinstance(tensor, Tensor))
    raise ArgumentError(f"`{name}` is {type(tensors[name]).__name__}; it must be a tensor")


def _refuse_tensors(query: Tensor, key: Tensor, value: Tensor) -> NoReturn:
    """Finds the first thing wrong, in the order in which a reader would."""
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        if tensor.dim() != 4:
            raise ArgumentError(
                f"`{name}` has {tensor.dim()} axes, {_shape(tensor)}; "
                "it needs 4, [batch, heads, length, head_dim]"
            )
    for name, tensor in tensors.items():
        if tensor.dtype != query.dtype:
            raise ArgumentError(
                f"`{name}` is {_dtype(tensor)} but `query` is {_dtype(query)}; "
                "all three need one dtype"
            )
        if tensor.device != query.device:
            raise ArgumentError(
                f"`{name}` is on {tensor.device} but `query` is on {query.device}; "
                "all three need one device"
            )
    if query.dtype not in DTYPES:
        legal = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise UnsupportedError(f"`query` is {_dtype(query)}, which has no kernel", f"use {legal}")
    for name, tensor in tensors.items():
        for axis, what in ((1, "heads"), (3, "head_dim")):
            if tensor.shape[axis] == 0:
                raise ArgumentError(f"`{name}` has {what} 0, {_shape(tensor)}; it needs 1 or more")
        if tensor.shape[2] > LIMIT:
            raise ArgumentError(f"`{name}` has length {tensor.shape[2]}; the most is {LIMIT}")
    _same_size("key", key, "query", query, 0, "batch")
    _same_size("value", value, "key", key, 0, "batch")
    _same_size("value", value, "key", key, 1, "heads")
    _same_size("value", value, "key", key, 2, "length")
    _same_size("key", key, "query", query, 3, "head_dim")
    raise ArgumentError(
        f"`query` has {query.shape[1]} heads and `key` has {key.shape[1]}; "
        "the first must be a multiple of the second"
    )


def _same_size(
    name: str, tensor: Tensor, other_name: str, other: Tensor, axis: int, what: str
) -> None:
    if tensor.shape[axis] != other.shape[axis]:
        raise ArgumentError(
            f"`{name}` has {what} {tensor.shape[axis]} but `{other_name}` has {other.shape[axis]}; "
            "they must be equal"
        )


def _shape(tensor: Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# ----------------------------------------------------------------------------------------- numbers


def integer(name: str, value: object, least: int = -LIMIT, most: int = LIMIT) -> int:
    """An argument that must be an integer in `[least, most]`, as an `int` (a symbol stays one).

    Raises:
        ArgumentError: It is something else, such as a bool, a float or a tensor, or out of range.
    """
    if isinstance(value, bool):
        raise ArgumentError(f"`{name}` is {_got(value)}; it must be an integer")
    if isinstance(value, int):
        number = value
    elif isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]  # its range is checked when it has a value
    elif isinstance(value, numbers.Integral):
        number = int(value)
    else:
        raise ArgumentError(f"`{name}` is {_got(value)}; it must be an integer")
    if not least <= number <= most:
        raise ArgumentError(f"`{name}` is {number}; it must be in {least} .. {most}")
    return number


def scale_factor(value: object) -> float:
    """The argument `scale`, which must be a finite number.

    Raises:
        ArgumentError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real, torch.SymFloat)):
        raise ArgumentError(f"`scale` is {_got(value)}; it must be a number")
    if isinstance(value, torch.SymFloat):
        return value  # type: ignore[return-value]
    number = float(value)
    if not math.isfinite(number):
        raise ArgumentError(f"`scale` is {number}; it must be finite")
    return number


def _got(value: object) -> str:
    if isinstance(value, Tensor):
        # Reading it back would make the host wait for the device.
        return f"a tensor of shape {_shape(value)}"
    return f"{type(value).__name__} {value!r}" if value is not None else "None"


# ------------------------------------------------------------------------- parameters of a pattern


def bind(signature: Signature, values: Mapping[str, object]) -> tuple[list[int], list[Tensor]]:
    """The values of a pattern's parameters at a call, in the order of its signature.

    Raises:
        ArgumentError: One is missing, unknown or no integer.
    """
    if not values:
        numbers = signature.defaults
        if None not in numbers and not signature.tables:
            return list(numbers), []  # type: ignore[arg-type]
    for name in values:
        if name not in signature.numbers and name not in signature.tables:
            _refuse_name(signature, name)
    bound = []
    for name, default in zip(signature.numbers, signature.defaults, strict=True):
        given = values.get(name, default)
        if given is None:
            raise ArgumentError(
                f"`{name}` was not given and has no default; the pattern needs it at every call"
            )
        bound.append(integer(name, given))
    tables = []
    for name in signature.tables:
        table = values.get(name)
        if not isinstance(table, Tensor):
            raise ArgumentError(
                f"`{name}` is {_got(table)}; the pattern needs a tensor"
                if name in values
                else f"`{name}` was not given; the pattern needs a tensor at every call"
            )
        tables.append(table)
    return bound, tables


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
        raise ArgumentError(f"`{name}` is {_dtype(table)}; the pattern needs a table of {element}")
    if table.dim() != len(axes):
        names = ", ".join(axis or "*" for axis in axes)
        raise ArgumentError(
            f"`{name}` has {table.dim()} axes, {_shape(table)}; "
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
        raise ArgumentError(f"`{name}` is {_dtype(table)}; `cu_seqlens` must be int32 or int64")
    if table.dim() != 1 or table.numel() == 0:
        raise ArgumentError(
            f"`{name}` has shape {_shape(table)}; `cu_seqlens` must have one axis, [documents + 1]"
        )
    if int(table[0]) != 0 or bool((table.diff() < 0).any()):
        raise ArgumentError(f"`{name}` must start at 0 and never fall, as `cu_seqlens` do")
