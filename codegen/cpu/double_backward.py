"""Block-sparse attention on the CPU, backward twice: gradients through `attention_backward`.

The backward is a sum over visible pairs of what it reads at a row and at a key, lse and delta being
numbers of the row. With cotangents cq, ck, cv of its results that sum is `scale * ds * A + p * B`,
where `A = cq.k + q.ck` and `B = grad_out.cv`. Its derivatives are one pass over the same plans:

    e = scale * p * A                              of grad_out.v; minus its row sum: of delta
    c = p * (scale * (grad_out.v - delta) * A + B) of scale * q.k; minus its row sum: of lse
    q: scale * (c @ k + ds @ ck),      k: scale * (c^T @ q + ds^T @ cq)
    grad_out: e @ v + p @ cv,          v: e^T @ grad_out

What delta and lse got then goes on to what they were made of: through
`delta = grad_out.out - grad_lse` to grad_out, grad_lse and out, and from out and lse by an ordinary
backward to query, key and value.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from patterncc.codegen.cpu.accumulate import Block, Tensors, accumulate
from patterncc.codegen.cpu.backward import attention_backward
from patterncc.codegen.cpu.jobs import call_jobs
from patterncc.codegen.cpu.products import Stack, by_rows
from patterncc.codegen.cpu.tensors import (
    check_cotangents,
    check_gradients,
    check_inputs,
    readable,
    wide_type,
)
from patterncc.codegen.ir import BlockProgram


@torch.no_grad()
def attention_double_backward(
    passes: Sequence[BlockProgram],
    cotangents: tuple[Tensor, Tensor, Tensor],
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    env: Mapping[str, int] | None = None,
    tables: Mapping[str, Tensor] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of what `attention_backward` was given, from those of what it returned.

    `out` and `lse` count as functions of query, key and value, not as inputs of their own.

    Args:
        passes: As in `attention`.
        cotangents: Gradients of the gradients of query, key and value, of their shapes and type,
            with any strides.
        grad_out, grad_lse, query, key, value, out, lse, env, tables, scale: As in
            `attention_backward`.

    Returns:
        The gradients of `grad_out`, `grad_lse`, `query`, `key` and `value`, of their shapes and
        types. That of `grad_lse` is there whether it was given or not. Rows that see nothing get 0.

    Raises:
        ArgumentError: A shape or type does not fit, or a scalar or table that the pattern reads is
            missing.
        UnsupportedError: The tensors are not on the CPU, or of another type.
    """
    check_inputs(query, key, value)
    check_gradients(query, value, grad_out, grad_lse, out, lse)
    check_cotangents(cotangents, query, key, value)
    scale = 1 / math.sqrt(query.shape[3]) if scale is None else float(scale)
    dtype, wide = query.dtype, wide_type(query.dtype)
    query, key, value, grad_out, out = (
        readable(x.to(wide)) for x in (query, key, value, grad_out, out)
    )
    for_query, for_key, for_value = (readable(x.to(wide)) for x in cotangents)
    delta = (grad_out * out).sum(-1)
    if grad_lse is not None:
        delta -= grad_lse
    finite_lse = lse.masked_fill(lse == -math.inf, 0)

    row = lse[..., None]
    row_sums = [torch.zeros(x.shape, dtype=wide) for x in (query, grad_out, row, row)]
    key_sums = [torch.zeros(x.shape, dtype=wide) for x in (key, value)]
    if query.numel() > 0 and key.numel() > 0:
        work = call_jobs(passes, query, key, env, tables)
        rows = [query, grad_out, finite_lse[..., None], delta[..., None], for_query]
        tensors = Tensors(rows, [key, value, for_key, for_value], row_sums, key_sums)
        kernel = partial(_contributions, scale=scale)
        accumulate(work, tensors, lambda _: kernel)
    of_query, of_grad_out, of_lse, of_delta = row_sums
    live = (lse != -math.inf)[..., None]
    of_out = torch.where(live, of_delta * grad_out, 0)
    of_grad_out += of_delta * out
    through = attention_backward(
        passes,
        of_out,
        of_lse[..., 0],
        query,
        key,
        value,
        out,
        lse,
        env=env,
        tables=tables,
        scale=scale,
    )
    of_inputs = (of_query, *key_sums)
    for total, part in zip(of_inputs, through, strict=True):
        total += part
    of_query, of_key, of_value = (x.to(dtype) for x in of_inputs)
    return of_grad_out.to(dtype), -of_delta[..., 0], of_query, of_key, of_value


def _contributions(block: Block, scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """A kernel: see the module's docstring.

    Takes for rows query, grad_out, lse, delta and the cotangent of query's gradient, for keys key,
    value and the cotangents of theirs; gives derivatives of query, grad_out, lse and delta, and of
    key and value. Nothing passes between a row and a key that the mask hides from it.
    """
    return by_rows(block, partial(_of_stack, scale=scale))


def _of_stack(stack: Stack, scale: float) -> tuple[list[Tensor], list[Tensor]]:
    query, grad_out, lse, delta, for_query = stack.rows
    key, value, for_key, for_value = stack.keys
    weights = stack.hide((query @ key.mT).mul_(scale).sub_(lse).exp_())
    reach = (for_query @ key.mT).add_(query @ for_key.mT).mul_(scale)
    difference = (grad_out @ value.mT).sub_(delta)
    # Hidden once more, as 0 times what is not finite is not 0.
    of_products = stack.hide(weights * reach)
    of_scores = (grad_out @ for_value.mT).addcmul_(difference, reach).mul_(weights)
    of_scores = stack.hide(of_scores)
    of_lse, of_delta = (x.sum(-1, keepdim=True).neg_() for x in (of_scores, of_products))
    of_scores.mul_(scale)
    grad_scores = stack.hide(difference.mul_(weights)).mul_(scale)
    of_query = stack.for_rows(of_scores, key) + stack.for_rows(grad_scores, for_key)
    of_grad_out = stack.for_rows(of_products, value) + stack.for_rows(weights, for_value)
    of_key = stack.for_keys(of_scores, query) + stack.for_keys(grad_scores, for_query)
    of_value = stack.for_keys(of_products, grad_out)
    return [of_query, of_grad_out, of_lse, of_delta], [of_key, of_value]
