"""Derivatives of the operators: what autograd keeps of a call, and which operator runs backward.

They are Functions of one level, as torch makes them of a `Function` for each level of torch.func:
dispatch comes to every level by itself, where `Function.apply` would begin with the topmost again,
and take 20 us for names and defaults.

A first derivative runs `attn_bwd` from the inputs and results of the forward call; nothing else is
kept. A second one runs `attn_bwd_bwd`, where that has an executor. There is no third.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from patterncc import eager, gpu_calls
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.score.terms import terms_of
from patterncc.operators import LIBRARY, attn_bwd, attn_bwd_bwd, attn_fwd
from patterncc.prepared import BACKWARD, INPUTS, Options, refuse_double_backward, wanted_gradients

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_torch: Any = torch  # the parts of torch that have no types
transforming: Callable[[], bool] = _torch._C._are_functorch_transforms_active

_beneath_autograd: Any = _torch._C._AutoDispatchBelowAutograd


class PatternAttention(_SingleLevelFunction):
    """Attention; its results `out` and `lse` both have a gradient.

    Its inputs are query, key, value, each table, for a Function sees no tensor in a list, and the
    options of the operator without the tables.
    """

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _beneath(attn_fwd, INPUTS, _joined(arguments, INPUTS))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.options = inputs
        ctx.save_for_backward(*tensors[:INPUTS], *output, *tensors[INPUTS:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        needs = ctx.needs_input_grad[:-1]
        return gradients(
            grad_out, grad_lse, saved[: INPUTS + 2], saved[INPUTS + 2 :], ctx.options, needs
        )


def gradients(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    saved: Sequence[Tensor],
    tables: Sequence[Tensor],
    options: tuple[Any, ...],
    needs: tuple[bool, ...],
) -> tuple[Any, ...]:
    """The gradients of all inputs of `PatternAttention`, by the operator.

    Args:
        grad_out, grad_lse: Those of its results; None where there is none.
        saved: Query, key, value, and the results.
        tables: As they travel.
        options: As the Function takes them.
        needs: For each input but the options whether its gradient is asked for.
    """
    if grad_out is None:
        if grad_lse is None:
            return (None,) * (len(needs) + 1)
        grad_out = torch.zeros_like(saved[INPUTS])
    asked = backward_options(options, tables, needs)
    grads = iter(attend_backward(grad_out, grad_lse, *saved, *asked))
    return (*(next(grads) if need else None for need in needs), None)


def backward_options(
    options: tuple[Any, ...], tables: Sequence[Tensor], needs: tuple[bool, ...]
) -> tuple[Any, ...]:
    """The options of the operator for the gradients; arguments as of `gradients`."""
    pattern, *rest = options
    whole: tuple[Any, ...] = (pattern, list(tables), *rest)
    if tables or not all(needs):
        whole = Options(*whole)._replace(needs=needs)
    return whole


class PatternAttentionGrad(_SingleLevelFunction):
    """The gradients of attention that are asked for.

    Those of its own arguments `out` and `lse` are part of those of query, key and value, of which
    the two are functions. Inputs as those of `PatternAttention`, after `grad_out` and `grad_lse`.
    """

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return tuple(_beneath(attn_bwd, BACKWARD, _joined(arguments, BACKWARD)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.options = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor) -> tuple[Any, ...]:
        tensors, tables = ctx.saved_tensors[:BACKWARD], ctx.saved_tensors[BACKWARD:]
        pattern, *rest = ctx.options
        options = Options(pattern, tables, *rest)
        if options.score is not None:
            refuse_double_backward(terms_of(options.score))
        given = iter(grad_grads)
        asked = wanted_gradients(options, len(tables))[:INPUTS]
        cotangents = [
            next(given) if wanted else torch.zeros_like(tensor)
            for tensor, wanted in zip(tensors[2 : 2 + INPUTS], asked, strict=True)
        ]
        grads = attend_double_backward(*cotangents, *tensors, *options[:-1])
        needs = ctx.needs_input_grad
        found = (grad if need else None for grad, need in zip(grads, needs, strict=False))
        return (*found, None, None, *(None for _ in tables), None)


class PatternAttentionGradGrad(_SingleLevelFunction):
    """The second derivatives of attention, where derivatives end."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        tensors = INPUTS + BACKWARD
        return _beneath(attn_bwd_bwd, tensors, _joined(arguments, tensors))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise UnsupportedError(
            "attention has first and second derivatives, and a third was asked for",
            "take it from dense attention under `mask(...)`",
        )


