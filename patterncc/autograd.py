"""Derivatives of the operators: what autograd keeps of a call, and which operator runs backward.

A first derivative runs `attn_bwd` from the inputs and results of the forward call; nothing else is
kept. A second one runs `attn_bwd_bwd`, where that has an executor. There is no third.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad

from patterncc.dsl.errors import UnsupportedError
from patterncc.operators import LIBRARY, attn_bwd, attn_bwd_bwd, attn_fwd

if TYPE_CHECKING:
    from collections.abc import Callable

_torch: Any = torch  # the parts of torch that have no types
transforming: Callable[[], bool] = _torch._C._are_functorch_transforms_active

_beneath_autograd: Any = _torch._C._AutoDispatchBelowAutograd

_OPTIONS = 7  # arguments after the tensors, from the pattern to the tables: they have no gradient
_NO_GRADS = (None,) * _OPTIONS


class PatternAttention(Function):
    """Attention; its results `out` and `lse` both have a gradient."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return beneath(attn_fwd, arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, pattern, scale, q_offset, layer, layers, numbers, tables = inputs
        ctx.save_for_backward(*tensors, *output, *tables)
        ctx.options = (pattern, scale, q_offset, layer, layers, numbers)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        query, key, value, out, lse, *tables = ctx.saved_tensors
        if grad_out is None:
            if grad_lse is None:
                return (None, None, None, *_NO_GRADS)
            grad_out = torch.zeros_like(out)
        grads = attend_backward(
            grad_out, grad_lse, query, key, value, out, lse, *ctx.options, tables
        )
        return (*_needed(ctx, grads), *_NO_GRADS)


class PatternAttentionGrad(Function):
    """The gradients of attention.

    Those of its own arguments `out` and `lse` are part of those of query, key and value, of which
    the two are functions.
    """

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return beneath(attn_bwd, arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, pattern, scale, q_offset, layer, layers, numbers, tables = inputs
        ctx.save_for_backward(*tensors, *tables)
        ctx.options = (pattern, scale, q_offset, layer, layers, numbers)

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor) -> tuple[Any, ...]:
        grad_out, grad_lse, query, key, value, out, lse, *tables = ctx.saved_tensors
        grads = attend_double_backward(
            *grad_grads, grad_out, grad_lse, query, key, value, out, lse, *ctx.options, tables
        )
        return (*_needed(ctx, grads), None, None, *_NO_GRADS)


class PatternAttentionGradGrad(Function):
    """The second derivatives of attention, where derivatives end."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return beneath(attn_bwd_bwd, arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise UnsupportedError(
            "attention has first and second derivatives, and a third was asked for",
            "take it from dense attention under `mask(...)`",
        )


def _needed(ctx: Any, grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """Those gradients that are asked for; others may go to waste, not into a graph."""
    wanted = ctx.needs_input_grad
    return tuple(grad if wants else None for grad, wants in zip(grads, wanted, strict=False))


def beneath(operator: Any, arguments: tuple[Any, ...]) -> Any:
    """Runs an operator as the forward of a Function does: beneath autograd, or beneath the level of
    a transform of torch.func; the levels under that one record what they want to."""
    with _beneath_autograd():
        if transforming():
            with torch.enable_grad():
                return operator(*arguments)
        return operator(*arguments)


def _derive(operator: Any, function: Any, tensors: int) -> Callable[..., Any]:
    """Gives an operator the derivatives of a Function, and returns a quicker way to call it.

    Dispatch comes to the operator's autograd key once for autograd and once for each level of
    torch.func. So torch.compile and torch.export see the operator, not the Function: Dynamo of
    torch 2.13 runs a Function under torch.func.grad without its backward, and the gradient is 0.

    Args:
        operator: The operator.
        function: Has it as its forward.
        tensors: How many of its first arguments are tensors, or None.
    """
    # What Function.apply comes to beneath a transform, without 20 us for names and defaults.
    apply: Callable[..., Any] = super(Function, function).apply

    def at_autograd_key(*arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            refuse_tangents(arguments[:tensors])
        if not _recorded(arguments[:tensors]):
            with _beneath_autograd():
                return operator(*arguments)
        if transforming():
            with enable_single_level_autograd_function():
                return apply(*arguments)
        return apply(*arguments)

    def call(*arguments: Any) -> Any:
        """The operator; in plain eager mode without a round through its autograd key, 5 us."""
        if torch.compiler.is_compiling() or transforming() or forward_ad._current_level >= 0:
            return operator(*arguments)
        if _recorded(arguments[:tensors]):
            return apply(*arguments)
        with _beneath_autograd():
            return operator(*arguments)

    LIBRARY.impl(operator.name(), at_autograd_key, "Autograd")
    return call


def _recorded(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a call becomes part of a graph."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # a loop, as this is in the way of every call
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def refuse_tangents(tensors: tuple[Tensor | None, ...]) -> None:
    """Refuses forward mode, which has no flag on tensors and would lose their tangents.

    Raises:
        UnsupportedError: A tensor has a tangent.
    """
    if _torch._C._is_fwd_grad_enabled() and any(
        tensor is not None and _torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    ):
        raise UnsupportedError(
            "attention has no derivatives in forward mode (jvp, jacfwd, dual tensors)",
            "take them in reverse mode: backward(), torch.func.vjp, torch.func.jacrev",
        )


attend = _derive(attn_fwd, PatternAttention, 3)
attend_backward = _derive(attn_bwd, PatternAttentionGrad, 7)
attend_double_backward = _derive(attn_bwd_bwd, PatternAttentionGradGrad, 10)
