"""Expressions on the scores in the CPU executor against float64 autograd."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from patterncc.codegen import cpu
from patterncc.codegen.cpu import accumulate, kernels, products
from patterncc.codegen.cpu.scores import Places, PullBack
from patterncc.dsl import load
from tests.codegen.cpu_calls import random
from tests.codegen.cpu_gradients import SCALE, TOLERANCE, grads_of_results, softmax_of
from tests.codegen.test_cpu_passes import inputs, mask_of, passes_of


class ByAutograd:
    """A term with the derivatives that autograd finds."""

    parameters: tuple[Tensor, ...]

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        raise NotImplementedError

    def with_pull_back(self, scores: Tensor, places: Places) -> tuple[Tensor, PullBack]:
        with torch.enable_grad():
            leaf = scores.detach().requires_grad_()
            logits = self(leaf, places)

        def pull_back(grad_logits: Tensor) -> tuple[Tensor, list[Tensor]]:
            leaves = [leaf, *self.parameters]
            grad_scores, *grads = torch.autograd.grad(logits, leaves, grad_logits)
            return grad_scores, grads

        return logits.detach(), pull_back


@dataclass(frozen=True)
class CapAndSlopes(ByAutograd):
    """Soft-capped scores, less a slope per head and a bias per batch and residue times distance."""

    slopes: Tensor
    bias: Tensor

    @property
    def parameters(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.slopes, self.bias

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        distance = places.q - places.k
        slope = self.slopes.to(scores.dtype)[places.head]
        bias = self.bias.to(scores.dtype)[places.batch, places.k % 7]
        return 2 * (scores / 2).tanh() - slope * distance + bias * places.q.sin()


def term() -> CapAndSlopes:
    return CapAndSlopes(
        (random(4, seed=31).abs() * 0.05).requires_grad_(), random(2, 7, seed=32).requires_grad_()
    )


PATTERNS = (
    "full",
    "causal and (sinks(4) or window(60))",
    "longformer(32, 3, 5)",
    "local_strided(32, 2, 3)",
    "causal and (window(20) or (q - k) % 16 == 0)",
    "if kv_head == 1 then causal else sinks(3)",
    "if batch == 1 and head == 2 then window(9) else chunked(80)",
    "q >= 100 and k < 3",
)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [False, True])
def test_terms(
    text: str, kv_heads: int, dtype: torch.dtype, parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parts:
        monkeypatch.setattr(accumulate, "_MAX_NUMBERS", 1 << 12)
        monkeypatch.setattr(products, "_MAX_SCORES", 1 << 12)
        monkeypatch.setattr(kernels, "_MAX_SCORES", 1 << 12)
    query, key, value = inputs(130, 150, kv_heads=kv_heads, dtype=dtype)
    score = term()
    passes, env = passes_of(text, "auto"), {"q_offset": 9}
    out, lse = cpu.attention(passes, query, key, value, env=env, scale=SCALE, score=score)
    grad_out, grad_lse = grads_of_results(query, value)
    found = cpu.attention_backward(
        passes,
        grad_out,
        grad_lse,
        query,
        key,
        value,
        out,
        lse,
        env=env,
        scale=SCALE,
        score=score,
    )

    mask = mask_of(load(text).body, query, key, env, {})
    q, k, v = (x.double().requires_grad_() for x in (query, key, value))
    wide = CapAndSlopes(*(x.detach().double().requires_grad_() for x in score.parameters))
    places = Places(
        torch.arange(9, 139)[:, None],
        torch.arange(150),
        torch.arange(4)[:, None, None],
        torch.arange(2)[:, None, None, None],
    )
    group = 4 // kv_heads
    scores = q @ k.repeat_interleave(group, 1).mT * SCALE
    dense_out, dense_lse = softmax_of(wide(scores, places), v.repeat_interleave(group, 1), mask)
    total = (dense_out * grad_out.double()).sum() + (dense_lse * grad_lse.double()).sum()
    expected = torch.autograd.grad(total, (q, k, v, *wide.parameters))

    tolerance = TOLERANCE[dtype]
    live = mask.any(-1)
    torch.testing.assert_close(out.double(), dense_out, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse[live].double(), dense_lse[live], rtol=1e-3, atol=tolerance)
    types = [dtype] * 3 + [torch.float32] * 2
    for one, other, kind in zip(found, expected, types, strict=True):
        assert one.dtype == kind
        limit = max(tolerance, 2e-5 if kind == torch.float32 else 0)
        largest = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one.double(), other, rtol=limit, atol=limit * largest)


def test_a_term_that_changes_nothing() -> None:
    class Same(ByAutograd):
        parameters: tuple[Tensor, ...] = ()

        def __call__(self, scores: Tensor, places: Places) -> Tensor:
            return scores

    passes = passes_of("causal and (sinks(4) or window(60))", "auto")
    tensors = inputs()
    out, lse = cpu.attention(passes, *tensors, score=Same())
    plain, plain_lse = cpu.attention(passes, *tensors)
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, plain_lse, rtol=1e-5, atol=1e-5)
    grads = grads_of_results(tensors[0], tensors[2])
    for one, other in zip(
        cpu.attention_backward(passes, *grads, *tensors, out, lse, score=Same()),
        cpu.attention_backward(passes, *grads, *tensors, out, lse),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_hidden_numbers_reach_no_parameter() -> None:
    passes = passes_of("k >= 70 and causal", "auto")
    query, key, value = inputs()
    score = term()
    key[:, :, :64] = torch.nan
    query[:, :, :64] = torch.inf
    out, lse = cpu.attention(passes, query, key, value, score=score)
    grad_out, grad_lse = grads_of_results(query, value)
    found = cpu.attention_backward(
        passes, grad_out, grad_lse, query, key, value, out, lse, score=score
    )
    assert all(bool(grad.isfinite().all()) for grad in found)
