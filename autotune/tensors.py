"""The input of a call that is tuned."""

from __future__ import annotations

import torch
from torch import Tensor

from patterncc.autotune.job import Job


def random_tensors(job: Job, device: torch.device) -> dict[str, Tensor]:
    """Query, key and value from a normal distribution, and the tables of the call."""
    generator = torch.Generator(device).manual_seed(job.seed)

    def draw(heads: int, length: int, dim: int) -> Tensor:
        return _drawn(job, (job.batch, heads, length, dim), generator)

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
    generator = torch.Generator(device).manual_seed(job.seed + 1)
    shape = (job.batch, job.heads, job.q_len, job.problem.value_head_dim)
    return _drawn(job, shape, generator)


def _drawn(job: Job, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    numbers = torch.randn(shape, generator=generator, dtype=torch.float32, device=generator.device)
    return numbers.to(getattr(torch, job.problem.dtype))


def narrow(table: Tensor) -> Tensor:
    """What kernels read: numbers as int32."""
    return table if table.dtype == torch.bool else table.to(torch.int32)
