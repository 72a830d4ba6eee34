"""Runs of keys that tables decide one by one: what is gathered, when, and how that is counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc.codegen import schedule
from patterncc.codegen.choice import candidates, lower_passes, tiling_names
from patterncc.codegen.decompose import class_condition
from patterncc.codegen.ir import BlockProgram, Tiling
from patterncc.codegen.listing import kernel_mask, ranked, run_length
from patterncc.codegen.lower import with_transposed
from patterncc.codegen.printer import format_program
from patterncc.codegen.schedule import evaluate
from patterncc.codegen.verify import verify
from patterncc.dsl.errors import InternalError
from patterncc.dsl.library import source
from patterncc.dsl.loader import load
from patterncc.dsl.mask import Predicate
from patterncc.dsl.printer import expression_text
from tests.codegen.drawing import Shape, brute_block_map, shapes
from tests.codegen.test_lower import transposed_map

COLUMNS = "pattern p(v: bool[head, *]): causal and v[head, k]"
EITHER = "pattern p(v: bool[*], w: bool[*]): causal and (v[k] or w[k // 2])"
LINES = "pattern p(v: bool[head, *], s: bool[*]): causal and (v[head, k] or s[q - k])"
RECENT = "pattern p(v: bool[*]): causal and (window(20) or v[k])"
BLOCKS = "pattern p(keep: bool[*, *]): causal and keep[q // 16, k]"
RUNS = "pattern p(keep: bool[*, *]): keep[q // 16, k // 4] or window(9)"
STRIDES = "pattern p(v: bool[*]): causal and ((q - k) % 5 == 0 or v[k])"
TOKENS = "pattern p(v: bool[*]): v[q] or v[k] or around(6)"
BOTH = "pattern p(v: bool[*], s: bool[*]): causal and v[k] and s[q - k]"
BEHIND = "pattern p(v: bool[*], n): causal and (k >= n or v[k + 3])"
UNTIL = "pattern p(until: int[token]): causal and q < until[k]"
AGES = """pattern p(age: int[token], v: bool[*]):
    (window(9) or q - k < age[k // 3]) and (k < 40 or v[k])"""
KINDS = "pattern p(kind: int[token], v: bool[*]): causal and (kind[k] == 40 or v[k])"
TEXTS = (COLUMNS, EITHER, LINES, RECENT, BLOCKS, RUNS, STRIDES, TOKENS, BOTH, BEHIND)
NUMBERS = (UNTIL, AGES, KINDS)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("v[head, k]", 1),
        ("v[head, k + 5]", 1),
        ("v[head, 7 - k]", 1),
        ("v[head, k // 4]", 4),
        ("v[head, k // 12]", 4),
        ("v[head, (k + 8) // 16]", 8),
        ("v[head, (k + kv_len) // 16]", 1),
        ("v[head, k // 16]", 16),
        ("v[head, k // 32]", None),  # two runs of a tile: few tiles are visited in vain
        ("v[head, k // 64]", None),
        ("v[q // 64, k]", 1),
        ("v[q // 4, k]", None),  # each run would read 17 entries
        ("v[q, k]", None),
        ("v[head, q - k]", None),
        ("v[head, q]", None),
        ("v[head, k % 64]", None),  # not monotone
        ("v[head, k] or v[head, k // 4]", 1),
        ("v[head, k] or v[head, q - k]", None),
        ("not v[head, k]", None),
        ("q < n[k]", 1),
        ("2 * q + n[k // 4] > k + 7", 1),
        ("n[k] == 3 or v[head, k]", 1),
        ("n[q] == n[k]", None),
        ("q == n[k]", None),
        ("q // 64 < n[k]", None),  # no sum of the row and the rest
        ("q < n[3]", None),
    ],
)
def test_which_terms_are_gathered(term: str, expected: int | None) -> None:
    body = load(f"pattern p(v: bool[*, *], n: int[token]): {term}").body
    assert run_length(body, 64, 64) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h2o", "dense + gathered keys"),
        ("longformer_tokens", "dense + dense + gathered keys"),
        ("minference", "gathered keys"),
        ("snapkv", "dense + gathered keys"),
        ("squeezed", "dense + gathered keys"),
        ("vertical_slash", "dense + gathered keys"),
        ("eviction", "gathered keys"),
        ("bigbird", "dense + dense"),  # blocks
        ("nsa", "dense"),
    ],
)
def test_what_is_chosen(name: str, expected: str) -> None:
    pattern = load(source(name).text)
    sizes = {"heads": 8, "layers": 32}
    passes = lower_passes(pattern, 64, 64, sizes=sizes, within=True, transposed=False, check=True)
    assert tiling_names(passes) == expected


def test_kernels_of_gradients_gather_nothing() -> None:
    """Programs with the transposed direction are not gathered."""
    passes = lower_passes(load(source("h2o").text), 64, 64, within=True)
    assert tiling_names(passes) == "dense + dense"


def test_runs_are_gathered_where_tiles_have_many() -> None:
    pattern = load(source("sale").text)
    for width, expected in ((64, "dense + dense"), (128, "dense + gathered runs of 32")):
        passes = lower_passes(pattern, width, width, within=True, transposed=False)
        assert tiling_names(passes) == expected


