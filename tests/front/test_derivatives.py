"""First and second derivatives against numerical ones, and those that are refused."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import patterncc
from patterncc import UnsupportedError, gpu_calls
from tests.front.gradients import DOCUMENTS, WINDOW, assert_close, leaves, operands
from tests.front.inputs import tensors

_torch: Any = torch  # the parts of torch that have no types

CHECKED = {
    "streaming": "causal and (window(3) or sinks(2))",
    "dilated": "dilated(3, 2) or k == 0",
    "dead rows": "k > q or q % 3 == 2 and k == 0",
    "heads": "if head == 1 then causal else window(2)",
}


@pytest.mark.parametrize("text", CHECKED.values(), ids=CHECKED)
def test_gradcheck(text: str) -> None:
    attn = patterncc.compile(text)
    inputs = leaves(
        5, batch=1, heads=2, kv_heads=1, head_dim=3, value_head_dim=2, dtype=torch.float64
    )

    def results(*parts: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = attn(*parts, return_lse=True)
        return out, lse.masked_fill(lse == -torch.inf, 0)

    assert gradcheck(results, inputs)
    assert gradgradcheck(results, inputs)


@pytest.mark.parametrize("result", [0, 1], ids=["out", "lse"])
def test_gradgradcheck_of_one_result(result: int) -> None:
    inputs = leaves(5, batch=2, heads=1, kv_heads=1, head_dim=2, dtype=torch.float64)
    assert gradgradcheck(lambda *parts: WINDOW(*parts, return_lse=True)[result], inputs)


def test_gradgradcheck_of_tables() -> None:
    doc = torch.tensor([0, 3, 6], dtype=torch.int32)
    inputs = leaves(6, batch=1, heads=1, kv_heads=1, head_dim=2, dtype=torch.float64)
    assert gradgradcheck(lambda *parts: DOCUMENTS(*parts, doc=doc), inputs)


def test_a_gradient_penalty() -> None:
    inputs = leaves()
    found = []
    for attn in (WINDOW, None):
        parts = [tensor.double() for tensor in inputs]
        if attn is None:
            scores = parts[0] @ parts[1].repeat_interleave(2, 1).mT / 4
            weights = scores.masked_fill(~WINDOW.mask(40), -torch.inf).softmax(-1)
            out = weights @ parts[2].repeat_interleave(2, 1)
        else:
            out = attn(*parts)
        (grad,) = torch.autograd.grad(out.sin().sum(), inputs[0], create_graph=True)
        found.append(torch.autograd.grad((grad**2).sum(), inputs))
    assert_close(*found)


def test_third_derivatives_are_refused() -> None:
    query, key, value = leaves(6)
    (first,) = torch.autograd.grad(WINDOW(query, key, value).sin().sum(), key, create_graph=True)
    (second,) = torch.autograd.grad(first.sin().sum(), key, create_graph=True)
    with pytest.raises(UnsupportedError, match=r"a third was asked for\n.*dense attention"):
        torch.autograd.backward(second.sum())


def test_second_derivatives_elsewhere_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"second derivatives on .*\n.*on the CPU"):
        gpu_calls.attn_bwd_bwd(torch.zeros(1))


def test_forward_mode_is_refused() -> None:
    query, key, value = tensors(6)
    refusal = partial(pytest.raises, UnsupportedError, match=r"in forward mode .*\n.*reverse mode")
    with refusal():
        torch.func.jvp(lambda q: WINDOW(q, key, value), (query,), (query,))
    with refusal():
        torch.func.hessian(lambda q: WINDOW(q, key, value).sum())(query)
    with forward_ad.dual_level():
        dual = _torch.autograd.forward_ad.make_dual(query, query)
        with refusal():
            WINDOW(dual, key, value)
        with torch.no_grad(), refusal():
            WINDOW(query, key, _torch.autograd.forward_ad.make_dual(value, value))
        with refusal():
            torch.ops.patterncc.attn_fwd.default(dual, key, value, *operands()[7:])
        assert torch.equal(WINDOW(query, key, value), WINDOW(*tensors(6)))
