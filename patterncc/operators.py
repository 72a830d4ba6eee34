"""The torch operators: schemas, what runs on each device, and what fake tensors are given.

`attn_fwd` is attention, `attn_bwd` its gradients, `attn_bwd_bwd` the gradients of those. Importing
this module defines them; `autograd` ties them together, and `import patterncc.ops` does both. The
pattern and the score terms travel as their canonical texts, so an operator keeps nothing that a
graph would need: a graph that holds one runs in any process that has imported `patterncc.ops`, such
as one that loads a program of `torch.export`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from patterncc import cpu_calls, folding, gpu_calls, signatures
from patterncc.arguments import check_backward_tensors
from patterncc.codegen.backward_tensors import BackwardTensors
from patterncc.dsl.errors import UnsupportedError
from patterncc.prepared import (
    BACKWARD,
    INPUTS,
    Options,
    check_fakes,
    refuse_double_backward,
    wanted_gradients,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICES = ("cpu", "cuda")

_torch: Any = torch  # the parts of torch that have no types
LIBRARY = _torch.library.Library("patterncc", "DEF")  # the operators live as long as this does

# The arguments of a call after its tensors, `prepared.Options`: those with defaults cost the
# dispatcher time only where they are given. `Tensor[]?` could have one, but vmap does not know it.
_OPTIONS = (
    "str pattern, Tensor[] tables, SymInt[] numbers=[], float? scale=None, SymInt? q_offset=None, "
    "SymInt layer=0, SymInt? layers=None, str? score=None, float[] score_numbers=[], "
    "bool deterministic=True, bool? isolate=None"
)
_INPUTS = "Tensor query, Tensor key, Tensor value"
_RESULTS = "Tensor out, Tensor lse"
_GRADS = "Tensor grad_out, Tensor? grad_lse"
_DOUBLE_GRADS = "Tensor grad_grad_query, Tensor grad_grad_key, Tensor grad_grad_value"

SCHEMAS = (
    f"attn_fwd({_INPUTS}, {_OPTIONS}) -> (Tensor, Tensor)",
    f"attn_bwd({_GRADS}, {_INPUTS}, {_RESULTS}, {_OPTIONS}, bool[]? needs=None) -> Tensor[]",
    f"attn_bwd_bwd({_DOUBLE_GRADS}, {_GRADS}, {_INPUTS}, {_RESULTS}, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

# Bound once: looking an operator up costs more than calling it.
attn_fwd = torch.ops.patterncc.attn_fwd.default
attn_bwd = torch.ops.patterncc.attn_bwd.default
attn_bwd_bwd = torch.ops.patterncc.attn_bwd_bwd.default


def _attn_fwd_fake(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    check_fakes(query, key, value, Options(*rest))
    return cpu_calls.results_like(query, value)


def _attn_bwd_fake(*arguments: Any) -> list[Tensor]:
    given, options = BackwardTensors(*arguments[:BACKWARD]), Options(*arguments[BACKWARD:])
    check_fakes(given.query, given.key, given.value, options)
    check_backward_tensors(given)
    inputs = (given.query, given.key, given.value, *options.tables)
    wanted = wanted_gradients(options, len(signatures.resolve(options.pattern).pattern.tables))
    return [_room(tensor) for tensor, yes in zip(inputs, wanted, strict=True) if yes]


def _attn_bwd_bwd_fake(*arguments: Any) -> tuple[Tensor, ...]:
    arguments = arguments[INPUTS:]
    given, options = BackwardTensors(*arguments[:BACKWARD]), Options(*arguments[BACKWARD:])
    refuse_double_backward(check_fakes(given.query, given.key, given.value, options))
    check_backward_tensors(given)
    return tuple(map(_room, (given.grad_out, given.lse, given.query, given.key, given.value)))


def _room(tensor: Tensor) -> Tensor:
    """Memory for the gradient of a tensor."""
    return tensor.new_empty(tensor.shape)


def elsewhere(first: Tensor, *_: Any) -> NoReturn:
    """What runs on a device that has no executor.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(
        f"the tensors are on {first.device}, which has no executor",
        f"move query, key and value to one of: {', '.join(DEVICES)}",
    )


def _register(
    operator: Any,
    tensors: int,
    on_cpu: Callable[..., object],
    on_cuda: Callable[..., object],
    fake: Callable[..., object],
) -> None:
    """Gives an operator what runs it; `tensors` of its arguments come before the pattern."""
    name = operator.name()
    LIBRARY.impl(name, on_cpu, "CPU")
    LIBRARY.impl(name, on_cuda, "CUDA")
    LIBRARY.impl(name, elsewhere, "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=LIBRARY)
    rule = functools.partial(folding.fold, operator, tensors)
    torch.library.register_vmap(name, rule, lib=LIBRARY)


_register(attn_fwd, INPUTS, cpu_calls.attn_fwd, gpu_calls.attn_fwd, _attn_fwd_fake)
_register(attn_bwd, BACKWARD, cpu_calls.attn_bwd, gpu_calls.attn_bwd, _attn_bwd_fake)
_register(
    attn_bwd_bwd,
    INPUTS + BACKWARD,
    cpu_calls.attn_bwd_bwd,
    gpu_calls.attn_bwd_bwd,
    _attn_bwd_bwd_fake,
)
