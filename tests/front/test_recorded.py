"""Training steps that go the short way: right for tables that change, and nothing kept too long."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import patterncc
from patterncc import autograd, guards, recorded
from patterncc.codegen.gpu.signature import forget_all
from tests.codegen.interpreter import interpreter
from tests.front.inputs import assert_right_gradients, expected_gradients, tensors

_torch: Any = torch
_autograd: Any = autograd
PACKED = "pattern p(doc: segments): causal and doc[q] == doc[k]"
LENGTH = 24
SCORE: dict[str, Any] = {"score": "score * gain + slopes[head] * (k - q)", "sink": "sinks[head]"}

pytestmark = pytest.mark.skipif(guards.guards is None, reason="this torch has no tensor guards")


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with interpreter() as worker:
        yield worker


class Asked:
    """How often gradients were asked for by the operator, the long way."""

    def __init__(self) -> None:
        self.times = 0
        self._gradients = autograd.gradients

    def __enter__(self) -> Asked:
        _autograd.gradients = self._count
        return self

    def __exit__(self, *_: object) -> None:
        _autograd.gradients = self._gradients

    def _count(self, *arguments: Any) -> Any:
        self.times += 1
        return self._gradients(*arguments)


def leaves(**options: Any) -> list[Tensor]:
    _torch.Tensor.is_cuda = True
    drawn = tensors(LENGTH, batch=1, heads=2, kv_heads=1, **options)
    return [tensor.requires_grad_() for tensor in drawn]


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5)


def documents(*bounds: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(bounds, dtype=dtype)


def check(attn: Any, inputs: list[Tensor], seed: int = 0, **values: Any) -> None:
    """One step beside the oracle."""
    out = attn(*inputs, **values)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))
    found = torch.autograd.grad(out, inputs, grad)
    query, key, value = (tensor.detach() for tensor in inputs)
    plain = (query, key, value)
    answers = expected_gradients(attn, plain, grad, None, **values)
    assert_right_gradients(found, answers, plain)


# ------------------------------------------------------------------------------- tables that change


def changing_tables() -> None:
    attn, inputs = patterncc.compile(PACKED), leaves()
    for dtype in (torch.int32, torch.int64):
        for _ in range(2):  # plans, and remembers the backward
            check(attn, inputs, doc=documents(0, 9, LENGTH, dtype=dtype))
    with Asked() as asked:
        for number, bounds in enumerate(
            ([0, LENGTH], [0, 3, 3, 20, LENGTH], [0, 5, 20], [0], [0, 9, LENGTH], [0, 1, 2, 4, 8])
        ):
            for dtype in (torch.int32, torch.int64):
                check(attn, inputs, number, doc=documents(*bounds, dtype=dtype))
        # The same memory, with other documents in it; then freed, and taken again.
        table = documents(0, 9, LENGTH)
        for bound in (4, 11, 23):
            table[1] = bound
            check(attn, inputs, doc=table)
        for bound in (2, 7, 19):
            table = documents(0, bound, LENGTH)
            check(attn, inputs, doc=table)
            del table
    assert asked.times == 0
    with pytest.raises(patterncc.ArgumentError, match="`cu_seqlens` must have one axis"):
        attn(*inputs, doc=documents())
    with pytest.raises(patterncc.ArgumentError, match="`cu_seqlens` must be int32 or int64"):
        attn(*inputs, doc=torch.tensor([0.0, 5.0]))
    with pytest.raises(patterncc.ArgumentError, match="never fall"):
        attn(*inputs, doc=documents(0, 9, 5))
    # Strided tables are copied, and others compared anew.
    check(attn, inputs, doc=documents(0, 7, 9, 7, LENGTH, 7)[::2])


def test_tables_may_change_from_step_to_step(pool: ProcessPoolExecutor) -> None:
    pool.submit(changing_tables).result()


def changed_between() -> None:
    """A table of numbers that kernels convert may change between a call and its backward; one that
    they read itself may not, which autograd tells."""
    attn, inputs = patterncc.compile(PACKED), leaves()
    check(attn, inputs, doc=documents(0, 9, LENGTH, dtype=torch.int64))
    table = documents(0, 9, LENGTH, dtype=torch.int64)
    out = attn(*inputs, doc=table)
    wanted = torch.autograd.grad(out, inputs, torch.ones_like(out), retain_graph=True)
    table[1] = 4
    found = torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert all(map(torch.equal, found, wanted))
    narrow = documents(0, 9, LENGTH)
    for _ in range(2):
        out = attn(*inputs, doc=narrow)
    narrow[1] = 4
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(out, inputs, torch.ones_like(out))


def test_a_table_that_changes_before_the_backward(pool: ProcessPoolExecutor) -> None:
    pool.submit(changed_between).result()


def large_tables() -> None:
    attn = patterncc.compile("pattern p(keep: int[token]): causal and keep[k] == 1")
    inputs = leaves()
    recorded.LONGEST_KEPT = LENGTH
    table = torch.arange(LENGTH) % 3 % 2
    longer = torch.cat([table, table])
    for given in (table, table, longer, longer):
        check(attn, inputs, keep=given)
        out: Any = attn(*inputs, keep=given)
        kept = out.grad_fn.saved_tensors[5]
        if given is table:
            assert kept.dtype == torch.int32
        else:
            assert kept.data_ptr() == given.data_ptr()


def test_only_short_tables_are_kept_as_kernels_read_them(pool: ProcessPoolExecutor) -> None:
    pool.submit(large_tables).result()


# ----------------------------------------------------------------- which gradients, of what


def whatever_is_asked_for() -> None:
    attn = patterncc.compile("causal", **SCORE)
    inputs = leaves()
    generator = torch.Generator().manual_seed(3)
    slopes, sinks = (torch.randn(2, generator=generator).requires_grad_() for _ in range(2))
    for wanted in (
        [*inputs, slopes, sinks],
        [*inputs, slopes, sinks],
        [inputs[0], sinks],
        [inputs[2]],
        [slopes],
    ):
        others = [x for x in (*inputs, slopes, sinks) if not any(x is y for y in wanted)]
        for gain in (0.5, 0.5, 0.5, 0.25):
            for other in others:
                other.requires_grad_(False)
            out, lse = attn(*inputs, return_lse=True, gain=gain, slopes=slopes, sinks=sinks)
            for results in ((out,), (lse,), (out, lse)):
                sides = [torch.randn(x.shape, generator=generator) for x in results]
                found = torch.autograd.grad(results, wanted, sides, retain_graph=True)
                fresh = patterncc.compile("causal", **SCORE)  # remembers nothing
                anew = fresh(*inputs, return_lse=True, gain=gain, slopes=slopes, sinks=sinks)
                again = [anew[0 if x is out else 1] for x in results]
                answers = torch.autograd.grad(again, wanted, sides)
                assert all(map(torch.equal, found, answers))
            for other in others:
                other.requires_grad_()


def test_gradients_of_whatever_asks_for_them(pool: ProcessPoolExecutor) -> None:
    pool.submit(whatever_is_asked_for).result()


def other_tensors() -> None:
    """What a backward is given may be other than the time before."""
    attn, inputs = patterncc.compile(PACKED), leaves()
    doc = documents(0, 9, LENGTH)
    out = attn(*inputs, doc=doc)
    shape = out.shape
    generator = torch.Generator().manual_seed(1)
    plain = torch.randn(shape, generator=generator)
    wanted = torch.autograd.grad(out, inputs, plain)
    for _ in range(2):
        torch.autograd.grad(attn(*inputs, doc=doc), inputs, plain)
    strided = plain.mT.contiguous().mT
    shifted = torch.empty(plain.numel() + 1)[1:].view(shape).copy_(plain)
    negative = _torch._neg_view(-plain)
    for grad in (plain, strided, shifted, negative, plain):
        for _ in range(2):
            found = torch.autograd.grad(attn(*inputs, doc=doc), inputs, grad)
            assert all(map(close, found, wanted))
    # Saved tensors that hooks give back otherwise; checkpoints are made of such hooks.
    hooks: list[Callable[[Tensor], Tensor]] = [
        lambda saved: saved.clone(),
        lambda saved: saved.mT.contiguous().mT if saved.dim() == 4 else saved,
    ]
    for hook in hooks:
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, hook):
            out = attn(*inputs, doc=doc)
        found = torch.autograd.grad(out, inputs, plain)
        assert all(map(close, found, wanted))
    out = checkpoint(lambda *given: attn(*given, doc=doc), *inputs, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(out, inputs, plain), wanted))
    # Without a graph nothing is recorded, and a gradient that is to be derived is.
    with torch.no_grad():
        assert not attn(*inputs, doc=doc).requires_grad
    with torch.inference_mode():
        assert not attn(*inputs, doc=doc).requires_grad
    out = attn(*inputs, doc=doc)
    assert type(out.grad_fn).__name__ == "RecordedAttentionBackward"
    found = torch.autograd.grad(out, inputs, plain, create_graph=True)
    assert all(grad.requires_grad for grad in found)
    assert all(map(torch.equal, found, wanted))


def test_a_backward_is_compared_with_those_before(pool: ProcessPoolExecutor) -> None:
    pool.submit(other_tensors).result()


# --------------------------------------------------------------------------------------- autocast


@contextmanager
def autocast(dtype: torch.dtype, cache: bool) -> Iterator[None]:
    """`torch.autocast`, also to float32: the interpreter has no bfloat16."""
    with torch.autocast("cpu", torch.float16, cache_enabled=cache):
        torch.set_autocast_dtype("cpu", dtype)
        yield


def under_autocast() -> None:
    def compiled() -> Any:
        return patterncc.compile(PACKED, score=SCORE["score"])

    attn = compiled()
    half, single = torch.float16, torch.float32
    generator = torch.Generator().manual_seed(5)
    slopes = torch.randn(2, generator=generator).requires_grad_()
    values = {"doc": documents(0, 9, LENGTH), "slopes": slopes, "gain": 0.5}
    given = {dtype: leaves(dtype=dtype) for dtype in (half, single)}
    mixed = [given[half][0], given[single][1], given[half][2]]
    side = torch.randn(given[single][0].shape, generator=generator)

    def step(call: Any, inputs: list[Tensor], inside: bool = False) -> tuple[Tensor, ...]:
        out = call(*inputs, **values)
        with nullcontext() if inside else torch.autocast("cpu", enabled=False):
            grads = torch.autograd.grad(out, [*inputs, slopes], side.to(out.dtype))
        return (out, *grads)

    def anew(inputs: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Cast by hand, and by a pattern that remembers nothing."""
        with torch.autocast("cpu", enabled=False):
            return step(compiled(), [x.detach().to(dtype).requires_grad_() for x in inputs])

    answers = {dtype: anew(inputs, dtype) for dtype, inputs in given.items()}

    def short(dtype: torch.dtype, *, plans: bool = False) -> None:
        """Inputs that are left alone, backward in autocast's context and outside of it."""
        for inside in (False, True):
            for _ in range(2 * plans):  # one that plans, one whose backward is remembered
                assert all(map(torch.equal, step(attn, given[dtype], inside), answers[dtype]))
            with Asked() as asked:
                found = step(attn, given[dtype], inside)
            assert asked.times == 0
            assert type(found[0].grad_fn).__name__ == "RecordedAttentionBackward"
            assert [one.dtype for one in found] == [dtype] * 4 + [single]
            assert all(map(torch.equal, found, answers[dtype]))

    def long(dtype: torch.dtype, inputs: list[Tensor]) -> None:
        """Inputs that are cast."""
        calls = attn._recent._calls
        for _ in range(2):
            found = step(attn, inputs)
            assert type(found[0].grad_fn).__name__ == "PatternAttentionBackward"
            assert found[0].dtype == dtype
            for one, like, wanted in zip(found[1:], inputs, anew(inputs, dtype)[1:], strict=False):
                assert one.dtype == like.dtype and torch.equal(one, wanted.to(like.dtype))
        assert attn._recent._calls is calls  # none of them is kept

    for first, cache in ((True, True), (False, False)):
        with autocast(half, cache):
            short(half, plans=first)
            long(half, given[single])
            long(half, mixed)
            with autocast(single, cache):
                long(single, given[half])
                long(single, mixed)
                short(single, plans=first)
            with torch.autocast("cpu", enabled=False):
                short(half, plans=first)
                short(single, plans=first)
                with pytest.raises(patterncc.ArgumentError, match="`key` is float32 but `query`"):
                    step(attn, mixed)
            short(half)
            with torch.no_grad():
                for inputs in (given[half], given[single], given[half], mixed):
                    out = attn(*(x.detach() for x in inputs), **values)
                    assert out.dtype == half and not out.requires_grad
        short(half)
        short(single)
    with autocast(half, True):
        short(half)


