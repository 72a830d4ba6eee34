"""The Gluon kernels on a real GPU, against float64: ragged ends, rows without keys, poisoned
memory, repeated runs, grouped heads, all kinds of sweeps, passes and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import patterncc
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import KernelConfig, Peaks
from patterncc.codegen.gpu.forward import Forward
from patterncc.codegen.gpu.gluon.forward_source import emit_gluon_forward
from patterncc.codegen.ir import Passes
from patterncc.codegen.problem import Problem
from patterncc.codegen.score.reference import dense_attention
from patterncc.codegen.score.values import ScoreValues
from patterncc.dsl import load
from patterncc.dsl.pattern import Pattern
from patterncc.dsl.score.terms import load_terms
from tests.codegen.attention import allowed_pairs, errors, expected, poisoned

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="Gluon kernels are for compute capability 9.0",
    ),
]

WIDE = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
SMALL = KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon")
LONG = KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon")
CONFIGS = {"128x128": WIDE, "64x64": SMALL, "64x128": LONG}

SIZES = {"heads": 4, "kv_heads": 2, "layers": 4}
LENGTHS = ((300, 300, 0), (77, 391, 314), (391, 77, -314), (130, 700, 20), (1, 1025, 1024))
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
PATTERNS: tuple[tuple[str, dict[str, int]], ...] = (
    ("full", {}),
    ("causal", {}),
    ("pattern p(n): window(n)", {"n": 100}),
    ("around", {"n": 50}),
    ("streaming", {"sinks": 5, "window": 70}),
    ("local_strided(16, 4, 4)", {}),
    ("local_strided(16, 4, 3)", {}),
    ("ladder(4, 64, 48, 3)", {"layer": 2}),
    ("ladder(4, 20, 10, 11)", {"layer": 2}),
    ("dilated(20, 5)", {}),
    ("dilated(40, 8)", {}),
    ("window(100) or dilated(40, 8)", {}),
    ("chunked(100)", {}),
    ("k % 5 != q % 7", {}),
    ("if head in {0, 3} then causal else streaming(4, 50)", {}),
    ("k > q", {}),
    ("q > 100000 and k < 5", {}),
    ("prefix", {"n": 77}),
)


def _lowered(pattern: Pattern) -> Any:
    def both(block_q: int, block_k: int) -> tuple[Passes, Passes]:
        within, anywhere = (
            lower_passes(pattern, block_q, block_k, sizes=SIZES, within=within, transposed=False)
            for within in (True, False)
        )
        return within, anywhere

    return both


def _tensors(
    dtype: torch.dtype,
    q_len: int,
    kv_len: int,
    head_dim: int,
    heads: tuple[int, int] = (4, 2),
    batch: int = 2,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    like = torch.empty(0, dtype=dtype, device="cuda")
    torch.manual_seed(0)
    return (
        poisoned((batch, heads[0], q_len, head_dim), like),
        poisoned((batch, heads[1], kv_len, head_dim), like),
        poisoned((batch, heads[1], kv_len, head_dim), like),
    )


def _poison_free_memory(like: torch.Tensor) -> None:
    """What outputs are made of next holds NaN, so that an element nobody writes is seen."""
    torch.full((4 * like.numel(),), float("nan"), dtype=like.dtype, device=like.device)
    torch.full((4 * like.numel(),), float("nan"), dtype=torch.float32, device=like.device)


def _check(
    pattern: Pattern,
    forward: Forward,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    env: Mapping[str, int],
    tables: Mapping[str, torch.Tensor] | None = None,
) -> None:
    scale = float(tensors[0].shape[3] ** -0.5)
    given = dict(tables or {})
    _poison_free_memory(tensors[0])
    out, lse = forward(*tensors, env=env, scale=scale, tables=given)
    again, lse_again = forward(*tensors, env=env, scale=scale, tables=given)
    assert torch.equal(out, again)
    assert torch.equal(lse, lse_again)
    lists = {name: table.tolist() for name, table in given.items()}
    found = errors((out, lse), expected(pattern, *tensors, env, scale, lists or None))
    assert found.out < TOLERANCE[tensors[0].dtype], found
    assert found.lse < 3e-3, found
    assert found.empty


@pytest.mark.parametrize("peaks", ["each", "kept"])
@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize(("text", "values"), PATTERNS, ids=[text for text, _ in PATTERNS])
def test_patterns(
    text: str, values: dict[str, int], shape: str, peaks: Peaks, tmp_path: Path
) -> None:
    pattern = load(text)
    config = replace(CONFIGS[shape], peaks=peaks)
    forward = Forward(_lowered(pattern), config=config, folder=tmp_path)
    defaults = {p.name: p.value for p in pattern.numbers if p.value is not None}
    head_dim = 64 if shape == "64x128" else 128
    for number, (q_len, kv_len, offset) in enumerate(LENGTHS):
        if "dilated" in text and kv_len < 8 * CONFIGS[shape].block_k:
            continue  # fewer keys of a class than a tile: no descriptor
        dtype = (torch.bfloat16, torch.float16)[number % 2]
        env = {"q_offset": offset, "layer": 0, **defaults, **values}
        _check(pattern, forward, _tensors(dtype, q_len, kv_len, head_dim), env)


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("text", ["dilated(20, 5)", "window(100) or dilated(40, 8)"])
def test_long_enough_for_classes(text: str, shape: str, tmp_path: Path) -> None:
    pattern = load(text)
    forward = Forward(_lowered(pattern), config=CONFIGS[shape], folder=tmp_path)
    for q_len, kv_len, offset in ((1100, 1101, 1), (70, 1133, 1063), (1100, 1100, -600)):
        tensors = _tensors(torch.bfloat16, q_len, kv_len, 64)
        _check(pattern, forward, tensors, {"q_offset": offset})


@pytest.mark.parametrize("heads", [(8, 8), (8, 2), (8, 1)])
def test_grouped_heads(heads: tuple[int, int], tmp_path: Path) -> None:
    pattern = load("streaming(5, 200)")
    forward = Forward(_lowered(pattern), config=WIDE, folder=tmp_path)
    tensors = _tensors(torch.bfloat16, 500, 500, 128, heads)
    _check(pattern, forward, tensors, {"q_offset": 0})


@pytest.mark.parametrize("shape", CONFIGS)
def test_documents_and_tables(shape: str, tmp_path: Path) -> None:
    bounds = torch.tensor([0, 50, 51, 140, 150], dtype=torch.int32, device="cuda")
    widths = torch.tensor([10, 300, 77, 1], dtype=torch.int32, device="cuda")
    head_dim = 64 if shape == "64x128" else 128
    # Few pairs: the expected mask is looked up one by one.
    tensors = _tensors(torch.bfloat16, 150, 150, head_dim, batch=1)
    for text, name, table in (
        ("pattern p(doc: segments): causal and doc[q] == doc[k]", "doc", bounds),
        ("pattern p(w: int[head]): window(w[head])", "w", widths),
    ):
        pattern = load(text)
        forward = Forward(_lowered(pattern), config=CONFIGS[shape], folder=tmp_path)
        _check(pattern, forward, tensors, {"q_offset": 0}, {name: table})


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize("length", [22.0, 29.0])
def test_growing_scores(length: float, shape: str, tmp_path: Path) -> None:
    """Full tiles keep the peak of those before: scores that grow by 60 stay in range, of those that
    grow by 105 the rows of a warpgroup are computed once more."""
    head_dim = 64 if shape == "64x128" else 128
    for text in ("full", "causal", "streaming(5, 600)", "window(1400) or dilated(250, 8)"):
        pattern = load(text)
        config = replace(CONFIGS[shape], peaks="kept")
        forward = Forward(_lowered(pattern), config=config, folder=tmp_path)
        for rows in ((0, 64), (64, 128), (100, 101), (0, 300)):
            query, key, value = _tensors(torch.bfloat16, 300, 2400, head_dim)
            key[:, :, :, 0] = 0.0
            key[:, :, 1700:1800, 0] = length * (head_dim / 64) ** 0.5
            query[:, :, slice(*rows), 0] = length
            _check(pattern, forward, (query, key, value), {"q_offset": 2100})


@pytest.mark.parametrize(
    "text", ["dilated(512, 8)", "causal", "window(1024)", "streaming(64, 512)"]
)
def test_long_calls_many_times(text: str) -> None:
    """What goes wrong in one of a million programs: a kernel of classes did."""
    attention = patterncc.compile(text)
    tensors = _tensors(torch.bfloat16, 16384, 16384, 128)
    with torch.inference_mode():
        first = attention(*tensors)
        for _ in range(200):
            assert torch.equal(attention(*tensors), first)


@pytest.mark.parametrize("shape", CONFIGS)
def test_classes_that_keep_the_peak_many_times(shape: str, tmp_path: Path) -> None:
    """A kernel that once stopped a device now and then (docs/gluon.md), in each tile shape, 3.3
    million programs of 64 rows and half as many of 128, most of them of several tiles; and rows
    that are computed once more."""
    head_dim = 64 if shape == "64x128" else 128
    each = CONFIGS[shape]
    config = replace(each, peaks="kept")
    for text in ("dilated(600, 3)", "window(1400) or dilated(250, 8)"):
        pattern = load(text)
        forward = Forward(_lowered(pattern), config=config, folder=tmp_path)
        query, key, value = _tensors(torch.bfloat16, 300, 2400, head_dim)
        key[:, :, :, 0] = 0.0
        key[:, :, 1200:1300, 0] = query[:, :, :, 0] = 29.0 * (head_dim / 64) ** 0.25
        _check(pattern, forward, (query, key, value), {"q_offset": 2100})
    lowered = _lowered(load("dilated(512, 8)"))
    (program,) = lowered(config.block_q, config.block_k)[0]
    problem = Problem("bfloat16", head_dim, head_dim)
    assert "if again > 0:" in emit_gluon_forward(program, problem, config).text
    tensors = _tensors(torch.bfloat16, 16384, 16384, head_dim, (16, 16), 1)
    call: dict[str, Any] = {"env": {"q_offset": 0}, "scale": head_dim**-0.5, "tables": {}}
    forward = Forward(lowered, config=config, folder=tmp_path)
    first, first_lse = forward(*tensors, **call)
    wanted, wanted_lse = Forward(lowered, config=each, folder=tmp_path)(*tensors, **call)
    assert (first.double() - wanted.double()).abs().max() < TOLERANCE[torch.bfloat16]
    assert (first_lse - wanted_lse).abs().max() < 3e-3
    for _ in range(800):
        out, lse = forward(*tensors, **call)
        assert torch.equal(out, first)
        assert torch.equal(lse, first_lse)


def test_strided_and_broadcast_inputs(tmp_path: Path) -> None:
    """Queries as they come out of a projection, `[batch, length, heads, head_dim]`."""
    pattern = load("causal")
    forward = Forward(_lowered(pattern), config=WIDE, folder=tmp_path)
    query, key, value = (
        tensor.transpose(1, 2).contiguous().transpose(1, 2)
        for tensor in _tensors(torch.bfloat16, 300, 300, 128)
    )
    _check(pattern, forward, (query, key, value), {"q_offset": 0})


@pytest.mark.parametrize("shape", CONFIGS)
@pytest.mark.parametrize(
    ("score", "sink"),
    [
        ("9 * tanh(score / 9)", None),
        ("score + slopes[head] * (k - q)", None),
        (None, "sinks[head]"),
        ("9 * tanh(score / 9) - abs(q - k) / 64", "sinks[head]"),
    ],
)
def test_score_terms(score: str | None, sink: str | None, shape: str, tmp_path: Path) -> None:
    head_dim = 64 if shape == "64x128" else 128
    terms, pattern = load_terms(score, sink), load("streaming(5, 200)")
    lowered, config = _lowered(pattern), CONFIGS[shape]
    forward = Forward(lowered, config=config, folder=tmp_path, terms=terms)
    tables = {name: torch.randn(4, device="cuda") for name in terms.tables}
    for q_len, kv_len, offset in LENGTHS:
        tensors = _tensors(torch.bfloat16, q_len, kv_len, head_dim)
        env, values = {"q_offset": offset}, ScoreValues({}, tables)
        _poison_free_memory(tensors[0])
        results = [forward(*tensors, env=env, scale=0.1, score_values=values) for _ in range(2)]
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
        wanted = dense_attention(
            *tensors,
            allowed_pairs(pattern, tensors[0], tensors[1], env),
            0.1,
            terms,
            env={**env, "q_len": q_len, "kv_len": kv_len, "heads": 4, "kv_heads": 2},
            tables=tables,
        )
        found = errors(results[0], wanted)
        assert found.out < TOLERANCE[torch.bfloat16], found
        assert found.lse < 3e-3, found


def test_graphs(tmp_path: Path) -> None:
    pattern = load("causal")
    forward = Forward(_lowered(pattern), config=WIDE, folder=tmp_path)
    tensors = _tensors(torch.bfloat16, 300, 300, 128)
    wanted = forward(*tensors, env={"q_offset": 0}, scale=0.1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, lse = forward(*tensors, env={"q_offset": 0}, scale=0.1)
    out.fill_(float("nan"))
    lse.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, wanted[0])
    assert torch.equal(lse, wanted[1])


def test_calls_and_gradients_take_it_by_themselves() -> None:
    """The public call runs the Gluon kernel forward and Triton's backward."""
    attend = patterncc.compile("causal")
    query, key, value = (t.requires_grad_() for t in _tensors(torch.bfloat16, 300, 300, 128))
    out = attend(query, key, value)
    gradients = torch.autograd.grad(out.float().square().sum(), (query, key, value))
    exact = [t.detach().double().requires_grad_() for t in (query, key, value)]
    grown = [t.repeat_interleave(2, 1) for t in exact[1:]]
    scores = exact[0] @ grown[0].transpose(2, 3) * 128**-0.5
    hidden = torch.ones(300, 300, dtype=torch.bool, device="cuda").triu(1)
    wanted = scores.masked_fill(hidden, float("-inf")).softmax(3) @ grown[1]
    wanted_gradients = torch.autograd.grad(wanted.square().sum(), exact)
    assert (out - wanted).abs().max() < 3e-2
    for found, exactly in zip(gradients, wanted_gradients, strict=True):
        assert (found - exactly).abs().max() < 0.03 * exactly.abs().max()


