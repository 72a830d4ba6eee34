"""Gradients on a GPU through the public interface: answers, equal bits, memory, CUDA graphs,
torch.compile, and what compiles no new kernel."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import patterncc
from patterncc import UnsupportedError, launchers
from patterncc.codegen.gpu import launch
from patterncc.settings import settings
from tests.compile_counts import compile_counts
from tests.front.inputs import assert_right_gradients, expected_gradients, tensors

_torch: Any = torch  # the parts of torch that have no types
pytestmark = pytest.mark.gpu

STREAMING = "pattern streaming(sinks = 4, window = 100): causal and (k < sinks or q - k < window)"
TEXTS = [
    "causal",
    STREAMING,
    "if head % 2 == 0 then causal else window(70)",
    "causal and (k // 64 + layer) % 3 == 0",
    "window(40) or dilated(16, 4)",
    "k > q + 40",
]

Inputs = tuple[Tensor, Tensor, Tensor]


def leaves(q_len: int = 300, kv_len: int | None = None, **options: Any) -> Inputs:
    defaults: dict[str, Any] = {"head_dim": 64, "dtype": torch.bfloat16, "device": "cuda"}
    query, key, value = tensors(q_len, kv_len, **(defaults | options))
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def draw(like: Tensor, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like)


def check(attn: patterncc.Attention, inputs: Inputs, **arguments: Any) -> None:
    """Compares the gradients of a call with the oracle's, from random ones of both results."""
    results = attn(*inputs, return_lse=True, **arguments)
    grads = draw(results[0], 7), draw(results[1], 8)
    found = torch.autograd.grad(results, inputs, grads)
    tables = {name: t.cpu() for name, t in arguments.items() if isinstance(t, Tensor)}
    answers = expected_gradients(attn, inputs, *grads, **(arguments | tables))
    # float32 products run on TF32 tensor cores or better; their tolerance is that of float16.
    narrow = inputs[0].dtype == torch.float32
    judged = tuple(tensor.half() if narrow else tensor for tensor in inputs)
    found = tuple(grad.half() if narrow else grad for grad in found)
    assert_right_gradients(found, answers, (judged[0], judged[1], judged[2]))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_right(text: str, dtype: torch.dtype) -> None:
    check(patterncc.compile(text), leaves(dtype=dtype))


@pytest.mark.parametrize("text", TEXTS)
def test_lengths(text: str) -> None:
    for q_len, kv_len in ((1, 257), (65, 400), (200, 90)):
        check(patterncc.compile(text), leaves(q_len, kv_len))


@pytest.mark.parametrize(
    "shape",
    [
        {"kv_heads": 1},
        {"kv_heads": 4, "value_head_dim": 128},
        {"head_dim": 80},
        {"head_dim": 192, "value_head_dim": 128},
        {"batch": 1, "heads": 2, "kv_heads": 2, "q_len": 1000},
    ],
    ids=str,
)
def test_shapes(shape: dict[str, Any]) -> None:
    check(patterncc.compile(STREAMING), leaves(**shape))


