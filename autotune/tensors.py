"""The input of a call that is tuned."""

from __future__ import annotations

import torch
from torch import Tensor

from patterncc.autotune.job import Job


def random_tensors(job: Job, device: torch.device) -> dict[str, Tensor]:
    """Query, key, value and the gradient of the output from a normal distribution, and the tables
    of the call."""
    generator = torch.Generator().manual_seed(job.seed)
    dtype = getattr(torch, job.problem.dtype)

    def draw(heads: int, length: int, dim: int) -> Tensor:
        shape = (job.batch, heads, length, dim)
        numbers = torch.randn(shape, generator=generator, dtype=torch.float32)
        return numbers.to(device, dtype)

    tensors = {
        "query": draw(job.heads, job.q_len, job.problem.head_dim),
        "key": draw(job.kv_heads, job.kv_len, job.problem.head_dim),
        "value": draw(job.kv_heads, job.kv_len, job.problem.value_head_dim),
    }
    for name, table in job.tables.items():
        tensors[name] = torch.from_numpy(table).to(device)
    return tensors


def random_like_output(job: Job, device: torch.device) -> Tensor:
    """A gradient of the output, from a normal distribution."""
    generator = torch.Generator().manual_seed(job.seed + 1)
    shape = (job.batch, job.heads, job.q_len, job.problem.value_head_dim)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float32)
    return numbers.to(device, getattr(torch, job.problem.dtype))


def narrow(table: Tensor) -> Tensor:
    """What kernels read: numbers as int32."""
    return table if table.dtype == torch.bool else table.to(torch.int32)
