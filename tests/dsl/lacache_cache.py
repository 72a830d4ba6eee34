"""LaCache's cache, simulated call by call as its compaction is defined: lists of positions.

The slow judge of the pattern `lacache` and of what `patterncc.selection` computes for it. Knows
nothing of either. Slots are places in a layer's list, oldest first.
"""

import math
from dataclasses import dataclass, field
from functools import cache


@dataclass
class LadderCache:
    """The caches of all layers.

    Attributes:
        layers, span, overlap, sinks: As the method calls them; `sinks` is its start size.
        capacity: Its cache size; grows once, at the first call that goes beyond it.
        slots: For each layer, the positions that it holds.
    """

    layers: int
    span: int
    overlap: int
    capacity: int
    sinks: int
    slots: list[list[int]] = field(default_factory=list)
    bumped: bool = False

    def __post_init__(self) -> None:
        step = self.span - self.overlap
        self.rung = 1 + math.ceil((self.layers - self.span) / step)
        self.kept = min(math.ceil(self.span / step), self.rung)
        self.freed = self.rung - self.kept
        self.cursor = self.sinks
        self.slots = [[] for _ in range(self.layers)]

    def feed(self, positions: list[int]) -> None:
        """One call: appends its tokens, then compacts."""
        for held in self.slots:
            held += positions
        self.compact()

    def compact(self) -> None:
        length = len(self.slots[0])
        if not self.bumped and length > self.capacity:
            self.bumped = True
            self.capacity += self.freed // 2
            self.passes = (self.capacity - self.sinks - self.layers) // self.kept
        excess = length - self.capacity
        if not self.bumped or excess <= 0:
            return
        rungs = (self.capacity - self.cursor - self.layers) // self.kept
        if excess <= rungs * self.freed:
            rungs = math.ceil(excess / self.freed)
            self.gather(self.cursor, rungs, self.rung, self.freed, 1)
            self.cursor += self.kept * rungs
            return
        self.gather(self.cursor, rungs, self.rung, self.freed, 1)
        excess -= rungs * self.freed
        stride = math.ceil(excess / (self.passes * self.freed))
        rung = self.rung + (stride - 1) * (self.rung - 1)
        rungs = math.ceil(excess / (rung - self.kept))
        self.gather(self.sinks, rungs, rung, rung - self.kept, stride)
        self.cursor = self.sinks + self.kept * rungs

    def gather(self, cursor: int, rungs: int, rung: int, freed: int, stride: int) -> None:
        """Keeps `kept` slots of each of some rungs from the cursor on, and all other slots."""
        for layer, held in enumerate(self.slots):
            offset = layer % (freed + 1)
            places = list(range(cursor))
            for number in range(rungs):
                first = cursor + rung * number + offset
                places += [first + stride * place for place in range(self.kept)]
            places += range(cursor + rung * rungs, len(held))
            self.slots[layer] = [held[place] for place in places]


@cache
def streamed(
    layers: int, span: int, overlap: int, capacity: int, sinks: int, length: int, prompt: int = 0
) -> list[list[frozenset[int]]]:
    """The keys that each position sees, of each layer: `[layers][length]`.

    A query sees the cache as the steps before left it, and its own key. The first `prompt` tokens
    come in one call, dense and causal, the others one by one.
    """
    cache = LadderCache(layers, span, overlap, capacity, sinks)
    seen: list[list[frozenset[int]]] = [[] for _ in range(layers)]
    if prompt:
        for layer in range(layers):
            seen[layer] += [frozenset(range(q + 1)) for q in range(prompt)]
        cache.feed(list(range(prompt)))
    for q in range(prompt, length):
        for layer, held in enumerate(cache.slots):
            seen[layer].append(frozenset([*held, q]))
        cache.feed([q])
    return seen


def lifetimes(seen: list[list[frozenset[int]]]) -> list[list[int]]:
    """For how many positions each key was seen, by layer; those still seen at the end live on."""
    length = len(seen[0])
    result = []
    for rows in seen:
        lived = []
        for k in range(length):
            gone = next((q for q in range(k, length) if k not in rows[q]), None)
            lived.append(1 << 30 if gone is None else gone - k)
            if gone is not None:
                assert not any(k in rows[q] for q in range(gone, length)), "a key never returns"
        result.append(lived)
    return result
