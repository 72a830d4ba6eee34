"""Derivatives of the operators with score terms: as `autograd` has them without, and for the tables
that the terms read. There are no second ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad

from patterncc.autograd import beneath, refuse_tangents, transforming
from patterncc.dsl.errors import UnsupportedError
from patterncc.operators import LIBRARY
from patterncc.scored_operators import scored_bwd, scored_fwd

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_torch: Any = torch  # the parts of torch that have no types

_OPTIONS = 9  # arguments after the tables of the score, from its text to the pattern's tables


class ScoredAttention(Function):
    """Attention with score terms. The tables of the terms come one by one, after their count, for a
    Function sees no tensor in a list."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        query, key, value, count, *rest = arguments
        return beneath(scored_fwd, (query, key, value, rest[:count], *rest[count:]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, count, *rest = inputs
        *options, tables = rest[count:]
        ctx.save_for_backward(query, key, value, *output, *rest[:count], *tables)
        ctx.count, ctx.options = count, tuple(options)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        query, key, value, out, lse, *rest = ctx.saved_tensors
        count: int = ctx.count
        needs = ctx.needs_input_grad
        nothing = (None,) * _OPTIONS
        if grad_out is None:
            if grad_lse is None:
                return (None,) * (4 + count) + nothing
            grad_out = torch.zeros_like(out)
        wanted = list(needs[4 : 4 + count])
        *grads, of_tables = scored_bwd(
            grad_out,
            grad_lse,
            query,
            key,
            value,
            out,
            lse,
            rest[:count],
            wanted,
            *ctx.options,
            rest[count:],
        )
        found: Any = iter(of_tables)
        first = tuple(grad if need else None for grad, need in zip(grads, needs, strict=False))
        return (*first, None, *(next(found) if yes else None for yes in wanted), *nothing)


class ScoredAttentionGrad(Function):
    """The gradients of attention with score terms, where derivatives end."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        *tensors, count = arguments[:8]
        rest = arguments[8:]
        *grads, of_tables = beneath(scored_bwd, (*tensors, rest[:count], *rest[count:]))
        return (*grads, *of_tables)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise UnsupportedError(
            "attention with score terms has first derivatives only, and a second was asked for",
            "take it from dense attention under `mask(...)`",
        )


def _derive(operator: Any, function: Any, tensors: int, regroup: Callable[..., Any]) -> None:
    """Gives an operator the derivatives of a Function, as in `autograd`.

    Args:
        operator: The operator.
        function: Has it as its forward, the tables one by one.
        tensors: How many of its arguments come before the tables.
        regroup: The operator's results from the Function's.
    """
    apply: Callable[..., Any] = super(Function, function).apply

    def at_autograd_key(*arguments: Any) -> Any:
        tables: Sequence[Tensor] = arguments[tensors]
        inputs = (*arguments[:tensors], *tables)
        if forward_ad._current_level >= 0:
            refuse_tangents(inputs)
        if not torch.is_grad_enabled() or not any(
            tensor is not None and tensor.requires_grad for tensor in inputs
        ):
            with _torch._C._AutoDispatchBelowAutograd():
                return operator(*arguments)
        flat = (*arguments[:tensors], len(tables), *tables, *arguments[tensors + 1 :])
        if transforming():
            with enable_single_level_autograd_function():
                return regroup(apply(*flat))
        return regroup(apply(*flat))

    LIBRARY.impl(operator.name(), at_autograd_key, "Autograd")


def _with_list(results: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (*results[:3], list(results[3:]))


_derive(scored_fwd, ScoredAttention, 3, tuple)
_derive(scored_bwd, ScoredAttentionGrad, 7, _with_list)

# The operator, with the derivatives above.
attend = scored_fwd
