"""The CPU executor's second derivatives against float64 autograd through dense attention."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patterncc.codegen import cpu
from patterncc.codegen.cpu import accumulate, products
from patterncc.codegen.ir import Passes
from patterncc.codegen.lower import lower
from patterncc.dsl import load
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Predicate
from tests.codegen.cpu_calls import BATCH_HEADS, random
from tests.codegen.cpu_gradients import SCALE, TOLERANCE, dense, grads_of_results
from tests.codegen.drawing import masks, numbers, pattern_of
from tests.codegen.test_cpu_passes import Tables, inputs, mask_of, passes_of


class Seconds(NamedTuple):
    """What a double backward gives."""

    grad_out: Tensor
    grad_lse: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


def cotangents(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (
        random(*x.shape, seed=seed, dtype=x.dtype)
        for seed, x in zip((21, 22, 23), (query, key, value), strict=True)
    )
    return first, second, third


def seconds(
    passes: Passes,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    env: dict[str, int] | None = None,
    tables: Tables | None = None,
) -> Seconds:
    """Forward and double backward of the executor."""
    out, lse = cpu.attention(passes, query, key, value, env=env, tables=tables, scale=SCALE)
    return Seconds(
        *cpu.attention_double_backward(
            passes,
            cotangents(query, key, value),
            grad_out,
            grad_lse,
            query,
            key,
            value,
            out,
            lse,
            env=env,
            tables=tables,
            scale=SCALE,
        )
    )


def check(
    passes: Passes,
    body: Predicate,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    env: dict[str, int] | None = None,
    tables: Tables | None = None,
    with_lse: bool = True,
) -> None:
    """Holds the second derivatives of a call against dense autograd."""
    grad_out, some_lse = grads_of_results(query, value)
    grad_lse = some_lse if with_lse else None
    found = seconds(passes, query, key, value, grad_out, grad_lse, env, tables)
    mask = mask_of(body, query, key, env or {}, tables or {})
    q, k, v, go = (x.double().requires_grad_() for x in (query, key, value, grad_out))
    gl = (some_lse.double() * with_lse).requires_grad_()
    out, lse = dense(q, k, v, mask)
    total = (out * go).sum() + (lse * gl).sum()
    firsts = torch.autograd.grad(total, (q, k, v), create_graph=True)
    along = [x.double() for x in cotangents(query, key, value)]
    expected = torch.autograd.grad(firsts, (go, gl, q, k, v), along, materialize_grads=True)
    tolerance = TOLERANCE[query.dtype]
    for one, other, like in zip(
        found, expected, (grad_out, some_lse, query, key, value), strict=True
    ):
        assert one.dtype == like.dtype
        largest = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(
            one.double(), other.double(), rtol=tolerance, atol=tolerance * largest
        )


@settings(max_examples=20)
@given(
    body=masks,
    values=numbers,
    lengths=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    offset=st.one_of(st.none(), st.integers(-60, 300)),
    tile=st.sampled_from([(64, 64), (32, 64), (128, 16), (16, 128)]),
    heads=st.sampled_from(BATCH_HEADS),
    dims=st.tuples(st.sampled_from([1, 2, 8, 17]), st.sampled_from([1, 8, 24])),
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
    query = random(batch, q_heads, q_len, dims[0], seed=1, dtype=dtype)
    key = random(batch, kv_heads, kv_len, dims[0], seed=2, dtype=dtype)
    value = random(batch, kv_heads, kv_len, dims[1], seed=3, dtype=dtype)
    env = {name: values[name] for name in ("a", "b", "layer")}
    env |= {} if offset is None else {"q_offset": offset}
    check((program,), body, query, key, value, env, with_lse=with_lse)


PATTERNS = (
    "full",
    "causal and (sinks(4) or window(60))",
    "longformer(32, 3, 5)",
    "causal and (window(20) or (q - k) % 16 == 0)",
    "q >= 100 and k < 3",
    "if kv_head == 1 then causal else sinks(3)",
)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_patterns(text: str, dtype: torch.dtype) -> None:
    passes = passes_of(text, "auto")
    check(passes, load(text).body, *inputs(150, 170, dtype=dtype))
    check(passes, load(text).body, *inputs(50, 170, dtype=dtype), {"q_offset": 77})


def test_tables() -> None:
    text = "pattern p(w: int[head]): causal and (q - k < w[head] or (q - k) % 8 == 0)"
    tables = {"w": torch.tensor([9, 1, 40, 9])}
    check(passes_of(text, "auto"), load(text).body, *inputs(), tables=tables)


def test_few_heads_and_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulate, "_MAX_NUMBERS", 1 << 10)
    monkeypatch.setattr(products, "_MAX_SCORES", 1 << 10)
    text = "causal and (sinks(4) or window(60))"
    check(passes_of(text, "auto"), load(text).body, *inputs(kv_heads=1))


class Attention(torch.autograd.Function):
    """Output and log-sum-exp, as a function that has derivatives twice."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, passes: Passes) -> Any:
        out, lse = cpu.attention(passes, query, key, value)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.passes = passes
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        second: Any = Gradient
        return (*second.apply(*grads, *ctx.saved_tensors, ctx.passes), None)


