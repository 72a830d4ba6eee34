"""Gradients under what torch wraps calls in: checkpoints, hooks, autocast, transforms, modes."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import patterncc
from patterncc.codegen import cpu
from tests.front.gradients import BATCHED, DOCUMENTS, WINDOW, assert_close, grads_of, leaves
from tests.front.inputs import assert_right_gradients, expected_gradients, tensors
from tests.front.test_compile import fresh_process

_torch: Any = torch  # the parts of torch that have no types


def model(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A loss that needs both results."""
    out, lse = WINDOW(query * 2, key, value, return_lse=True)
    return (out * out).sum() + lse.sin().sum()


# ----------------------------------------------------------------------------------- what is kept


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


# ------------------------------------------------------------------------------------ checkpoints


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


# --------------------------------------------------------------------------------------- autocast


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
