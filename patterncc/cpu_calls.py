"""What the operators run on CPUs."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patterncc import programs, signatures
from patterncc.arguments import check_backward_tensors
from patterncc.codegen import cpu
from patterncc.codegen.backward_tensors import BackwardTensors
from patterncc.codegen.cpu.backward import attention_backward
from patterncc.codegen.cpu.double_backward import attention_double_backward
from patterncc.codegen.dtypes import DTYPE_NAMES
from patterncc.codegen.problem import Problem
from patterncc.prepared import (
    BACKWARD,
    INPUTS,
    Options,
    Prepared,
    prepare,
    refuse_double_backward,
    wanted_gradients,
)
from patterncc.tuned import config_for, subject_of

if TYPE_CHECKING:
    from patterncc.codegen.ir import Passes

_TILE = (cpu.default_config().block_q, cpu.default_config().block_k)


def attn_fwd(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Attention; arguments as of the operator."""
    options = Options(*rest)
    call = prepare(query, key, value, options)
    shared = _shared(call, options)
    if not call.terms.plain:
        passes, values = _passes(options.pattern, call), call.score_values(options)
        with _as_typed():
            return cpu.scored_attention(passes, query, key, value, call.terms, values, **shared)
    if query.numel() == 0 or key.numel() == 0:
        out, lse = results_like(query, value)
        return out.zero_(), lse.fill_(-math.inf)
    passes = _passes(options.pattern, call, _problem(query, key, value))
    with _as_typed():
        return cpu.attention(passes, query, key, value, **shared)


def attn_bwd(*arguments: Any) -> list[Tensor]:
    """The gradients of attention; arguments as of the operator."""
    given, options = BackwardTensors(*arguments[:BACKWARD]), Options(*arguments[BACKWARD:])
    query, key, value = given.query, given.key, given.value
    call = prepare(query, key, value, options)
    check_backward_tensors(given)
    wanted = call.wanted_tables(options)
    shared = _shared(call, options)
    of_tables: list[Tensor] = []
    grads: tuple[Tensor, ...]
    if not call.terms.plain:
        passes, values = _passes(options.pattern, call), call.score_values(options)
        with _as_typed():
            *found, by_name = cpu.scored_attention_backward(
                passes, *given, call.terms, values, wanted=wanted, **shared
            )
        grads, of_tables = tuple(found), [by_name[name] for name in wanted]
    elif query.numel() == 0 or key.numel() == 0:
        grads = tuple(tensor.new_zeros(tensor.shape) for tensor in (query, key, value))
    else:
        passes = _passes(options.pattern, call, _problem(query, key, value))
        with _as_typed():
            grads = attention_backward(passes, *given, **shared)
    asked = wanted_gradients(options, len(call.declared))[:3]
    return [grad for grad, yes in zip(grads, asked, strict=True) if yes] + of_tables


def attn_bwd_bwd(*arguments: Any) -> tuple[Tensor, ...]:
    """The gradients of the gradients; arguments as of the operator."""
    cotangents, arguments = arguments[:INPUTS], arguments[INPUTS:]
    given, options = BackwardTensors(*arguments[:BACKWARD]), Options(*arguments[BACKWARD:])
    query, key, value = given.query, given.key, given.value
    call = prepare(query, key, value, options)
    refuse_double_backward(call.terms)
    check_backward_tensors(given)
    if query.numel() == 0 or key.numel() == 0:
        return tuple(
            tensor.new_zeros(tensor.shape)
            for tensor in (given.grad_out, given.lse, query, key, value)
        )
    passes = _passes(options.pattern, call, _problem(query, key, value))
    with _as_typed():
        return attention_double_backward(passes, cotangents, *given, **_shared(call, options))


def results_like(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the results of a call."""
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return out, query.new_empty(query.shape[:3], dtype=wide)


def _shared(call: Prepared, options: Options) -> dict[str, Any]:
    """What all executors are given beside tensors and programs."""
    return {"env": call.env, "tables": call.named(options), "scale": call.scale}


def _passes(pattern: str, call: Prepared, problem: Problem | None = None) -> Passes:
    """The programs of a call: in the tiles that were tuned for its forward, where a problem is
    given and there are such, else in the default ones."""
    tile = _TILE
    if problem is not None:
        names = signatures.resolve(pattern).numbers
        tuned = config_for(subject_of(pattern, problem, "forward", call.env, names), "cpu")
        tile = tile if tuned is None else (tuned.block_q, tuned.block_k)
    return programs.passes(pattern, *tile, call.sizes, call.within)


def _problem(query: Tensor, key: Tensor, value: Tensor) -> Problem:
    """The shape class of a checked call."""
    group = query.shape[1] // key.shape[1]
    return Problem(DTYPE_NAMES[query.dtype], query.shape[3], value.shape[3], group)


def _as_typed() -> contextlib.AbstractContextManager[object]:
    """Where the products of the executor have the types it gave them: autocast, which casts what a
    user's code multiplies, would narrow them, too."""
    if torch.is_autocast_enabled("cpu"):
        return torch.autocast("cpu", enabled=False)
    return contextlib.nullcontext()