def _split(arguments: tuple[Any, ...], tensors: int) -> tuple[Any, ...]:
    """The arguments of an operator, of which so many come before the pattern, as a Function takes
    them."""
    pattern, tables, *rest = arguments[tensors:]
    return (*arguments[:tensors], *tables, (pattern, *rest))


def _joined(inputs: tuple[Any, ...], tensors: int) -> tuple[Any, ...]:
    """The arguments of an operator of a Function's inputs."""
    pattern, *rest = inputs[-1]
    return (*inputs[:tensors], pattern, list(inputs[tensors:-1]), *rest)


# What the dispatcher would come to on a GPU; getting there takes it longer than a launch.
_ON_GPU: dict[Any, Callable[..., Any]] = {
    attn_fwd: gpu_calls.attn_fwd,
    attn_bwd: gpu_calls.attn_bwd,
}


def _beneath(operator: Any, tensors: int, arguments: tuple[Any, ...]) -> Any:
    """Runs an operator as the forward of a Function does: beneath autograd, or beneath the level of
    a transform of torch.func; the levels under that one record what they want to.

    Args:
        operator: The operator.
        tensors: How many of its first arguments are tensors, or None.
        arguments: All of them.
    """
    if operator in _ON_GPU and eager.unattended((*arguments[:tensors], *arguments[tensors + 1])):
        with _beneath_autograd():
            return _ON_GPU[operator](*arguments)
    with _beneath_autograd():
        if transforming():
            with torch.enable_grad():
                return operator(*arguments)
        return operator(*arguments)


def _derive(
    operator: Any, function: Any, tensors: int, results: Callable[[Any], Any] | None = None
) -> Callable[..., Any]:
    """Gives an operator the derivatives of a Function, and returns a quicker way to call it.

    Dispatch comes to the operator's autograd key once for autograd and once for each level of
    torch.func. So torch.compile and torch.export see the operator, not the Function: Dynamo of
    torch 2.13 runs a Function under torch.func.grad without its backward, and the gradient is 0.

    Args:
        operator: The operator.
        function: Has it as its forward.
        tensors: How many of its first arguments are tensors, or None.
        results: The operator's results of the Function's, where those are others.
    """
    apply: Callable[..., Any] = function.apply

    def record(arguments: tuple[Any, ...]) -> Any:
        found = apply(*_split(arguments, tensors))
        return found if results is None else results(found)

    def at_autograd_key(*arguments: Any) -> Any:
        if forward_ad._current_level >= 0:
            _refuse_tangents((*arguments[:tensors], *arguments[tensors + 1]))
        if not _recorded(arguments, tensors):
            with _beneath_autograd():
                return operator(*arguments)
        if transforming():
            with enable_single_level_autograd_function():
                return record(arguments)
        return record(arguments)

    def call(*arguments: Any) -> Any:
        """The operator; in plain eager mode without a round through its autograd key, 5 us."""
        if torch.compiler.is_compiling() or transforming() or forward_ad._current_level >= 0:
            return operator(*arguments)
        arguments = short(arguments, tensors)
        if _recorded(arguments, tensors):
            return record(arguments)
        return _beneath(operator, tensors, arguments)

    LIBRARY.impl(operator.name(), at_autograd_key, "Autograd")
    return call


def short(arguments: tuple[Any, ...], tensors: int) -> tuple[Any, ...]:
    """The arguments of an operator without options at the end that have their defaults: each that
    is given costs the dispatcher time. Spelled out, as this is in the way of every call."""
    if arguments[tensors + 3 :] != (None, None, 0, None):  # scale, q_offset, layer, layers
        return arguments
    return arguments[:-4] if arguments[-5] else arguments[:-5]


def _recorded(arguments: tuple[Any, ...], tensors: int) -> bool:
    """Whether a call becomes part of a graph."""
    if torch.is_grad_enabled():
        for tensor in arguments[:tensors]:  # a loop, as this is in the way of every call
            if tensor is not None and tensor.requires_grad:
                return True
        for table in arguments[tensors + 1]:
            if table.requires_grad:
                return True
    return False


def _refuse_tangents(tensors: tuple[Tensor | None, ...]) -> None:
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


attend = _derive(attn_fwd, PatternAttention, INPUTS)
attend_backward = _derive(attn_bwd, PatternAttentionGrad, BACKWARD, list)
attend_double_backward = _derive(attn_bwd_bwd, PatternAttentionGradGrad, INPUTS + BACKWARD)
