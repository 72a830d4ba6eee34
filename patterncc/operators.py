"""The torch operators: schemas, what runs on each device, and what fake tensors are given.

`attn_fwd` is attention, `attn_bwd` its gradients, `attn_bwd_bwd` the gradients of those. Importing
this module defines them; `autograd` ties them together, and `import patterncc.ops` does both. The
pattern travels as its canonical text, so an operator keeps no state: a graph that holds one runs in
any process that has imported `patterncc.ops`, such as one that loads a program of `torch.export`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from patterncc import folding, pipeline
from patterncc.arguments import check_backward_tensors, check_tensors
from patterncc.codegen import cpu
from patterncc.codegen.cpu.backward import attention_backward
from patterncc.codegen.cpu.double_backward import attention_double_backward
from patterncc.codegen.dtypes import DTYPE_NAMES
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import UnsupportedError
from patterncc.parameters import check_tables
from patterncc.prepared import Prepared, check_count, prepare
from patterncc.tuned import config_for, subject_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from patterncc.codegen.ir import Passes

DEVICES = ("cpu", "cuda")
_CPU_TILE = (cpu.default_config().block_q, cpu.default_config().block_k)

_torch: Any = torch  # the parts of torch that have no types
LIBRARY = _torch.library.Library("patterncc", "DEF")  # the operators live as long as this does

# The arguments of a call that have no gradient.
CALL_SCHEMA = (
    "str pattern, float? scale, SymInt? q_offset, SymInt layer, SymInt? layers, "
    "SymInt[] numbers, Tensor[] tables"
)
_INPUTS = "Tensor query, Tensor key, Tensor value"
_GRADS = "Tensor grad_out, Tensor? grad_lse"
_DOUBLE_GRADS = "Tensor grad_grad_query, Tensor grad_grad_key, Tensor grad_grad_value"

SCHEMAS = (
    f"attn_fwd({_INPUTS}, {CALL_SCHEMA}) -> (Tensor, Tensor)",
    f"attn_bwd({_GRADS}, {_INPUTS}, Tensor out, Tensor lse, {CALL_SCHEMA})"
    " -> (Tensor, Tensor, Tensor)",
    f"attn_bwd_bwd({_DOUBLE_GRADS}, {_GRADS}, {_INPUTS}, Tensor out, Tensor lse, {CALL_SCHEMA})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

# Bound once: looking an operator up costs more than calling it.
attn_fwd = torch.ops.patterncc.attn_fwd.default
attn_bwd = torch.ops.patterncc.attn_bwd.default
attn_bwd_bwd = torch.ops.patterncc.attn_bwd_bwd.default


# ----------------------------------------------------------------------------------------- forward


def _attn_fwd_cpu(
    query: Tensor, key: Tensor, value: Tensor, pattern: str, *rest: Any
) -> tuple[Tensor, Tensor]:
    call = prepare(query, key, value, pattern, *rest)
    if query.numel() == 0 or key.numel() == 0:
        return _nothing(query, value)
    tables = call.named(rest[-1])
    with as_typed():
        return cpu.attention(
            cpu_passes(pattern, call, _problem(query, key, value)),
            query,
            key,
            value,
            env=call.env,
            tables=tables,
            scale=call.scale,
        )


def _attn_fwd_cuda(
    query: Tensor, key: Tensor, value: Tensor, pattern: str, *rest: Any
) -> tuple[Tensor, Tensor]:
    call = prepare(query, key, value, pattern, *rest)
    if query.numel() == 0 or key.numel() == 0:
        return _nothing(query, value)
    forward = pipeline.launcher(pattern, call.sizes)
    tables = narrow_all(call, rest[-1])
    return forward(query, key, value, env=call.env, scale=call.scale, tables=tables)


def _attn_fwd_fake(
    query: Tensor, key: Tensor, value: Tensor, pattern: str, *rest: Any
) -> tuple[Tensor, Tensor]:
    check_fakes(query, key, value, pattern, rest[-1])
    return like(query, value)


def like(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the results of a call."""
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return out, query.new_empty(query.shape[:3], dtype=wide)


