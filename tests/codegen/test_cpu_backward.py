"""The CPU executor's backward against float64 autograd through dense attention."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patterncc.codegen import cpu
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.cpu import accumulate, backward_kernels, products
from patterncc.codegen.decompose import decompositions
from patterncc.codegen.ir import BlockProgram, Passes
from patterncc.codegen.lower import lower
from patterncc.codegen.tiling import change_variables
from patterncc.dsl import load
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Predicate
from tests.codegen.cpu_calls import BATCH_HEADS, program_of, random
from tests.codegen.cpu_gradients import (
    TOLERANCE,
    Gradients,
    assert_close,
    check,
    gradients,
    grads_of_results,
)
from tests.codegen.drawing import masks, numbers, pattern_of
from tests.codegen.test_cpu_passes import STRIDED, Tables, inputs, passes_of
from tests.codegen.test_cpu_passes import program_of as all_partial
from tests.codegen.test_decompose import strided


@pytest.fixture(params=["aten flash", "matmul"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on each kernel, the way a torch without the flash kernel would."""
    if request.param == "matmul":
        monkeypatch.setattr(backward_kernels, "flash_works", lambda: False)
    elif not backward_kernels.flash_works():
        pytest.skip("this torch lacks the flash kernel")
    return str(request.param)


# -------------------------------------------------------------------------------- against autograd


@settings(max_examples=25)
@given(
    body=masks,
    values=numbers,
    lengths=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    offset=st.one_of(st.none(), st.integers(-60, 400)),
    tile=st.sampled_from([(64, 64), (32, 64), (128, 16), (16, 128)]),
    heads=st.sampled_from(BATCH_HEADS),
    dims=st.tuples(st.sampled_from([1, 2, 8, 17, 64]), st.sampled_from([1, 8, 24, 80])),
    dtype=st.sampled_from(list(TOLERANCE)),
    with_lse=st.booleans(),
    flash=st.booleans(),
)
def test_drawn_masks(
    body: Predicate,
    values: dict[str, int],
    lengths: tuple[int, int],
    offset: int | None,
    tile: tuple[int, int],
    heads: tuple[int, int, int],
    dims: tuple[int, int],
    dtype: torch.dtype,
    with_lse: bool,
    flash: bool,
) -> None:
    try:
        program = lower(pattern_of(body), *tile)
    except UnsupportedError:
        return
    batch, q_heads, kv_heads = heads
    q_len, kv_len = lengths
    query = random(batch, q_heads, q_len, dims[0], seed=1, dtype=dtype)
    key = random(batch, kv_heads, kv_len, dims[0], seed=2, dtype=dtype)
    value = random(batch, kv_heads, kv_len, dims[1], seed=3, dtype=dtype)
    env = {name: values[name] for name in ("a", "b", "layer")}
    env |= {} if offset is None else {"q_offset": offset}
    with pytest.MonkeyPatch.context() as patch:
        if not flash:
            patch.setattr(backward_kernels, "flash_works", lambda: False)
        check((program,), body, query, key, value, env, with_lse=with_lse)


