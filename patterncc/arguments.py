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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.codegen.backward_tensors import BackwardTensors

# Of lengths, offsets and run-time numbers: their products with tile counts stay far inside int64.
LIMIT = 1 << 30

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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


def check_backward_tensors(tensors: BackwardTensors) -> None:
    """Checks that results of a call and their gradients fit its inputs, which fit together.

    Raises:
        ArgumentError: They do not.
    """
    grad_out, grad_lse, query, _, value, out, lse = tensors
    rows = query.shape[:3]
    shape = (*rows, value.shape[3])
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    _check_result("grad_out", grad_out, shape, query.dtype, query)
    if grad_lse is not None:
        _check_result("grad_lse", grad_lse, rows, wide, query)
    _check_result("out", out, shape, query.dtype, query)
    _check_result("lse", lse, rows, wide, query)


def _check_result(
    name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype, query: Tensor
) -> None:
    if tensor.dim() != len(shape) or tensor.shape != torch.Size(shape):
        wanted = ", ".join(map(str, shape))
        raise ArgumentError(f"`{name}` has shape {shape_text(tensor)}; this call has [{wanted}]")
    if tensor.dtype != dtype:
        wanted = str(dtype).removeprefix("torch.")
        raise ArgumentError(f"`{name}` is {dtype_text(tensor)}; this call needs {wanted}")
    if tensor.device != query.device:
        raise ArgumentError(f"`{name}` is on {tensor.device} but `query` is on {query.device}")


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
                f"`{name}` has {tensor.dim()} axes, {shape_text(tensor)}; "
                "it needs 4, [batch, heads, length, head_dim]"
            )
    for name, tensor in tensors.items():
        if tensor.dtype != query.dtype:
            raise ArgumentError(
                f"`{name}` is {dtype_text(tensor)} but `query` is {dtype_text(query)}; "
                "all three need one dtype"
            )
        if tensor.device != query.device:
            raise ArgumentError(
                f"`{name}` is on {tensor.device} but `query` is on {query.device}; "
                "all three need one device"
            )
    if query.dtype not in DTYPES:
        legal = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise UnsupportedError(
            f"`query` is {dtype_text(query)}, which has no kernel", f"use {legal}"
        )
    for name, tensor in tensors.items():
        for axis, what in ((1, "heads"), (3, "head_dim")):
            if tensor.shape[axis] == 0:
                raise ArgumentError(
                    f"`{name}` has {what} 0, {shape_text(tensor)}; it needs 1 or more"
                )
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


def shape_text(tensor: Tensor) -> str:
    return f"[{', '.join(map(str, tensor.shape))}]"


def dtype_text(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# ----------------------------------------------------------------------------------------- numbers


def integer(name: str, value: object, least: int = -LIMIT, most: int = LIMIT) -> int:
    """An argument that must be an integer in `[least, most]`, as an `int` (a symbol stays one).

    Raises:
        ArgumentError: It is something else, such as a bool, a float or a tensor, or out of range.
    """
    if isinstance(value, bool):
        raise ArgumentError(f"`{name}` is {describe(value)}; it must be an integer")
    if isinstance(value, int):
        number = value
    elif isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]  # its range is checked when it has a value
    elif isinstance(value, numbers.Integral):
        number = int(value)
    else:
        raise ArgumentError(f"`{name}` is {describe(value)}; it must be an integer")
    if not least <= number <= most:
        raise ArgumentError(f"`{name}` is {number}; it must be in {least} .. {most}")
    return number


def scale_factor(value: object) -> float:
    """The argument `scale`, which must be a finite number.

    Raises:
        ArgumentError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real, torch.SymFloat)):
        raise ArgumentError(f"`scale` is {describe(value)}; it must be a number")
    if isinstance(value, torch.SymFloat):
        return value  # type: ignore[return-value]
    number = float(value)
    if not math.isfinite(number):
        raise ArgumentError(f"`scale` is {number}; it must be finite")
    return number


def describe(value: object) -> str:
    if isinstance(value, Tensor):
        # Reading it back would make the host wait for the device.
        return f"a tensor of shape {shape_text(value)}"
    return f"{type(value).__name__} {value!r}" if value is not None else "None"