@pytest.mark.parametrize("text", ["causal", "window(1024)"])
def test_calls_with_score_terms_take_it_by_themselves(text: str) -> None:
    """As the public call takes it, in a graph as well; gradients by Triton's kernels."""
    score, sink = "softcap(score, 20) + alibi(slopes)", "sinks[head]"
    attend = patterncc.compile(text, score=score, sink=sink)
    assert "# emitter: gluon" in attend.emit("triton")
    query, key, value = (t.requires_grad_() for t in _tensors(torch.bfloat16, 1100, 1100, 128))
    tables: dict[str, Any] = {
        "slopes": (torch.rand(4, device="cuda") / 8).requires_grad_(),
        "sinks": torch.randn(4, device="cuda", requires_grad=True),
    }
    out = attend(query, key, value, **tables)
    inputs = (query, key, value, *tables.values())
    gradients = torch.autograd.grad(out.float().square().sum(), inputs)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    wanted, _ = dense_attention(
        exact[0],
        exact[1],
        exact[2],
        allowed_pairs(load(text), query, key, {"q_offset": 0}),
        128**-0.5,
        load_terms(score, sink),
        env={"q_offset": 0, "q_len": 1100, "kv_len": 1100, "heads": 4, "kv_heads": 2},
        tables=dict(zip(tables, exact[3:], strict=True)),
    )
    assert (out - wanted).abs().max() < 3e-2
    wanted_gradients = torch.autograd.grad(wanted.square().sum(), exact)
    for found, exactly in zip(gradients, wanted_gradients, strict=True):
        assert (found - exactly).abs().max() < 0.03 * exactly.abs().max()
    with torch.no_grad():
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            again = attend(query, key, value, **tables)
        again.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(again, out)