@settings(max_examples=25)
@given(
    body=strided,
    values=numbers,
    lengths=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    offset=st.one_of(st.none(), st.integers(-60, 400)),
    tile=st.sampled_from([16, 32, 64]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_way_to_split_a_mask(
    body: Predicate,
    values: dict[str, int],
    lengths: tuple[int, int],
    offset: int | None,
    tile: int,
    dtype: torch.dtype,
) -> None:
    env = {name: values[name] for name in ("a", "b", "layer")}
    env |= {} if offset is None else {"q_offset": offset}
    for parts in decompositions(body):
        passes = tuple(
            replace(
                all_partial(change_variables(part.body, part.tiling), tile=tile),
                tiling=part.tiling,
            )
            for part in parts
        )
        check(passes, body, *inputs(*lengths, dtype=dtype), env)


@pytest.mark.parametrize(
    "text",
    [
        "full",
        "causal",
        "window(100)",
        "causal and (sinks(4) or window(100))",
        "longformer(64, 1, 20)",
        "local_strided(32, 2, 3)",
        "k // 64 % 2 == 1",
        "q - k > 70",
        "k > q + 1000",
        "q >= 100 and k < 3",
        "if head % 2 == 0 then causal else window(50)",
        "if kv_head == 1 then causal else sinks(3)",
        "if batch == 1 and head == 2 then window(9) else chunked(80)",
        "if head < 3 then false else causal",
        # Modular masks, which have given other attention libraries wrong or infinite gradients.
        "causal and (q - k) % 3 == 0",
        "(q + k) % 7 == 2 and k <= q",
    ],
)
def test_patterns(text: str, kernel: str) -> None:
    check((program_of(text),), load(text).body, *inputs(300, 330))


@pytest.mark.parametrize("text", STRIDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_strided_patterns(text: str, dtype: torch.dtype, kernel: str) -> None:
    passes = passes_of(text)
    check(passes, load(text).body, *inputs(dtype=dtype), {"layer": 3})
    check(passes, load(text).body, *inputs(150, 230, dtype=dtype), {"layer": 3, "q_offset": 41})
    check(passes, load(text).body, *inputs(5, 3, dtype=dtype), {"layer": 3, "q_offset": 0})


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        (
            "pattern p(d: segments): document(d) and (dilated(9, 8) or sinks(5))",
            {"d": [0, 70, 71, 190]},
        ),
        (
            "pattern p(w: int[head]): causal and (q - k < w[head] or (q - k) % 8 == 0)",
            {"w": [9, 1, 40, 9]},
        ),
        (
            "pattern p(b: bool[head, *, *], t: int[token]):\n"
            "    b[head, q // 64, k // 64] or (q - k) % 16 == 0 and t[q] == t[k]",
            {"b": torch.arange(64).view(4, 4, 4) % 3 == 0, "t": torch.arange(300) // 50},
        ),
    ],
)
def test_tables(text: str, tables: Tables, kernel: str) -> None:
    passes = lower_passes(load(text), 32, 32)
    given_tables = {name: torch.as_tensor(table) for name, table in tables.items()}
    check(passes, load(text).body, *inputs(), tables=given_tables)
    check(passes, load(text).body, *inputs(50, 300), {"q_offset": 101}, given_tables)


@pytest.mark.parametrize("dims", [(1, 1), (3, 5), (16, 80), (96, 96), (192, 128), (256, 300)])
@pytest.mark.parametrize("with_lse", [False, True])
def test_head_dimensions(dims: tuple[int, int], with_lse: bool, kernel: str) -> None:
    program = program_of("window(40)")
    query, key = random(1, 2, 150, dims[0], seed=1), random(1, 2, 150, dims[0], seed=2)
    value = random(1, 2, 150, dims[1], seed=3)
    check((program,), program.mask, query, key, value, with_lse=with_lse)


@pytest.mark.parametrize("group", [1, 2, 3, 6])
@pytest.mark.parametrize("batch", [1, 2])
def test_heads_that_share_keys(group: int, batch: int, kernel: str) -> None:
    program = program_of("causal and (sinks(4) or window(70))")
    query = random(batch, 6, 256, 16, seed=1)
    key, value = (random(batch, 6 // group, 256, 16, seed=seed) for seed in (2, 3))
    check((program,), program.mask, query, key, value)


def test_strides_of_every_kind(kernel: str) -> None:
    program = program_of("causal and (sinks(4) or window(50))")
    query = random(2, 130, 4, 16, seed=1).transpose(1, 2)
    shared = random(1, 1, 130, 16, seed=2).expand(2, 4, 130, 16)
    check((program,), program.mask, query, shared, shared)
    same_key = random(2, 4, 1, 16, seed=3).expand(2, 4, 130, 16)
    check((program,), program.mask, query, same_key, shared)
    every_other = random(2, 4, 260, 32, seed=4)[:, :, ::2, ::2]
    check((program,), program.mask, every_other, every_other, query)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_every_stride(dtype: torch.dtype, kernel: str) -> None:
    """Such as `out.sum().backward()` gives: one number for all."""
    passes: Passes = (program_of("causal and (sinks(4) or window(50))"),)
    tensors = inputs(130, 130, dtype=dtype)
    shape = (2, 4, 130, 8)
    wide = random(2, 130, 4, 16, seed=5, dtype=dtype).transpose(1, 2)
    for grad_out in (
        torch.ones((), dtype=dtype).expand(shape),
        random(2, 1, 130, 1, seed=4, dtype=dtype).expand(shape),
        wide[..., ::2],
        wide[..., :8].flip(3),
    ):
        grad_lse = torch.ones(()).expand(shape[:3])
        plain = gradients(passes, *tensors, grad_out.contiguous(), grad_lse.contiguous())
        for one, other in zip(gradients(passes, *tensors, grad_out, grad_lse), plain, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("q_offset", [-500, -100, 0, 37, 1 << 29])
def test_offsets(q_offset: int, kernel: str) -> None:
    program = program_of("causal and (sinks(4) or (q - k) // 3 % 5 == 1)")
    check((program,), program.mask, *inputs(200, 150), {"q_offset": q_offset})


@pytest.mark.parametrize("scale", [0.0, -1.0, 3.0])
def test_scales(scale: float, kernel: str) -> None:
    """A factor of the scores is one of the queries."""
    passes: Passes = (program_of("causal and (sinks(4) or window(50))"),)
    query, key, value = inputs(dtype=torch.float64)
    grad_out, grad_lse = grads_of_results(query, value)
    out, lse = cpu.attention(passes, query, key, value, scale=scale)
    saved = (query, key, value, out, lse)
    found = cpu.attention_backward(passes, grad_out, grad_lse, *saved, scale=scale)
    scaled = query * (scale / 0.2)
    expected = gradients(passes, scaled, key, value, grad_out, grad_lse)
    expected = expected._replace(query=expected.query * (scale / 0.2))
    assert_close(Gradients(*found), expected, query)


def test_few_heads_and_blocks_at_a_time(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of("causal and (sinks(4) or window(100))")
    query, key, value = random(2, 6, 700, 16, seed=1), *inputs(1, 700, kv_heads=3)[1:]
    monkeypatch.setattr(accumulate, "_MAX_NUMBERS", 1 << 12)
    monkeypatch.setattr(products, "_MAX_SCORES", 1 << 12)
    check((program,), program.mask, query, key, value)


# ------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 5), (2, 0, 3, 5), (2, 2, 0, 5), (2, 2, 3, 0), (2, 2, 0, 0)]
)
def test_nothing_to_do(shape: tuple[int, int, int, int], kernel: str) -> None:
    batch, heads, q_len, kv_len = shape
    query = random(batch, heads, q_len, 8)
    key, value = random(batch, max(heads, 1), kv_len, 8), random(batch, max(heads, 1), kv_len, 4)
    grad_out, grad_lse = grads_of_results(query, value)
    found = gradients((program_of("causal"),), query, key, value, grad_out, grad_lse)
    for grad, tensor in zip(found, (query, key, value), strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()


def test_no_pass_and_passes_without_tiles() -> None:
    query, key, value = inputs()
    nothing = (BlockProgram("false", 64, 64, load("k < 0 - q").body, (), ()),)
    for passes in ((), nothing, nothing * 3):
        found = gradients(passes, query, key, value, *grads_of_results(query, value))
        assert not any(grad.any() for grad in found)


def test_one_token_of_a_long_cache() -> None:
    program = program_of("causal and (sinks(4) or window(100))")
    query = random(1, 8, 1, 64, seed=1)
    key, value = (random(1, 2, 9000, 64, seed=seed) for seed in (2, 3))
    check((program,), program.mask, query, key, value)


# -------------------------------------------------------------------------------------- behaviour


def test_gradcheck(kernel: str) -> None:
    passes = passes_of("causal and (window(3) or (q - k) % 16 == 0)")
    tensors = [
        random(1, 2, 21, 3, seed=1, dtype=torch.float64),
        random(1, 1, 21, 3, seed=2, dtype=torch.float64),
        random(1, 1, 21, 2, seed=3, dtype=torch.float64),
    ]

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, *given: Tensor) -> object:
            out, lse = cpu.attention(passes, *given)
            ctx.save_for_backward(*given, out, lse)
            return out, lse

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> object:
            saved: tuple[Tensor, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
            return cpu.attention_backward(passes, *grads, *saved)

    inputs_ = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(Attention.apply, inputs_)


def test_repeated_runs_are_equal_bit_by_bit(kernel: str) -> None:
    query, key, value = inputs(500, 500)
    for text in ("causal and (sinks(4) or window(100))", "longformer(32, 3, 5)"):
        passes = passes_of(text, "auto")
        grads = grads_of_results(query, value)
        runs = [gradients(passes, query, key, value, *grads) for _ in range(4)]
        cpu.plans.clear()
        runs.append(gradients(passes, query, key, value, *grads))
        for run in runs[1:]:
            assert all(torch.equal(*pair) for pair in zip(run, runs[0], strict=True))


def test_no_memory_is_taken_for_what_it_held_before(kernel: str) -> None:
    """Torch fills what `empty` returns with NaN while it is told to be deterministic."""
    tensors = inputs(300, 300)
    grads = grads_of_results(tensors[0], tensors[2])
    for text in ("causal and (sinks(4) or window(100))", "dilated(9, 8)", "q >= 100 and k < 3"):
        passes = passes_of(text, "auto")
        clean = gradients(passes, *tensors, *grads)
        try:
            torch.use_deterministic_algorithms(True)
            assert bool(torch.empty(9).isnan().all())
            poisoned = gradients(passes, *tensors, *grads)
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(torch.equal(*pair) for pair in zip(poisoned, clean, strict=True))


def test_inputs_stay_as_they_are(kernel: str) -> None:
    passes: Passes = (program_of("window(20)"),)
    query, key, value = inputs()
    out, lse = cpu.attention(passes, query, key, value)
    tensors = [*grads_of_results(query, value), query, key, value, out, lse]
    before = [tensor.clone() for tensor in tensors]
    found = cpu.attention_backward(passes, *tensors)
    assert all(torch.equal(*pair) for pair in zip(tensors, before, strict=True))
    assert not {x.data_ptr() for x in tensors} & {x.data_ptr() for x in found}


def test_no_gradient_is_recorded() -> None:
    passes: Passes = (program_of("window(20)"),)
    query, key, value = (tensor.requires_grad_() for tensor in inputs())
    grad_out, _ = grads_of_results(query, value)
    found = gradients(passes, query, key, value, grad_out.requires_grad_())
    assert not any(grad.requires_grad for grad in found)