TABLES: dict[str, tuple[str, list[int]]] = {
    "packed": ("pattern p(t: segments): causal and t[q] == t[k]", [0, 77, 77, 200, 290]),
    "heads": ("pattern p(t: int[head]): 0 <= q - k < t[head]", [3, 300, 0, 64]),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(case: str) -> None:
    text, table = TABLES[case]
    for dtype in (torch.int32, torch.int64):
        check(patterncc.compile(text), leaves(), t=torch.tensor(table, dtype=dtype, device="cuda"))


@pytest.mark.parametrize("step", [2, 3, 16, 100])
@pytest.mark.parametrize("text", ["(q - k) % {} == 0", "causal and (q - k) % {} == 0"])
@pytest.mark.parametrize("length", [256, 300])
def test_modular_masks(text: str, step: int, length: int) -> None:
    check(patterncc.compile(text.format(step)), leaves(length))


@pytest.mark.parametrize("text", TEXTS)
def test_repeated_runs_give_the_same_bits(text: str) -> None:
    attn = patterncc.compile(text)
    inputs = leaves(1000)
    out, lse = attn(*inputs, return_lse=True)
    grads = draw(out), draw(lse)
    first = torch.autograd.grad((out, lse), inputs, grads, retain_graph=True)
    for _ in range(5):
        torch.full((1 << 24,), torch.nan, device="cuda")  # what freed memory holds
        again = torch.autograd.grad((out, lse), inputs, grads, retain_graph=True)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("case", ["expanded", "length first", "turned"])
def test_gradients_of_any_strides(case: str) -> None:
    attn = patterncc.compile(STREAMING)
    inputs = leaves()
    out = attn(*inputs)
    grad = draw(out)
    if case == "expanded":
        grad = torch.ones((), dtype=out.dtype, device="cuda").expand_as(out)
    elif case == "length first":
        grad = grad.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        grad = grad.mT.contiguous().mT
    found = torch.autograd.grad(out, inputs, grad)
    assert_right_gradients(found, expected_gradients(attn, inputs, grad), inputs)


@pytest.mark.parametrize("wild", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["query", "key", "value", "grad_out"])
def test_a_wild_number_stays_in_the_tiles_that_see_it(which: str, wild: float) -> None:
    attn = patterncc.compile("window(4)")
    query, key, value = leaves(1500, batch=1, heads=2)
    grad = draw(query)
    right = torch.autograd.grad(attn(query, key, value), (query, key, value), grad)
    parts = {"query": query, "key": key, "value": value, "grad_out": grad}
    spoiled = {name: part.detach().clone() for name, part in parts.items()}
    spoiled[which][0, 1, 700, 3] = wild
    inputs = [spoiled[name].requires_grad_() for name in ("query", "key", "value")]
    found = torch.autograd.grad(attn(*inputs), inputs, spoiled["grad_out"])
    far = torch.tensor([abs(row - 700) > 256 for row in range(1500)], device="cuda")
    for one, other in zip(found, right, strict=True):
        assert torch.equal(one[:, :, far], other[:, :, far])
        assert torch.equal(one[0, 0, :500], other[0, 0, :500])


@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 40), (40, 0)])
def test_nothing_to_do(q_len: int, kv_len: int) -> None:
    inputs = leaves(q_len, kv_len)
    out = patterncc.compile(STREAMING)(*inputs)
    for grad in torch.autograd.grad(out, inputs, torch.ones_like(out)):
        assert bool((grad == 0).all())


