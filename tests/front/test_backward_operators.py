"""The operators of gradients as torch sees them: fakes, schemas, which gradients are asked for."""

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import patterncc
from tests.front.gradients import WINDOW, leaves, operands
from tests.front.inputs import assert_right_gradients, expected_gradients, tensors

CASES: list[dict[str, Any]] = [
    {},
    {"q_len": 3, "kv_len": 17, "kv_heads": 4, "value_head_dim": 8},
    {"dtype": torch.bfloat16},
    {"q_len": 0},
    {"q_len": 4, "kv_len": 0},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("with_lse", [True, False])
def test_opcheck(case: dict[str, Any], with_lse: bool) -> None:
    arguments = operands(**case)
    if not with_lse:
        arguments = (arguments[0], None, *arguments[2:])
    inputs = arguments[2:5]
    torch.library.opcheck(torch.ops.patterncc.attn_bwd.default, arguments)
    second = (*map(torch.ones_like, inputs), *arguments)
    torch.library.opcheck(torch.ops.patterncc.attn_bwd_bwd.default, second)


def test_opcheck_of_inputs_that_need_gradients() -> None:
    arguments = (*leaves(9), *operands()[7:])
    torch.library.opcheck(torch.ops.patterncc.attn_fwd.default, arguments)


def test_the_operator_itself_has_gradients() -> None:
    # Exported programs call it.
    inputs = leaves()
    out, lse = torch.ops.patterncc.attn_fwd.default(*inputs, *operands()[7:])
    found = torch.autograd.grad((out, lse), inputs, (torch.ones_like(out), torch.ones_like(lse)))
    answers = expected_gradients(WINDOW, inputs, torch.ones_like(out), torch.ones_like(lse))
    assert_right_gradients(found, answers, inputs)


@pytest.mark.parametrize("layout", ["heads first", "length first", "expanded"])
def test_fake_gradients_have_the_real_layout(layout: str) -> None:
    *grads, query, key, value, out, lse = operands()[:7]
    if layout == "length first":
        query = query.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "expanded":
        key = key[:, :1].expand_as(key)
    arguments = (*grads, query, key, value, out, lse)
    rest = operands()[7:]
    real = torch.ops.patterncc.attn_bwd.default(*arguments, *rest)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in arguments]
        fake = torch.ops.patterncc.attn_bwd.default(*fakes, *rest)
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@pytest.mark.parametrize("needs", [[True, False, False], [False, True, True], [False] * 3])
def test_the_operator_computes_what_is_asked_for(needs: list[bool]) -> None:
    arguments = operands()
    whole = torch.ops.patterncc.attn_bwd.default(*arguments)
    asked = (*arguments, None, [], True, False, needs)
    torch.library.opcheck(torch.ops.patterncc.attn_bwd.default, asked)
    found = torch.ops.patterncc.attn_bwd.default(*asked)
    wanted = [grad for grad, yes in zip(whole, needs, strict=True) if yes]
    assert len(found) == sum(needs) and all(map(torch.equal, found, wanted))


def test_needs_that_do_not_fit_are_refused() -> None:
    operator = torch.ops.patterncc.attn_bwd.default
    for needs in ([True], [True] * 4):
        with pytest.raises(patterncc.ArgumentError, match=r"`needs` is .* it must have 3 values"):
            operator(*operands(), None, [], True, False, needs)


def test_second_derivatives_of_some_inputs() -> None:
    query, key, value = (tensor.double() for tensor in tensors(6))
    query.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda q: WINDOW(q, key, value), (query,), fast_mode=True)
    key.requires_grad_()
    query = query.detach()
    assert torch.autograd.gradgradcheck(lambda k: WINDOW(query, k, value), (key,), fast_mode=True)
