"""LaCache's tables against a simulation of its cache, and the library pattern with them."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import patterncc
from patterncc import selection
from patterncc.dsl.errors import ArgumentError
from patterncc.selection.ladder import FOREVER, Ladder
from tests.dsl.lacache_cache import LadderCache, lifetimes, streamed


@st.composite
def configurations(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """Layers, capacity, span, overlap and sinks of a small ladder."""
    layers = draw(st.integers(2, 12))
    span = draw(st.integers(1, layers))
    overlap = draw(st.integers(0, span - 1))
    sinks = draw(st.integers(0, 5))
    step = span - overlap
    slots = 1 + math.ceil((layers - span) / step)
    kept = math.ceil(span / step)
    assume(slots > kept)
    return layers, sinks + layers + kept + draw(st.integers(0, 24)), span, overlap, sinks


@given(configurations())
@settings(max_examples=25, deadline=None)
def test_lifetimes_say_what_the_cache_holds(configuration: tuple[int, int, int, int, int]) -> None:
    layers, capacity, span, overlap, sinks = configuration
    ladder = Ladder.of(*configuration)
    found = selection.lacache(*configuration)
    table, recent, reach = found["lifetime"], found["recent"], found["reach"]
    assert isinstance(table, torch.Tensor) and isinstance(recent, int) and isinstance(reach, int)
    start, period = sinks + ladder.kept * ladder.rungs, ladder.rungs * ladder.freed
    by_kind = table.reshape(ladder.freed + 1, start + period).tolist()
    length = min(ladder.capacity + 3 * period + 20, 240)
    seen = streamed(layers, span, overlap, capacity, sinks, length)
    for layer in range(layers):
        lived = by_kind[layer % (ladder.freed + 1)]
        for q in range(length):
            places = [k if k < start else start + (k - start) % period for k in range(q + 1)]
            assert seen[layer][q] == {k for k in range(q + 1) if q - k < lived[places[k]]}
    # What prunes tiles cuts nothing off.
    ends = [life for life in table.tolist() if life < FOREVER]
    assert (recent, reach) == (min(ends), max(ends))
    assert recent >= layers - ladder.freed + 2
    for lived in by_kind:
        assert all(life < FOREVER for life in lived[sinks + ladder.kept :])


@given(configurations(), st.integers(0, 160))
@settings(max_examples=25, deadline=None)
def test_after_a_prompt(configuration: tuple[int, int, int, int, int], prompt: int) -> None:
    layers, capacity, span, overlap, sinks = configuration
    length = prompt + 60
    cache = LadderCache(layers, span, overlap, capacity, sinks)
    try:
        cache.feed(list(range(prompt)))
        wrong = "twice" if any(len(set(held)) < len(held) for held in cache.slots) else ""
    except IndexError:
        wrong = "reads place"
    if wrong:
        with pytest.raises(ArgumentError, match=f"compaction of the prompt {wrong}|{wrong}"):
            selection.lacache_after_prompt(prompt, length, *configuration)
        return
    until = selection.lacache_after_prompt(prompt, length, *configuration).tolist()
    seen = streamed(layers, span, overlap, capacity, sinks, length, prompt)
    for layer in range(layers):
        for q in range(length):
            assert seen[layer][q] == {k for k in range(q + 1) if q < until[layer][k]}


@pytest.mark.parametrize(
    ("configuration", "entries"),
    [
        ((32, 256, 16, 0, 4), 2 * (4 + 2 * 220)),
        ((32, 512, 8, 4, 4), 6 * (4 + 7 * 239)),
        ((32, 512, 9, 3, 128), 4 * (128 + 5 * 176)),
        ((24, 512, 9, 7, 4), 5 * (4 + 9 * 97)),
        ((28, 512, 14, 0, 64), 2 * (64 + 2 * 420)),
    ],
)
def test_published_configurations(
    configuration: tuple[int, int, int, int, int], entries: int
) -> None:
    layers, capacity, span, overlap, sinks = configuration
    found = selection.lacache(*configuration)
    table = found["lifetime"]
    assert isinstance(table, torch.Tensor) and table.shape == (entries,)
    length = 700
    attention = patterncc.compile(
        "lacache", capacity=capacity, span=span, overlap=overlap, sinks=sinks
    )
    seen = streamed(layers, span, overlap, capacity, sinks, length)
    for layer in range(0, layers, 7):
        mask = attention.mask(length, layer=layer, layers=layers, **found)
        for q in range(0, length, 23):
            assert frozenset(mask[q].nonzero().flatten().tolist()) == seen[layer][q]


def test_its_lifetimes_are_those_of_the_simulation() -> None:
    found = selection.lacache(8, 22, 4, 0, 2)
    table = found["lifetime"]
    assert isinstance(table, torch.Tensor)
    lived = lifetimes(streamed(8, 4, 0, 22, 2, 300))
    entries = len(table) // 2
    assert table.tolist() == [*lived[0][:entries], *lived[1][:entries]]


def test_the_oldest_key_of_a_published_configuration() -> None:
    # 1,712 tokens back and more is gone but for what is pinned, as its definition has it.
    ladder = Ladder.of(32, 256, 16, 0, 4)
    assert (ladder.slots, ladder.kept, ladder.freed, ladder.rungs) == (2, 1, 1, 220)
    reach = selection.lacache(32, 256, 16, 0, 4)["reach"]
    assert isinstance(reach, int) and 1712 <= reach < 2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, "`layers` is 0"),
        ({"layers": 32, "sinks": -1}, "`sinks` is -1"),
        ({"layers": 32, "overlap": -1}, "`overlap` is -1; it must be 0 or more"),
        ({"layers": 12}, "`span` is 16; .* at most `layers`, 12"),
        ({"layers": 32, "span": 4, "overlap": 4}, "more than `overlap`, 4"),
        ({"layers": 32, "span": 32}, "free nothing"),
        ({"layers": 32, "capacity": 36}, "`capacity` is 36; .* must be 37 or more"),
    ],
)
def test_no_such_ladder(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        selection.lacache(**arguments)


def test_the_least_capacity_works() -> None:
    found = selection.lacache(32, 37)
    assert isinstance(found["lifetime"], torch.Tensor)
