"""The operator on a GPU: answers, CUDA graphs, torch.compile, and what compiles no new kernel."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import patterncc
from patterncc import UnsupportedError, eager
from patterncc.codegen.gpu import launch
from patterncc.codegen.gpu.bound_launch import DirectLaunch
from tests.compile_counts import compile_counts
from tests.front.inputs import assert_right, expected, tensors

pytestmark = pytest.mark.gpu

_launch: Any = launch  # triton has no types

STREAMING = "pattern streaming(sinks = 4, window = 100): causal and (k < sinks or q - k < window)"
TEXTS = [
    "causal",
    STREAMING,
    "if head % 2 == 0 then causal else window(70)",
    "causal and (k // 64 + layer) % 3 == 0",
    "k > q + 40",
]


def inputs(
    q_len: int = 300, kv_len: int | None = None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    defaults: dict[str, Any] = {"head_dim": 64, "dtype": torch.bfloat16, "device": "cuda"}
    return tensors(q_len, kv_len, **(defaults | options))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("q_len", "kv_len"), [(300, 300), (1, 257), (65, 400), (200, 90)])
def test_right(text: str, dtype: torch.dtype, q_len: int, kv_len: int) -> None:
    attn = patterncc.compile(text)
    query, key, value = inputs(q_len, kv_len, dtype=dtype)
    results = attn(query, key, value, return_lse=True)
    assert results[0].device == query.device
    # float32 dots run on TF32 tensor cores or better; its tolerance is that of float16.
    judged = query.half() if dtype == torch.float32 else query
    out = results[0].half() if dtype == torch.float32 else results[0]
    assert_right((out, results[1]), expected(attn, query, key, value), judged)


@pytest.mark.parametrize("case", ["length first", "packed", "expanded"])
def test_strides_are_free(case: str) -> None:
    query, key, value = inputs(kv_heads=4)
    if case == "length first":
        query, key, value = (
            tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (query, key, value)
        )
    elif case == "packed":
        packed = torch.stack([query, key, value]).permute(1, 3, 0, 2, 4).contiguous()
        query, key, value = packed.permute(2, 0, 3, 1, 4)
    else:
        key, value = (tensor[:, :1].expand(-1, 4, -1, -1) for tensor in (key, value))
    attn = patterncc.compile(STREAMING)
    results = attn(query, key, value, return_lse=True)
    assert_right(results, expected(attn, query, key, value), query)


@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 40), (40, 0)])
def test_nothing_to_do(q_len: int, kv_len: int) -> None:
    out, lse = patterncc.compile(STREAMING)(*inputs(q_len, kv_len), return_lse=True)
    assert out.shape == (2, 4, q_len, 64)
    assert bool((out == 0).all())
    assert bool((lse == -math.inf).all())


def test_opcheck() -> None:
    structure = patterncc.compile(STREAMING).pattern.structure
    arguments: tuple[Any, ...] = (*inputs(), structure, [], [4, 100], None, None, 0, None)
    torch.library.opcheck(torch.ops.patterncc.attn_fwd.default, arguments)


def test_new_lengths_windows_and_offsets_compile_no_kernel() -> None:
    attn = patterncc.compile(STREAMING)
    attn(*inputs(300))
    attn(*inputs(1, 300))  # fewer rows than a query tile: by Triton where others go by Gluon
    before = (compile_counts(), launch.kernel_count())
    for length in (1, 16, 17, 128, 299, 512, 1000):
        attn(*inputs(length), window=min(length, 600), sinks=length // 16)
        attn(*inputs(1, length), q_offset=length // 2)
        attn(*inputs(length, batch=1, heads=2, kv_heads=1))
    assert (compile_counts(), launch.kernel_count()) == before


def test_windows_of_another_width_take_one_kernel_more() -> None:
    """Tiles are chosen by counting, so wide windows have others than narrow ones; however many
    widths come."""
    attn = patterncc.compile(STREAMING)
    attn(*inputs(1000), window=100)
    before = launch.kernel_count()
    for window in (800, 900, 1000, 1500, 3000, 10000, 100, 300):
        attn(*inputs(1000), window=window, sinks=0)
    assert launch.kernel_count() - before <= 1


def test_one_graph_for_every_length() -> None:
    attn = patterncc.compile(STREAMING)
    counter = CompileCounterWithBackend("inductor")
    function = torch.compile(
        lambda query, key, value: attn(query * 2, key, value, return_lse=True),
        backend=counter,
        fullgraph=True,
        dynamic=True,
    )
    function(*inputs(300))
    before = (compile_counts(), launch.kernel_count())
    for length in (301, 512, 77):
        query, key, value = inputs(length)
        results = function(query, key, value)
        assert_right(results, expected(attn, query * 2, key, value), query)
    assert counter.frame_count == 1
    assert (compile_counts(), launch.kernel_count()) == before


def test_cuda_graph() -> None:
    attn = patterncc.compile(STREAMING)
    static = inputs(300)
    attn(*static)  # loads the kernel, which a capture may not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = attn(*static, return_lse=True)
    for seed in range(3):
        query, key, value = (torch.roll(tensor, seed + 1, 2) for tensor in inputs(300))
        for buffer, tensor in zip(static, (query, key, value), strict=True):
            buffer.copy_(tensor)
        graph.replay()
        assert_right(results, expected(attn, query, key, value), query)


def test_cuda_graphs_of_torch_compile() -> None:
    attn = patterncc.compile(STREAMING)
    function = torch.compile(
        lambda query, key, value: attn(query * 2, key, value),
        fullgraph=True,
        mode="reduce-overhead",
    )
    query, key, value = inputs(300)
    for _ in range(4):
        torch.testing.assert_close(function(query, key, value), attn(query * 2, key, value))


def test_nothing_waits_for_the_device() -> None:
    attn = patterncc.compile(STREAMING)
    arguments = inputs(300)
    attn(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        attn(*arguments, window=50, q_offset=3, scale=0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_other_streams() -> None:
    attn = patterncc.compile(STREAMING)
    query, key, value = inputs(300)
    answer = attn(query, key, value)
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = attn(query, key, value)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(out, answer)


def test_devices_and_dtypes_are_named() -> None:
    query, key, value = inputs()
    attn = patterncc.compile("causal")
    with pytest.raises(patterncc.ArgumentError, match="`key` is on cpu but `query` is on cuda:0"):
        attn(query, key.cpu(), value)
    with pytest.raises(patterncc.ArgumentError, match="`value` is on cuda:0 but `query` is on cpu"):
        attn(query.cpu(), key.cpu(), value)
    with pytest.raises(UnsupportedError, match="float64"):
        attn(query.double(), key.double(), value.double())


def test_autocast() -> None:
    attn = patterncc.compile("causal")
    query, key, value = inputs(dtype=torch.float32)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        out = attn(query, key.half(), value)
    assert out.dtype == torch.bfloat16
    halves = (tensor.bfloat16() for tensor in (query, key.half(), value))
    assert torch.equal(out, attn(*halves))


# ------------------------------------------------------------------------------ the way of a call


def launched(run: Any) -> list[str]:
    """Names of the kernels that something launches through Triton."""
    names: list[str] = []
    chain = _launch.triton.knobs.runtime.launch_enter_hook

    def note(metadata: Any) -> None:
        names.append(metadata.get()["name"])

    chain.add(note)
    try:
        run()
    finally:
        chain.remove(note)
    return names


def test_all_ways_give_the_same() -> None:
    attn = patterncc.compile(STREAMING)
    query, key, value = inputs(300)
    answer = attn(query, key, value, return_lse=True)
    assert eager.bare(query, key, value)
    ways: dict[str, Any] = {}
    with torch.no_grad():
        ways["short"] = attn(query, key, value, return_lse=True)
    with torch.inference_mode():
        ways["inference mode"] = attn(query, key, value, return_lse=True)
    with torch.profiler.profile() as profile:
        ways["operator"] = attn(query, key, value, return_lse=True)
    assert any(event.key == "patterncc::attn_fwd" for event in profile.key_averages())
    ways["graph"] = attn(query.clone().requires_grad_(), key, value, return_lse=True)
    names = launched(lambda: ways.update(watched=attn(query, key, value, return_lse=True)))
    assert len(names) == 1 and names[0].startswith("forward")
    for way, results in ways.items():
        assert all(map(torch.equal, results, answer)), way


@pytest.mark.skipif(
    not _launch.triton.__version__.startswith("3.6."), reason="other versions launch by themselves"
)
@pytest.mark.parametrize("q_len", [64, 301])
def test_kernels_are_launched_beneath_triton_s_launcher(q_len: int) -> None:
    attn = patterncc.compile("window(77)")
    attn(*inputs(q_len))
    ready = next(reversed(eager.calls.values())).ready
    assert ready.steps is not None
    assert all(isinstance(step, DirectLaunch) for step in ready.steps)


def test_many_addresses() -> None:
    attn = patterncc.compile(STREAMING)
    query, key, value = inputs(130)
    answer = attn(query, key, value)
    kept = []
    for _ in range(150):
        kept.append(tuple(tensor.clone() for tensor in (query, key, value)))
        assert torch.equal(attn(*kept[-1]), answer)


def test_wrong_arguments_after_right_ones() -> None:
    attn = patterncc.compile(STREAMING)
    query, key, value = inputs(130)
    attn(query, key, value)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"layer": True}, "`layer` is bool True"),
        ({"window": 9.0}, "`window` is float 9.0"),
        ({"scale": math.nan}, "`scale` is nan"),
        ({"q_offset": False}, "`q_offset` is bool False"),
    ]
    for change, message in wrong:
        for _ in range(2):
            with pytest.raises(patterncc.ArgumentError, match=message):
                attn(query, key, value, **change)
    with pytest.raises(patterncc.ArgumentError, match="`value` has length 100 but `key` has 130"):
        attn(query, key, value[:, :, :100])


@pytest.mark.parametrize(
    ("needed", "kernels"),
    [
        ((0,), {"delta", "grad_query"}),
        ((1,), {"delta", "grad_key_value"}),
        ((2,), {"delta", "grad_key_value"}),
        ((0, 2), {"delta", "grad_query", "grad_key_value"}),
    ],
)
def test_gradients_that_nobody_needs_launch_nothing(
    needed: tuple[int, ...], kernels: set[str]
) -> None:
    attn = patterncc.compile("window(70)")
    tensors = inputs(300)
    for place in needed:
        tensors[place].requires_grad_()
    out = attn(*tensors)
    grad = torch.randn_like(out)
    wanted = [tensors[place] for place in needed]
    torch.autograd.grad(out, wanted, grad, retain_graph=True)
    names = launched(lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True))
    assert set(names) == kernels
