"""Score terms in torch: against their plain meaning, and the oracle against formulas by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

from patterncc.codegen.elementwise import discrete
from patterncc.codegen.score.elementwise import RealEvaluator
from patterncc.codegen.score.reference import dense_attention
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.mask import IntExpr, Predicate
from patterncc.dsl.score.derivative import derivative
from patterncc.dsl.score.evaluate import real
from patterncc.dsl.score.nodes import SCORE, Real, lookups
from patterncc.dsl.score.terms import load_terms
from tests.score_strategies import ENV, NUMBERS, SHAPES, SIZES, reals


def tables() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=generator)
        for name, shape in SHAPES.items()
    }


def evaluator(score: torch.Tensor, given: dict[str, torch.Tensor]) -> RealEvaluator:
    q = torch.arange(4, 12)[:, None]
    k = torch.arange(12)[None, :]

    def found(expr: IntExpr | Predicate) -> torch.Tensor:
        return discrete(expr, q, k, {**ENV, **SIZES})

    return RealEvaluator(score, found, NUMBERS, given, score)


@settings(deadline=None, max_examples=50)
@given(reals())
def test_elementwise_is_the_plain_meaning(expr: Real) -> None:
    given = tables()
    score = torch.linspace(-2, 2, 96, dtype=torch.float64).view(8, 12)
    found = evaluator(score, given)(expr).broadcast_to(8, 12)
    plain = {name: table.tolist() for name, table in given.items()}
    for row, key in ((0, 0), (3, 11), (7, 5)):
        env = {**ENV, **SIZES, "q": 4 + row, "k": key}
        wanted = real(expr, float(score[row, key]), env, NUMBERS, plain)
        assert math.isclose(float(found[row, key]), wanted, rel_tol=1e-9, abs_tol=1e-9)


@settings(deadline=None, max_examples=50)
@given(reals(smooth=True))
def test_symbolic_derivatives_are_those_of_autograd(expr: Real) -> None:
    given = {name: table.requires_grad_() for name, table in tables().items()}
    score = torch.linspace(-2, 2, 96, dtype=torch.float64).view(8, 12).requires_grad_()
    evaluate = evaluator(score, given)
    weights = torch.randn(8, 12, dtype=torch.float64)
    total = (evaluate(expr).broadcast_to(8, 12) * weights).sum()
    leaves = [score, *given.values()]
    wanted = [torch.zeros_like(leaf) for leaf in leaves]
    if total.requires_grad:
        found = torch.autograd.grad(total, leaves, allow_unused=True)
        wanted = [w if f is None else f for w, f in zip(wanted, found, strict=True)]
    own = [torch.zeros_like(leaf) for leaf in leaves]
    with torch.no_grad():
        own[0] += weights * evaluate(derivative(expr, SCORE))
        for entry in lookups(expr):
            places, inside = evaluate.places(entry)
            share = weights * evaluate(derivative(expr, entry)) * inside
            places = tuple(at.broadcast_to(8, 12) for at in places)
            own[1 + list(given).index(entry.table)].index_put_(places, share, accumulate=True)
    for one, other in zip(own, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    query = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, 7, 8, dtype=torch.float64)
    mask = torch.ones(5, 7, dtype=torch.bool).tril(1)
    mask[2] = False
    return query, key, value, mask


def by_hand(
    bias: torch.Tensor, cap: float | None, sink: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores capped, then a bias `[heads, 5, 7]`, then a column for the sink `[heads]`."""
    query, key, value, mask = inputs()
    scores = query @ key.repeat_interleave(2, 1).mT * 0.3
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    scores = (scores + bias).masked_fill(~mask, -math.inf)
    if sink is not None:
        column = sink[None, :, None, None].expand(2, 4, 5, 1)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., :7].nan_to_num(0.0)
    return weights @ value.repeat_interleave(2, 1), scores.logsumexp(-1)


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625], dtype=torch.float64)
BIAS = torch.linspace(-1, 1, 4 * 7, dtype=torch.float64).view(4, 7)
DISTANCE = torch.arange(2, 7)[:, None] - torch.arange(7)


@pytest.mark.parametrize(
    ("score", "sink", "cap", "bias"),
    [
        ("softcap(score, 1.5)", None, 1.5, 0 * DISTANCE[None]),
        ("score + alibi(slopes)", None, None, -SLOPES[:, None, None] * DISTANCE.abs()),
        ("score", "sinks[head]", None, 0 * DISTANCE[None]),
        (
            "softcap(score, cap) + relative_bias(bias, 3)",
            "sinks[head]",
            1.5,
            BIAS[:, DISTANCE.clamp(-3, 3) + 3],
        ),
    ],
)
def test_published_terms(
    score: str, sink: str | None, cap: float | None, bias: torch.Tensor
) -> None:
    query, key, value, mask = inputs()
    terms = load_terms(score, sink)
    sinks = 2 * SLOPES - 0.3
    every = {"slopes": SLOPES, "bias": BIAS, "sinks": sinks}
    got = dense_attention(
        query,
        key,
        value,
        mask,
        0.3,
        terms,
        numbers={"cap": 1.5},
        tables={name: every[name] for name in terms.tables},
    )
    wanted = by_hand(bias, cap, sinks if sink else None)
    torch.testing.assert_close(got[0], wanted[0])
    torch.testing.assert_close(got[1], wanted[1])
    assert not got[0][:, :, 2].any()


def test_gradients_of_the_oracle() -> None:
    query, key, value, mask = inputs()
    terms = load_terms("softcap(score, 2) + bias[head, q - k]", "sinks[head]")
    leaves = (query, key, value, BIAS.clone(), SLOPES.clone())
    for leaf in leaves:
        leaf.requires_grad_()

    def call(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = {"bias": given[3], "sinks": given[4]}
        return dense_attention(given[0], given[1], given[2], mask, 0.3, terms, tables=found)

    assert torch.autograd.gradcheck(call, leaves)


def test_what_is_missing_is_named() -> None:
    query, key, value, mask = inputs()
    with pytest.raises(ArgumentError, match="the number `cap`"):
        dense_attention(query, key, value, mask, 1.0, load_terms("softcap(score, cap)"))
    with pytest.raises(ArgumentError, match="the table `bias`"):
        dense_attention(query, key, value, mask, 1.0, load_terms("score + bias[q]"))
    with pytest.raises(ArgumentError, match="2 axes; the score reads 1"):
        dense_attention(
            query, key, value, mask, 1.0, load_terms("score + bias[q]"), tables={"bias": BIAS}
        )
