"""The CPU executor's backward against float64 autograd through dense attention."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patterncc.codegen import cpu
from patterncc.codegen.ir import Passes
from patterncc.codegen.lower import lower
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Predicate
from tests.codegen.cpu_gradients import Gradients, expected_gradients
from tests.codegen.drawing import masks, numbers, pattern_of
from tests.codegen.test_cpu import BATCH_HEADS, mask_of, program_of, random

# Of the gradients, relative to the largest; those of the narrow types round the output, too.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}


def gradients(
    passes: Passes,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    env: dict[str, int] | None = None,
    scale: float | None = None,
) -> Gradients:
    """Forward and backward of the executor."""
    out, lse = cpu.attention(passes, query, key, value, env=env, scale=scale)
    return Gradients(
        *cpu.attention_backward(
            passes, grad_out, grad_lse, query, key, value, out, lse, env=env, scale=scale
        )
    )


def close(found: Gradients, expected: Gradients, dtype: torch.dtype) -> None:
    """Compares gradients, relative to the largest of each tensor."""
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert one.is_contiguous()
        largest = max(1.0, other.abs().max().item() if other.numel() else 0.0)
        torch.testing.assert_close(
            one.double(),
            other,
            rtol=TOLERANCE[dtype],
            atol=TOLERANCE[dtype] * largest,
        )


def check(
    passes: Passes,
    body: Predicate,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    env: dict[str, int] | None = None,
    with_lse: bool = True,
) -> Gradients:
    """Holds the gradients of a call against dense autograd and returns them."""
    batch, heads, q_len, _ = query.shape
    grad_out = random(batch, heads, q_len, value.shape[3], seed=11, dtype=query.dtype)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    grad_lse = random(batch, heads, q_len, seed=12, dtype=wide) if with_lse else None
    found = gradients(passes, query, key, value, grad_out, grad_lse, env)
    mask = mask_of(body, query, key, env or {})
    scale = 1 / math.sqrt(query.shape[3])
    expected = expected_gradients(query, key, value, mask, scale, grad_out, grad_lse)
    close(found, expected, query.dtype)
    assert not found.query[~mask.any(-1)].any()
    return found


@settings(max_examples=25)
@given(
    body=masks,
    values=numbers,
    lengths=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    offset=st.one_of(st.none(), st.integers(-60, 400)),
    tile=st.sampled_from([(64, 64), (32, 64), (128, 16), (16, 128)]),
    heads=st.sampled_from(BATCH_HEADS),
    dims=st.tuples(st.sampled_from([1, 2, 8, 17, 64]), st.sampled_from([1, 8, 24, 80])),
    dtype=st.sampled_from(list(TOLERANCE)),
    with_lse=st.booleans(),
)
def test_drawn_masks(
    body: Predicate,
    values: dict[str, int],
    lengths: tuple[int, int],
    offset: int | None,
    tile: tuple[int, int],
    heads: tuple[int, int, int],
    dims: tuple[int, int],
    dtype: torch.dtype,
    with_lse: bool,
) -> None:
    try:
        program = lower(pattern_of(body), *tile)
    except UnsupportedError:
        return
    batch, q_heads, kv_heads = heads
    q_len, kv_len = lengths
    env = {name: values[name] for name in ("a", "b", "layer")}
    env |= {} if offset is None else {"q_offset": offset}
    check(
        (program,),
        body,
        random(batch, q_heads, q_len, dims[0], seed=1, dtype=dtype),
        random(batch, kv_heads, kv_len, dims[0], seed=2, dtype=dtype),
        random(batch, kv_heads, kv_len, dims[1], seed=3, dtype=dtype),
        env,
        with_lse,
    )


@pytest.mark.parametrize("text", ["full", "causal", "causal and (sinks(4) or window(100))"])
def test_patterns(text: str) -> None:
    query, key, value = (random(2, 4, 300, 32, seed=seed) for seed in (1, 2, 3))
    program = program_of(text)
    check((program,), program.mask, query, key[:, :2], value[:, :2])
