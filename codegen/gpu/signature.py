"""What calls have in common that one plan serves: signatures of tensors and values, and what is
remembered by them.

Loads neither torch nor triton.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from patterncc.codegen.gpu.layout import LINE

if TYPE_CHECKING:
    from torch import Tensor

    from patterncc.codegen.score.values import ScoreValues

Signature: TypeAlias = tuple[Any, ...]
"""All that the plan of a call depends on."""

PLANS_KEPT = 1024

_T = TypeVar("_T")


class Kept(dict[Signature, _T]):
    """What is remembered of calls, by all that it depends on; the oldest is forgotten first, as a
    growing cache gives every step new lengths.

    Args:
        most: How much is remembered.
    """

    def __init__(self, most: int = PLANS_KEPT) -> None:
        super().__init__()
        self._most = most
        self._lock = Lock()
        forgets(self)

    def keep(self, signature: Signature, value: _T) -> _T:
        """Remembers a value, and returns it."""
        with self._lock:
            if len(self) >= self._most:
                del self[next(iter(self))]
            self[signature] = value
        return value


class Forgetful(Protocol):
    """Remembers calls until it is told not to."""

    def clear(self) -> None:
        """Forgets all of them."""


_all: list[weakref.ref[Forgetful]] = []


def forgets(memory: Forgetful) -> None:
    """Lets `forget_all` reach a memory for as long as that lives."""
    _all.append(weakref.ref(memory, _all.remove))


def forget_all() -> None:
    """Lets every call be planned again, as after something was tuned."""
    for reference in tuple(_all):
        kept = reference()
        if kept is not None:
            kept.clear()


def call_signature(
    tensors: Iterable[Tensor | None],
    env: Mapping[str, int],
    scale: float,
    tables: Mapping[str, Tensor],
    values: ScoreValues,
) -> Signature:
    """The signature of a call with tensors, scalars, tables and what its score terms read."""
    return (
        layout_signature(tensors),
        scale,
        tuple(env.items()),
        *((name, table_kind(table)) for name, table in tables.items()),
        *values.numbers.items(),
        *((name, table_kind(table)) for name, table in values.tables.items()),
    )


def inputs_signature(query: Tensor, key: Tensor, value: Tensor) -> Signature:
    """`layout_signature` of three tensors, spelled out, as this is in the way of every call."""
    return (
        query.shape,
        query.stride(),
        query.dtype,
        query.device,
        key.shape,
        key.stride(),
        key.dtype,
        key.device,
        value.shape,
        value.stride(),
        value.dtype,
        value.device,
        (query.data_ptr() | key.data_ptr() | value.data_ptr()) & (LINE - 1),
    )


def layout_signature(tensors: Iterable[Tensor | None]) -> Signature:
    """What kernels and checks ask of tensors: how they lie in memory, whether all their addresses
    are multiples of 16, their types and devices."""
    addresses = 0
    found: list[Any] = []
    for tensor in tensors:
        if tensor is None:
            found.append(None)
        else:
            addresses |= tensor.data_ptr()
            found += (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    found.append(addresses & (LINE - 1))
    return tuple(found)


def table_kind(table: Tensor) -> Signature:
    """What plans and checks ask of a table."""
    return table.shape, table.stride(), table.dtype, table.device
