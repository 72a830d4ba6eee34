"""Covers are written out exactly: the same pairs as the oracle, which looks at every pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import patterncc
from patterncc.codegen.presburger import without_covers
from patterncc.codegen.schedule import evaluate
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.loader import load
from patterncc.dsl.mask import Cover, Predicate, walk
from tests.codegen.drawing import masks

SIZE = 150


def brute(cover: Cover, env: dict[str, int]) -> np.ndarray:
    """The covered pairs, from every pair of positions up to the blocks' ends."""
    rows, columns = (-(-SIZE // block) * block for block in (cover.block_q, cover.block_k))
    q, k = np.arange(rows)[:, None], np.arange(columns)[None, :]
    inner = np.broadcast_to(evaluate(cover.body, {**env, "q": q, "k": k}), (rows, columns))
    blocks = inner.reshape(rows // cover.block_q, cover.block_q, -1, cover.block_k).any((1, 3))
    found = blocks.repeat(cover.block_q, 0).repeat(cover.block_k, 1)
    found = found & (k <= q) if cover.causal else found
    return np.asarray(found[:SIZE, :SIZE])


@settings(max_examples=80)
@given(
    body=masks,
    blocks=st.tuples(*[st.sampled_from([1, 8, 16, 30, 64])] * 2),
    causal=st.booleans(),
    values=st.fixed_dictionaries(
        {name: st.integers(-5, 200) for name in ("a", "b", "layer", "head")}
    ),
)
def test_covers_equal_brute_force(
    body: Predicate, blocks: tuple[int, int], causal: bool, values: dict[str, int]
) -> None:
    cover = Cover(*blocks, body, causal)
    env = {**values, "kv_len": SIZE}
    try:
        plain = without_covers(cover)
    except UnsupportedError:
        assume(False)
    assert not any(isinstance(node, Cover) for node in walk(plain))
    place = {"q": np.arange(SIZE)[:, None], "k": np.arange(SIZE)[None, :]}
    found = np.broadcast_to(evaluate(plain, {**env, **place}), (SIZE, SIZE))
    np.testing.assert_array_equal(found, brute(cover, env))


@pytest.mark.parametrize(
    "text",
    [
        "cover(16, 16, causal and window(20))",
        "cover(32, 16, dilated(4, 9))",
        "cover(16, 16, cover(8, 8, strided(24)) and causal)",
        "causal and (cover(16, 16, sinks(3)) or window(8))",
        "cover(16, 16, window(20)) at (q // 2, k // 2)",
    ],
)
def test_attention_under_a_cover(text: str) -> None:
    attn = patterncc.compile(text)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 90, 16, generator=generator) for _ in range(3))
    allowed = attn.mask(90)
    scores = (query.double() @ key.double().mT / 4).masked_fill(~allowed, -torch.inf)
    expected = torch.nan_to_num(scores.softmax(-1)) @ value.double()
    torch.testing.assert_close(attn(query, key, value).double(), expected, atol=1e-5, rtol=1e-5)


def test_a_cover_of_a_table_is_refused() -> None:
    pattern = load("pattern p(keep: bool[*]): cover(16, 16, keep[k] and causal)")
    with pytest.raises(UnsupportedError, match=r"covers a pattern that reads `keep\[k\]`"):
        without_covers(pattern.body)
