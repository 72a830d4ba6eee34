"""torch.compile and torch.export: whole graphs, lengths and windows that recompile nothing, and
other processes."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import patterncc
from tests.compile_counts import compile_counts
from tests.front.inputs import assert_right, expected, tensors

ROOT = Path(__file__).resolve().parents[2]
STREAMING = "pattern streaming(sinks = 4, window = 16): causal and (k < sinks or q - k < window)"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Any, **options: Any) -> tuple[Any, CompileCounterWithBackend]:
    """The function under torch.compile, as one graph, and the count of its compilations."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, backend=counter, fullgraph=True, **options), counter


def fresh_process(code: str, *arguments: str) -> str:
    """What a script prints when it is the first use of everything."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# ---------------------------------------------------------------------------------- one process


def test_one_graph() -> None:
    attn = patterncc.compile(STREAMING)
    function, counter = compiled(lambda *inputs: attn(*inputs, return_lse=True))
    query, key, value = tensors()
    assert_right(function(query, key, value), expected(attn, query, key, value), query)
    assert counter.frame_count == 1


def test_new_lengths_recompile_nothing() -> None:
    attn = patterncc.compile(STREAMING)
    function, counter = compiled(lambda *inputs: attn(*inputs, return_lse=True), dynamic=True)
    function(*tensors(40))
    before = compile_counts()
    for length in (41, 64, 129, 200):
        query, key, value = tensors(length)
        results = function(query, key, value)
        assert_right(results, expected(attn, query, key, value), query)
    assert counter.frame_count == 1
    assert compile_counts() == before


def test_decoding_with_a_growing_cache_recompiles_nothing() -> None:
    attn = patterncc.compile(STREAMING)
    function, counter = compiled(lambda *inputs: attn(*inputs, return_lse=True), dynamic=True)
    function(*tensors(2, 40))
    before = compile_counts()
    for length in (41, 42, 64, 100):
        query, key, value = tensors(2, length)
        results = function(query, key, value)
        assert_right(results, expected(attn, query, key, value), query)
    assert counter.frame_count == 1
    assert compile_counts() == before


def test_new_numbers_recompile_nothing() -> None:
    def run(query: Any, key: Any, value: Any, window: int, layer: int, offset: int) -> Any:
        return patterncc.attention(
            query, key, value, STREAMING, window=window, layer=layer, q_offset=offset
        )

    function, counter = compiled(run, dynamic=True)
    attn = patterncc.compile(STREAMING)
    query, key, value = tensors()
    function(query, key, value, 9, 2, 3)
    before = compile_counts()
    for window, layer, offset in ((8, 3, 4), (1000, 5, 7), (2, 31, 100)):
        out = function(query, key, value, window, layer, offset)
        answer = attn(query, key, value, window=window, layer=layer, q_offset=offset)
        assert torch.equal(out, answer)
    assert counter.frame_count == 1
    # The last offsets put rows past the keys, which is one more program and no more.
    assert compile_counts().programs <= before.programs + 1


@pytest.mark.parametrize("source", ["causal", "window(7)", STREAMING])
def test_attention_by_text(source: str) -> None:
    function, counter = compiled(lambda q, k, v: patterncc.attention(q, k, v, source))
    query, key, value = tensors()
    assert torch.equal(function(query, key, value), patterncc.attention(query, key, value, source))
    assert counter.frame_count == 1


def test_a_model_of_several_patterns_is_one_graph() -> None:
    layers = [
        patterncc.compile("causal" if index % 3 == 2 else f"window({index + 2})")
        for index in range(12)
    ]

    def model(state: torch.Tensor) -> torch.Tensor:
        for index, attn in enumerate(layers):
            state = state + attn(state, state, state, layer=index, layers=12)
        return state

    function, counter = compiled(model)
    query, _, _ = tensors(kv_heads=4)
    torch.testing.assert_close(function(query), model(query))
    assert counter.frame_count == 1


def test_a_module_keeps_its_pattern() -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(16, 16)
            self.attn = patterncc.compile(STREAMING)

        def forward(self, state: torch.Tensor) -> torch.Tensor:
            state = self.project(state)
            return self.attn(state, state, state)

    layer = Layer()
    function, _ = compiled(layer)
    query, _, _ = tensors(kv_heads=4)
    with torch.no_grad():
        torch.testing.assert_close(function(query), layer(query))
    torch.testing.assert_close(function(query), layer(query))


def test_autocast() -> None:
    attn = patterncc.compile("causal")

    def run(query: Any, key: Any, value: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return attn(query, key.half(), value)

    function, _ = compiled(run)
    inputs = tensors()
    assert function(*inputs).dtype == torch.bfloat16
    assert torch.equal(function(*inputs), run(*inputs))


def test_vmap_inside() -> None:
    attn = patterncc.compile("causal")
    function, _ = compiled(torch.func.vmap(lambda *inputs: attn(*inputs)))
    inputs = [torch.stack([tensor] * 2) for tensor in tensors(12)]
    torch.testing.assert_close(function(*inputs)[1], attn(*tensors(12)))


def test_a_mistake_is_named() -> None:
    attn = patterncc.compile(STREAMING)
    query, key, value = tensors()
    function, _ = compiled(lambda *inputs: attn(*inputs))
    with pytest.raises(Exception, match="`value` has length 39 but `key` has 40"):
        function(query, key, value[:, :, 1:])
    wrong: Any = "wide"
    function, _ = compiled(lambda q, k, v: attn(q, k, v, window=wrong))
    with pytest.raises(Exception, match="`window` is str 'wide'; it must be an integer"):
        function(query, key, value)


# ------------------------------------------------------------------------------- other processes


@pytest.mark.slow
def test_the_default_backend_in_a_fresh_process() -> None:
    printed = fresh_process(
        """
        import torch, patterncc

        attn = patterncc.compile("causal and (window(16) or sinks(4))")
        function = torch.compile(lambda x: attn(x * 2, x, x), fullgraph=True, dynamic=True)
        for length in (40, 57, 200):
            x = torch.randn(2, 4, length, 16)
            torch.testing.assert_close(function(x), attn(x * 2, x, x))
        print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        """
    )
    assert printed == "1"


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_runs_in_a_fresh_process(tmp_path: Path, strict: bool) -> None:
    attn = patterncc.compile(STREAMING)

    class Model(torch.nn.Module):
        def forward(self, query: Any, key: Any, value: Any) -> Any:
            return attn(query, key, value, window=9, return_lse=True)

    inputs = tensors(40)
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(Model(), inputs, dynamic_shapes=[{2: length}] * 3, strict=strict)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "patterncc.attn_fwd.default" in names
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    inputs = tensors(70)
    answer = attn(*inputs, window=9, return_lse=True)
    torch.save((inputs, answer), tmp_path / "case.pt")
    printed = fresh_process(
        """
        import sys, torch, patterncc.ops

        program = torch.export.load(sys.argv[1]).module()
        inputs, answer = torch.load(sys.argv[2])
        print(all(torch.equal(a, b) for a, b in zip(program(*inputs), answer)))
        """,
        str(path),
        str(tmp_path / "case.pt"),
    )
    assert printed == "True"