def test_under_autocast_steps_are_short_where_nothing_is_cast(pool: ProcessPoolExecutor) -> None:
    pool.submit(under_autocast).result()


# ---------------------------------------------------------------------------------- what is kept


def bounded() -> None:
    attn, inputs = patterncc.compile(PACKED), leaves()
    for number in range(3 * recorded.MOST):
        for _ in range(2):
            out = attn(*inputs, doc=documents(0, number, LENGTH))
            strides = [(LENGTH + number) * 16 * 2, (LENGTH + number) * 16, 16, 1]
            grad = torch.randn(strides[0]).as_strided(out.shape, strides)
            torch.autograd.grad(out, inputs, grad)
    calls = attn._recent._calls  # type: ignore[union-attr]
    assert len(calls) == 1
    assert len(calls[0].recorded._backwards) == recorded.MOST  # type: ignore[union-attr]
    doc = documents(0, 3, LENGTH)
    out = attn(*inputs, doc=doc)
    grads = torch.autograd.grad(out, inputs, torch.ones_like(out))
    references = [weakref.ref(each) for each in (*inputs, doc, out, *grads)]
    del inputs, doc, out, grads, grad
    gc.collect()
    assert [reference() for reference in references] == [None] * len(references)
    forget_all()
    assert not attn._recent._calls  # type: ignore[union-attr]


def test_nothing_is_kept_but_a_few_plans(pool: ProcessPoolExecutor) -> None:
    pool.submit(bounded).result()
