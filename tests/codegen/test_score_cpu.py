"""Score terms in the CPU executor, forward and backward, against autograd through the oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.cpu.scored import scored_attention, scored_attention_backward
from patterncc.codegen.elementwise import allowed
from patterncc.codegen.score.reference import dense_attention
from patterncc.codegen.score.values import ScoreValues
from patterncc.dsl import load
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.score.nodes import SCORE, Real
from patterncc.dsl.score.terms import ScoreTerms, load_terms
from tests.score_strategies import NUMBERS, SHAPES, reals

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 8e-2}


@dataclass(frozen=True)
class Case:
    """A call, and the terms of its scores."""

    pattern: str
    q_len: int
    kv_len: int
    terms: ScoreTerms
    values: ScoreValues = field(default_factory=ScoreValues)
    env: Mapping[str, int] = field(default_factory=dict)
    heads: tuple[int, int, int] = (1, 2, 1)
    dtype: torch.dtype = torch.float64
    with_lse: bool = True
    scale: float = 0.3


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def check(case: Case) -> tuple[Tensor, ...]:
    """Holds results and gradients of a call against the oracle; returns the executor's."""
    batch, heads, kv_heads = case.heads
    query = draw(batch, heads, case.q_len, 8, seed=1, dtype=case.dtype)
    key = draw(batch, kv_heads, case.kv_len, 8, seed=2, dtype=case.dtype)
    value = draw(batch, kv_heads, case.kv_len, 6, seed=3, dtype=case.dtype)
    env = {"layer": 0, "layers": 4, "q_offset": case.kv_len - case.q_len, **case.env}
    pattern = load(case.pattern)
    sizes = {"heads": heads, "kv_heads": kv_heads, "layers": 4}
    passes = lower_passes(pattern, 32, 32, sizes=sizes)
    terms, values = case.terms, case.values
    out, lse = scored_attention(passes, query, key, value, terms, values, env=env, scale=case.scale)

    wide = [x.double().requires_grad_() for x in (query, key, value)]
    tables = {n: t.detach().double().requires_grad_() for n, t in values.tables.items()}
    mask = torch.zeros(batch, heads, case.q_len, case.kv_len, dtype=torch.bool)
    q = env["q_offset"] + torch.arange(case.q_len)[:, None]
    k = torch.arange(case.kv_len)[None, :]
    for b in range(batch):
        for h in range(heads):
            place = {"batch": b, "head": h, "kv_head": h // (heads // kv_heads)}
            lengths = {"q_len": case.q_len, "kv_len": case.kv_len}
            mask[b, h] = allowed(pattern.body, q, k, {**env, **sizes, **lengths, **place})
    wanted = dense_attention(
        wide[0],
        wide[1],
        wide[2],
        mask,
        case.scale,
        terms,
        env=env,
        numbers=values.numbers,
        tables=tables,
    )
    tolerance = TOLERANCE[case.dtype]
    close(out, wanted[0], tolerance)
    assert torch.equal(lse == -math.inf, wanted[1] == -math.inf)
    live = lse > -math.inf
    close(lse[live], wanted[1][live], 1e-11 if case.dtype == torch.float64 else 1e-4)

    grad_out = draw(*out.shape, seed=4, dtype=case.dtype)
    grad_lse = draw(*lse.shape, seed=5, dtype=lse.dtype) if case.with_lse else None
    total = (wanted[0] * grad_out.double()).sum()
    if grad_lse is not None:
        total = total + torch.where(live, wanted[1] * grad_lse.double(), 0).sum()
    leaves = [*wide, *tables.values()]
    expected = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    *found, of_tables = scored_attention_backward(
        passes,
        grad_out,
        grad_lse,
        query,
        key,
        value,
        out,
        lse,
        terms,
        values,
        env=env,
        scale=case.scale,
        wanted=[*tables],
    )
    grads = (*found, *(of_tables[name] for name in tables))
    for one, other in zip(grads, expected, strict=True):
        close(one, other, tolerance)
    return grads


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compares, relative to the largest number."""
    largest = max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    torch.testing.assert_close(
        found.double(), expected.detach(), rtol=tolerance, atol=tolerance * largest
    )


def values_of(terms: ScoreTerms, shapes: Mapping[str, tuple[int, ...]]) -> ScoreValues:
    tables = {name: draw(*shapes[name], seed=7 + len(name)) for name in terms.tables}
    return ScoreValues({name: NUMBERS[name] for name in terms.numbers}, tables)


@settings(max_examples=15, deadline=None)
@given(
    logit=reals(depth=2),
    sink=st.one_of(st.none(), reals(depth=1, sink=True)),
    pattern=st.sampled_from(
        ["causal", "window(9)", "around(5)", "k > q", "dilated(4, 3)", "streaming(2, 7)"]
    ),
    lengths=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    heads=st.sampled_from([(1, 2, 1), (2, 2, 2), (2, 4, 2)]),
    with_lse=st.booleans(),
)
def test_drawn_terms(
    logit: Real,
    sink: Real | None,
    pattern: str,
    lengths: tuple[int, int],
    heads: tuple[int, int, int],
    with_lse: bool,
) -> None:
    terms = ScoreTerms(logit, sink)
    values = values_of(terms, SHAPES)
    check(Case(pattern, *lengths, terms, values, {"layer": 2}, heads, with_lse=with_lse))


PUBLISHED = [
    ("softcap(score, 50)", None, {}),
    ("score", "sinks[head]", {"sinks": (4,)}),
    ("score + alibi(slopes)", None, {"slopes": (4,)}),
    ("score + relative_bias(bias, 20)", None, {"bias": (4, 41)}),
    (
        "softcap(score, cap) + relative_bias(bias, 20)",
        "sinks[layer, head]",
        {"bias": (4, 41), "sinks": (4, 4)},
    ),
]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("score", "sink", "shapes"), PUBLISHED)
def test_published_terms(
    score: str, sink: str | None, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> None:
    terms = load_terms(score, sink)
    values = values_of(terms, shapes)
    check(Case("streaming(3, 60)", 130, 200, terms, values, heads=(2, 4, 2), dtype=dtype))


def test_no_keys_and_no_rows() -> None:
    terms = load_terms("softcap(score, 2)", "sinks[head]")
    values = values_of(terms, {"sinks": (2,)})
    check(Case("causal", 5, 0, terms, values))
    check(Case("window(0)", 5, 9, terms, values))


def test_repeated_gradients_are_equal() -> None:
    terms = load_terms("softcap(score, 2) + relative_bias(bias, 9)", "sinks[head]")
    values = values_of(terms, {"sinks": (4,), "bias": (4, 19)})
    case = Case("causal", 200, 200, terms, values, heads=(2, 4, 2), dtype=torch.float32)
    for one, other in zip(check(case), check(case), strict=True):
        assert torch.equal(one, other)


def test_a_hidden_key_has_no_influence() -> None:
    """A term that is NaN or infinite where the pattern hides a pair reaches nothing."""
    terms = load_terms("score + log(1.0 + q - k) + bias[k - q]")
    bias = torch.full((90,), math.nan, dtype=torch.float64)
    bias[0] = 0.5
    values = ScoreValues({}, {"bias": bias})
    query, key = draw(1, 1, 60, 8, seed=1), draw(1, 1, 60, 8, seed=2)
    passes = lower_passes(load("causal"), 32, 32)
    out, lse = scored_attention(passes, query, key, key, terms, values, scale=0.3)
    assert out.isfinite().all() and lse.isfinite().all()
    grads = scored_attention_backward(
        passes, out, lse, query, key, key, out, lse, terms, values, scale=0.3
    )
    assert all(grad.isfinite().all() for grad in grads[:3])


def test_logits_of_minus_infinity() -> None:
    """A pair whose logit is -inf is as one that the pattern hides."""
    bias = torch.zeros(2, 40, dtype=torch.float64)
    bias[1] = -math.inf
    bias[0, 3:] = -math.inf
    terms = load_terms("score + bias[head, k]")
    query, key = draw(1, 2, 40, 8, seed=1), draw(1, 2, 40, 8, seed=2)
    passes = lower_passes(load("causal"), 32, 32)
    values = ScoreValues({}, {"bias": bias})
    out, lse = scored_attention(passes, query, key, key, terms, values, scale=0.3)
    plain = scored_attention(
        lower_passes(load("causal and k < 3"), 32, 32),
        query,
        key,
        key,
        ScoreTerms(SCORE, None),
        ScoreValues(),
        scale=0.3,
    )
    torch.testing.assert_close(out[:, 0], plain[0][:, 0])
    assert not out[:, 1].any() and bool((lse[:, 1] == -math.inf).all())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (ScoreValues(), "the number `cap`, which was not given"),
        (ScoreValues({"cap": 2.0}), "the table `bias`, which was not given"),
        (ScoreValues({"cap": 2.0}, {"bias": torch.zeros(3)}), "1 axes; the score reads 2"),
        (
            ScoreValues({"cap": 2.0}, {"bias": torch.zeros(3, 3, dtype=torch.int64)}),
            "int64; the score reads a floating type",
        ),
    ],
)
def test_what_does_not_fit_is_named(values: ScoreValues, message: str) -> None:
    terms = load_terms("softcap(score, cap) + bias[head, k]")
    query = draw(1, 1, 9, 8, seed=1)
    with pytest.raises(ArgumentError, match=message):
        passes = lower_passes(load("causal"), 32, 32)
        scored_attention(passes, query, query, query, terms, values)
