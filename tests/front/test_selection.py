"""Selectors against their definitions, element by element in plain Python."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import patterncc
from patterncc import selection
from patterncc.dsl.errors import ArgumentError
from tests.front.inputs import assert_right, expected, tensors


def rows(query: Tensor, key: Tensor, batch: int, head: int) -> tuple[list[Any], list[Any]]:
    """Queries and keys of one head, as nested lists."""
    group = query.shape[1] // key.shape[1]
    return query[batch, head].double().tolist(), key[batch, head // group].double().tolist()


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def mean(vectors: list[list[float]]) -> list[float]:
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def best(scores: dict[int, float], count: int) -> set[int]:
    """The places of the largest scores, of equal ones the first."""
    return set(sorted(scores, key=lambda place: (-scores[place], place))[:count])


def chosen(row: Tensor) -> set[int]:
    return set(row.nonzero().flatten().tolist())


def attention_of_last(
    queries: list[Any], keys: list[Any], last: int
) -> list[tuple[int, list[float]]]:
    """The last positions, and the weights that each gives to the keys up to it."""
    size = len(queries[0]) ** -0.5
    result = []
    for q in range(len(queries) - min(last, len(queries)), len(queries)):
        scores = [math.exp(size * dot(queries[q], keys[k])) for k in range(q + 1)]
        result.append((q, [score / sum(scores) for score in scores]))
    return result


@pytest.mark.parametrize(("verticals", "slashes", "last"), [(40, 60, 64), (0, 0, 7), (90, 30, 200)])
def test_vertical_slash(verticals: int, slashes: int, last: int) -> None:
    query, key, _ = tensors(130, batch=1)
    asked = [verticals, verticals + 1, verticals, 500]
    found = selection.vertical_slash(
        query, key, asked, slashes, last=last, first_keys=5, first_distances=8
    )
    for head in range(4):
        by_key = dict.fromkeys(range(130), 0.0)
        by_distance = dict.fromkeys(range(130), 0.0)
        for q, weights in attention_of_last(*rows(query, key, 0, head), last):
            for k, weight in enumerate(weights):
                by_key[k] += weight
                by_distance[q - k] += weight
        by_key |= dict.fromkeys(range(5), math.inf)
        by_distance |= dict.fromkeys(range(8), math.inf)
        assert chosen(found["verticals"][head]) == best(by_key, max(30, asked[head]))
        assert chosen(found["slashes"][head]) == best(by_distance, max(50, slashes))


@pytest.mark.parametrize("seed", range(6))
def test_minference_kernel(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    length, block = 50 + seed, (4, 8, 5)[seed % 3]
    verticals = torch.rand(2, length, generator=generator) < 0.1
    slashes = torch.rand(2, length, generator=generator) < (0.02, 0.15, 0.6)[seed % 3]
    keep = selection.minference_kernel(verticals, slashes, block=block)["keep"]
    exact = patterncc.compile("vertical_slash")
    for head in range(2):
        ideal = exact.mask(length, head=head, heads=2, verticals=verticals, slashes=slashes)
        for row in range(-(-length // block)):
            end_of_row = (row + 1) * block
            intervals: list[list[int]] = []
            for distance in sorted(chosen(slashes[head]), reverse=True):
                if distance >= end_of_row:
                    continue
                place = max(end_of_row - distance, block)
                if not intervals or place > intervals[-1][1] + block:
                    intervals.append([place - block, place])
                elif place > intervals[-1][1]:
                    intervals[-1][1] += block
            loaded = {k for first, end in intervals for k in range(first, end) if k < length}
            assert chosen(keep[head, row]) == loaded | chosen(verticals[head])
            for q in range(row * block, min(end_of_row, length)):
                assert chosen(ideal[q]) <= chosen(keep[head, row])


@pytest.mark.parametrize(("length", "size", "top"), [(64, 8, 3), (61, 8, 1), (40, 64, 2)])
def test_block_topk(length: int, size: int, top: int) -> None:
    query, key, _ = tensors(length, batch=1)
    keep = selection.block_topk(query, key, top, size=size)["keep"]
    count = -(-length // size)
    assert keep.shape == (4, count, count)
    for head in range(4):
        queries, keys = rows(query, key, 0, head)
        means = [mean(keys[size * j : size * j + size]) for j in range(count)]
        for i in range(count):
            row = mean(queries[size * i : size * i + size])
            scores = {j: dot(row, means[j]) for j in range(i + 1)}
            assert chosen(keep[head, i]) == best(scores, top)


@pytest.mark.parametrize(
    ("q_len", "kv_len", "top"), [(50, 50, 3), (9, 50, 2), (1, 48, 4), (50, 50, 1)]
)
def test_moba(q_len: int, kv_len: int, top: int) -> None:
    query, key, _ = tensors(q_len, kv_len)
    keep = selection.moba(query, key, top, chunk=8)["keep"]
    assert keep.shape == (2, 4, kv_len, -(-kv_len // 8))
    assert not keep[:, :, : kv_len - q_len].any()
    for batch in range(2):
        for head in range(4):
            queries, keys = rows(query, key, batch, head)
            for q in range(kv_len - q_len, kv_len):
                own = q // 8
                scores = {
                    n: dot(queries[q - kv_len + q_len], mean(keys[8 * n : 8 * n + 8]))
                    for n in range(own)
                }
                assert chosen(keep[batch, head, q]) == best(scores, top - 1) | {own}


@pytest.mark.parametrize(
    ("kv_len", "page", "parts", "budget"), [(64, 8, 1, 3), (61, 8, 4, 2), (5, 16, 4, 9)]
)
def test_quest_pages(kv_len: int, page: int, parts: int, budget: int) -> None:
    query, key, _ = tensors(1, kv_len)
    pages = selection.quest_pages(query, key, budget, page=page, parts=parts)["pages"]
    count = -(-kv_len // page)
    step = page // parts
    for batch in range(2):
        for head in range(4):
            (row,), keys = rows(query, key, batch, head)
            scores = dict.fromkeys(range(count), -math.inf)
            for start in range(0, kv_len, step):
                columns = list(zip(*keys[start : start + step], strict=True))
                bounds = zip(row, map(min, columns), map(max, columns), strict=True)
                bound = sum(max(x * low, x * high) for x, low, high in bounds)
                scores[start // page] = max(scores[start // page], bound)
            scores[count - 1] = math.inf
            assert chosen(pages[batch, head]) == best(scores, budget)


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize(("length", "capacity"), [(60, 20), (60, 59), (20, 20)])
def test_snapkv(length: int, capacity: int, pooling: Any) -> None:
    query, key, _ = tensors(length)
    found = selection.snapkv(query, key, capacity, window=6, pooling=pooling)
    kept = found["kept"]
    assert isinstance(kept, Tensor) and isinstance(found["prompt"], Tensor)
    assert found["prompt"].tolist() == [length, length] and found["window"] == 6
    for batch in range(2):
        for head in range(4):
            if length <= capacity:
                assert kept[batch, head].all()
                continue
            before = length - 6
            sums = [0.0] * before
            for _, weights in attention_of_last(*rows(query, key, batch, head), 6):
                sums = [total + weight for total, weight in zip(sums, weights, strict=False)]
            smooth = {}
            for k in range(before):
                near = [sums[i] if 0 <= i < before else 0.0 for i in range(k - 2, k + 3)]
                smooth[k] = sum(near) / 5 if pooling == "avg" else max(near)
            ours = chosen(kept[batch, head])
            assert set(range(before, length)) <= ours and len(ours) == capacity
            least = min(smooth[k] for k in ours if k < before)
            others = [smooth[k] for k in range(before) if k not in ours]
            # Largest keys of a neighbourhood tie, and float32 orders near ties its own way.
            assert max(others, default=-1.0) <= least + 1e-6


def test_bigbird_random() -> None:
    plan = selection.bigbird_random(3, 20 * 8 - 3, block=8, count=3)["random"]
    assert plan.shape == (3, 20, 20)
    for head in range(3):
        assert not plan[head, 0].any() and not plan[head, 19].any()
        for row in range(1, 19):
            drawn = chosen(plan[head, row])
            assert len(drawn) == 3 and not drawn & {0, 19, row - 1, row, row + 1}
    assert torch.equal(plan, selection.bigbird_random(3, 157, block=8)["random"])
    assert not torch.equal(plan, selection.bigbird_random(3, 157, block=8, seed=1)["random"])


def lists_of_a_prompt(query: Tensor, key: Tensor) -> dict[str, Any]:
    return selection.vertical_slash(query, key, 0, 0, first_keys=4, first_distances=8)


END_TO_END: dict[str, Any] = {
    "vertical_slash": lists_of_a_prompt,
    "minference(block=8)": lambda query, key: selection.minference_kernel(
        *lists_of_a_prompt(query, key).values(), block=8
    ),
    "causal_blocks(size=8)": lambda query, key: selection.block_topk(query, key, 3, size=8),
    "moba(chunk=16)": lambda query, key: selection.moba(query, key, 3, chunk=16),
    "quest(page=8)": lambda query, key: selection.quest_pages(query[:, :, -1:], key, 4, page=8),
    "snapkv": lambda query, key: selection.snapkv(query, key, 40, window=8),
    "bigbird(block=8)": lambda query, key: selection.bigbird_random(4, 130, block=8),
    "lacache(capacity=24, span=2, sinks=2)": lambda query, key: selection.lacache(8, 24, 2, 0, 2),
}


@pytest.mark.parametrize("pattern", END_TO_END)
def test_patterns_run_with_what_is_selected(pattern: str) -> None:
    query, key, value = tensors(130, batch=1)
    values = END_TO_END[pattern](query, key)
    name, _, given = pattern.rstrip(")").partition("(")
    fixed = dict(pair.split("=") for pair in given.split(", ") if pair)
    numbers: dict[str, Any] = {size: int(number) for size, number in fixed.items()}
    attention = patterncc.compile(name, **numbers)
    where = {"layer": 3, "layers": 8}
    found = attention(query, key, value, return_lse=True, **where, **values)
    assert_right(found, expected(attention, query, key, value, **where, **values), query)


def test_equal_scores_go_to_the_first() -> None:
    query, key, _ = tensors(64, batch=1)
    key = torch.zeros_like(key)
    assert chosen(selection.block_topk(query, key, 3, size=8)["keep"][0, 7]) == {0, 1, 2}
    assert chosen(selection.moba(query, key, 3, chunk=8)["keep"][0, 0, 63]) == {0, 1, 7}
    pages = selection.quest_pages(query[:, :, -1:], key, 3, page=8)["pages"]
    assert chosen(pages[0, 0]) == {0, 1, 7}


ANY: Any = "sum"
SQUARE, _, _ = tensors(16, batch=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: selection.block_topk(SQUARE[0], SQUARE), r"is torch.float32 \[4, 16, 16\]"),
        (lambda: selection.block_topk(SQUARE.int(), SQUARE), "`query` is torch.int32"),
        (lambda: selection.block_topk(SQUARE[:, :, 1:], SQUARE), "15 positions; it needs as many"),
        (lambda: selection.block_topk(SQUARE.repeat(2, 1, 1, 1), SQUARE), "one batch"),
        (lambda: selection.moba(SQUARE[:, :3], SQUARE[:, :2]), "3 heads and `key` 2"),
        (lambda: selection.moba(SQUARE, SQUARE[:, :, 1:]), "no more than `key`, 15"),
        (lambda: selection.moba(SQUARE, SQUARE, 0), "`top` is 0"),
        (lambda: selection.vertical_slash(SQUARE, SQUARE, [1, 2]), "2 numbers; it needs 4"),
        (lambda: selection.vertical_slash(SQUARE, SQUARE, 3, [1, 2, -1, 0]), "-1 for head 2"),
        (lambda: selection.vertical_slash(SQUARE.repeat(2, 1, 1, 1), SQUARE.repeat(2, 1, 1, 1)),
         "looks at one sequence"),
        (lambda: selection.quest_pages(SQUARE, SQUARE, 2), "chosen for one"),
        (lambda: selection.quest_pages(SQUARE[:, :, -1:], SQUARE, 2, page=6, parts=4), "divide"),
        (lambda: selection.snapkv(SQUARE, SQUARE, 8), "`capacity` is 8; it must be 33"),
        (lambda: selection.snapkv(SQUARE, SQUARE, kernel=4), "`kernel` is 4; it must be odd"),
        (lambda: selection.snapkv(SQUARE, SQUARE, pooling=ANY), "`pooling` is 'sum'"),
        (lambda: selection.bigbird_random(2, 11 * 64), "full attention up to 11 blocks"),
        (lambda: selection.minference_kernel(SQUARE, SQUARE), r"bool \[heads, length\]"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()
