"""What the executor takes for tensors: shapes and types that fit, and the form kernels can read."""

import torch
from torch import Tensor

from patterncc.dsl.errors import ArgumentError, UnsupportedError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """What numbers of a type are summed in, and the type of their log-sum-exp."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_inputs(query: Tensor, key: Tensor, value: Tensor) -> None:
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        if tensor.ndim != 4:
            raise ArgumentError(
                f"`{name}` has {tensor.ndim} axes; it needs 4: batch, heads, length, dimension"
            )
        if tensor.device.type != "cpu":
            raise UnsupportedError(f"`{name}` is on {tensor.device}; this executor is for the CPU")
        if tensor.dtype != query.dtype:
            raise ArgumentError(f"`{name}` is {tensor.dtype}; it must be {query.dtype}, as `query`")
        if tensor.shape[0] != query.shape[0]:
            raise ArgumentError(
                f"`{name}` has a batch of {tensor.shape[0]}; `query` has {query.shape[0]}"
            )
    if query.dtype not in _DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise UnsupportedError(f"attention on the CPU cannot be done in {query.dtype}", names)
    if key.shape[1:3] != value.shape[1:3]:
        raise ArgumentError(
            f"`key` has {key.shape[1]} heads and {key.shape[2]} keys; `value` has "
            f"{value.shape[1]} and {value.shape[2]}"
        )
    if key.shape[3] != query.shape[3] or query.shape[3] == 0 or value.shape[3] == 0:
        raise ArgumentError(
            f"the head dimensions of `query`, `key` and `value` are {query.shape[3]}, "
            f"{key.shape[3]} and {value.shape[3]}; they must be positive, the first two equal"
        )
    if key.shape[1] == 0 or query.shape[1] % key.shape[1] != 0:
        raise ArgumentError(
            f"`query` has {query.shape[1]} heads, which {key.shape[1]} key heads do not divide"
        )


def check_gradients(
    query: Tensor,
    value: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Holds what a backward takes besides the inputs against them.

    Raises:
        ArgumentError: A shape or type does not fit.
        UnsupportedError: A tensor is not on the CPU.
    """
    rows = tuple(query.shape[:3])
    wanted = {
        "`grad_out`": (grad_out, (*rows, value.shape[3]), query.dtype),
        "`grad_lse`": (grad_lse, rows, wide_type(query.dtype)),
        "`out`": (out, (*rows, value.shape[3]), query.dtype),
        "`lse`": (lse, rows, wide_type(query.dtype)),
    }
    for name, (tensor, shape, dtype) in wanted.items():
        if tensor is not None:
            _check(name, tensor, shape, dtype)


def check_cotangents(
    cotangents: tuple[Tensor, Tensor, Tensor], query: Tensor, key: Tensor, value: Tensor
) -> None:
    """Holds the gradients of gradients against the tensors of those.

    Raises:
        ArgumentError: A shape or type does not fit.
        UnsupportedError: A tensor is not on the CPU.
    """
    named = {"query": query, "key": key, "value": value}
    for cotangent, (name, tensor) in zip(cotangents, named.items(), strict=True):
        _check(f"the gradient of grad_{name}", cotangent, tuple(tensor.shape), tensor.dtype)


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.device.type != "cpu":
        raise UnsupportedError(f"{name} is on {tensor.device}; this executor is for the CPU")
    if tuple(tensor.shape) != shape:
        raise ArgumentError(f"{name} has the shape {tuple(tensor.shape)}; it must be {shape}")
    if tensor.dtype != dtype:
        raise ArgumentError(f"{name} is {tensor.dtype}; it must be {dtype}")


def readable(tensor: Tensor, width: int = 0) -> Tensor:
    """The tensor as the kernels can read it: rows apart in memory, of neighbouring numbers.

    It gets zeros up to `width` numbers a row.
    """
    missing = width - tensor.shape[3]
    if missing > 0:
        return torch.nn.functional.pad(tensor, (0, missing))
    if tensor.stride(3) != 1 or tensor.stride(2) < tensor.shape[3]:
        # Not `contiguous`, which leaves odd strides of axes of size 1 as they are.
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor
