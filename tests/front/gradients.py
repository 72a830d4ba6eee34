"""Patterns, inputs and arguments of operators whose gradients are tested."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import patterncc
from tests.front.inputs import tensors

Inputs = tuple[Tensor, Tensor, Tensor]

WINDOW = patterncc.compile("window(8)")
BATCHED = patterncc.compile("if batch == 1 then causal else window(3)")
DOCUMENTS = patterncc.compile("pattern p(doc: segments): causal and doc[q] == doc[k]")


def leaves(*arguments: Any, **options: Any) -> Inputs:
    query, key, value = tensors(*arguments, **options)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def grads_of(function: Callable[..., Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*inputs), inputs)


def assert_close(found: Any, wanted: Any) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def operands(**options: Any) -> tuple[Any, ...]:
    """Arguments of `attn_bwd`, and of `attn_bwd_bwd` after the first three."""
    inputs = tensors(**options)
    out, lse = WINDOW(*inputs, return_lse=True)
    grads = torch.randn_like(out), torch.randn_like(lse)
    return (*grads, *inputs, out, lse, WINDOW.pattern.structure, [], [], None, None, 0, None)
