"""The forward kernels on a real GPU: numbers, layouts, graphs, how many kernels are compiled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from patterncc.codegen.gpu.config import KernelConfig, loads
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.launch import kernel_count
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.pattern import Pattern
from tests.codegen.attention import errors, expected, lowered, poisoned

pytestmark = pytest.mark.gpu

HEAD_DIMS = (16, 32, 64, 72, 80, 96, 100, 112, 128, 160, 192, 256)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
PATTERNS: tuple[tuple[str, dict[str, int]], ...] = (
    ("full", {}),
    ("causal", {}),
    ("pattern p(n): window(n)", {"n": 100}),
    ("around", {"n": 50}),
    ("streaming", {"sinks": 5, "window": 70}),
    ("tri_shape", {"sinks": 9, "window": 60, "last": 33}),
    ("local_strided(16, 4, 3)", {}),
    ("ladder(4, 64, 48, 3)", {"layer": 2}),
    ("ladder(4, 20, 10, 11)", {"layer": 2}),
    ("dilated(20, 5)", {}),
    ("chunked(100)", {}),
    ("longformer(40, 3)", {}),
    ("if head in {0, 3} then causal else streaming(4, 50)", {}),
    ("k > q", {}),
    ("prefix", {"n": 77}),
)


def _scale(head_dim: int) -> float:
    return float(head_dim**-0.5)


def _check(
    pattern: Pattern,
    forward: Forward,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    env: Mapping[str, int],
    scale: float | None = None,
) -> None:
    query = tensors[0]
    scale = _scale(query.shape[3]) if scale is None else scale
    found = errors(forward(*tensors, env=env, scale=scale), expected(pattern, *tensors, env, scale))
    assert found.out < TOLERANCE[query.dtype], found
    assert found.lse < 5e-4 if query.dtype == torch.float32 else found.lse < 3e-3, found
    assert found.empty


def _tensors(
    dtype: torch.dtype,
    q_len: int,
    kv_len: int,
    head_dim: int = 64,
    value_head_dim: int | None = None,
    heads: tuple[int, int] = (2, 2),
    batch: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like = torch.empty(0, dtype=dtype, device="cuda")
    torch.manual_seed(0)
    return (
        poisoned((batch, heads[0], q_len, head_dim), like),
        poisoned((batch, heads[1], kv_len, head_dim), like),
        poisoned((batch, heads[1], kv_len, value_head_dim or head_dim), like),
    )


def _numbers(pattern: Pattern, values: Mapping[str, int]) -> dict[str, int]:
    defaults = {p.name: p.value for p in pattern.numbers if p.value is not None}
    return {"layer": 0, **defaults, **values}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("text", "values"), PATTERNS, ids=[text for text, _ in PATTERNS])
def test_patterns(text: str, values: dict[str, int], dtype: torch.dtype, tmp_path: Path) -> None:
    pattern = load(text)
    forward = Forward(lowered(pattern), folder=tmp_path)
    for q_len, kv_len, offset in ((300, 300, 0), (77, 391, 314), (391, 77, -314), (130, 300, 20)):
        env = {"q_offset": offset, **_numbers(pattern, values)}
        _check(pattern, forward, _tensors(dtype, q_len, kv_len, heads=(4, 2)), env)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("load_by", ["descriptor", "pointer"])
def test_head_dims(head_dim: int, load_by: str, tmp_path: Path) -> None:
    major, minor = torch.cuda.get_device_capability()
    if load_by not in loads(f"cuda:{10 * major + minor}"):
        pytest.skip("this device has no tensor memory accelerator")
    if load_by == "descriptor" and head_dim == 100:
        pytest.skip("rows of 200 bytes cannot be described")
    pattern = load("streaming")
    config = KernelConfig(64, 64, 4, 2, load_by)  # type: ignore[arg-type]
    forward = Forward(lowered(pattern), config=config, folder=tmp_path)
    env = {"q_offset": 0, "sinks": 10, "window": 100}
    _check(pattern, forward, _tensors(torch.bfloat16, 300, 300, head_dim), env)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_default_configs(head_dim: int, dtype: torch.dtype, tmp_path: Path) -> None:
    pattern = load("window(200)")
    forward = Forward(lowered(pattern), folder=tmp_path)
    tensors = _tensors(dtype, 260, 389, head_dim, heads=(2, 1))
    _check(pattern, forward, tensors, {"q_offset": 129})


@pytest.mark.parametrize(
    ("head_dim", "value_head_dim"), [(192, 128), (64, 256), (128, 40), (8, 24)]
)
def test_value_head_dim_differs(head_dim: int, value_head_dim: int, tmp_path: Path) -> None:
    pattern = load("causal")
    forward = Forward(lowered(pattern), folder=tmp_path)
    tensors = _tensors(torch.bfloat16, 200, 200, head_dim, value_head_dim, (4, 1), 2)
    _check(pattern, forward, tensors, {"q_offset": 0})


@pytest.mark.parametrize("lengths", [(1, 1), (1, 1000), (1000, 1), (128, 128), (129, 127)], ids=str)
def test_lengths(lengths: tuple[int, int], tmp_path: Path) -> None:
    q_len, kv_len = lengths
    pattern = load("streaming(3, 40)")
    forward = Forward(lowered(pattern), folder=tmp_path)
    tensors = _tensors(torch.float16, q_len, kv_len)
    _check(pattern, forward, tensors, {"q_offset": kv_len - q_len})


def test_nothing_to_do(tmp_path: Path) -> None:
    forward = Forward(lowered(load("causal")), folder=tmp_path)
    for q_len, kv_len in ((5, 0), (0, 5), (0, 0)):
        query, key, value = _tensors(torch.float16, q_len, kv_len)
        out, lse = forward(query, key, value, env={"q_offset": 0}, scale=1.0)
        assert out.shape == query.shape
        assert (out == 0).all()
        assert lse.isneginf().all()


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.5])
def test_scales(scale: float, tmp_path: Path) -> None:
    pattern = load("window(90)")
    forward = Forward(lowered(pattern), folder=tmp_path)
    tensors = _tensors(torch.float32, 200, 200)
    _check(pattern, forward, tensors, {"q_offset": 0}, scale)


def test_layouts(tmp_path: Path) -> None:
    """Any strides: heads last but one, broadcast heads, odd addresses, a last axis with steps."""
    pattern = load("causal")
    forward = Forward(lowered(pattern), folder=tmp_path)
    query, key, value = _tensors(torch.bfloat16, 150, 150, 64, heads=(4, 4), batch=2)
    env = {"q_offset": 0}

    def transposed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)

    _check(pattern, forward, (transposed(query), transposed(key), transposed(value)), env)
    _check(pattern, forward, (query, key[:, :1].expand(2, 4, 150, 64), value), env)
    _check(pattern, forward, (query, key[:1].expand(2, 4, 150, 64), value), env)
    odd = torch.randn(2, 4, 150, 65, device="cuda", dtype=torch.bfloat16)[..., 1:]
    _check(pattern, forward, (odd, key, odd), env)
    stepped = torch.randn(2, 4, 150, 128, device="cuda", dtype=torch.bfloat16)[..., ::2]
    _check(pattern, forward, (query, stepped, value), env)


def test_descriptors_are_never_given_up_silently(tmp_path: Path) -> None:
    config = KernelConfig(64, 64, 4, 2, "descriptor")
    forward = Forward(lowered(load("causal")), config=config, folder=tmp_path)
    odd = torch.randn(1, 2, 150, 65, device="cuda", dtype=torch.bfloat16)[..., 1:]
    with pytest.raises(ConfigError, match="multiple of 16"):
        forward(odd, odd, odd, env={"q_offset": 0}, scale=1.0)


def test_float64_is_refused(tmp_path: Path) -> None:
    forward = Forward(lowered(load("causal")), folder=tmp_path)
    tensors = _tensors(torch.float64, 20, 20)
    with pytest.raises(UnsupportedError, match="float64"):
        forward(*tensors, env={"q_offset": 0}, scale=1.0)


def test_one_kernel_for_all_lengths_and_numbers(tmp_path: Path) -> None:
    """Lengths, offsets, windows, strides of 1 and multiples of 16: nothing specialises a kernel."""
    pattern = load("streaming")
    forward = Forward(lowered(pattern), folder=tmp_path)
    before = kernel_count()
    for length in (1, 2, 15, 16, 17, 128, 160, 333, 512):
        for window in (1, 16, 17, 100):
            env = {"q_offset": 0, "sinks": length % 5, "window": window}
            _check(pattern, forward, _tensors(torch.bfloat16, length, length), env)
    for batch in (1, 2, 16):
        env = {"q_offset": 0, "sinks": 1, "window": 16}
        _check(pattern, forward, _tensors(torch.bfloat16, 40, 40, batch=batch), env)
    assert kernel_count() - before == 1
    env = {"q_offset": 40, "sinks": 1, "window": 16}  # rows past the keys: the general program
    _check(pattern, forward, _tensors(torch.bfloat16, 40, 40), env)
    assert kernel_count() - before == 2


def test_graph_capture(tmp_path: Path) -> None:
    pattern = load("streaming(4, 100)")
    forward = Forward(lowered(pattern), folder=tmp_path)
    query, key, value = _tensors(torch.bfloat16, 256, 256)
    env, scale = {"q_offset": 0}, _scale(64)
    forward(query, key, value, env=env, scale=scale)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = forward(query, key, value, env=env, scale=scale)
    for seed in (1, 2):
        torch.manual_seed(seed)
        for tensor in (query, key, value):
            tensor.copy_(torch.randn(tensor.shape))
        graph.replay()
        torch.cuda.synchronize()
        found = errors(captured, expected(pattern, query, key, value, env, scale))
        assert found.out < 3e-2
        assert found.empty


def test_runs_on_the_current_stream(tmp_path: Path) -> None:
    pattern = load("causal")
    forward = Forward(lowered(pattern), folder=tmp_path)
    tensors = _tensors(torch.bfloat16, 200, 200)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = forward(*tensors, env={"q_offset": 0}, scale=1.0)
    stream.synchronize()
    assert errors(got, expected(pattern, *tensors, {"q_offset": 0}, 1.0)).out < 3e-2


@pytest.mark.parametrize("load_by", ["descriptor", "pointer"])
@pytest.mark.parametrize("axis", ["head", "row"])
def test_more_than_2_to_31_elements(axis: str, load_by: str, tmp_path: Path) -> None:
    major, minor = torch.cuda.get_device_capability()
    if load_by not in loads(f"cuda:{10 * major + minor}"):
        pytest.skip("this device has no tensor memory accelerator")
    if torch.cuda.get_device_properties(0).total_memory < 40 << 30:
        pytest.skip("needs 40 GiB")
    rows, width, heads = 140, 64, 2
    strides = {"head": (1, 2**31 + 64, width, 1), "row": (1, width, 2**24 + 64, 1)}[axis]
    count = strides[1] * (heads - 1) + strides[2] * (rows - 1) + width
    whole = torch.empty(count, dtype=torch.bfloat16, device="cuda")
    key = whole.as_strided((1, heads, rows, width), strides)
    key.copy_(torch.randn(key.shape))
    query, value, _ = _tensors(torch.bfloat16, rows, rows, width)
    pattern = load("causal")
    config = KernelConfig(64, 64, 4, 2, load_by)  # type: ignore[arg-type]
    forward = Forward(lowered(pattern), config=config, folder=tmp_path)
    _check(pattern, forward, (query, key, value), {"q_offset": 0})
    _check(pattern, forward, (key, key, key), {"q_offset": 0})
    assert math.prod(key.shape) < count


def test_limits(tmp_path: Path) -> None:
    forward = Forward(lowered(load("streaming")), folder=tmp_path)
    tensors = _tensors(torch.bfloat16, 20, 20)
    env = {"q_offset": 0, "sinks": 4, "window": 2**30 + 1}
    with pytest.raises(UnsupportedError, match="window"):
        forward(*tensors, env=env, scale=1.0)
    with pytest.raises(ConfigError, match="window"):
        forward(*tensors, env={"q_offset": 0, "sinks": 4}, scale=1.0)


def test_extreme_numbers(tmp_path: Path) -> None:
    """The largest numbers that are allowed, far offsets: no sum may wrap."""
    pattern = load("streaming")
    forward = Forward(lowered(pattern), folder=tmp_path)
    tensors = _tensors(torch.float32, 130, 200)
    for offset in (70, 2**30 - 130, -(2**30)):
        for window in (2**30, 2**30 - 1, -(2**30), 0, 65):
            for sinks in (2**30, -(2**30), 0, 66):
                env = {"q_offset": offset, "sinks": sinks, "window": window}
                _check(pattern, forward, tensors, env)