def _nothing(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The result where there is no row, or no key to see."""
    out, lse = like(query, value)
    return out.zero_(), lse.fill_(-math.inf)


# ---------------------------------------------------------------------------------------- backward


def _attn_bwd_cpu(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    pattern: str,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    call = prepare(query, key, value, pattern, *rest)
    check_backward_tensors(query, value, grad_out, grad_lse, out, lse)
    if query.numel() == 0 or key.numel() == 0:
        return _zeros(query), _zeros(key), _zeros(value)
    with as_typed():
        grad_query, grad_key, grad_value = attention_backward(
            cpu_passes(pattern, call, _problem(query, key, value)),
            grad_out,
            grad_lse,
            query,
            key,
            value,
            out,
            lse,
            env=call.env,
            tables=call.named(rest[-1]),
            scale=call.scale,
        )
    return grad_query, grad_key, grad_value


def _attn_bwd_cuda(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    pattern: str,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    call = prepare(query, key, value, pattern, *rest)
    check_backward_tensors(query, value, grad_out, grad_lse, out, lse)
    if query.numel() == 0 or key.numel() == 0:
        return _zeros(query), _zeros(key), _zeros(value)
    backward = pipeline.backward_launcher(pattern, call.sizes)
    grad_query, grad_key, grad_value = backward(
        grad_out,
        grad_lse,
        query,
        key,
        value,
        out,
        lse,
        env=call.env,
        scale=call.scale,
        tables=narrow_all(call, rest[-1]),
    )
    assert grad_query is not None and grad_key is not None and grad_value is not None, "all wanted"
    return grad_query, grad_key, grad_value


def _attn_bwd_fake(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    pattern: str,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    check_fakes(query, key, value, pattern, rest[-1])
    check_backward_tensors(query, value, grad_out, grad_lse, out, lse)
    return _room(query), _room(key), _room(value)


# --------------------------------------------------------------------------------- double backward


def _attn_bwd_bwd_cpu(
    grad_grad_query: Tensor,
    grad_grad_key: Tensor,
    grad_grad_value: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    pattern: str,
    *rest: Any,
) -> tuple[Tensor, ...]:
    call = prepare(query, key, value, pattern, *rest)
    check_backward_tensors(query, value, grad_out, grad_lse, out, lse)
    if query.numel() == 0 or key.numel() == 0:
        return tuple(map(_zeros, (grad_out, lse, query, key, value)))
    with as_typed():
        return attention_double_backward(
            cpu_passes(pattern, call, _problem(query, key, value)),
            (grad_grad_query, grad_grad_key, grad_grad_value),
            grad_out,
            grad_lse,
            query,
            key,
            value,
            out,
            lse,
            env=call.env,
            tables=call.named(rest[-1]),
            scale=call.scale,
        )


def _attn_bwd_bwd_cuda(grad_grad_query: Tensor, *_: Any) -> NoReturn:
    raise UnsupportedError(
        f"attention has no second derivatives on {grad_grad_query.device}",
        "take them on the CPU, or from dense attention under `mask(...)`",
    )


def _attn_bwd_bwd_fake(
    grad_grad_query: Tensor,
    grad_grad_key: Tensor,
    grad_grad_value: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    pattern: str,
    *rest: Any,
) -> tuple[Tensor, ...]:
    check_fakes(query, key, value, pattern, rest[-1])
    check_backward_tensors(query, value, grad_out, grad_lse, out, lse)
    return tuple(map(_room, (grad_out, lse, query, key, value)))


# ---------------------------------------------------------------------------------- what they share


def cpu_passes(pattern: str, call: Prepared, problem: Problem | None = None) -> Passes:
    """The programs of a call for the CPU executor: in the tiles that were tuned for its forward,
    where a problem is given and there are such, else in the default ones."""
    tile = _CPU_TILE
    if problem is not None:
        names = pipeline.resolve(pattern).numbers
        tuned = config_for(subject_of(pattern, problem, "forward", call.env, names), "cpu")
        tile = tile if tuned is None else (tuned.block_q, tuned.block_k)
    return pipeline.passes(pattern, *tile, call.sizes, call.within)


def _problem(query: Tensor, key: Tensor, value: Tensor) -> Problem:
    """The shape class of a checked call on the CPU."""
    group = query.shape[1] // key.shape[1]
    return Problem(DTYPE_NAMES[query.dtype], query.shape[3], value.shape[3], group)


def as_typed() -> contextlib.AbstractContextManager[object]:
    """Where the products of the CPU executor have the types it gave them: autocast, which casts
    what a user's code multiplies, would narrow them, too."""
    if torch.is_autocast_enabled("cpu"):
        return torch.autocast("cpu", enabled=False)
    return contextlib.nullcontext()


def narrow_all(call: Prepared, tables: Sequence[Tensor]) -> dict[str, Tensor]:
    """The tables of a call by name, as kernels read them."""
    return {name: narrow(table) for name, table in call.named(tables).items()}


def narrow(table: Tensor) -> Tensor:
    """What kernels read: contiguous, numbers as int32. It is made anew at each call, as what a
    table holds may change between calls, or between replays of a graph."""
    return (table.int() if table.dtype == torch.int64 else table).contiguous()


def _room(tensor: Tensor) -> Tensor:
    """Memory for the gradient of a tensor."""
    return tensor.new_empty(tensor.shape)


def _zeros(tensor: Tensor) -> Tensor:
    return tensor.new_zeros(tensor.shape)


def check_fakes(
    query: Tensor, key: Tensor, value: Tensor, pattern: str, tables: Sequence[Tensor]
) -> None:
    """Checks what can be known of the arguments of a call without its numbers."""
    check_tensors(query, key, value)
    if tables:
        declared = pipeline.resolve(pattern).pattern.tables
        check_count(declared, tables)
        check_tables(declared, tables, {}, query.device)  # sizes may be symbols: no guards on them


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


_register(attn_fwd, 3, _attn_fwd_cpu, _attn_fwd_cuda, _attn_fwd_fake)
_register(attn_bwd, 7, _attn_bwd_cpu, _attn_bwd_cuda, _attn_bwd_fake)
_register(attn_bwd_bwd, 10, _attn_bwd_bwd_cpu, _attn_bwd_bwd_cuda, _attn_bwd_bwd_fake)