@pytest.mark.parametrize("length", [4096, 8192, 65536])
@pytest.mark.parametrize(
    ("text", "one_pass", "most"),
    [("causal", True, 128 + 4), ("causal", False, 4), (STREAMING, True, 16)],
)
def test_memory(
    text: str, one_pass: bool, most: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond results, a few numbers of each row; one pass takes sums of the query's size, which
    `PATTERNCC_ONE_PASS=0` does not."""
    chosen = replace(settings(), one_pass=one_pass)
    monkeypatch.setattr(launchers, "settings", lambda: chosen)
    launchers.forget_plans()
    attn = patterncc.compile(text)
    inputs = leaves(length, batch=1, heads=16, kv_heads=4, head_dim=128)
    out = attn(*inputs)
    grad = draw(out)
    torch.autograd.grad(out, inputs, grad, retain_graph=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = torch.autograd.grad(out, inputs, grad, retain_graph=True)
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    extra -= sum(gradient.numel() * gradient.element_size() for gradient in found)
    launchers.forget_plans()
    floats = extra / 4 / (16 * length)  # for each row of each head
    assert floats <= most


def test_new_lengths_windows_and_offsets_compile_no_kernel() -> None:
    attn = patterncc.compile(STREAMING)

    def train(inputs: Inputs, **arguments: Any) -> None:
        out = attn(*inputs, **arguments)
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    train(leaves(300))
    train(leaves(1, 300), q_offset=0)
    before = (compile_counts(), launch.kernel_count())
    for length in (1, 16, 17, 128, 299, 512, 1000):
        train(leaves(length), window=min(length, 600), sinks=length // 16)
        train(leaves(1, length), q_offset=length // 2)
        train(leaves(length, batch=1, heads=2, kv_heads=1))
    assert (compile_counts(), launch.kernel_count()) == before


def test_one_graph_for_every_length() -> None:
    attn = patterncc.compile(STREAMING)
    counter = CompileCounterWithBackend("inductor")
    function = torch.compile(
        lambda query, key, value: attn(query * 2, key, value),
        backend=counter,
        fullgraph=True,
        dynamic=True,
    )

    def train(inputs: Inputs) -> None:
        for run in (function, lambda query, key, value: attn(query * 2, key, value)):
            out = run(*inputs)
            grads.append(torch.autograd.grad(out, inputs, torch.ones_like(out)))

    grads: list[tuple[Tensor, ...]] = []
    train(leaves(300, batch=3))
    before = (compile_counts(), launch.kernel_count())
    for length, batch in ((301, 3), (512, 5), (77, 2)):
        train(leaves(length, batch=batch))
    for found, wanted in zip(grads[::2], grads[1::2], strict=True):
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
    assert counter.frame_count == 1
    assert (compile_counts(), launch.kernel_count()) == before


def test_cuda_graph() -> None:
    attn = patterncc.compile(STREAMING)
    static = leaves(300)

    def step() -> tuple[Tensor, ...]:
        out = attn(*static)
        return torch.autograd.grad(out, static, torch.ones_like(out))

    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # loads the kernels, which a capture may not
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        grads = step()
    for seed in range(3):
        with torch.no_grad():
            for buffer, tensor in zip(static, leaves(300), strict=True):
                buffer.copy_(torch.roll(tensor, seed + 1, 2))
        graph.replay()
        answers = expected_gradients(attn, static, torch.ones_like(static[0]))
        assert_right_gradients(grads, answers, static)


def test_cuda_graphs_of_torch_compile() -> None:
    attn = patterncc.compile(STREAMING)
    function = torch.compile(
        lambda *inputs: attn(*inputs) * 2, fullgraph=True, mode="reduce-overhead"
    )
    for _ in range(4):
        _torch.compiler.cudagraph_mark_step_begin()
        inputs = leaves(300)
        out = function(*inputs)
        found = torch.autograd.grad(out, inputs, torch.ones_like(out))
        answers = expected_gradients(attn, inputs, 2 * torch.ones_like(out))
        assert_right_gradients(found, answers, inputs)


def test_nothing_waits_for_the_device() -> None:
    attn = patterncc.compile(STREAMING)
    inputs = leaves(300)
    grad = torch.ones_like(inputs[0])
    torch.autograd.grad(attn(*inputs), inputs, grad)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = attn(*inputs, window=50, q_offset=3, scale=0.5)
        torch.autograd.grad(out, inputs, grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_opcheck() -> None:
    structure = patterncc.compile(STREAMING).pattern.structure
    rest: tuple[Any, ...] = (structure, [], [4, 100], None, None, 0, None)
    inputs = [tensor.detach() for tensor in leaves()]
    out, lse = torch.ops.patterncc.attn_fwd.default(*inputs, *rest)
    operator = torch.ops.patterncc.attn_bwd.default
    for grad_lse in (draw(lse), None):
        torch.library.opcheck(operator, (draw(out), grad_lse, *inputs, out, lse, *rest))


def test_second_derivatives_are_refused() -> None:
    inputs = leaves()
    out = patterncc.compile("causal")(*inputs)
    (grad,) = torch.autograd.grad(out.sum(), inputs[0], create_graph=True)
    with pytest.raises(UnsupportedError, match=r"second derivatives on cuda:0\n.*on the CPU"):
        torch.autograd.backward(grad.sum())


def test_float64_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="float64"):
        patterncc.compile("causal")(*leaves(dtype=torch.float64))


def test_autocast() -> None:
    attn = patterncc.compile("causal")
    inputs = leaves(dtype=torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = attn(*inputs)
    torch.autograd.backward(out.float().sum())
    narrow = [tensor.detach().bfloat16().requires_grad_() for tensor in inputs]
    torch.autograd.backward(attn(narrow[0], narrow[1], narrow[2]).float().sum())
    for tensor, cast in zip(inputs, narrow, strict=True):
        assert tensor.grad is not None and cast.grad is not None
        assert tensor.grad.dtype == torch.float32
        assert torch.equal(tensor.grad, cast.grad.float())


def test_checkpoints_and_transforms() -> None:
    from torch.utils.checkpoint import checkpoint

    attn = patterncc.compile(STREAMING)
    inputs = leaves()
    wanted = torch.autograd.grad(attn(*inputs).sum(), inputs)
    kept = checkpoint(attn, *inputs, use_reentrant=False)
    found = torch.autograd.grad(kept.sum(), inputs)
    transformed = torch.func.grad(lambda *x: attn(*x).sum(), argnums=(0, 1, 2))(*inputs)
    for one, other, third in zip(wanted, found, transformed, strict=True):
        assert torch.equal(one, other) and torch.equal(one, third)


def test_other_streams() -> None:
    attn = patterncc.compile(STREAMING)
    inputs = leaves(300)
    wanted = torch.autograd.grad(attn(*inputs).sum(), inputs)
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = torch.autograd.grad(attn(*inputs).sum(), inputs)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
