"""Block-sparse attention on the CPU, backward: gradients from the plans that the forward runs.

With the final output and log-sum-exp of a row, its probabilities can be computed again in any part
of its keys. So each call of each plan adds what its pairs contribute, whatever the others do:

    p = exp(scale * q.k - lse),  delta = grad_out.out - grad_lse,  ds = p * (grad_out.v - delta)
    grad_q = scale * ds @ k,  grad_k = scale * ds^T @ q,  grad_v = p^T @ grad_out

(T. Dao, "FlashAttention-2", 2023, algorithm 2, and the gradient of lse as an output.)
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from patterncc.codegen.cpu import backward_kernels
from patterncc.codegen.cpu.accumulate import Tensors, accumulate
from patterncc.codegen.cpu.jobs import call_jobs
from patterncc.codegen.cpu.scores import ScoreTerm
from patterncc.codegen.cpu.tensors import check_gradients, check_inputs, readable, wide_type
from patterncc.codegen.ir import BlockProgram


@torch.no_grad()
def attention_backward(
    passes: Sequence[BlockProgram],
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
    score: ScoreTerm | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of attention under a lowered pattern.

    A row that sees nothing gets the gradient 0 and passes none on. A number that is not finite
    reaches what it would reach through the pairs of the pattern, and nothing else.

    Args:
        passes: As in `attention`.
        grad_out: Gradient of the output, `[batch, heads, q_len, value_head_dim]`, with any strides.
        grad_lse: Gradient of the log-sum-exp, `[batch, heads, q_len]`; zeros if not given.
        query, key, value: As in `attention`.
        out, lse: What `attention` returned for them.
        env, tables, scale, score: As in `attention`.

    Returns:
        The gradients of `query`, `key` and `value`, each of its shape and type, contiguous; then
        those of the parameters of `score`.

    Raises:
        ArgumentError: A shape or type does not fit, or a scalar or table that the pattern reads is
            missing.
        UnsupportedError: The tensors are not on the CPU, or of another type.
    """
    check_inputs(query, key, value)
    check_gradients(query, value, grad_out, grad_lse, out, lse)
    scale = 1 / math.sqrt(query.shape[3]) if scale is None else float(scale)
    flash = score is None and backward_kernels.flash_works()
    rows, keys = _operands(grad_out, grad_lse, query, key, value, out, lse, flash)
    grads = [torch.zeros(x.shape, dtype=x.dtype) for x in (rows[0], *keys)]
    parameters = () if score is None else score.parameters
    term_sums = [torch.zeros_like(x) for x in parameters]
    if query.numel() > 0 and key.numel() > 0:
        work = call_jobs(passes, query, key, env, tables)
        products = partial(backward_kernels.matmul, scale=scale, term=score, term_sums=term_sums)
        fast = partial(backward_kernels.flash, scale=scale) if flash else products
        masked = fast if flash and _tame(rows, keys, scale) else products
        accumulate(
            work,
            Tensors(rows, keys, grads[:1], grads[1:]),
            lambda hidden: fast if hidden is None else masked,
        )
    dims = (x.shape[3] for x in (query, key, value))
    found = (grad[..., :dim] for grad, dim in zip(grads, dims, strict=True))
    return (*(grad.to(query.dtype).contiguous() for grad in found), *term_sums)


def _operands(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    flash: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """What the kernels take for rows and for keys, in the wide type.

    They know no gradient of lse: one more number in each row of grad_out and out makes the product
    of the two what delta must be. The flash kernel wants values as long as keys, so the shorter get
    zeros.
    """
    wide = wide_type(query.dtype)
    lse = lse.masked_fill(lse == -math.inf, 0)
    more = 0 if grad_lse is None else 1
    dim, value_dim = query.shape[3], value.shape[3] + more
    if flash:
        dim = value_dim = max(dim, value_dim)
    query, key = (readable(x.to(wide), dim) for x in (query, key))
    value, grad_out, out = (readable(x.to(wide), value_dim) for x in (value, grad_out, out))
    if grad_lse is not None:
        grad_out[..., -1] = grad_lse
        out[..., -1] = -1
    return [query, grad_out, out, lse[..., None]], [key, value]


def _tame(rows: list[Tensor], keys: list[Tensor], scale: float) -> bool:
    """Whether nothing in a block can fail to be finite: then a mask that is added hides pairs."""
    query, grad_out, out, lse, key, value = (
        float(torch.linalg.vector_norm(x)) for x in (*rows, *keys)
    )
    largest = 0.25 * torch.finfo(keys[0].dtype).max
    # By Cauchy and Schwarz; the norm of all is not finite where one number is not.
    return query * key * max(1.0, abs(scale)) + lse < largest and grad_out * (value + out) < largest
