"""What calls do on the host of a GPU: what they allocate, that they do not wait, which way they
go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import patterncc
from patterncc import eager, guards
from tests.front.inputs import tensors

pytestmark = pytest.mark.gpu

_torch: Any = torch  # the parts of torch that have no types
STREAMING = "pattern streaming(sinks = 4, window = 100): causal and (k < sinks or q - k < window)"


def inputs(length: int = 300, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    defaults: dict[str, Any] = {"head_dim": 64, "dtype": torch.bfloat16, "device": "cuda"}
    return tensors(length, **(defaults | options))


def allocations() -> int:
    """How often memory was taken so far."""
    return int(torch.cuda.memory_stats()["allocation.all.allocated"])


@contextmanager
def without_waiting() -> Iterator[None]:
    """Refuses what waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def differentiate(attn: Any, given: list[Tensor], values: dict[str, Tensor]) -> tuple[Tensor, ...]:
    out, lse = attn(*given, return_lse=True, **values)
    leaves = [*given, *values.values()]
    return torch.autograd.grad((out, lse), leaves, (out, lse), allow_unused=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("text", ["causal", STREAMING])
def test_a_call_takes_memory_for_its_results_alone(text: str, mode: Callable[[], Any]) -> None:
    attn = patterncc.compile(text)
    query, key, value = inputs(4096)
    with mode():
        for _ in range(3):
            results = attn(query, key, value, return_lse=True)
        wanted = sum(each.numel() * each.element_size() for each in results)
        del results
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, times = torch.cuda.memory_allocated(), allocations()
        with without_waiting():
            results = attn(query, key, value, return_lse=True)
        assert allocations() - times == len(results)
    assert torch.cuda.max_memory_allocated() - before <= wanted + 2 * 512  # torch's granularity


def test_the_second_call_is_found_by_its_tensors_from_then_on() -> None:
    assert guards.guards is not None
    attn = patterncc.compile(STREAMING)
    query, key, value = inputs()
    with torch.no_grad():
        answers = [attn(query, key, value) for _ in range(2)]
        assert attn._recent is not None
        numbers = (None, None, 0, None)

        def found(*given: Tensor) -> bool:
            assert attn._recent is not None
            return attn._recent.run(given[0], given[1], given[2], numbers, {}) is not None

        assert found(query, key, value)
        answers.append(attn(query, key, value))
        assert all(torch.equal(answer, answers[0]) for answer in answers)
        with torch.autocast("cuda"):
            assert not found(query, key, value)
        with torch.profiler.profile():
            assert not found(query, key, value)
        assert not found(query[:, :, 1:], key, value)
        assert not found(_torch._neg_view(query), key, value)
        assert not found(query.cpu(), key, value)
    assert not found(query.clone().requires_grad_(), key, value)
    assert not found(*torch.nn.ParameterList([query, key, value]))


def test_graphs_pass_the_dispatcher_by() -> None:
    attn = patterncc.compile(STREAMING)
    leaves = [tensor.requires_grad_() for tensor in inputs()]
    wanted = differentiate(attn, leaves, {})
    with torch.profiler.profile() as profile:
        watched = differentiate(attn, leaves, {})
    keys = {event.key for event in profile.key_averages()}
    assert {"patterncc::attn_fwd", "patterncc::attn_bwd"} <= keys
    assert all(map(torch.equal, wanted, watched))
    seen: list[bool] = []
    unattended = eager.unattended

    def noted(tensors: Any) -> bool:
        seen.append(unattended(tensors))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "unattended", noted)
        found = differentiate(attn, leaves, {})
    assert seen == [True, True]  # no step that is known: `out` is its own gradient
    assert all(map(torch.equal, wanted, found))


def test_steps_under_autocast_are_known_where_nothing_is_cast() -> None:
    attn = patterncc.compile(STREAMING)
    leaves = [tensor.requires_grad_() for tensor in inputs()]
    wanted = differentiate(attn, leaves, {})
    for inside in (False, False, False, True, True, True):
        with torch.autocast("cuda", torch.bfloat16):
            out, lse = attn(*leaves, return_lse=True)
            with torch.autocast("cuda", enabled=inside):
                found = torch.autograd.grad((out, lse), leaves, (out, lse))
        assert all(map(torch.equal, wanted, found))
    assert type(out.grad_fn).__name__ == "RecordedAttentionBackward"
    with torch.autocast("cuda", torch.float16):
        out = attn(*leaves)
    assert out.dtype == torch.float16
    assert type(out.grad_fn).__name__ == "PatternAttentionBackward"


def test_training_steps_on_new_documents_ask_nothing_and_wait_for_nothing() -> None:
    attn = patterncc.compile("pattern p(doc: segments): causal and doc[q] == doc[k]")
    leaves = [tensor.requires_grad_() for tensor in inputs()]
    grad_out = torch.randn_like(leaves[0])
    length = leaves[0].shape[2]

    def step(doc: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(attn(*leaves, doc=doc), leaves, grad_out)

    drawn = [[0, length], [0, 7, 90, length], [0, 33, 33, length], [0, 50]]
    seen: list[object] = []
    for dtype in (torch.int32, torch.int64):
        tables = [torch.tensor(bounds, dtype=dtype, device="cuda") for bounds in drawn]
        for _ in range(3):  # one that plans, one whose backward is remembered, one that is known
            step(tables[0])
        with pytest.MonkeyPatch.context() as patch, without_waiting():
            patch.setattr(eager, "unattended", seen.append)
            found = [step(table) for table in tables]
        assert not seen
        for bounds, grads in zip(drawn, found, strict=True):
            anew = patterncc.compile(attn.text)  # remembers nothing
            table = torch.tensor(bounds, dtype=dtype, device="cuda")
            out = anew(*leaves, doc=table)
            assert all(map(torch.equal, grads, torch.autograd.grad(out, leaves, grad_out)))


TERMS: list[tuple[str, str | None, dict[str, tuple[int, ...]]]] = [
    ("score + alibi(slopes)", "sinks[head]", {"slopes": (4,), "sinks": (4,)}),
    ("score + gains[kv_head] * 2.5", "sinks[kv_head] - 1.5", {"gains": (2,), "sinks": (2,)}),
    ("score + relative_bias(bias, 16)", None, {"bias": (4, 33)}),
    ("score + 0.1 * places[k]", "0.01 * q + sinks[1]", {"places": (300,), "sinks": (3,)}),
]


@pytest.mark.parametrize(("score", "sink", "shapes"), TERMS)
def test_gradients_of_tables_wait_for_nothing_and_are_captured(
    score: str, sink: str | None, shapes: dict[str, tuple[int, ...]]
) -> None:
    attn = patterncc.compile("causal", score=score, sink=sink)
    leaves = [tensor.requires_grad_() for tensor in inputs()]
    tables = {
        name: torch.randn(shape, device="cuda").requires_grad_() for name, shape in shapes.items()
    }
    wanted = differentiate(attn, leaves, tables)
    again = differentiate(attn, leaves, tables)
    assert all(map(torch.equal, wanted, again))
    with without_waiting():
        found = differentiate(attn, leaves, tables)
    assert all(map(torch.equal, wanted, found))
    stream = _torch.cuda.Stream()
    with torch.cuda.stream(stream):
        differentiate(attn, leaves, tables)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = differentiate(attn, leaves, tables)
    for table in tables.values():
        table.data.mul_(0.5)
    graph.replay()
    torch.cuda.synchronize()
    halved = differentiate(attn, leaves, tables)
    for one, other in zip(captured, halved, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
