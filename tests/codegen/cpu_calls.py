"""Calls of the CPU executor beside float64 dense attention."""

import math
from functools import cache

import torch
from torch import Tensor

from patterncc.codegen import cpu
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.lower import lower
from patterncc.codegen.reference import allowed, dense_attention
from patterncc.codegen.schedule import Env
from patterncc.dsl import load
from patterncc.dsl.mask import Predicate

# Of the output, relative and absolute: a few roundings of its type.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2.5e-2,
}
# Of lse. The flash kernel takes a quicker, coarser exponential for the narrow types.
LSE_TOLERANCE = TOLERANCE | {torch.float16: 2e-4, torch.bfloat16: 2e-4}
BATCH_HEADS = [(1, 1, 1), (2, 2, 2), (1, 4, 2), (2, 3, 1), (1, 6, 2)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@cache
def program_of(text: str, block_q: int = 64, block_k: int = 64) -> BlockProgram:
    return lower(load(text), block_q, block_k)


def mask_of(body: Predicate, query: Tensor, key: Tensor, env: Env) -> Tensor:
    """The mask `[batch, heads, q_len, kv_len]`, head by head."""
    batch, heads, q_len, _ = query.shape
    kv_heads, kv_len = key.shape[1:3]
    offset = env.get("q_offset", kv_len - q_len)
    q = torch.arange(offset, offset + q_len)[:, None]
    k = torch.arange(kv_len)[None, :]
    sizes = {"q_len": q_len, "kv_len": kv_len, "heads": heads, "kv_heads": kv_heads, "layer": 0}
    return torch.stack(
        [
            torch.stack(
                [
                    allowed(
                        body,
                        q,
                        k,
                        {**sizes, **env, "batch": b, "head": h, "kv_head": h * kv_heads // heads},
                    )
                    for h in range(heads)
                ]
            )
            for b in range(batch)
        ]
    )


def check(
    program: BlockProgram,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    env: dict[str, int] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Holds a call against the dense reference and returns its results."""
    env = env or {}
    out, lse = cpu.attention((program,), query, key, value, env=env, scale=scale)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    assert out.dtype == query.dtype
    assert lse.dtype == wide
    assert out.shape == (*query.shape[:3], value.shape[3])
    assert out.is_contiguous()
    mask = mask_of(program.mask, query, key, env)
    used = 1 / math.sqrt(query.shape[3]) if scale is None else scale
    expected, expected_lse = dense_attention(query, key, value, mask, used)
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    tolerance = LSE_TOLERANCE[query.dtype]
    torch.testing.assert_close(lse.double(), expected_lse, rtol=tolerance, atol=tolerance)
    dead = ~mask.any(-1)
    assert not out[dead].any()
    assert bool((lse[dead] == -math.inf).all())
    return out, lse
