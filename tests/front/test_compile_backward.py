"""Training under torch.compile and torch.export: whole graphs, lengths that recompile nothing, and
other processes."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import patterncc
from patterncc import programs
from patterncc.codegen import choice, cpu
from tests.compile_counts import compile_counts
from tests.front.inputs import assert_right_gradients, expected_gradients, tensors
from tests.front.test_compile import STREAMING, fresh_process

Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def leaves(*arguments: Any, **options: Any) -> Inputs:
    query, key, value = tensors(*arguments, **options)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def compiled(function: Any, **options: Any) -> tuple[Any, CompileCounterWithBackend]:
    """The function under torch.compile, as one graph, and the count of its compilations."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, backend=counter, fullgraph=True, **options), counter


def check(attn: patterncc.Attention, function: Callable[..., Any], inputs: Inputs) -> None:
    """Compares the gradients of a compiled call of a pattern with those of the oracle."""
    out, lse = function(*inputs)
    grads = torch.rand_like(out), torch.rand_like(lse)
    found = torch.autograd.grad((out, lse), inputs, grads)
    assert_right_gradients(found, expected_gradients(attn, inputs, *grads), inputs)


# ------------------------------------------------------------------------------------- one process


def test_new_lengths_and_batches_recompile_nothing() -> None:
    attn = patterncc.compile(STREAMING)
    function, counter = compiled(lambda *inputs: attn(*inputs, return_lse=True), dynamic=True)
    check(attn, function, leaves(40, batch=3))  # sizes that are equal share a symbol at first
    before = compile_counts()
    for length, batch in ((41, 3), (64, 2), (129, 6)):
        check(attn, function, leaves(length, batch=batch))
    assert counter.frame_count == 1
    assert compile_counts() == before


def test_lengths_of_rows_and_keys_apart() -> None:
    attn = patterncc.compile(STREAMING)
    function, counter = compiled(lambda *inputs: attn(*inputs, return_lse=True), dynamic=True)
    for q_len, kv_len in ((20, 40), (21, 55), (3, 90)):
        check(attn, function, leaves(q_len, kv_len))
    assert counter.frame_count == 1


