"""Plans are exact: each rank fetches just the keys that its queries read and others hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patterncc.codegen.facts.runs import flags_of
from patterncc.codegen.facts.sharding import (
    PLACEMENTS,
    Placement,
    ShardPlan,
    Shards,
    shard_plan,
)
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import evaluate
from patterncc.dsl import load
from patterncc.dsl.build import substitute
from patterncc.dsl.errors import ConfigError, UnsupportedError
from patterncc.dsl.mask import Const, Expr, IntExpr, K, Param, Predicate
from tests.codegen.drawing import dense, masks, numbers, pattern_of

PROBLEM = Problem("bfloat16", 128, 64)
ONE = {"heads": 1, "kv_heads": 1, "layers": 1}

TEXTS = {
    "streaming": "streaming(4, 40)",
    "ladder": "ladder(recent = 30, rung = 8, period = 5)",
    "s2": "s2(32)",
    "longnet": "longnet(segment = 64)",
    "neighborhood_1d": "neighborhood_1d(kernel = 31)",
}

placements = st.sampled_from(PLACEMENTS)


@given(st.integers(1, 9), st.integers(1, 60), placements, st.integers(1, 4))
def test_every_token_has_one_rank(
    ranks: int, q_len: int, placement: Placement, stripe: int
) -> None:
    shards = Shards(ranks, q_len, placement, stripe)
    owners = shards.owners()
    k = np.arange(q_len)
    for rank in range(ranks):
        held = evaluate(shards.holds(K), {"k": k, "rank": rank})
        np.testing.assert_array_equal(np.broadcast_to(held, (q_len,)), owners == rank)
    assert owners.min() >= 0 and owners.max() < ranks


def check(plan: ShardPlan, masks: dict[tuple[int, int], np.ndarray]) -> None:
    """A plan against the masks of key/value heads, bool `[q_len, q_len]` each: what any of its
    query heads sees.
    """
    owners = plan.shards.owners()
    seen = [member for group in plan.groups for member in group.members]
    assert sorted(seen) == sorted(masks)
    for group in plan.groups:
        for member in group.members:
            mask = masks[member]
            for rank in group.ranks:
                needed = mask[owners == rank.rank].any(axis=0)
                assert rank.tokens == (owners == rank.rank).sum()
                assert rank.local == (needed & (owners == rank.rank)).sum()
                fetched = np.zeros(len(owners), dtype=bool)
                for transfer in rank.transfers:
                    keys = flags_of(transfer.runs, len(owners))
                    assert transfer.source != rank.rank and transfer.keys == keys.sum() > 0
                    assert (owners[keys] == transfer.source).all() and not (fetched & keys).any()
                    fetched |= keys
                np.testing.assert_array_equal(fetched, needed & (owners != rank.rank))


@settings(max_examples=80)
@given(
    body=masks,
    values=numbers,
    q_len=st.integers(1, 200),
    ranks=st.integers(1, 6),
    placement=placements,
    stripe=st.sampled_from([1, 5, 16]),
)
def test_plans_equal_brute_force(
    body: Predicate,
    values: dict[str, int],
    q_len: int,
    ranks: int,
    placement: Placement,
    stripe: int,
) -> None:
    put_in: dict[Expr, IntExpr] = {Param(name): Const(values[name]) for name in ("a", "b")}
    body = substitute(body, put_in)
    sizes = {"heads": 2, "kv_heads": 2, "layers": 2}
    try:
        plan = shard_plan(pattern_of(body), Shards(ranks, q_len, placement, stripe), PROBLEM, sizes)
    except UnsupportedError:
        return
    env = {"q_len": q_len, "kv_len": q_len, "q_offset": 0}
    expected = {
        (layer, head): dense(body, {**env, "layer": layer, "head": head})
        for layer in range(2)
        for head in range(2)
    }
    check(plan, expected)
    owners = plan.shards.owners()
    if plan.pairs is not None:
        rows = np.sum([mask.sum(axis=1) for mask in expected.values()], axis=0)
        assert list(plan.pairs) == np.bincount(owners, rows, minlength=ranks).tolist()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", TEXTS)
def test_the_library(name: str, placement: Placement) -> None:
    pattern = load(TEXTS[name])
    sizes = {"heads": 4, "kv_heads": 2, "layers": 3}
    plan = shard_plan(pattern, Shards(4, 150, placement, 2), PROBLEM, sizes)
    values = {number.name: number.value or 0 for number in pattern.numbers}
    env = {**values, "q_len": 150, "kv_len": 150, "q_offset": 0, "heads": 4}
    masks = {
        (layer, kv_head): np.any(
            [
                dense(pattern.body, {**env, "layer": layer, "head": head, "kv_head": kv_head})
                for head in (2 * kv_head, 2 * kv_head + 1)
            ],
            axis=0,
        )
        for layer in range(3)
        for kv_head in range(2)
    }
    check(plan, masks)


def kind(text: str, placement: Placement = "contiguous", ranks: int = 8) -> str:
    plan = shard_plan(load(text), Shards(ranks, 1024, placement), PROBLEM, ONE)
    (group,) = plan.groups
    return group.kind


def test_kinds() -> None:
    assert kind("window(100)") == "halo"
    assert kind("streaming(4, 100)") == "halo+broadcast"
    assert kind("chunked(128)") == "local"
    assert kind("causal and (chunked(128) or k < 4)") == "broadcast"
    assert kind("full") == "all-gather"
    assert kind("causal") == "exchange"
    assert kind("dilated(20, 8)", "striped") == "local"
    assert kind("causal", ranks=1) == "local"


def test_bytes_and_balance() -> None:
    sizes = {"heads": 4, "kv_heads": 2, "layers": 3}
    plan = shard_plan(load("window(101)"), Shards(8, 1024), PROBLEM, sizes)
    assert plan.key_bytes == 2 * (128 + 64)
    assert plan.received_bytes == (0, *([100 * 6 * plan.key_bytes] * 7))
    assert plan.all_gather_bytes == (7 * 128 * 6 * plan.key_bytes,) * 8
    causal = {
        placement: shard_plan(load("causal"), Shards(8, 1024, placement), PROBLEM, ONE)
        for placement in PLACEMENTS
    }
    assert causal["zigzag"].imbalance == 1
    assert causal["contiguous"].imbalance == pytest.approx(15 / 8, abs=0.01)


def test_more_ranks_than_tokens() -> None:
    plan = shard_plan(load("causal"), Shards(7, 3), PROBLEM, ONE)
    assert [rank.tokens for rank in plan.groups[0].ranks] == [1, 1, 1, 0, 0, 0, 0]
    assert plan.groups[0].received == (0, 1, 2, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (Shards(0, 64), "ranks is 0"),
        (Shards(2000, 64), "ranks is 2000"),
        (Shards(2, 0), "q_len is 0"),
        (Shards(2, 64, "striped", 0), "stripe is 0"),
        (Shards(2, 64, "random"), "placement is 'random'"),  # type: ignore[arg-type]
        (Shards(1000, 1 << 24), "1000 ranks of 16777216 tokens"),
    ],
)
def test_sizes_that_cannot_be(shards: Shards, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        shard_plan(load("causal"), shards, PROBLEM, ONE)


def test_a_number_without_a_value() -> None:
    with pytest.raises(ConfigError, match="`n` has no value"):
        shard_plan(load("prefix"), Shards(2, 64), PROBLEM, ONE)


def test_tables_are_named() -> None:
    with pytest.raises(UnsupportedError, match=r"`doc\["):
        shard_plan(load("document"), Shards(2, 64), PROBLEM, ONE)
