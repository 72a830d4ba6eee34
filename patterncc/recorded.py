"""The short way of a call that becomes part of a graph: a training step on plain tensors on a GPU.

The first call that is recorded goes by the operator's Function (`autograd`), which asks its
arguments everything anew, forward and backward. A call like one before has a plan already, and what
is left is to run it and to keep for the backward what that reads. The backward compares what it is
given with what a backward before it was given, since hooks on saved tensors may have changed them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

from patterncc import autograd, eager, gpu_calls
from patterncc.codegen.backward_tensors import BackwardTensors
from patterncc.codegen.gpu.layout import LINE
from patterncc.codegen.gpu.memory import filled
from patterncc.codegen.score.values import ScoreValues
from patterncc.guards import comparison
from patterncc.prepared import INPUTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from patterncc.gpu_calls import Planned, PlannedBackward

MOST = 4
"""Backward calls of one forward call that are compared; what others are given is asked anew."""

LONGEST_KEPT = 1 << 16
"""Entries of a table of which the backward keeps what kernels read, as its own conversion would
take a launch; a larger one is converted again, as copies for every layer would take memory."""


class _Backward(NamedTuple):
    """A backward call that is known.

    Attributes:
        same: Whether the tensors that it is given are like those before.
        address: The low bits of their addresses.
        needs: For each input of the forward whether its gradient is asked for.
        with_lse: Whether there is a gradient of the lse.
        filled: Whether deterministic algorithms were asked for.
        planned: Its plan.
    """

    same: Callable[..., bool]
    address: int
    needs: tuple[bool, ...]
    with_lse: bool
    filled: bool
    planned: PlannedBackward


class RecordedCall:
    """What calls that are alike have in common, if they are recorded.

    Args:
        planned: The plan of the forward.
        names: The tables, in the order in which they travel.
        options: Of the operator, without its tables.
        score_numbers: What the score terms read, by name.
    """

    __slots__ = ("_backwards", "names", "options", "planned", "score_numbers")

    def __init__(
        self,
        planned: Planned,
        names: tuple[str, ...],
        options: tuple[Any, ...],
        score_numbers: Mapping[str, float],
    ) -> None:
        self.planned = planned
        self.names = names
        self.options = options
        self.score_numbers = score_numbers
        self._backwards: tuple[_Backward, ...] = ()

    def run(
        self, query: Tensor, key: Tensor, value: Tensor, values: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The results of such a call, recorded; `values` by name, tables among them."""
        found: tuple[Tensor, Tensor] = _apply(
            query, key, value, *[values[name] for name in self.names], self
        )
        return found

    def score_values(self, tables: Sequence[Tensor]) -> ScoreValues:
        """What the score terms read; `tables` as they travel."""
        call = self.planned.call
        if not (call.score_numbers or call.score_tables):
            return self.planned.values
        own = tables[len(call.declared) :]
        return ScoreValues(self.score_numbers, dict(zip(call.score_tables, own, strict=True)))

    def gradients(
        self, tensors: BackwardTensors, tables: Sequence[Tensor], needs: tuple[bool, ...]
    ) -> tuple[Any, ...] | None:
        """The gradients of all inputs of the forward; None if this backward is not known."""
        if torch.is_grad_enabled() or eager.observed():
            return None
        with_lse = tensors.grad_lse is not None
        for same, address, own, lse, deterministic, planned in self._backwards:
            if own != needs or lse is not with_lse or deterministic is not filled():
                continue
            if not same(*(tensors if lse else _without_lse(tensors)), *tables):
                continue
            if _low_bits(tensors) != address:
                continue
            named = gpu_calls.narrow_all(planned.call, tables)
            *grads, sums = planned.ready(tensors, named, self.score_values(tables))
            wanted = [
                grad if need else None for grad, need in zip(grads, needs[:INPUTS], strict=True)
            ]
            if not tables:
                return (*wanted, None)
            wanted += [None] * (len(tables) + 1)
            for name in planned.tables:
                place = self.names.index(name)
                wanted[INPUTS + place] = sums[name].to(tables[place].dtype)
            return tuple(wanted)
        return None

    def add(
        self, tensors: BackwardTensors, tables: Sequence[Tensor], needs: tuple[bool, ...]
    ) -> None:
        """Remembers a backward that was computed by its options, if the next one like it may go
        the short way."""
        if len(self._backwards) >= MOST or torch.is_grad_enabled():
            return
        if not eager.unattended((*tensors, *tables)):
            return
        options = autograd.backward_options(self.options, tables, needs)
        planned = gpu_calls.planned_backward(tensors, options)
        with_lse = tensors.grad_lse is not None
        given = (*(tensors if with_lse else _without_lse(tensors)), *tables)
        first = len(given) - len(tables)
        documents = [first + self.names.index(name) for name in gpu_calls.segments(planned.call)]
        same = comparison(given, documents)
        if same is not None:
            known = _Backward(same, _low_bits(tensors), needs, with_lse, filled(), planned)
            self._backwards = (known, *self._backwards)


def _without_lse(tensors: BackwardTensors) -> tuple[Any, ...]:
    return (tensors[0], *tensors[2:])


def _low_bits(tensors: BackwardTensors) -> int:
    found = 0
    for tensor in tensors:
        if tensor is not None:
            found |= tensor.data_ptr()
    return found & (LINE - 1)


class RecordedAttention(_SingleLevelFunction):
    """Attention of a call that is known. Its inputs are query, key, value, each table, and the
    `RecordedCall`; derivatives are those of `PatternAttention`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        query, key, value, *tables, known = inputs
        planned: Planned = known.planned
        read: Sequence[Tensor] = tables
        named = gpu_calls.narrow_all(planned.call, tables)
        out, lse = planned.ready(query, key, value, named, known.score_values(tables))
        if named:
            read = [
                narrowed if narrowed.numel() <= LONGEST_KEPT else table
                for narrowed, table in zip(named.values(), tables, strict=False)
            ]
            read += tables[len(named) :]
        ctx.save_for_backward(query, key, value, out, lse, *read)
        ctx.set_materialize_grads(False)
        ctx.options = known.options
        ctx.known = known
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        query, key, value, out, lse, *tables = ctx.saved_tensors
        needs = ctx.needs_input_grad[:-1]
        tensors = None
        if grad_out is not None and not torch.compiler.is_compiling():
            tensors = BackwardTensors(grad_out, grad_lse, query, key, value, out, lse)
            found: tuple[Any, ...] | None = ctx.known.gradients(tensors, tables, needs)
            if found is not None:
                return found
        saved = (query, key, value, out, lse)
        grads = autograd.gradients(grad_out, grad_lse, saved, tables, ctx.options, needs)
        if tensors is not None:
            ctx.known.add(tensors, tables, needs)
        return grads


_function: Any = RecordedAttention
_apply: Callable[..., Any] = _function.apply
