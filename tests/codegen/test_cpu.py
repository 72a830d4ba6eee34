"""The CPU executor against float64 dense attention, on its flash kernel and on matrix products."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patterncc.codegen import cpu
from patterncc.codegen.cpu import kernels
from patterncc.codegen.lower import lower
from patterncc.dsl.errors import ArgumentError, UnsupportedError
from patterncc.dsl.mask import Predicate
from tests.codegen.cpu_calls import BATCH_HEADS, TOLERANCE, check, program_of, random
from tests.codegen.drawing import masks, numbers, pattern_of


@settings(max_examples=25)
@given(
    body=masks,
    values=numbers,
    lengths=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    offset=st.one_of(st.none(), st.integers(-60, 400)),
    tile=st.sampled_from([(64, 64), (32, 64), (128, 16), (16, 128)]),
    heads=st.sampled_from(BATCH_HEADS),
    dims=st.tuples(st.sampled_from([1, 2, 8, 17, 64]), st.sampled_from([1, 8, 24, 80])),
    dtype=st.sampled_from(list(TOLERANCE)),
    layout=st.sampled_from(["plain", "tokens first", "odd"]),
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
    layout: str,
) -> None:
    try:
        program = lower(pattern_of(body), *tile)
    except UnsupportedError:
        return
    batch, q_heads, kv_heads = heads
    q_len, kv_len = lengths

    def tensor(count: int, length: int, dim: int, seed: int) -> Tensor:
        if layout == "tokens first":
            return random(batch, length, count, dim, seed=seed, dtype=dtype).transpose(1, 2)
        if layout == "odd":
            wide = random(batch, count, dim, 2 * length + 1, seed=seed, dtype=dtype)
            return wide[..., 1::2].transpose(2, 3)
        return random(batch, count, length, dim, seed=seed, dtype=dtype)

    env = {name: values[name] for name in ("a", "b", "layer")}
    env |= {} if offset is None else {"q_offset": offset}
    check(
        program,
        tensor(q_heads, q_len, dims[0], 1),
        tensor(kv_heads, kv_len, dims[0], 2),
        tensor(kv_heads, kv_len, dims[1], 3),
        env,
    )


@pytest.mark.parametrize(
    "text",
    [
        "full",
        "causal",
        "window(100)",
        "causal and (sinks(4) or window(100))",
        "longformer(64, 1, 20)",
        "local_strided(32, 2, 3)",
        "strided(5)",
        "k // 64 % 2 == 1",
        "q - k > 70",
        "if head % 2 == 0 then causal else window(50)",
        "if kv_head == 1 then causal else sinks(3)",
        "if batch == 1 and head == 2 then window(9) else chunked(80)",
        "if head < 3 then false else causal",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patterns(text: str, dtype: torch.dtype, kernel: str) -> None:
    query = random(2, 4, 300, 32, seed=1, dtype=dtype)
    key = random(2, 2, 330, 32, seed=2, dtype=dtype)
    value = random(2, 2, 330, 24, seed=3, dtype=dtype)
    check(program_of(text), query, key, value)


@pytest.mark.parametrize("dims", [(1, 1), (3, 5), (16, 80), (96, 96), (192, 128), (256, 300)])
def test_head_dimensions(dims: tuple[int, int], kernel: str) -> None:
    query, key = random(1, 2, 150, dims[0], seed=1), random(1, 2, 150, dims[0], seed=2)
    check(program_of("window(40)"), query, key, random(1, 2, 150, dims[1], seed=3))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("scale", [None, 0.0, -1.0, 3.0])
def test_types_and_scales(dtype: torch.dtype, scale: float | None, kernel: str) -> None:
    query, key, value = (random(1, 2, 130, 16, seed=seed, dtype=dtype) for seed in (1, 2, 3))
    check(program_of("causal and (sinks(4) or window(50))"), query, key, value, scale=scale)


@pytest.mark.parametrize("group", [1, 2, 3, 6])
def test_grouped_heads_are_not_copied(
    group: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for name in ("flash", "matmul"):
        original = getattr(kernels, name)

        def spy(query: Tensor, key: Tensor, *rest: object, original: object = original) -> object:
            seen.append((key.shape[0] * key.shape[1], key.untyped_storage().data_ptr()))
            return original(query, key, *rest)  # type: ignore[operator]

        monkeypatch.setattr(kernels, name, spy)
    query, key, value = (
        random(2, heads, 256, 16, seed=heads) for heads in (6, 6 // group, 6 // group)
    )
    value = value[..., :16]
    check(program_of("window(70)"), query, key, value)
    assert seen
    assert {pointer for _, pointer in seen} == {key.untyped_storage().data_ptr()}


def test_strides_of_every_kind(kernel: str) -> None:
    program = program_of("causal and (sinks(4) or window(50))")
    query = random(2, 130, 4, 16, seed=1).transpose(1, 2)
    shared = random(1, 1, 130, 16, seed=2).expand(2, 4, 130, 16)
    check(program, query, shared, shared)
    same_key = random(2, 4, 1, 16, seed=3).expand(2, 4, 130, 16)
    check(program, query, same_key, shared)
    every_other = random(2, 4, 260, 32, seed=4)[:, :, ::2, ::2]
    check(program, every_other, every_other, query)
    offset = random(2, 4, 131, 17, seed=5)[:, :, 1:, 1:]
    check(program, offset, offset, offset)
    one = random(2, 4, 1, 16, seed=6).as_strided((2, 4, 1, 16), (64, 16, 0, 1))
    check(program, one, query, query)


# ------------------------------------------------------------------------------- edges


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 5), (2, 0, 3, 5), (2, 2, 0, 5), (2, 2, 3, 0), (2, 2, 0, 0)]
)
def test_nothing_to_do(shape: tuple[int, int, int, int], kernel: str) -> None:
    batch, heads, q_len, kv_len = shape
    query = random(batch, heads, q_len, 8)
    key, value = random(batch, max(heads, 1), kv_len, 8), random(batch, max(heads, 1), kv_len, 4)
    out, lse = cpu.attention((program_of("causal"),), query, key, value)
    assert out.shape == (batch, heads, q_len, 4)
    assert not out.any()
    assert lse.shape == (batch, heads, q_len)
    assert bool((lse == -math.inf).all())


@pytest.mark.parametrize("text", ["k > q + 1000", "q >= 100 and k < 3", "q - k > 99"])
def test_rows_that_see_nothing(text: str, kernel: str) -> None:
    query, key, value = (random(1, 2, 150, 8, seed=seed) for seed in (1, 2, 3))
    query[:, :, 7] = math.nan  # a row that sees nothing under each of these masks
    value[:, :, 149] = math.inf
    check(program_of(text), query[:, :, :], key, value)


@pytest.mark.parametrize("q_offset", [-500, -100, 0, 37, 1 << 29])
def test_offsets(q_offset: int, kernel: str) -> None:
    query, key = random(1, 2, 200, 8, seed=1), random(1, 2, 150, 8, seed=2)
    program = program_of("causal and (sinks(4) or (q - k) // 3 % 5 == 1)")
    check(program, query, key, key, {"q_offset": q_offset})


def test_one_token_of_a_long_cache() -> None:
    query, key = random(1, 8, 1, 64, seed=1), random(1, 2, 9000, 64, seed=2)
    check(program_of("causal and (sinks(4) or window(100))"), query, key, key)


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": (2, 3, 8)}, r"`query` has 3 axes; it needs 4"),
        ({"key": (1, 2, 5, 8)}, r"`key` has a batch of 1; `query` has 2"),
        ({"key": (2, 3, 5, 8)}, r"`key` has 3 heads and 5 keys; `value` has 2 and 5"),
        ({"value": (2, 2, 6, 8)}, r"`key` has 2 heads and 5 keys; `value` has 2 and 6"),
        ({"query": (2, 4, 5, 9)}, r"are 9, 8 and 8; they must be positive, the first two equal"),
        ({"query": (2, 3, 5, 8)}, r"`query` has 3 heads, which 2 key heads do not divide"),
        ({"value": (2, 2, 5, 0)}, r"are 8, 8 and 0; they must be positive"),
    ],
)
def test_shapes_that_do_not_fit(change: dict[str, tuple[int, ...]], message: str) -> None:
    fitting = {"query": (2, 4, 5, 8), "key": (2, 2, 5, 8), "value": (2, 2, 5, 8)}
    query, key, value = (random(*shape) for shape in (fitting | change).values())
    with pytest.raises(ArgumentError, match=message):
        cpu.attention((program_of("causal"),), query, key, value)


def test_types_that_do_not_fit() -> None:
    program = program_of("causal")
    query = random(1, 1, 4, 8)
    with pytest.raises(ArgumentError, match=r"`value` is torch.float16; it must be torch.float32"):
        cpu.attention((program,), query, query, query.half())
    with pytest.raises(UnsupportedError, match=r"cannot be done in torch\.int64"):
        cpu.attention((program,), *(query.long(),) * 3)
    with pytest.raises(UnsupportedError, match="`query` is on meta"):
        cpu.attention((program,), *(query.to("meta"),) * 3)


def test_scalars_that_are_missing() -> None:
    query = random(1, 1, 4, 8)
    with pytest.raises(ArgumentError, match="reads `layers`, which was not given"):
        cpu.attention((program_of("layers > 3 and causal"),), query, query, query)


def test_the_default_tiles_lower() -> None:
    config = cpu.default_config()
    query = random(1, 1, 200, 8)
    check(program_of("window(50)", config.block_q, config.block_k), query, query, query)
