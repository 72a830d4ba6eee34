"""Block-sparse attention on the CPU, forward: runs the passes of a pattern on torch tensors.

Each call of a plan (`plan`) goes to aten's own CPU flash kernel, on strided views of the
tensors. Where this torch lacks that kernel, or it does not do as it should, calls go to a loop of
matrix products instead; `cpu_kernel_name` says which it is.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from patterncc.codegen.cpu import backward_kernels, execute, kernels
from patterncc.codegen.cpu.execute import Whole
from patterncc.codegen.cpu.jobs import call_jobs, head_numbers, plans
from patterncc.codegen.cpu.scores import ScoreTerm
from patterncc.codegen.cpu.tensors import check_inputs, readable, wide_type
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.ir import BlockProgram

__all__ = ["attention", "cpu_kernel_name", "default_config", "plans"]


def default_config() -> KernelConfig:
    """The tile shape to lower for; plans join tiles where taller ones are faster."""
    return KernelConfig(block_q=64, block_k=64)


def cpu_kernel_name(backward: bool = False) -> str:
    """Which kernel runs here, forward or backward: `aten flash` or `matmul`."""
    works = backward_kernels.flash_works() if backward else kernels.flash_works()
    return "aten flash" if works else "matmul"


@torch.no_grad()
def attention(
    passes: Sequence[BlockProgram],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    env: Mapping[str, int] | None = None,
    tables: Mapping[str, Tensor] | None = None,
    scale: float | None = None,
    score: ScoreTerm | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention under a lowered pattern, without a gradient.

    Args:
        passes: The pattern, lowered for any tile shape; `default_config` has a good one.
        query: `[batch, heads, q_len, head_dim]`, float16, bfloat16, float32 or float64, with any
            strides.
        key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
        value: `[batch, kv_heads, kv_len, value_head_dim]`.
        env: Run-time numbers by name, `layer` (0 unless given), `layers` where the pattern reads
            it, and `q_offset`, the position of row 0 (`kv_len - q_len` unless given). What the
            tensors tell is taken from them.
        tables: The tables that the pattern reads by name, integer or bool, of its rank, and
            `cu_seqlens` `[documents + 1]` for segments. They may change between calls.
        scale: Factor of the scores; `1 / sqrt(head_dim)` if not given.
        score: What makes logits of the scaled scores, which are their own logits if it is not
            given.
        sink: Logits of a key of value 0 that each row sees besides its own,
            `[batch, heads, q_len]`, in the type of the log-sum-exp.

    Returns:
        The output `[batch, heads, q_len, value_head_dim]` in the type of `query`, contiguous, and
        the natural log-sum-exp of the visible logits and the sink `[batch, heads, q_len]`, float32
        (float64 for float64). A row that sees nothing gets 0 and the sink's logit, or -inf.

    Raises:
        ArgumentError: A shape or type does not fit, or a scalar or table that the pattern reads is
            missing.
        UnsupportedError: The tensors are not on the CPU, or of another type.
    """
    check_inputs(query, key, value)
    batch, heads, q_len, head_dim = query.shape
    kv_len, value_dim = value.shape[2:]
    scale = 1 / math.sqrt(head_dim) if scale is None else float(scale)
    wide = wide_type(query.dtype)
    if 0 in (batch, heads, q_len, kv_len):
        none = query.new_full((batch, heads, q_len), -math.inf, dtype=wide)
        return query.new_zeros(batch, heads, q_len, value_dim), none if sink is None else sink
    work = call_jobs(passes, query, key, env, tables)

    merges = len(work) > 1 or any(part.plan.merges for each in work for part in each.plans)
    # Merging in a narrow type would round the weights.
    out_type = wide if merges or sink is not None else query.dtype
    out = query.new_empty(batch, heads, q_len, value_dim, dtype=out_type)
    if not work or not work[0].whole:
        out.zero_()
    lse = query.new_full((batch, heads, q_len), -math.inf, dtype=wide)
    flash = score is None and kernels.flash_works()
    width = max(head_dim, value_dim) if flash else 0  # the flash kernel wants them equal
    query, key, value = (readable(tensor, width) for tensor in (query, key, value))
    numbers = head_numbers(batch, heads)
    kernel = kernels.flash if flash else kernels.matmul
    bounds = Whole(query), Whole(key), Whole(value)
    for number, each in enumerate(work):
        whole = bounds if len(each.jobs) > 1 else (None, None, None)
        for part, jobs in each.places:
            tensors = (query, key, value, out, lse, numbers)
            on = [x for job in jobs for x in execute.operands(part, job, *tensors, whole)]
            for call in part.plan.calls:
                mask = execute.additive_mask(part.plan, call, wide)
                for heads_of_class in on:
                    execute.run(call, mask, heads_of_class, kernel, scale, number == 0, score)
    if sink is not None:
        total = torch.logaddexp(lse, sink)
        out.mul_(torch.where(lse == -math.inf, 0, (lse - total).exp())[..., None])
        lse = total
    return out.to(query.dtype), lse
