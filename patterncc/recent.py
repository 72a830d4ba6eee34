"""The last calls of a compiled pattern, found again without a signature.

A signature asks each tensor for its shape, strides, type and device, and is hashed: two of the ten
microseconds of a call, and seeing that nothing takes part in it is another. torch has guards that
compare all of that in one call of C++, those that run before graphs of torch.compile (`guards`).
What they leave out is asked for besides: addresses, numbers, modes, what autocast casts to, and
whether gradients are on. A call that they know goes to its plan at once, or becomes part of a graph
(`recorded`); all others, and all calls where torch has no such guards, go by signature. Of
documents, which are others in number at each step, the number is not compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from patterncc import eager, gpu_calls
from patterncc.codegen.gpu.layout import LINE
from patterncc.codegen.gpu.signature import forgets
from patterncc.guards import comparison
from patterncc.prepared import INPUTS
from patterncc.recorded import RecordedCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from patterncc.gpu_calls import Planned

MOST = 4
"""Calls of one pattern that are compared one by one."""

PATIENCE = 4
"""Calls found by signature for one that takes the place of another: where more kinds of calls take
turns than are kept, each would drive out one that comes again."""


class _Call(NamedTuple):
    """A call that is known.

    Attributes:
        same: Whether tensors, its own and then its tables, are like those of the call.
        address: The low bits of the addresses of query, key and value.
        numbers: `scale`, `q_offset`, `layer` and `layers`; `eager.DEFAULTS` itself if equal to it.
        kinds: The types of those.
        given: Run-time numbers by name, with their types.
        tables: The names of its tables.
        documents: Those of them of which the number is not compared.
        planned: Its plan.
        recorded: How it becomes part of a graph where gradients are on; None: no tensor asks for
            one.
    """

    same: Callable[..., bool]
    address: int
    numbers: tuple[Any, ...]
    kinds: tuple[type, ...]
    given: tuple[tuple[str, type, Any], ...]
    tables: tuple[str, ...]
    documents: tuple[str, ...]
    planned: Planned
    recorded: RecordedCall | None


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
        for same, address, own, kinds, given, tables, documents, planned, graph in self._calls:
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
            # Guards see that autocast is on, not its type.
            if eager.autocasting() and eager.casts(query, key, value):
                return None
            if documents and not all(values[name].numel() for name in documents):
                return None  # is refused
            if graph is not None and torch.is_grad_enabled():
                return graph.run(query, key, value, values)
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
        options: tuple[Any, ...] | None = None,
    ) -> None:
        """Remembers a call that has a plan and a signature, and so numbers and tensors alone; where
        there is no place left, each `PATIENCE`th.

        Args:
            planned: The plan.
            query, key, value, numbers, values: As of `run`.
            options: Of the operator, without its tables, if the call was recorded; those that were
                not are not kept where a tensor asks for gradients.
        """
        if options is None and _asks_for_gradients((query, key, value, *values.values())):
            return
        if len(self._calls) == MOST:
            self._others += 1
            if self._others % PATIENCE:
                return
        tables = tuple(name for name, given in values.items() if isinstance(given, Tensor))
        given = tuple((n, type(x), x) for n, x in values.items() if n not in tables)
        call = planned.call
        documents = tuple(name for name in gpu_calls.segments(call) if name in tables)
        places = [INPUTS + tables.index(name) for name in documents]
        same = comparison((query, key, value, *map(values.__getitem__, tables)), places)
        if same is None:
            return
        address = (query.data_ptr() | key.data_ptr() | value.data_ptr()) & (LINE - 1)
        kinds = tuple(map(type, numbers))
        numbers = eager.DEFAULTS if numbers == eager.DEFAULTS else numbers
        graph = None
        if options is not None:
            names = (*(table.name for table in call.declared), *call.score_tables)
            read = {name: float(values[name]) for name in call.score_numbers}
            graph = RecordedCall(planned, names, options, read)
        found = _Call(same, address, numbers, kinds, given, tables, documents, planned, graph)
        self._calls = (found, *self._calls[: MOST - 1])


def _asks_for_gradients(values: Iterable[Any]) -> bool:
    return any(isinstance(given, Tensor) and given.requires_grad for given in values)