def test_the_choice_is_counted() -> None:
    """A tenth of the keys lie in all tiles, so gathered they are less to do; not if they are few
    tiles of many."""
    one, apart = candidates(load(COLUMNS), 64, 64, within=True)
    assert apart.cost < one.cost / 4
    assert len(candidates(load(COLUMNS), 64, 64, within=True, gather=False)) == 1
    assert len(candidates(load(COLUMNS), 64, 64, within=True, tiling="dense")) == 1


def _env(text: str, shape: Shape, share: float, seed: int) -> dict[str, Any]:
    """Numbers of a call and random tables, some of which end before the last position."""
    pattern = load(text)
    random = np.random.default_rng(seed)
    env: dict[str, Any] = {
        "q_len": shape.q_len,
        "kv_len": shape.kv_len,
        "q_offset": shape.q_offset,
        "head": 1,
        "n": 30,
    }
    for table in pattern.tables:
        size = random.integers(2, 130, len(table.type.axes))  # type: ignore[union-attr]
        env[table.name] = random.random(size) < share
        if table.type.element == "int":  # type: ignore[union-attr]
            env[table.name] = random.integers(-10, 120, size)
    return env


def _allowed(body: Predicate, tiling: Tiling, env: dict[str, Any]) -> Any:
    shape = (env["q_len"], env["kv_len"])
    q = env["q_offset"] + np.arange(shape[0])[:, None]
    scope = {**env, "q": q, "k": np.arange(shape[1])[None, :]}
    both = [evaluate(each, scope) for each in (body, class_condition(tiling))]
    return np.broadcast_to(both[0], shape) & np.broadcast_to(both[1], shape)


@settings(max_examples=150)
@given(
    text=st.sampled_from([*TEXTS, *NUMBERS]),
    shape=shapes(),
    share=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    seed=st.integers(0, 1 << 16),
)
def test_gathered_runs(text: str, shape: Shape, share: float, seed: int) -> None:
    """Every pair is in one pass; of a gathered one each run with an allowed pair is visited, each
    that is called full is, and tiles are counted as kernels gather them."""
    env = _env(text, shape, share, seed)
    pattern = load(text)
    block_k = 64
    for candidate in candidates(pattern, shape.block_q, block_k, check=True)[1:]:
        total = np.zeros((shape.q_len, shape.kv_len), int)
        for part, program in zip(candidate.parts, candidate.passes, strict=True):
            allowed = _allowed(part.body, part.tiling, env)
            total += allowed
            assert (program.gathered > 1) == (part.run is not None)
            if part.run is not None:
                assert program.tile_keys == block_k and program.block_k == part.run
                _check_runs(program, shape, env, allowed)
        np.testing.assert_array_equal(total, _allowed(pattern.body, Tiling(), env))


def _check_runs(program: BlockProgram, shape: Shape, env: dict[str, Any], allowed: Any) -> None:
    expected = brute_block_map(allowed, replace(shape, block_k=program.block_k))
    both = with_transposed(program, check=True)
    assert both.gathered == program.gathered
    for found in (schedule.block_map(program, env), transposed_map(both, env)):
        assert (found[expected > 0] > 0).all()
        assert (expected[found == 2] == 2).all()
    found = schedule.block_map(program, env)
    full, partial = schedule.tile_counts(program, env)
    np.testing.assert_array_equal(full, (found == 2).sum(1) // program.gathered)
    left = (found > 0).sum(1) - full * program.gathered
    np.testing.assert_array_equal(partial, -(-left // program.gathered))


@pytest.mark.parametrize(
    ("name", "shared", "kept"),
    [
        ("h2o", True, "k <= q and recent <= q - k"),
        (
            "minference",
            False,
            "k <= q and (if q // 64 == q_first // 64 then keep[head, q_first // 64, k] else "
            "keep[head, q_last // 64, k])",
        ),
        ("vertical_slash", True, "k <= q and not slashes[head, q - k]"),
        ("eviction", False, "q < until[k] and k <= q"),
    ],
)
def test_what_lists_say_is_not_asked_again(name: str, shared: bool, kept: str) -> None:
    pattern = load(source(name).text)
    program = lower_passes(pattern, 64, 64, within=True, transposed=False)[-1]
    assert program.gathered == 64
    assert ranked(program) == shared
    assert expression_text(kernel_mask(program)) == kept


def test_text() -> None:
    pattern = load(source("sale").text)
    program = lower_passes(pattern, 128, 128, within=True, transposed=False)[-1]
    text = format_program(program)
    assert "tiles      128 queries x 4 gathered runs of 32 keys" in text
    assert "forward: query tile -> runs" in text
    text = format_program(lower_passes(load(COLUMNS), 64, 64, transposed=False)[0])
    assert "tiles      64 queries x 64 gathered keys" in text


def test_a_gathered_program_is_dense() -> None:
    (program,) = lower_passes(load(COLUMNS), 64, 64, transposed=False)
    with pytest.raises(InternalError, match="64 runs are gathered"):
        verify(replace(program, tiling=Tiling(2, 2)), "a pass")
    with pytest.raises(InternalError, match="0 runs are gathered"):
        verify(replace(program, gathered=0), "a pass")
