"""Block-sparse attention on the CPU, backward: gradients from the plans that the forward runs.

With the final output and log-sum-exp of a row, its probabilities can be computed again in any part
of its keys. So each call of each plan adds what its pairs contribute, whatever the others do:

    p = exp(scale * q.k - lse),  delta = grad_out.out - grad_lse,  ds = p * (grad_out.v - delta)
    grad_q = scale * ds @ k,  grad_k = scale * ds^T @ q,  grad_v = p^T @ grad_out

(T. Dao, "FlashAttention-2", 2023, algorithm 2; lse as an output adds its gradient to ds.)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patterncc.codegen.cpu.backward_kernels import (
    Gradients,
    OfKeys,
    OfRows,
    few_blocks,
    matmul,
)
from patterncc.codegen.cpu.heads import HeadPlan
from patterncc.codegen.cpu.jobs import (
    BlockRange,
    Job,
    blocks,
    call_jobs,
    head_views,
    key_blocks,
    row_blocks,
)
from patterncc.codegen.cpu.plan import Call
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of attention under a lowered pattern.

    A row that sees nothing gets the gradient 0 and passes none on. A number that is not finite
    reaches what it would reach through the pairs of the pattern, and nothing else.

    Args:
        passes: As in `attention`.
        grad_out: Gradient of the output, `[batch, heads, q_len, value_head_dim]`, with any strides.
        grad_lse: Gradient of the log-sum-exp, `[batch, heads, q_len]`; zeros if not given.
        query, key, value: As in `attention`.
        out, lse: What `attention` returned for them.
        env, tables, scale: As in `attention`.

    Returns:
        The gradients of `query`, `key` and `value`, each of its shape and type, contiguous.

    Raises:
        ArgumentError: A shape or type does not fit, or a scalar or table that the pattern reads is
            missing.
        UnsupportedError: The tensors are not on the CPU, or of another type.
    """
    check_inputs(query, key, value)
    check_gradients(query, value, grad_out, grad_lse, out, lse)
    scale = 1 / math.sqrt(query.shape[3]) if scale is None else float(scale)
    wide = wide_type(query.dtype)
    grads = [torch.zeros(x.shape, dtype=wide) for x in (query, key, value)]
    if all(x.numel() > 0 for x in (query, key)):
        work = call_jobs(passes, query, key, env, tables)
        delta = (grad_out.to(wide) * out).sum(-1)
        if grad_lse is not None:
            delta -= grad_lse
        rows = [readable(x.to(wide)) for x in (query, grad_out, lse[..., None], delta[..., None])]
        keys = [readable(x.to(wide)) for x in (key, value)]
        for each in work:
            for part, jobs in each.places:
                for call in part.plan.calls:
                    hidden = None
                    if call.masks is not None:
                        hidden = torch.from_numpy(~part.plan.call_mask(call))
                    for job in jobs:
                        for on in _operands(part, job, rows, keys, grads):
                            _run(call, hidden, on, scale)
    grad_query, grad_key, grad_value = (grad.to(query.dtype) for grad in grads)
    return grad_query, grad_key, grad_value


@dataclass(frozen=True, slots=True)
class _Operands:
    """Views of some heads that share a plan, batch and heads as one axis, in the wide type.

    Shapes: those of rows `[heads, q_len, dim]`, lse and delta with a dim of 1; those of keys
    `[kv_heads, kv_len, dim]`. The gradients are sums to add to.
    """

    query: Tensor
    grad_out: Tensor
    lse: Tensor
    delta: Tensor
    grad_query: Tensor
    key: Tensor
    value: Tensor
    grad_key: Tensor
    grad_value: Tensor


def _operands(
    part: HeadPlan, job: Job, rows: list[Tensor], keys: list[Tensor], grads: list[Tensor]
) -> Iterator[_Operands]:
    """The views of the heads of a plan in one class of rows."""
    grad_query, *grad_keys = grads
    of_rows = [tensor[:, :, job.rows] for tensor in (*rows, grad_query)]
    of_keys = [tensor[:, :, job.keys] for tensor in (*keys, *grad_keys)]
    for own, shared in head_views(part, of_rows, of_keys):
        yield _Operands(*own, *shared)


def _run(call: Call, hidden: Tensor | None, on: _Operands, scale: float) -> None:
    """Adds what a call contributes for some heads.

    Args:
        call: Of the plan of these heads.
        hidden: bool `[size, keys]`, the pairs that its mask hides; None if there are none.
        on: The heads.
        scale: Factor of the scores.
    """
    heads = len(on.query)
    few = few_blocks(heads * call.size * call.keys)
    for low in range(0, call.count, few):
        count = min(few, call.count - low)
        rows, keys = row_blocks(call, low, count), key_blocks(call, low, count)
        gathered = len(call.spans) > 1
        if gathered:
            key, value = (
                torch.cat([x[:, slice(*span)] for span in call.spans], dim=1)[:, None]
                for x in (on.key, on.value)
            )
        else:
            key, value = blocks(on.key, keys), blocks(on.value, keys)
        grad_query, grad_key, grad_value = _contributions(
            OfRows(*(blocks(x, rows) for x in (on.query, on.grad_out, on.lse, on.delta))),
            OfKeys(key, value),
            hidden,
            scale,
        )
        blocks(on.grad_query, rows).add_(grad_query)
        for total, part in ((on.grad_key, grad_key), (on.grad_value, grad_value)):
            if gathered:
                sizes = [stop - start for start, stop in call.spans]
                parts = torch.split(part[:, 0], sizes, dim=1)
                for span, some in zip(call.spans, parts, strict=True):
                    total[:, slice(*span)].add_(some)
            else:
                _add(total, part, keys)


def _contributions(rows: OfRows, keys: OfKeys, hidden: Tensor | None, scale: float) -> Gradients:
    """Runs the kernel on operands `[heads, blocks, length, dim]`, fewer key heads or as many.

    It finds the key head of a query head only with the heads of a block side by side.
    """
    found = matmul(
        OfRows(*(x.transpose(0, 1) for x in rows)),
        OfKeys(*(x.transpose(0, 1) for x in keys)),
        hidden,
        scale,
    )
    return Gradients(*(x.transpose(0, 1) for x in found))


def _add(total: Tensor, part: Tensor, to: BlockRange) -> None:
    """Adds blocks `[heads, count, size, dim]` to where they lie in `[heads, length, dim]`.

    Blocks that overlap are added in turns, so that each turn writes every place at most once.
    """
    if to.step == 0:
        total[:, to.start : to.stop].add_(part.sum(1))
        return
    turns = min(to.count, -(-to.size // to.step))
    for turn in range(turns):
        some = part[:, turn::turns]
        start = to.start + turn * to.step
        blocks(total, BlockRange(start, turns * to.step, to.size, some.shape[1])).add_(some)
