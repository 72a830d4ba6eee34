"""The backward kernels on a real GPU: gradients against float64 autograd over the dense mask, the
same bits in repeated runs, layouts, graphs, how many kernels are compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.backward import Backward
from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.launch import kernel_count
from patterncc.codegen.gpu.pass_plan import Lowered
from patterncc.codegen.ir import Passes
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.pattern import Pattern
from tests.codegen.attention import lowered, poisoned
from tests.codegen.gradients import grad_out_of, gradient_errors, reference

pytestmark = pytest.mark.gpu

Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]

HEAD_DIMS = (16, 32, 64, 72, 80, 96, 100, 112, 128, 160, 192, 256)
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
PATTERNS: tuple[tuple[str, dict[str, int]], ...] = (
    ("full", {}),
    ("causal", {}),
    ("pattern p(n): window(n)", {"n": 100}),
    ("streaming", {"sinks": 5, "window": 70}),
    ("local_strided(16, 4, 3)", {}),
    ("ladder(4, 20, 10, 11)", {"layer": 2}),
    ("dilated(20, 5)", {}),
    ("longformer(40, 3)", {}),
    ("if head in {0, 3} then causal else streaming(4, 50)", {}),
    ("k > q", {}),
)


class Training:
    """Forward and backward of one pattern."""

    def __init__(
        self,
        text: str,
        folder: Path,
        config: BackwardConfig | None = None,
        lower: Lowered | None = None,
    ) -> None:
        self.pattern: Pattern = load(text)
        lower = lower or lowered(self.pattern)
        self.forward = Forward(lower, folder=folder)
        self.backward = Backward(lower, config=config, folder=folder)

    def check(
        self,
        tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        env: Mapping[str, int],
        scale: float | None = None,
        grad_out: torch.Tensor | None = None,
        tables: Mapping[str, Sequence[Any]] | None = None,
    ) -> Gradients:
        """Two runs, bit by bit the same, against float64."""
        query = tensors[0]
        scale = query.shape[3] ** -0.5 if scale is None else scale
        numbers = {p.name: p.value for p in self.pattern.numbers if p.value is not None}
        env = {"layer": 0, **numbers, **env}
        on_device = {
            name: torch.tensor(rows, device=query.device) for name, rows in (tables or {}).items()
        }
        on_device = {n: t if t.dtype == torch.bool else t.int() for n, t in on_device.items()}
        out, lse = self.forward(*tensors, env=env, scale=scale, tables=on_device)
        if grad_out is None:
            grad_out = grad_out_of(out, expanded=False)
        grad_lse = torch.randn(lse.shape, device=lse.device)
        arguments = (grad_out, grad_lse, *tensors, out, lse)
        options: dict[str, Any] = {"env": env, "scale": scale, "tables": on_device}
        first = self.backward(*arguments, **options)
        again = self.backward(*arguments, **options)
        for one, other in zip(first, again, strict=True):
            assert (one is None) == (other is None)
            assert one is None or other is None or torch.equal(one, other)
        wanted = reference(self.pattern, tensors, grad_out, grad_lse, env, scale, tables)
        found = gradient_errors(first, wanted)
        most = TOLERANCE[query.dtype]
        assert max(found.query, found.key, found.value) < most, found
        assert found.hidden
        return first


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


@pytest.fixture(autouse=True)
def _new_memory_is_poisoned() -> Any:
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("text", "values"), PATTERNS, ids=[text for text, _ in PATTERNS])
def test_patterns(text: str, values: dict[str, int], dtype: torch.dtype, tmp_path: Path) -> None:
    training = Training(text, tmp_path)
    for q_len, kv_len, offset in ((300, 300, 0), (77, 391, 314), (391, 77, -314), (130, 300, 20)):
        training.check(_tensors(dtype, q_len, kv_len, heads=(4, 2)), {"q_offset": offset, **values})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_dims(head_dim: int, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = _tensors(dtype, 260, 389, head_dim, heads=(2, 1))
    Training("window(200)", tmp_path).check(tensors, {"q_offset": 129})


@pytest.mark.parametrize(
    ("head_dim", "value_head_dim"), [(192, 128), (64, 256), (128, 40), (8, 24)]
)
def test_value_head_dim_differs(head_dim: int, value_head_dim: int, tmp_path: Path) -> None:
    tensors = _tensors(torch.bfloat16, 200, 200, head_dim, value_head_dim, (4, 1), 2)
    Training("causal", tmp_path).check(tensors, {"q_offset": 0})


@pytest.mark.parametrize("lengths", [(1, 1), (1, 500), (500, 1), (128, 128), (129, 127)], ids=str)
def test_lengths(lengths: tuple[int, int], tmp_path: Path) -> None:
    q_len, kv_len = lengths
    tensors = _tensors(torch.float16, q_len, kv_len)
    Training("streaming(3, 40)", tmp_path).check(tensors, {"q_offset": kv_len - q_len})


def test_nothing_to_do(tmp_path: Path) -> None:
    training = Training("causal", tmp_path)
    for q_len, kv_len in ((5, 0), (0, 5), (0, 0)):
        tensors = _tensors(torch.float16, q_len, kv_len)
        (grad_query, *_) = training.check(tensors, {"q_offset": 0})
        assert grad_query is not None
        assert (grad_query == 0).all()


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.5])
def test_scales(scale: float, tmp_path: Path) -> None:
    training = Training("window(90)", tmp_path)
    training.check(_tensors(torch.float32, 200, 200), {"q_offset": 0}, scale)


def test_layouts(tmp_path: Path) -> None:
    """Any strides: heads last but one, broadcast axes, odd addresses, a last axis with steps."""
    training = Training("causal", tmp_path)
    query, key, value = _tensors(torch.bfloat16, 150, 150, 64, heads=(4, 4), batch=2)
    env = {"q_offset": 0}

    def transposed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").bfloat16()

    tensors = transposed(query), transposed(key), transposed(value)
    training.check(tensors, env, grad_out=transposed(random(2, 4, 150, 64)))
    training.check((query, key[:, :1].expand(2, 4, 150, 64), value), env)
    odd, stepped = random(2, 4, 150, 65)[..., 1:], random(2, 4, 150, 128)[..., ::2]
    training.check((odd, key, odd), env, grad_out=odd)
    training.check((query, stepped, value), env, grad_out=stepped)
    training.check((query, key, value), env, grad_out=random(64).expand(2, 4, 150, 64))
    training.check((query, key, value), env, grad_out=random(1).expand(2, 4, 150, 64))  # `.sum()`
    descriptors = BackwardConfig(KernelConfig(64, 64, 4, 2, "descriptor"))
    asked = Training("causal", tmp_path, descriptors)
    with pytest.raises(ConfigError, match="grad_out"):
        asked.check((query, key, value), env, grad_out=random(64).expand(2, 4, 150, 64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "text", ["dilated(30, 8)", "window(50) or dilated(40, 8)", "causal and k % 16 == 3"]
)
def test_classes_and_passes(text: str, dtype: torch.dtype, tmp_path: Path) -> None:
    pattern = load(text)

    def both(block_q: int, block_k: int) -> Sequence[Passes]:
        return [lower_passes(pattern, block_q, block_k, within=w) for w in (True, False)]

    training = Training(text, tmp_path, lower=both)
    for q_len, kv_len in ((700, 700), (333, 901), (5, 40)):
        tensors = _tensors(dtype, q_len, kv_len, heads=(4, 2))
        training.check(tensors, {"q_offset": kv_len - q_len})


def test_tables(tmp_path: Path) -> None:
    text = "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 64, k // 64]"
    torch.manual_seed(1)
    keep = (torch.rand(4, 7, 7) < 0.4).tolist()
    tensors = _tensors(torch.bfloat16, 400, 400, 128, heads=(4, 2))
    Training(text, tmp_path).check(tensors, {"q_offset": 0}, tables={"keep": keep})
    text = "pattern p(doc: segments): causal and doc[q] == doc[k]"
    documents = {"doc": [0, 7, 7, 140, 393, 400]}
    Training(text, tmp_path).check(tensors, {"q_offset": 0}, tables=documents)


def test_one_kernel_for_all_lengths_and_numbers(tmp_path: Path) -> None:
    """Three kernels of the backward and one of the forward, whatever the lengths and numbers."""
    training = Training("streaming", tmp_path)
    before = kernel_count()
    for length in (1, 16, 17, 160, 333):
        for window in (1, 16, 100):
            env = {"q_offset": 0, "sinks": length % 5, "window": window}
            # A head dimension of its own: the kernel of delta knows no pattern.
            training.check(_tensors(torch.bfloat16, length, length, 48), env)
    assert kernel_count() - before == 4


def test_split_tiles(tmp_path: Path) -> None:
    """Few heads and one tall column: chunks of key tiles, added up always in the same order."""
    tensors = _tensors(torch.bfloat16, 3000, 3000, 64, heads=(4, 1))
    for text in ("streaming(4, 100)", "ladder(4, 128, 64, 8)", "causal"):
        before = kernel_count()
        Training(text, tmp_path).check(tensors, {"q_offset": 0})
        assert kernel_count() - before >= 4  # sums of chunks among them


def test_graph_capture(tmp_path: Path) -> None:
    training = Training("window(50) or dilated(40, 8)", tmp_path)
    tensors = _tensors(torch.bfloat16, 256, 256)
    env, scale = {"q_offset": 0}, 0.125
    out, lse = training.forward(*tensors, env=env, scale=scale)
    grad_out = torch.randn_like(out)
    arguments = (grad_out, None, *tensors, out, lse)
    options: dict[str, Any] = {"env": env, "scale": scale}
    training.backward(*arguments, **options)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = training.backward(*arguments, **options)
    for seed in (1, 2):
        torch.manual_seed(seed)
        for tensor in (*tensors, grad_out):
            tensor.copy_(torch.randn(tensor.shape))
        for old, new in zip(
            (out, lse), training.forward(*tensors, env=env, scale=scale), strict=True
        ):
            old.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        wanted = reference(training.pattern, tensors, grad_out, None, env, scale)
        found = gradient_errors(captured, wanted)
        assert max(found.query, found.key, found.value) < TOLERANCE[torch.bfloat16]
