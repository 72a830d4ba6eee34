"""The CPU executor on several passes, on classes of rows that lie apart, and on tables."""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patterncc.codegen import cpu
from patterncc.codegen.choice import TilingChoice, lower_passes
from patterncc.codegen.cpu import head_kinds, kernels
from patterncc.codegen.cpu.heads import PlanStore
from patterncc.codegen.decompose import decompositions
from patterncc.codegen.ir import Q_FIRST, Q_LAST, BlockProgram, Passes, Sweep
from patterncc.codegen.reference import allowed, dense_attention
from patterncc.codegen.tiling import change_variables
from patterncc.dsl import load
from patterncc.dsl.build import add, floordiv, maximum, subtract
from patterncc.dsl.errors import ArgumentError, UnsupportedError
from patterncc.dsl.mask import Const, Entry, IntExpr, Predicate, Segment, Var
from tests.codegen.cpu_calls import LSE_TOLERANCE, TOLERANCE, random
from tests.codegen.drawing import numbers
from tests.codegen.test_decompose import strided

Tables = dict[str, Tensor]


def mask_of(
    body: Predicate, query: Tensor, key: Tensor, env: dict[str, int], tables: Tables
) -> Tensor:
    """The mask `[batch, heads, q_len, kv_len]`, head by head."""
    batch, heads, q_len, _ = query.shape
    kv_heads, kv_len = key.shape[1:3]
    env = {"layer": 0, "q_offset": kv_len - q_len, **env}
    env |= {"q_len": q_len, "kv_len": kv_len, "heads": heads, "kv_heads": kv_heads}
    q = torch.arange(env["q_offset"], env["q_offset"] + q_len)[:, None]
    k = torch.arange(kv_len)[None, :]
    places = [
        {**env, "batch": b, "head": h, "kv_head": h * kv_heads // heads}
        for b in range(batch)
        for h in range(heads)
    ]
    found = torch.stack([allowed(body, q, k, place, tables) for place in places])
    return found.view(batch, heads, q_len, kv_len)


def check(
    passes: Passes,
    body: Predicate,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    env: dict[str, int] | None = None,
    tables: Tables | None = None,
) -> tuple[Tensor, Tensor]:
    """Holds a call against the dense reference and returns its results."""
    env, tables = env or {}, tables or {}
    out, lse = cpu.attention(passes, query, key, value, env=env, tables=tables, scale=0.2)
    mask = mask_of(body, query, key, env, tables)
    expected, expected_lse = dense_attention(query, key, value, mask, 0.2)
    assert out.dtype == query.dtype
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    tolerance = LSE_TOLERANCE[query.dtype]
    torch.testing.assert_close(lse.double(), expected_lse, rtol=tolerance, atol=tolerance)
    dead = ~mask.any(-1)
    assert not out[dead].any()
    assert bool((lse[dead] == -math.inf).all())
    return out, lse


def inputs(
    q_len: int = 200,
    kv_len: int = 200,
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        random(batch, heads, q_len, 16, seed=1, dtype=dtype),
        random(batch, kv_heads, kv_len, 16, seed=2, dtype=dtype),
        random(batch, kv_heads, kv_len, 8, seed=3, dtype=dtype),
    )


# ---------------------------------------------------------------------------- passes and classes


def program_of(
    body: Predicate, lo: IntExpr | None = None, hi: IntExpr | None = None, tile: int = 32
) -> BlockProgram:
    """A program that visits key tiles from `lo` to `hi`, or all, as partial ones."""
    whole = floordiv(add(Var("kv_len"), Const(tile - 1)), Const(tile))
    sweep = Sweep("partial", lo or Const(0), hi or whole)
    return BlockProgram(repr(body), tile, tile, body, (sweep,), None)


@settings(max_examples=60)
@given(
    body=strided,
    values=numbers,
    lengths=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    offset=st.one_of(st.none(), st.integers(-60, 400)),
    tile=st.sampled_from([16, 32, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
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
    query, key, value = inputs(*lengths, dtype=dtype)
    for parts in decompositions(body):
        passes = tuple(
            replace(
                program_of(change_variables(part.body, part.tiling), tile=tile), tiling=part.tiling
            )
            for part in parts
        )
        check(passes, body, query, key, value, env)


@cache
def passes_of(text: str, tiling: TilingChoice = "strided") -> Passes:
    return lower_passes(load(text), 64, 64, tiling=tiling)


STRIDED = [
    "dilated(9, 8)",
    "dilated(20, 100)",
    "strided(7)",
    "k % 4 == 3",
    "longformer(32, 3, 5)",
    "causal and (window(20) or (q - k) % 16 == 0)",
    "causal and (k % 8 == layer or q - k < 9)",
    "causal and (k + head) % 4 == 0",
    "causal and (k - q + batch) % 6 == 2 or k < 3",
    "q % 3 == head and k % 5 == 1",
    "q % 7 == 3 and (q - k) % 7 == 0",
]


@pytest.mark.parametrize("text", STRIDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kernel", ["aten flash", "matmul"])
def test_strided_patterns(
    text: str, dtype: torch.dtype, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "matmul":
        monkeypatch.setattr(kernels, "flash_works", lambda: False)
    passes = passes_of(text)
    assert any(program.tiling.k_step > 1 for program in passes)
    body = load(text).body
    check(passes, body, *inputs(dtype=dtype), {"layer": 3})
    check(passes, body, *inputs(150, 230, dtype=dtype), {"layer": 3, "q_offset": 41})
    check(passes, body, *inputs(5, 3, dtype=dtype), {"layer": 3, "q_offset": 0})


@pytest.mark.parametrize("text", STRIDED)
def test_the_tensors_are_not_copied(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.flash_works()  # asked once in a process, with tensors of its own
    seen: set[int] = set()
    original = kernels.flash

    def spy(query: Tensor, key: Tensor, value: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        seen.update(x.untyped_storage().data_ptr() for x in (query, key, value))
        return original(query, key, value, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "flash", spy)
    query, key, value = (random(1, 4, 200, 16, seed=seed) for seed in (1, 2, 3))
    check(passes_of(text), load(text).body, query, key, value, {"layer": 3})
    tensors = (query, key, value)
    assert seen <= {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_rows_that_only_a_later_pass_sees() -> None:
    text = "causal and (q < 50 and q - k < 9 or q >= 120 and (q - k) % 8 == 0)"
    passes = passes_of(text)
    assert len(passes) == 2
    for order in (passes, passes[::-1]):
        _, lse = check(order, load(text).body, *inputs())
        assert bool((lse[:, :, 50:120] == -math.inf).all())
        assert bool((lse[:, :, 120:] > -math.inf).all())


def test_no_pass_and_passes_without_tiles() -> None:
    query, key, value = inputs()
    nothing = (BlockProgram("false", 64, 64, load("k < 0 - q").body, (), ()),)
    for passes in ((), nothing, nothing * 3):
        out, lse = cpu.attention(passes, query, key, value)
        assert not out.any()
        assert bool((lse == -math.inf).all())


@pytest.mark.parametrize("poison", [math.nan, math.inf, 3e38])
def test_unseen_keys_cannot_reach_a_row_of_any_pass(poison: float) -> None:
    text = "causal and (window(20) or (q - k) % 16 == 0)"
    passes = passes_of(text)
    query, key, value = inputs()
    clean, clean_lse = cpu.attention(passes, query, key, value)
    key[:, :, 60] = value[:, :, 60] = poison
    out, lse = cpu.attention(passes, query, key, value)
    blind = ~mask_of(load(text).body, query, key, {}, {})[..., 60]
    torch.testing.assert_close(out[blind], clean[blind], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse[blind], clean_lse[blind], rtol=1e-5, atol=1e-5)


def test_passes_give_the_same_bits_each_time() -> None:
    passes = passes_of("causal and (window(20) or (q - k) % 16 == 0)")
    first = cpu.attention(passes, *inputs())
    cpu.plans.clear()
    for one, other in zip(first, cpu.attention(passes, *inputs()), strict=True):
        assert torch.equal(one, other)


def test_classes_alike_share_their_plan() -> None:
    (program,) = passes_of("dilated(9, 8)")
    store = PlanStore()
    env = {"q_len": 160, "kv_len": 160, "q_offset": 0, "heads": 4, "kv_heads": 4}
    found = {id(store.find(program, rows.env, 1)[0]) for rows, _ in store.classes(program, env, 1)}
    assert len(found) == store.misses == 1
    # Two classes have a row more than the others.
    for rows, _ in store.classes(program, env | {"q_len": 162, "kv_len": 162}, 1):
        store.find(program, rows.env, 1)
    assert store.misses == 2


# ---------------------------------------------------------------------------------------- tables


def windows(tile: int = 32) -> tuple[Predicate, BlockProgram]:
    """`0 <= q - k < w[head]`, its tiles bounded by the table."""
    body = load("pattern p(w: int[head]): 0 <= q - k < w[head]").body
    width = Entry("w", (Var("head"),))
    first = add(subtract(Q_FIRST, width), Const(1))
    lo = floordiv(maximum(first, Const(0)), Const(tile))
    return body, program_of(body, lo, add(floordiv(Q_LAST, Const(tile)), Const(1)), tile)


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
            "pattern p(c: int[head]): causal and (k % 8 == c[head] or q - k < 12)",
            {"c": [3, 0, 9, 3]},
        ),
        (
            "pattern p(b: bool[head, *, *], t: int[token]):\n"
            "    b[head, q // 64, k // 64] or (q - k) % 16 == 0 and t[q] == t[k]",
            {"b": torch.arange(64).view(4, 4, 4) % 3 == 0, "t": torch.arange(300) // 50},
        ),
    ],
)
@pytest.mark.parametrize("tiling", ["auto", "dense", "strided"])
def test_tables_in_classes(text: str, tables: Tables, tiling: TilingChoice) -> None:
    passes = lower_passes(load(text), 32, 32, tiling=tiling)
    given_tables = {name: torch.as_tensor(table) for name, table in tables.items()}
    check(passes, load(text).body, *inputs(), tables=given_tables)
    check(passes, load(text).body, *inputs(50, 300), {"q_offset": 101}, given_tables)


def test_a_window_for_each_head() -> None:
    body, program = windows()
    for widths in ([9, 80, 9, 33], [0, -5, 1, 500], [64]):
        tables = {"w": torch.tensor(widths, dtype=torch.int32)}
        check((program,), body, *inputs(), tables=tables)


def test_documents() -> None:
    tile = 32
    body = load("pattern p(d: segments): causal and d[q] == d[k]").body
    lo = floordiv(Segment("start", "d", Q_FIRST), Const(tile))
    last = add(floordiv(Q_LAST, Const(tile)), Const(1))
    program = program_of(body, lo, last)
    for ends in ([0, 200], [0, 3, 3, 64, 90, 200], [0, 50], [0]):
        for dtype in (torch.int32, torch.int64):
            check((program,), body, *inputs(), tables={"d": torch.tensor(ends, dtype=dtype)})
    everything = load("pattern p(d: segments): d[q] != d[k] or q - k < 7").body
    check((program_of(everything),), everything, *inputs(), tables={"d": torch.tensor([0, 9, 99])})


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("pattern p(t: int[token]): t[q] == t[k]", {"t": torch.arange(190) // 7 % 5}),
        (
            "pattern p(b: bool[head, *, *]): b[head, q // 16, k // 16]",
            {"b": torch.arange(3 * 9 * 11).view(3, 9, 11) % 7 < 3},
        ),
        (
            "pattern p(b: bool[*, kv_head]): b[k, kv_head] and k <= q",
            {"b": (torch.arange(400).view(200, 2) % 3 == 0)},
        ),
        (
            "pattern p(n: int[batch], w: int[layer, head]):\n"
            "    k < n[batch] and q - k < w[layer, head]",
            {"n": torch.tensor([150, 40]), "w": torch.tensor([[3, 50, 3, 100], [1, 2, 3, 4]])},
        ),
        ("pattern p(r: bool[kv_head]): causal and (r[kv_head] or k < 5)", {"r": [True, False]}),
        ("pattern p(r: bool[batch]): if r[batch] then causal else k > q", {"r": [True]}),
    ],
)
@pytest.mark.parametrize("tile", [16, 64])
def test_tables(text: str, tables: Tables, tile: int) -> None:
    body = load(text).body
    given_tables = {name: torch.as_tensor(table) for name, table in tables.items()}
    check((program_of(body, tile=tile),), body, *inputs(), tables=given_tables)
    turned = {n: t.mT.contiguous().mT if t.ndim > 1 else t for n, t in given_tables.items()}
    check((program_of(body, tile=tile),), body, *inputs(110, 300), {"q_offset": 77}, turned)


def test_tables_may_change_in_place() -> None:
    body, program = windows()
    widths = torch.tensor([9, 80, 9, 33])
    check((program,), body, *inputs(), tables={"w": widths})
    widths[1] = 2
    check((program,), body, *inputs(), tables={"w": widths})


def test_heads_with_equal_numbers_are_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from patterncc.codegen.cpu import heads, tiles

    _, program = windows()
    planned = []
    original = tiles.masked_tiles

    def counted(*args: Any) -> Any:
        planned.append(1)
        return original(*args)

    monkeypatch.setattr(heads, "masked_tiles", counted)
    store = PlanStore()
    env = {"q_len": 99, "kv_len": 99, "q_offset": 0, "heads": 6, "kv_heads": 3}
    table = np.array([5, 9, 5, 5, 9, 500])
    found = store.find(program, {**env, "w": table}, 2, digests={"w": head_kinds.digest(table)})
    assert len(planned) == 3
    assert [part.places for part in found] == [
        ((None, 0), (None, 2), (None, 3)),
        ((None, 1), (None, 4)),
        ((None, 5),),
    ]


def test_long_tables_are_not_kept() -> None:
    body = load("pattern p(t: int[token]): t[q] == t[k]").body
    program = program_of(body)
    store = PlanStore()
    env = {"q_len": 8, "kv_len": 800_000, "q_offset": 799_992, "heads": 1, "kv_heads": 1}
    for first in range(3):
        table = np.zeros(800_000, np.int64)
        table[:-8] = first + 1
        digests = {"t": head_kinds.digest(table)}
        store.find(program, {**env, "t": table}, 1, digests=digests)
    assert store.misses == 3
    assert store.nbytes < 1 << 20
    assert not any(isinstance(part, np.ndarray) for place in store._kept for part in place)


def test_digests_tell_arrays_apart() -> None:
    arrays: list[npt.NDArray[Any]] = [
        np.zeros(4, np.int64),
        np.zeros((2, 2), np.int64),
        np.zeros((4, 1), np.int64),
        np.zeros(8, np.int32),
        np.zeros(32, np.bool_),
        np.zeros((0, 3), np.bool_),
        np.array([0, 0, 0, 1]),
    ]
    assert len({head_kinds.digest(array) for array in arrays}) == len(arrays)
    turned = np.arange(6).reshape(2, 3).T
    assert head_kinds.digest(turned) == head_kinds.digest(turned.copy())


def test_tiles_that_turn_out_full_or_empty() -> None:
    text = "pattern p(b: bool[*, *]): b[q // 64, k // 64]"
    body = load(text).body
    table = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])
    store = PlanStore()
    env = {"q_len": 150, "kv_len": 150, "q_offset": 0, "heads": 1, "kv_heads": 1}
    digests = {"b": b""}
    (part,) = store.find(program_of(body), {**env, "b": table.numpy()}, 1, digests=digests)
    assert part.plan.pairs == int(
        sum((min(64, 150 - 64 * i)) * (min(64, 150 - 64 * j)) for i, j in table.nonzero().tolist())
    )
    assert part.plan.untouched
    full = [call for call in part.plan.calls if call.masks is None]
    assert len(full) == len(part.plan.calls)


# -------------------------------------------------------------------------------------- bad input


def test_tables_that_are_missing_or_elsewhere() -> None:
    _, program = windows()
    with pytest.raises(ArgumentError, match="reads the table `w`, which was not given"):
        cpu.attention((program,), *inputs())
    with pytest.raises(UnsupportedError, match="`w` is on meta; this executor is for the CPU"):
        table = torch.zeros(4, dtype=torch.int64, device="meta")
        cpu.attention((program,), *inputs(), tables={"w": table})


def test_numbers_of_a_class_that_are_missing() -> None:
    passes = passes_of("pattern p(c): k % 4 == c % 4 and causal")
    with pytest.raises(ArgumentError, match="reads `c`, which was not given"):
        cpu.attention(passes, *inputs())
