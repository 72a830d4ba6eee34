"""Gradients under what torch puts around a call: checkpoints, hooks, autocast, transforms, modes,
and derivatives of derivatives."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import patterncc
from patterncc import UnsupportedError, gpu_calls
from patterncc.codegen import cpu
from tests.front.inputs import assert_right_gradients, expected_gradients, tensors
from tests.front.test_compile import fresh_process

Inputs = tuple[Tensor, Tensor, Tensor]

_torch: Any = torch  # the parts of torch that have no types
WINDOW = patterncc.compile("window(8)")
BATCHED = patterncc.compile("if batch == 1 then causal else window(3)")
DOCUMENTS = patterncc.compile("pattern p(doc: segments): causal and doc[q] == doc[k]")


def leaves(*arguments: Any, **options: Any) -> Inputs:
    query, key, value = tensors(*arguments, **options)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def model(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A loss that needs both results."""
    out, lse = WINDOW(query * 2, key, value, return_lse=True)
    return (out * out).sum() + lse.sin().sum()


def grads_of(function: Callable[..., Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*inputs), inputs)


def assert_close(found: Any, wanted: Any) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


# ---------------------------------------------------------------------------------- what is kept


def test_only_inputs_and_results_are_kept() -> None:
    doc = torch.tensor([0, 20, 40], dtype=torch.int32)
    inputs = leaves()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out, lse = DOCUMENTS(*inputs, return_lse=True, doc=doc)
    places = [tensor.data_ptr() for tensor in (*inputs, out, lse, doc)]
    assert [tensor.data_ptr() for tensor in kept] == places


@pytest.mark.slow
def test_memory_of_the_backward() -> None:
    # Weights or their gradients of all pairs would take 2 GiB, inputs and results are 12 MiB.
    printed = fresh_process(
        """
        import re, torch, patterncc

        def memory(field):  # not ru_maxrss, which a process inherits from the one that starts it
            status = open("/proc/self/status").read()
            return int(re.search(field + r":\\s*(\\d+) kB", status)[1]) * 1024

        attn = patterncc.compile("causal and (window(128) or sinks(4))")
        for length in (256, 8192):  # the first loads what is loaded once
            x = [torch.randn(1, heads, length, 32).requires_grad_() for heads in (8, 2, 2)]
            out = attn(*x)
            grad = torch.ones_like(out)
            before = memory("VmRSS")
            out.backward(grad)
            peak = memory("VmHWM")
        print(peak - before)
        """
    )
    assert int(printed) < 64 << 20


def test_a_graph_that_is_kept_gives_the_same_again() -> None:
    inputs = leaves()
    loss = model(*inputs)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    again = torch.autograd.grad(loss, inputs)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, inputs)


def test_gradients_add_up() -> None:
    inputs = leaves()
    for _ in range(2):
        torch.autograd.backward(model(*inputs))
    wanted = grads_of(model, inputs)
    for tensor, grad in zip(inputs, wanted, strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad, 2 * grad)


def test_hooks_see_gradients() -> None:
    inputs = leaves()
    wanted = grads_of(model, inputs)
    seen: dict[int, Tensor] = {}
    for index, tensor in enumerate(inputs):
        _torch.Tensor.register_hook(tensor, lambda grad, index=index: seen.update({index: grad}))
    torch.autograd.backward(model(*inputs))
    assert_close([seen[0], seen[1], seen[2]], wanted)


def test_a_table_changed_before_the_backward_is_found() -> None:
    doc = torch.tensor([0, 20, 40], dtype=torch.int32)
    out = DOCUMENTS(*leaves(), doc=doc)
    doc[1] = 30
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(out.sum())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_grad(mode: Any) -> None:
    inputs = leaves()
    with mode():
        out = WINDOW(*inputs)
    assert not out.requires_grad and out.grad_fn is None
    assert torch.equal(out, WINDOW(*tensors()))


def test_nothing_is_recorded_where_nothing_needs_it() -> None:
    out, lse = WINDOW(*tensors(), return_lse=True)
    assert out.grad_fn is None and lse.grad_fn is None


