"""Score terms on a GPU: results and gradients against the float64 oracle, repeated runs, graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import patterncc
from patterncc.codegen.score.reference import dense_attention
from patterncc.dsl.score.terms import load_terms

pytestmark = pytest.mark.gpu

SHAPES = {"slopes": (8,), "sinks": (8,), "bias": (8, 257), "gains": (8,), "places": (700,)}
CASES: list[tuple[str, str | None]] = [
    ("softcap(score, 5)", None),
    ("score", "sinks[head]"),
    ("score + alibi(slopes) * 0.1", None),
    ("score + relative_bias(bias, 128)", None),
    ("softcap(score, cap) + relative_bias(bias, 128) + 0.1 * places[k]", "sinks[head]"),
    ("score * sqrt(1000.0 - q) / 30 + gains[head] * sigmoid(score)", "0.01 * q"),
]


def inputs(dtype: torch.dtype, q_len: int, kv_len: int, dim: int = 64) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(1)
    shapes = [(2, 8, q_len, dim), (2, 2, kv_len, dim), (2, 2, kv_len, dim)]
    drawn = [torch.randn(shape, generator=generator, device="cuda") for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in drawn]


def tables_of(score: str, sink: str | None) -> dict[str, Tensor]:
    generator = torch.Generator("cuda").manual_seed(2)
    return {
        name: torch.randn(SHAPES[name], generator=generator, device="cuda").requires_grad_()
        for name in load_terms(score, sink).tables
    }


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.isfinite().all()
    largest = max(1.0, float(wanted.abs().max()))
    difference = float((found.detach().double() - wanted).abs().max())
    assert difference <= tolerance * largest, (difference, largest)


@pytest.mark.parametrize(("score", "sink"), CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("pattern", "q_len", "kv_len", "dim"),
    [("causal", 500, 500, 64), ("window(200)", 333, 700, 128), ("k > q + 40", 300, 300, 64)],
)
def test_right(
    score: str,
    sink: str | None,
    dtype: torch.dtype,
    pattern: str,
    q_len: int,
    kv_len: int,
    dim: int,
) -> None:
    attend = patterncc.compile(pattern, score=score, sink=sink)
    query, key, value = inputs(dtype, q_len, kv_len, dim)
    tables = tables_of(score, sink)
    numbers = dict.fromkeys(load_terms(score, sink).numbers, 4.0)
    values: dict[str, Any] = {**tables, **numbers}
    out, lse = attend(query, key, value, return_lse=True, **values)
    wide = [t.detach().double().requires_grad_() for t in (query, key, value)]
    wide_tables = {n: t.detach().double().requires_grad_() for n, t in tables.items()}
    mask = attend.mask(q_len, kv_len).cuda()
    wanted = dense_attention(
        wide[0],
        wide[1],
        wide[2],
        mask,
        dim**-0.5,
        load_terms(score, sink),
        numbers=numbers,
        tables=wide_tables,
    )
    # float32 products run on tensor cores of fewer bits on some devices, not by ours.
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 2e-5}[dtype]
    close(out, wanted[0].detach(), tolerance)
    live = wanted[1] > -torch.inf
    assert torch.equal(lse > -torch.inf, live)
    close(lse[live], wanted[1][live].detach(), max(tolerance / 4, 2e-5))
    grad_out = torch.randn(out.shape, device="cuda").to(dtype)
    grad_lse = torch.randn(lse.shape, device="cuda")
    leaves = [query, key, value, *tables.values()]
    total = (out * grad_out).sum() + torch.where(live, lse * grad_lse, 0).sum()
    found = torch.autograd.grad(total, leaves, retain_graph=True)
    again = torch.autograd.grad(total, leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    wide_total = (wanted[0] * grad_out.double()).sum()
    wide_total = wide_total + torch.where(live, wanted[1] * grad_lse.double(), 0).sum()
    expected = torch.autograd.grad(wide_total, [*wide, *wide_tables.values()])
    for one, other in zip(found, expected, strict=True):
        close(one, other, 2 * tolerance)


def test_a_graph_replays_with_other_tables() -> None:
    attend = patterncc.compile("window(200)", score="softcap(score, 5)", sink="sinks[head]")
    query, key, value = (t.detach() for t in inputs(torch.bfloat16, 300, 300))
    sinks = torch.zeros(8, device="cuda")

    def run() -> Any:
        return attend(query, key, value, sinks=sinks, return_lse=True)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = run()
    for number in (0.5, 3.0):
        sinks.fill_(number)
        graph.replay()
        torch.cuda.synchronize()
        wanted = run()
        assert torch.equal(out, wanted[0]) and torch.equal(lse, wanted[1])


def test_a_compiled_training_step() -> None:
    attend = patterncc.compile("causal", score="score + relative_bias(bias, 128)")
    query, key, value = inputs(torch.bfloat16, 256, 256)
    bias = torch.randn(8, 257, device="cuda", requires_grad=True)

    def step(query: Tensor, bias: Tensor) -> Tensor:
        return attend(query, key, value, bias=bias).float().square().sum()

    wanted = torch.autograd.grad(step(query, bias), [query, bias])
    found = torch.autograd.grad(torch.compile(step, fullgraph=True)(query, bias), [query, bias])
    for one, other in zip(found, wanted, strict=True):
        close(one, other.double(), 1e-2)