def test_the_output_alone() -> None:
    attn = patterncc.compile("causal")
    function, _ = compiled(lambda *inputs: attn(*inputs).sin())
    inputs = leaves()
    loss = function(*inputs).sum()
    wanted = torch.autograd.grad(attn(*inputs).sin().sum(), inputs)
    for one, other in zip(torch.autograd.grad(loss, inputs), wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_some_inputs() -> None:
    attn = patterncc.compile("causal")
    function, _ = compiled(lambda *inputs: attn(*inputs))
    query, key, value = tensors()
    torch.autograd.backward(function(query, key.requires_grad_(), value).sum())
    answers = expected_gradients(attn, (query, key, value), torch.ones_like(query))
    assert key.grad is not None and query.grad is None and value.grad is None
    torch.testing.assert_close(key.grad.double(), answers[1], rtol=0, atol=1e-4)


def test_tables() -> None:
    attn = patterncc.compile("pattern p(doc: segments): causal and doc[q] == doc[k]")
    function, counter = compiled(lambda q, k, v, doc: attn(q, k, v, doc=doc), dynamic=True)
    for bounds in ([0, 7, 30, 38], [0, 20, 21, 40]):
        inputs, doc = leaves(), torch.tensor(bounds, dtype=torch.int32)
        out = function(*inputs, doc)
        found = torch.autograd.grad(out, inputs, torch.ones_like(out))
        answers = expected_gradients(attn, inputs, torch.ones_like(out), doc=doc)
        assert_right_gradients(found, answers, inputs)
    assert counter.frame_count == 1


def test_autocast() -> None:
    attn = patterncc.compile("causal")

    def run(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attn(*inputs)

    function, _ = compiled(run)
    inputs = leaves()
    found = torch.autograd.grad(function(*inputs).float().sum(), inputs)
    wanted = torch.autograd.grad(run(*inputs).float().sum(), inputs)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("transform", ["grad inside", "vmap of grad inside"])
def test_transforms(transform: str) -> None:
    attn = patterncc.compile("causal")
    gradient = torch.func.grad(lambda *inputs: attn(*inputs).sin().sum(), argnums=(0, 1, 2))
    inputs = tensors(12)
    if transform == "vmap of grad inside":
        gradient = torch.func.vmap(gradient)
        inputs = tuple(torch.stack([tensor, tensor + 1]) for tensor in inputs)  # type: ignore[assignment]
    function, _ = compiled(gradient)
    for one, other in zip(function(*inputs), gradient(*inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("keep", "calls"), [(True, 1), (False, 2)])
def test_selective_checkpoints(keep: bool, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    attn = patterncc.compile("causal")
    counted = 0
    attention = cpu.attention

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal counted
        counted += 1
        return attention(*arguments, **options)

    def policy(_: Any, called: Any, *__: Any, **___: Any) -> CheckpointPolicy:
        if called == torch.ops.patterncc.attn_fwd.default:
            return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.MUST_RECOMPUTE
        return CheckpointPolicy.PREFER_RECOMPUTE

    def block(*inputs: Tensor) -> Tensor:
        return attn(*inputs).sin()

    def run(*inputs: Tensor) -> Any:
        context = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(block, *inputs, use_reentrant=False, context_fn=context)

    function, _ = compiled(run)
    inputs = leaves()
    wanted = torch.autograd.grad(block(*inputs).sum(), inputs)
    monkeypatch.setattr(cpu, "attention", counting)
    found = torch.autograd.grad(function(*inputs).sum(), inputs)
    assert counted == calls
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_forward_alone_lowers_one_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    lower = choice.lower_passes

    def noting(*arguments: Any, **options: Any) -> Any:
        asked.append(options["transposed"])
        return lower(*arguments, **options)

    monkeypatch.setattr(programs, "lower_passes", noting)
    attn = patterncc.compile("causal and q - k < 23")
    torch.autograd.backward(attn(*leaves()).sum())
    assert asked == [False]
    both = programs.passes(attn.pattern.structure, 64, 64, (), True, True)
    assert True not in asked  # the transposed direction is added to what the forward found
    assert all(program.transposed is not None for program in both)


# ---------------------------------------------------------------------------------- other processes


@pytest.mark.slow
def test_the_default_backend_in_a_fresh_process() -> None:
    printed = fresh_process(
        """
        import torch, patterncc

        attn = patterncc.compile("causal and (window(16) or sinks(4))")

        def loss(x):
            return attn(x * 2, x, x).square().sum()

        function = torch.compile(loss, fullgraph=True, dynamic=True)
        for batch, length in ((2, 40), (2, 57), (3, 200)):
            x = torch.randn(batch, 4, length, 16, requires_grad=True)
            (found,) = torch.autograd.grad(function(x), x)
            (wanted,) = torch.autograd.grad(loss(x), x)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        """
    )
    assert printed == "1"


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_is_trained_in_a_fresh_process(tmp_path: Path, strict: bool) -> None:
    attn = patterncc.compile(STREAMING)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(16, 16)

        def forward(self, query: Any, key: Any, value: Any) -> Any:
            return attn(self.project(query), key, value, window=9)

    model = Model()
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(
        model, tensors(40), dynamic_shapes=[{2: length}] * 3, strict=strict
    )
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    inputs = tensors(70)
    model(*inputs).sum().backward()
    torch.save((inputs, model.project.weight.grad), tmp_path / "case.pt")
    printed = fresh_process(
        """
        import sys, torch, patterncc.ops

        model = torch.export.load(sys.argv[1]).module()
        inputs, wanted = torch.load(sys.argv[2])
        model(*inputs).sum().backward()
        print(torch.equal(model.project.weight.grad, wanted))
        """,
        str(path),
        str(tmp_path / "case.pt"),
    )
    assert printed == "True"