class Gradient(torch.autograd.Function):
    """Its gradients. Those of out and lse are part of those of query, key and value."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        *tensors, ctx.passes = arguments
        ctx.save_for_backward(*tensors)
        return cpu.attention_backward(ctx.passes, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        found = cpu.attention_double_backward(ctx.passes, grads, *ctx.saved_tensors)  # type: ignore[arg-type]
        return (*found, None, None, None)


@pytest.mark.parametrize(
    "text", ["causal and (sinks(1) or window(3))", "causal and (window(2) or (q - k) % 4 == 0)"]
)
def test_gradgradcheck(text: str) -> None:
    passes = passes_of(text, "auto")
    tensors = [
        random(1, heads, 6, dim, seed=dim, dtype=torch.float64).requires_grad_()
        for heads, dim in ((2, 2), (1, 2), (1, 3))
    ]

    function: Any = Attention

    def attend(*given: Tensor) -> Any:
        return function.apply(*given, passes)

    assert torch.autograd.gradcheck(attend, tensors)
    assert torch.autograd.gradgradcheck(attend, tensors)


def test_repeated_runs_are_equal_bit_by_bit() -> None:
    passes = passes_of("causal and (window(20) or (q - k) % 16 == 0)", "auto")
    query, key, value = inputs(400, 400)
    grads = grads_of_results(query, value)
    runs = [seconds(passes, query, key, value, *grads) for _ in range(3)]
    for run in runs[1:]:
        assert all(torch.equal(*pair) for pair in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("text", ["window(20)", "causal and (sinks(4) or (q - k) % 16 == 0)"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, 3e38])
@pytest.mark.parametrize("where", ["query", "grad_out", "key", "value"])
def test_what_is_hidden_stays_hidden(text: str, poison: float, where: str) -> None:
    """A poisoned position reaches rows and keys that are linked to it by visible pairs only."""
    passes = passes_of(text, "auto")
    query, key, value = inputs(kv_heads=4)
    grad_out, grad_lse = grads_of_results(query, value)
    clean = seconds(passes, query, key, value, grad_out, grad_lse)
    mask = mask_of(load(text).body, query, key, {}, {})[0, 0]
    at = 60
    tensors = {"query": query, "grad_out": grad_out, "key": key, "value": value}
    tensors[where][:, :, at] = poison
    found = seconds(passes, query, key, value, grad_out, grad_lse)
    if where in ("key", "value"):
        rows = mask[:, at]
    else:
        rows = torch.zeros(mask.shape[0], dtype=torch.bool)
        rows[at] = True
    keys = mask[rows].any(0)
    for one, other in zip(found, clean, strict=True):
        touched = keys if one is found.key or one is found.value else rows
        assert bool((~touched).any())
        torch.testing.assert_close(one[:, :, ~touched], other[:, :, ~touched], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 2, 3, 5), (2, 0, 3, 5), (2, 2, 0, 5), (2, 2, 3, 0)])
def test_nothing_to_do(shape: tuple[int, int, int, int]) -> None:
    batch, heads, q_len, kv_len = shape
    query = random(batch, heads, q_len, 8)
    key, value = random(batch, max(heads, 1), kv_len, 8), random(batch, max(heads, 1), kv_len, 4)
    found = seconds(passes_of("causal", "auto"), query, key, value, *grads_of_results(query, value))
    assert not any(grad.any() for grad in found)
