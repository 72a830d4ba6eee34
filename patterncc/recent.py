"""The last calls of a compiled pattern, found again without a signature.

A signature asks each tensor for its shape, strides, type and device, and is hashed: two of the ten
microseconds of a call, and seeing that nothing takes part in it is another. torch has guards that
compare all of that in one call of C++, those that run before graphs of torch.compile: the types of
tensors, their dispatch keys together with the thread's (autograd, modes, transforms, tracing,
inference mode, negation), dtypes, devices, sizes and strides. What they leave out is asked for
besides. A call that they know goes to its plan at once; all others, and all calls where torch has
no such guards, go by signature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from patterncc import eager, gpu_calls
from patterncc.codegen.gpu.layout import LINE
from patterncc.codegen.gpu.signature import forgets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from patterncc.gpu_calls import Planned

MOST = 4
"""Calls of one pattern that are compared one by one."""

PATIENCE = 4
"""Calls found by signature for one that takes the place of another: where more kinds of calls take
turns than are kept, each would drive out one that comes again."""

_torch: Any = torch  # the parts of torch that have no types


class _Call(NamedTuple):
    """A call that is known.

    Attributes:
        same: Whether tensors, its own and then its tables, are like those of the call.
        address: The low bits of the addresses of query, key and value.
        numbers: `scale`, `q_offset`, `layer` and `layers`; `eager.DEFAULTS` itself if equal to it.
        kinds: The types of those.
        given: Run-time numbers by name, with their types.
        tables: The names of its tables.
        planned: Its plan.
    """

    same: Callable[..., bool]
    address: int
    numbers: tuple[Any, ...]
    kinds: tuple[type, ...]
    given: tuple[tuple[str, type, Any], ...]
    tables: tuple[str, ...]
    planned: Planned


class RecentCalls:
    """The last calls of a pattern that went the short way; calls are added where they were found
    by their signatures, so one that is made once costs nothing."""

    __slots__ = ("__weakref__", "_calls", "_others")

    def __init__(self) -> None:
        self._calls: tuple[_Call, ...] = ()
        self._others = 0
        forgets(self)

    def clear(self) -> None:
        """Forgets all calls."""
        self._calls = ()

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        numbers: tuple[Any, ...],
        values: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor] | None:
        """The results of a call that is known; None if it is not, or is not one for the short way.

        Args:
            query, key, value: Whatever the call was given for them.
            numbers: `scale`, `q_offset`, `layer` and `layers`.
            values: Run-time numbers and tables by name.
        """
        if eager.observed():
            return None
        for same, address, own, kinds, given, tables, planned in self._calls:
            if values or given or tables:
                if len(values) != len(given) + len(tables):
                    continue
                if not all(type(values.get(n)) is kind and values[n] == x for n, kind, x in given):
                    continue
                if not same(query, key, value, *map(values.get, tables)):
                    continue
            elif not same(query, key, value):
                continue
            # Numbers of different types are equal, as `True` and 1 are, and not all are legal.
            if own is eager.DEFAULTS:
                if type(numbers[2]) is not int or numbers != eager.DEFAULTS:
                    continue
            elif kinds != tuple(map(type, numbers)) or numbers != own:
                continue
            low = (query.data_ptr() | key.data_ptr() | value.data_ptr()) & (LINE - 1)
            if low != address:
                continue
            if planned.tabled:
                return eager.run_with_tables(planned, query, key, value, values)
            return planned.ready(query, key, value, gpu_calls.NO_TABLES, planned.values)
        return None

    def add(
        self,
        planned: Planned,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        numbers: tuple[Any, ...],
        values: Mapping[str, Any],
    ) -> None:
        """Remembers a call that has a plan and a signature, and so numbers and tensors alone; where
        there is no place left, each `PATIENCE`th.

        Args:
            planned: The plan.
            query, key, value, numbers, values: As of `run`.
        """
        if _guards is None or query.requires_grad or key.requires_grad or value.requires_grad:
            return  # guards do not tell whether gradients are recorded
        if any(isinstance(given, Tensor) and given.requires_grad for given in values.values()):
            return
        if len(self._calls) == MOST:
            self._others += 1
            if self._others % PATIENCE:
                return
        tables = tuple(name for name, given in values.items() if isinstance(given, Tensor))
        given = tuple((n, type(x), x) for n, x in values.items() if n not in tables)
        same = _guards(query, key, value, *map(values.__getitem__, tables))
        address = (query.data_ptr() | key.data_ptr() | value.data_ptr()) & (LINE - 1)
        kinds = tuple(map(type, numbers))
        numbers = eager.DEFAULTS if numbers == eager.DEFAULTS else numbers
        call = _Call(same, address, numbers, kinds, given, tables, planned)
        self._calls = (call, *self._calls[: MOST - 1])


def _tensor_guards() -> Callable[..., Callable[..., bool]] | None:
    """What makes a comparison with some tensors; None where torch has none that can."""
    kind = getattr(
        getattr(getattr(_torch._C, "_dynamo", None), "guards", None), "TensorGuards", None
    )
    if kind is None or not hasattr(_torch._C, "_len_torch_dispatch_stack"):
        return None

    def make(*tensors: Tensor) -> Callable[..., bool]:
        check: Callable[..., bool] = kind(
            *tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None
        ).check
        return check

    return make if _compares(make) else None


def _compares(make: Callable[..., Callable[..., bool]]) -> bool:
    """Do guards take these arguments and tell tensors apart? They are torch's own affair."""
    plain = torch.zeros(2, 3, device="cpu")
    others = (plain[:1], plain.double(), plain.mT.contiguous().mT, plain.clone().requires_grad_())
    try:
        same = make(plain, plain)
        found = [same(plain, plain.clone()), *(same(plain, other) for other in others)]
    except (TypeError, RuntimeError):
        return False
    return found == [True, False, False, False, False]


_guards = _tensor_guards()