def test_fake_tensors() -> None:
    with FakeTensorMode() as mode:
        inputs = [mode.from_tensor(tensor).requires_grad_() for tensor in tensors()]
        out = WINDOW(*inputs)
        torch.autograd.backward(out.sum())
        for tensor in inputs:
            assert tensor.grad is not None and tensor.grad.shape == tensor.shape


# ----------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant: bool) -> None:
    inputs = leaves()
    wanted = grads_of(model, inputs)
    checkpoint(model, *inputs, use_reentrant=reentrant).backward()
    assert_close([tensor.grad for tensor in inputs], wanted)


@pytest.mark.parametrize(("keep", "calls"), [(True, 1), (False, 2)])
def test_selective_checkpoints(keep: bool, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    operator = torch.ops.patterncc.attn_fwd.default
    counted = 0
    attention = cpu.attention

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal counted
        counted += 1
        return attention(*arguments, **options)

    def policy(_: Any, called: Any, *__: Any, **___: Any) -> CheckpointPolicy:
        if called == operator and keep:
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    inputs = leaves()
    wanted = grads_of(model, inputs)
    monkeypatch.setattr(cpu, "attention", counting)
    context = partial(create_selective_checkpoint_contexts, policy)
    loss: Tensor = checkpoint(model, *inputs, use_reentrant=False, context_fn=context)
    torch.autograd.backward(loss)
    assert_close([tensor.grad for tensor in inputs], wanted)
    assert counted == calls


# -------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast(dtype: torch.dtype, inside: bool) -> None:
    inputs = leaves()
    with torch.autocast("cpu", dtype=dtype):
        out, lse = WINDOW(*inputs, return_lse=True)
        assert out.dtype == dtype and lse.dtype == torch.float32
        grads = (torch.ones_like(out), torch.ones_like(lse))
        if inside:
            torch.autograd.backward((out, lse), grads)
    if not inside:
        torch.autograd.backward((out, lse), grads)
    narrow = [tensor.detach().to(dtype).requires_grad_() for tensor in inputs]
    out, lse = WINDOW(narrow[0], narrow[1], narrow[2], return_lse=True)
    torch.autograd.backward((out, lse), grads)
    for tensor, cast in zip(inputs, narrow, strict=True):
        assert tensor.grad is not None and cast.grad is not None
        assert tensor.grad.dtype == torch.float32
        assert torch.equal(tensor.grad, cast.grad.float())


def test_autocast_does_not_narrow_float64() -> None:
    inputs = leaves(dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = WINDOW(*inputs)
        torch.autograd.backward(out, torch.ones_like(out))
    answers = expected_gradients(WINDOW, inputs, torch.ones_like(out))
    assert_right_gradients([tensor.grad for tensor in inputs], answers, inputs)


# ------------------------------------------------------------------------------------- torch.func


def test_func_grad() -> None:
    inputs = tensors()
    wanted = grads_of(model, leaves())
    assert_close(torch.func.grad(model, argnums=(0, 1, 2))(*inputs), wanted)
    loss, back = _torch.func.vjp(model, *inputs)
    assert_close(back(torch.ones_like(loss)), wanted)


@pytest.mark.parametrize("attn", [WINDOW, BATCHED], ids=["folded", "reads batch"])
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 1, 3)])
def test_vmap_of_grad(attn: patterncc.Attention, in_dims: tuple[int | None, ...]) -> None:
    def loss(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, lse = attn(query, key, value, return_lse=True)
        return (out * out).sum() + lse.sin().sum()

    stacked, slices = [], []
    for tensor, dim in zip(tensors(12), in_dims, strict=True):
        copies = [tensor] * 3 if dim is None else [tensor + i for i in range(3)]
        slices.append(copies)
        stacked.append(tensor if dim is None else torch.stack(copies, dim))
    gradient = torch.func.grad(loss, argnums=(0, 1, 2))
    found = torch.func.vmap(gradient, in_dims=in_dims)(*stacked)
    for index, one in enumerate(zip(*slices, strict=True)):
        assert_close([grads[index] for grads in found], gradient(*one))


@pytest.mark.parametrize("outer", ["func.grad", "autograd"])
def test_grad_of_vmap(outer: str) -> None:
    def loss(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (torch.func.vmap(WINDOW)(query, key, value) ** 2).sum()

    inputs = [torch.stack([tensor, tensor + 1]).requires_grad_() for tensor in tensors(12)]
    if outer == "autograd":
        found = torch.autograd.grad(loss(*inputs), inputs)
    else:
        found = torch.func.grad(loss, argnums=(0, 1, 2))(*inputs)
    for index in range(2):
        part = [tensor[index] for tensor in inputs]
        wanted = torch.autograd.grad((WINDOW(*part) ** 2).sum(), part)
        assert_close([grad[index] for grad in found], wanted)


def test_vmap_of_grad_over_tables() -> None:
    attn = patterncc.compile("pattern p(w: int[head]): 0 <= q - k < w[head]")
    query, key, value = tensors(12)
    tables = torch.tensor([[1, 2, 3, 4], [9, 9, 1, 1]])

    def gradient(table: Tensor) -> Tensor:
        found: Tensor = torch.func.grad(lambda q: attn(q, key, value, w=table).sin().sum())(query)
        return found

    found = torch.func.vmap(gradient)(tables)
    for index in range(2):
        torch.testing.assert_close(found[index], gradient(tables[index]))


def test_jacrev() -> None:
    query, key, value = tensors(5, batch=1, heads=2, kv_heads=1, head_dim=4, dtype=torch.float64)
    found = torch.func.jacrev(lambda k: WINDOW(query, k, value, return_lse=True)[1])(key)
    wanted = _torch.autograd.functional.jacobian(
        lambda k: WINDOW(query, k, value, return_lse=True)[1], key
    )
    torch.testing.assert_close(found, wanted)


def test_hessian() -> None:
    query, key, value = tensors(5, batch=1, heads=2, kv_heads=1, head_dim=4, dtype=torch.float64)

    def loss(k: Tensor) -> Tensor:
        out, lse = WINDOW(query, k, value, return_lse=True)
        return (out**2).sum() + lse.sin().sum()

    found = torch.func.jacrev(torch.func.jacrev(loss))(key)
    wanted = _torch.autograd.functional.hessian(loss, key)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(found, found.movedim((0, 1, 2, 3), (4, 5, 6, 7)))


# ---------------------------------------------------------------------------- numerical derivatives

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


# ----------------------------------------------------------------------------------- the operators


def operands(**options: Any) -> tuple[Any, ...]:
    """Arguments of `attn_bwd`, and of `attn_bwd_bwd` after the first three."""
    inputs = tensors(**options)
    out, lse = WINDOW(*inputs, return_lse=True)
    grads = torch.randn_like(out), torch.randn_like(lse)
    return (*grads, *inputs, out, lse, WINDOW.pattern.structure, [], [], None, None, 0, None)


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
    asked = (*arguments, None, [], needs)
    torch.library.opcheck(torch.ops.patterncc.attn_bwd.default, asked)
    found = torch.ops.patterncc.attn_bwd.default(*asked)
    wanted = [grad for grad, yes in zip(whole, needs, strict=True) if yes]
    assert len(found) == sum(needs) and all(map(torch.equal, found, wanted))


def test_needs_that_do_not_fit_are_refused() -> None:
    operator = torch.ops.patterncc.attn_bwd.default
    for needs in ([True], [True] * 4):
        with pytest.raises(patterncc.ArgumentError, match=r"`needs` is .* it must have 3 values"):
            operator(*operands(), None, [], needs)


def test_second_derivatives_of_some_inputs() -> None:
    query, key, value = (tensor.double() for tensor in tensors(6))
    query.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda q: WINDOW(q, key, value), (query,))
    key.requires_grad_()
    query = query.detach()
    assert torch.autograd.gradgradcheck(lambda k: WINDOW(query, k, value), (key,))
