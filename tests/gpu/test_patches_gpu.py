"""Tiles that are patches of a raster, on a real GPU through the public interface: output and
gradients against float64, whole rasters and ragged ones, both layers of Swin."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import patterncc
from patterncc import programs
from patterncc.codegen.choice import tiling_names
from tests.front.inputs import (
    assert_right,
    assert_right_gradients,
    expected,
    expected_gradients,
    tensors,
)

pytestmark = pytest.mark.gpu


@dataclass(frozen=True)
class Raster:
    """A pattern about a raster.

    Attributes:
        text: The pattern.
        length: Positions of the whole raster.
        layer: For patterns that differ by layer.
        ragged: Rows, keys and the offset of a call that begins and ends within lines, and of one
            with more keys than the raster has.
    """

    text: str
    length: int
    layer: int = 0
    ragged: tuple[tuple[int, int, int], ...] = ()


RASTERS = (
    Raster("neighborhood(16, 64, 13)", 1024, ragged=((500, 1000, 437), (90, 1100, 1000))),
    Raster("neighborhood(8, 128, 7)", 1024, ragged=((300, 777, 70),)),
    Raster("neighborhood(20, 32, 5, dilation = 2)", 640, ragged=((600, 640, 33),)),
    Raster("swin(28, 28)", 784, ragged=((700, 780, 50),)),
    Raster("swin(28, 28)", 784, 1, ragged=((700, 780, 50), (1, 784, 400))),
    Raster("neighborhood_3d(6, 10, 20, 3, 5, 7)", 1200, ragged=((400, 1190, 333),)),
)
CALLS = [
    pytest.param(
        raster, sizes, id=f"{raster.text} layer {raster.layer} {'-'.join(map(str, sizes))}"
    )
    for raster in RASTERS
    for sizes in ((raster.length, raster.length, 0), *raster.ragged)
]


def leaves(q_len: int, kv_len: int, dtype: torch.dtype, head_dim: int) -> tuple[Tensor, ...]:
    options = {"head_dim": head_dim, "dtype": dtype, "device": "cuda"}
    drawn = tensors(q_len, kv_len, **options)  # type: ignore[arg-type]
    return tuple(tensor.requires_grad_() for tensor in drawn)


def check(raster: Raster, sizes: tuple[int, int, int], dtype: torch.dtype, head_dim: int) -> None:
    """Compares output, lse and all gradients with the oracle's; a second call has the same bits."""
    attn = patterncc.compile(raster.text)
    q_len, kv_len, q_offset = sizes
    query, key, value = leaves(q_len, kv_len, dtype, head_dim)
    options = {"layer": raster.layer, "layers": 2, "q_offset": q_offset}

    def run() -> tuple[Tensor, ...]:
        results = attn(query, key, value, return_lse=True, **options)
        generator = torch.Generator().manual_seed(5)
        grads = [torch.randn(each.shape, generator=generator).to(each) for each in results]
        gradients = torch.autograd.grad(results, (query, key, value), grads)
        return (*results, *grads, *gradients)

    out, lse, grad_out, grad_lse, *gradients = run()
    narrow = dtype == torch.float32  # products by TF32, or better
    like = torch.float16 if narrow else dtype
    answer = expected(attn, query.detach(), key.detach(), value.detach(), **options)
    assert_right((out.detach().to(like), lse.detach()), answer, query.detach().to(like))
    inputs = query, key, value
    answers = expected_gradients(attn, inputs, grad_out, grad_lse, **options)
    judged = (query.detach().to(like), key.detach().to(like), value.detach().to(like))
    assert_right_gradients([each.to(like) for each in gradients], answers, judged)
    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


@pytest.mark.parametrize(("raster", "sizes"), CALLS)
def test_right(raster: Raster, sizes: tuple[int, int, int]) -> None:
    check(raster, sizes, torch.bfloat16, 128)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("raster", RASTERS, ids=lambda each: f"{each.text} layer {each.layer}")
def test_dtypes(raster: Raster, dtype: torch.dtype) -> None:
    check(raster, (raster.length, raster.length, 0), dtype, 64)


@pytest.mark.parametrize("raster", RASTERS, ids=lambda each: f"{each.text} layer {each.layer}")
def test_patches_are_what_calls_take(raster: Raster) -> None:
    attn = patterncc.compile(raster.text)
    numbers = tuple(each.value for each in attn.pattern.numbers)
    text = programs.counted_text(attn.pattern.structure, (), numbers)
    passes = programs.passes(text, 64, 64, (), True, gather=True, patches=True)
    assert tiling_names(passes).startswith("patches of ")
