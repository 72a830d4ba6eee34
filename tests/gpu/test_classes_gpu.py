"""Residue tiling, strided keys and passes on a real GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from patterncc.codegen.gpu.config import KernelConfig, loads
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.launch import kernel_count
from patterncc.codegen.ir import DENSE, Q_CLASS, Tiling
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl import load
from patterncc.dsl.mask import Const
from tests.codegen.attention import errors, expected, in_passes, poisoned

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
EIGHT = residue_tiling(8)
Parts = Sequence[tuple[str, Tiling]]
PATTERNS: tuple[tuple[str, Parts], ...] = (
    ("dilated(40, 8)", [("dilated(40, 8)", EIGHT)]),
    ("dilated(50, 3)", [("dilated(50, 3)", residue_tiling(3))]),
    ("(q - k) % 16 == 0", [("(q - k) % 16 == 0", residue_tiling(16))]),
    ("causal and k % 4 == 3", [("causal and k % 4 == 3", Tiling(1, 4, Const(3)))]),
    ("causal and k % 8 == q % 4", [("causal and k % 8 == q % 4", Tiling(4, 8, Q_CLASS))]),
    (
        "window(60) or dilated(40, 8)",
        [("window(60)", DENSE), ("dilated(40, 8) and q - k >= 60", EIGHT)],
    ),
    (
        "window(60) or dilated(40, 8) or k < 9 and k <= q",
        [
            ("dilated(40, 8) and q - k >= 60 and k >= 9", EIGHT),
            ("window(60)", DENSE),
            ("k < 9 and q - k >= 60", DENSE),
        ],
    ),
)
LENGTHS = ((777, 777, 0), (130, 1030, 900), (1001, 600, -401), (300, 1111, 950), (3, 700, 697))


def _tensors(
    dtype: torch.dtype, q_len: int, kv_len: int, head_dim: int = 64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like = torch.empty(0, dtype=dtype, device="cuda")
    torch.manual_seed(0)
    return (
        poisoned((2, 4, q_len, head_dim), like),
        poisoned((2, 2, kv_len, head_dim), like),
        poisoned((2, 2, kv_len, head_dim), like),
    )


def _check(text: str, forward: Forward, tensors: tuple[torch.Tensor, ...], q_offset: int) -> None:
    query, key, value = tensors
    env, scale = {"q_offset": q_offset}, float(query.shape[3] ** -0.5)
    found = errors(
        forward(query, key, value, env=env, scale=scale),
        expected(load(text), query, key, value, env, scale),
    )
    assert found.out < TOLERANCE[query.dtype], found
    assert found.lse < 5e-4 if query.dtype == torch.float32 else found.lse < 3e-3, found
    assert found.empty


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("text", "parts"), PATTERNS, ids=[text for text, _ in PATTERNS])
def test_patterns(text: str, parts: Parts, dtype: torch.dtype, tmp_path: Path) -> None:
    forward = Forward(in_passes([(load(part), t) for part, t in parts]), folder=tmp_path)
    for q_len, kv_len, offset in LENGTHS:
        _check(text, forward, _tensors(dtype, q_len, kv_len), offset)


@pytest.mark.parametrize("load_by", ["descriptor", "pointer"])
@pytest.mark.parametrize("head_dim", [16, 80, 128, 192, 256])
def test_head_dims(head_dim: int, load_by: str, tmp_path: Path) -> None:
    major, minor = torch.cuda.get_device_capability()
    if load_by not in loads(f"cuda:{10 * major + minor}"):
        pytest.skip("this device has no tensor memory accelerator")
    config = KernelConfig(64, 64, 4, 2, load_by)  # type: ignore[arg-type]
    forward = Forward(in_passes([(load("dilated(40, 8)"), EIGHT)]), config=config, folder=tmp_path)
    for length in (768, 1023):  # complete groups, and an incomplete one
        _check("dilated(40, 8)", forward, _tensors(torch.bfloat16, length, length, head_dim), 0)


def test_one_kernel_for_all_lengths(tmp_path: Path) -> None:
    forward = Forward(in_passes([(load("dilated(40, 8)"), EIGHT)]), folder=tmp_path)
    before = kernel_count()
    for length in (512, 513, 600, 769, 1024):
        for q_len in (1, 7, length):
            _check(
                "dilated(40, 8)", forward, _tensors(torch.bfloat16, q_len, length), length - q_len
            )
    assert kernel_count() - before == 1


def test_passes_in_a_graph(tmp_path: Path) -> None:
    text, parts = PATTERNS[-2]
    forward = Forward(in_passes([(load(part), t) for part, t in parts]), folder=tmp_path)
    query, key, value = _tensors(torch.bfloat16, 700, 700)
    env, scale = {"q_offset": 0}, 0.125
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
        found = errors(captured, expected(load(text), query, key, value, env, scale))
        assert found.out < 3e-2
        assert found.empty
