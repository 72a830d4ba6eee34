"""Numbers that are not finite reach what sees them and nothing else, on a GPU: forward and
gradients of the public interface."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import patterncc
from tests.front.inputs import tensors

pytestmark = pytest.mark.gpu

LENGTH, ROW, COLUMN = 700, 300, 3
STREAMING = "pattern streaming(sinks = 4, window = 100): causal and (k < sinks or q - k < window)"
PACKED = "pattern p(t: segments): causal and t[q] == t[k]"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "causal": ("causal", {"dtype": torch.bfloat16, "head_dim": 128}),
    "streaming": (STREAMING, {"dtype": torch.bfloat16, "head_dim": 64}),
    "by head": ("if head % 2 == 0 then causal else window(70)", {"dtype": torch.float16}),
    "classes": ("dilated(16, 4)", {"dtype": torch.bfloat16, "head_dim": 128}),
    "passes": ("window(40) or dilated(16, 4)", {"dtype": torch.bfloat16, "head_dim": 64}),
    "wide": ("window(200)", {"dtype": torch.bfloat16, "head_dim": 192, "value_head_dim": 128}),
    "uneven": ("window(70)", {"dtype": torch.float16, "head_dim": 80, "value_head_dim": 72}),
    "float32": ("window(70)", {"dtype": torch.float32, "head_dim": 32}),
    "packed": (PACKED, {"dtype": torch.bfloat16, "head_dim": 64}),
    "window of narrow tiles": ("window(200)", {"dtype": torch.bfloat16, "head_dim": 128}),
    "wide passes": (
        "window(40) or dilated(16, 4)",
        {"dtype": torch.bfloat16, "head_dim": 128},
    ),
    "packed, wide": (PACKED, {"dtype": torch.bfloat16, "head_dim": 128}),
    "causal, half as wide": ("causal", {"dtype": torch.float16, "head_dim": 64}),
    "few rows": ("causal", {"dtype": torch.bfloat16, "head_dim": 64, "q_len": 330}),
}
GLUON = {
    "causal": (128, 128),
    "window of narrow tiles": (64, 64),
    "packed, wide": (64, 64),
    "causal, half as wide": (64, 128),
}
"""The tiles of those cases whose forward kernels Gluon writes where it can."""

NAMES = ("query", "key", "value", "grad_out")

Results = tuple[Tensor, ...]


def _inputs(options: dict[str, Any]) -> dict[str, Tensor]:
    options = {"head_dim": 64, "heads": 4, "kv_heads": 2, "batch": 1, **options, "device": "cuda"}
    query, key, value = tensors(options.pop("q_len", LENGTH), LENGTH, **options)
    generator = torch.Generator().manual_seed(5)
    grad_out = torch.randn((*query.shape[:3], value.shape[3]), generator=generator).to(value)
    return dict(zip(NAMES, (query, key, value, grad_out), strict=True))


def _run(attn: patterncc.Attention, inputs: dict[str, Tensor], given: dict[str, Any]) -> Results:
    leaves = [inputs[name].detach().requires_grad_() for name in NAMES[:3]]
    out, lse = attn(*leaves, return_lse=True, **given)
    grads = torch.autograd.grad(out, leaves, inputs["grad_out"])
    return (out.detach(), lse.detach(), *grads)


@pytest.mark.parametrize("name", CASES)
def test_what_sees_nothing_wild_has_the_same_bits(name: str) -> None:
    text, options = CASES[name]
    attn = patterncc.compile(text, isolate=True)
    inputs = _inputs(options)
    query, key = inputs["query"], inputs["key"]
    (heads, q_len), (kv_heads, kv_len) = query.shape[1:3], key.shape[1:3]
    group = heads // kv_heads
    given: dict[str, Any] = {}
    if text == PACKED:
        given["t"] = torch.tensor([0, 177, 290, 290, 555, 700], dtype=torch.int32, device="cuda")
    on_host = {key: table.cpu() for key, table in given.items()}
    sizes = {"heads": heads, "kv_heads": kv_heads}
    mask = torch.stack([attn.mask(q_len, kv_len, head=h, **sizes, **on_host) for h in range(heads)])
    mask = mask.cuda()
    right = _run(attn, inputs, given)
    assert all(bool(one.isfinite().all()) for one in right)
    for which in NAMES:
        for number, column in ((math.nan, None), (math.inf, COLUMN), (-math.inf, None)):
            wild = {part: tensor.clone() for part, tensor in inputs.items()}
            row = wild[which][0, 1, ROW if which in NAMES[1:3] else ROW - (LENGTH - q_len)]
            row[slice(None) if column is None else slice(column, column + 1)] = number
            found = _run(attn, wild, given)
            rows = torch.zeros(heads, q_len, dtype=torch.bool, device="cuda")
            if which in ("query", "grad_out"):
                rows[1, ROW - (LENGTH - q_len)] = True
            else:
                rows[group : 2 * group] = mask[group : 2 * group, :, ROW]
            keys = (mask & rows[..., None]).any(1).view(kv_heads, group, kv_len).any(1)
            assert bool(rows.any()) and bool((~rows).any()) and bool((~keys).any())
            for one, other, touched in zip(
                found, right, (rows, rows, rows, keys, keys), strict=True
            ):
                assert torch.equal(one[0][~touched], other[0][~touched]), (which, number)
            if which == "value":
                spoiled = torch.zeros_like(found[0][0], dtype=torch.bool)
                spoiled[rows] = True
                if column is not None:
                    spoiled[..., :column] = spoiled[..., column + 1 :] = False
                # Weights may round to 0, and 0 times infinity is NaN.
                assert torch.equal(~found[0][0].isfinite(), spoiled), (which, number)
                if math.isnan(number):
                    assert bool(found[0][0][spoiled].isnan().all())


def test_all_is_wild() -> None:
    attn = patterncc.compile(STREAMING, isolate=True)
    wild = {name: torch.full_like(part, math.nan) for name, part in _inputs({}).items()}
    assert all(bool(one.isnan().all()) for one in _run(attn, wild, {}))


@pytest.mark.parametrize("text", ["window(70)", "causal and q - k < 70"])
def test_a_graph_repairs_what_it_is_given(text: str) -> None:
    """The kernel that repairs is part of a graph, whatever the numbers were at its capture."""
    attn = patterncc.compile(text, isolate=True)
    inputs = _inputs({"dtype": torch.bfloat16})
    query, key, value = (inputs[name] for name in NAMES[:3])
    with torch.no_grad():
        right = attn(query, key, value).clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = attn(query, key, value)
        value[0, 1, ROW] = math.nan
        graph.replay()
    rows = torch.zeros(4, LENGTH, dtype=torch.bool, device="cuda")
    rows[2:, ROW : ROW + 70] = True
    assert bool(out[0][rows].isnan().all())
    assert torch.equal(out[0][~rows], right[0][~rows])
