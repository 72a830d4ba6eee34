"""LaCache's recurrence as tables: when each key is dropped, computed without running a cache.

With `step = span - overlap`, one compaction event takes a rung of `slots` places of a layer's list
and keeps `kept` of them, `freed` fewer, at a place that depends on `layer % (freed + 1)`; `rungs`
events make a pass over the list, and then the next pass begins (GATECH-EIC/LaCache,
`ppl/lacache/kv_cache.py`). Two facts make tables of it. A dropped key never returns, so a key is
seen for a number of positions, its lifetime. And a whole pass moves every key behind it forward by
`rungs * freed` places, so lifetimes repeat with that period: a table of `sinks + slots * rungs`
entries for each of the `freed + 1` kinds of layers says all, at any length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patterncc.dsl.errors import ArgumentError

FOREVER = 1 << 30  # of a key that is never dropped: beyond every position


@dataclass(frozen=True, slots=True)
class Ladder:
    """The numbers of a ladder, from those that LaCache is configured with.

    Attributes:
        layers, sinks: As given.
        capacity: Keys of a full cache: the configured size and the room for half a rung.
        slots: Places of a rung before it is compacted.
        kept: Places of it that each layer keeps.
        freed: The others.
        rungs: Rungs that a pass compacts.
    """

    layers: int
    sinks: int
    capacity: int
    slots: int
    kept: int
    freed: int
    rungs: int

    @staticmethod
    def of(layers: int, capacity: int, span: int, overlap: int, sinks: int) -> Ladder:
        """The ladder of a configuration.

        Raises:
            ArgumentError: There is none.
        """
        given = {"layers": layers, "capacity": capacity, "span": span}
        for name, number in {**given, "overlap": overlap + 1, "sinks": sinks + 1}.items():
            if not 1 <= number <= FOREVER:
                least = 1 if name in given else 0
                raise ArgumentError(f"`{name}` is {number - 1 + least}; it must be {least} or more")
        if not overlap < span <= layers:
            raise ArgumentError(
                f"`span` is {span}; it must be more than `overlap`, {overlap}, "
                f"and at most `layers`, {layers}"
            )
        step = span - overlap
        slots = 1 + -(-(layers - span) // step)
        kept = min(-(-span // step), slots)
        freed = slots - kept
        if freed == 0:
            raise ArgumentError(
                f"`span` {span} and `overlap` {overlap} keep every key in {layers} layers, "
                "so compaction would free nothing; take a smaller `span` or `overlap`"
            )
        full = capacity + freed // 2
        if full < sinks + layers + kept:
            raise ArgumentError(
                f"`capacity` is {capacity}; with {sinks} sinks and {layers} layers, of which the "
                f"last keys are never compacted, it must be {sinks + layers + kept - freed // 2} "
                "or more"
            )
        rungs = (full - sinks - layers) // kept
        return Ladder(layers, sinks, full, slots, kept, freed, rungs)


def lacache(
    layers: int,
    capacity: int = 256,
    span: int = 16,
    overlap: int = 0,
    sinks: int = 4,
    *,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """The table and the numbers of the library pattern `lacache`, for tokens that come one by one.

    Args:
        layers: Layers of the model.
        capacity: Cache size that LaCache is configured with, sinks among it.
        span: Layers that a key of a rung is kept in.
        overlap: Of those, how many it shares with the next key.
        sinks: Keys at the start that are always kept.
        device: Where the table is to be.

    Returns:
        `lifetime`, int32 `[(freed + 1) * (sinks + slots * rungs)]`: for how many positions a key
        is seen, for each kind of layers one after the other; and its extremes `recent`, the least,
        and `reach`, the most but for keys that are never dropped.

    Raises:
        ArgumentError: There is no such ladder.
    """
    ladder = Ladder.of(layers, capacity, span, overlap, sinks)
    keys = torch.arange(ladder.sinks + ladder.slots * ladder.rungs)
    kinds = torch.arange(ladder.freed + 1)
    event = dropped_at(ladder, keys[None, :], kinds[:, None])
    # Event number e, from 1 on, comes after the token that fills the cache for the e-th time, and
    # a query attends before the compaction of its own step.
    position = 1 + ladder.capacity + (event - 1) * ladder.freed
    lifetime = torch.where(event == FOREVER, FOREVER, position - keys)
    finite = lifetime[lifetime < FOREVER]
    return {
        "lifetime": lifetime.flatten().int().to(device),
        "recent": int(finite.min()),
        "reach": int(finite.max()),
    }


def lacache_after_prompt(
    prompt: int,
    length: int,
    layers: int,
    capacity: int = 256,
    span: int = 16,
    overlap: int = 0,
    sinks: int = 4,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """LaCache with a prompt that comes in one call, dense and causal, before the tokens one by one.

    Args:
        prompt: Tokens of the prompt.
        length: Tokens in all.
        layers, capacity, span, overlap, sinks, device: As for `lacache`.

    Returns:
        int32 `[layers, length]`: the first position that no longer sees each key. Row `layer` is
        `until` of the library pattern `eviction`.

    Raises:
        ArgumentError: There is no such ladder, or the compaction of the prompt reads beyond its
            list or holds a key twice, as the original does where it must free more than a pass
            can; a softmax that counts a key twice is no mask.
    """
    ladder = Ladder.of(layers, capacity, span, overlap, sinks)
    if not 0 <= prompt <= length:
        raise ArgumentError(f"`prompt` is {prompt}; it must be in 0 .. {length}, `length`")
    rows = [_after_prompt(ladder, capacity, layer, prompt, length) for layer in range(layers)]
    return torch.stack(rows).int().to(device)


def _after_prompt(ladder: Ladder, configured: int, layer: int, prompt: int, length: int) -> Tensor:
    """One row of `lacache_after_prompt`."""
    until = torch.full((length,), prompt, dtype=torch.int64)
    held = list(range(prompt))
    cursor = ladder.sinks
    excess = prompt - ladder.capacity
    if prompt > configured and excess > 0:
        rungs = ladder.rungs
        if excess <= rungs * ladder.freed:
            rungs = -(-excess // ladder.freed)
            held = _gather(held, cursor, rungs, ladder.slots, ladder.kept, layer, 1)
        else:
            held = _gather(held, cursor, rungs, ladder.slots, ladder.kept, layer, 1)
            excess -= rungs * ladder.freed
            stride = -(-excess // (rungs * ladder.freed))
            slots = ladder.slots + (stride - 1) * (ladder.slots - 1)
            rungs = -(-excess // (slots - ladder.kept))
            held = _gather(held, cursor, rungs, slots, ladder.kept, layer, stride)
        cursor += ladder.kept * rungs
        if len(set(held)) < len(held):
            twice = next(key for key in held if held.count(key) > 1)
            raise ArgumentError(
                f"a prompt of {prompt} tokens makes layer {layer} hold key {twice} twice; "
                "shorten the prompt, enlarge `capacity` or take `overlap` 0"
            )
    places = torch.arange(len(held) + length - prompt)
    keys = torch.cat([torch.tensor(held, dtype=torch.int64), torch.arange(prompt, length)])
    first = (ladder.capacity - cursor - ladder.layers) // ladder.kept
    event = dropped_at(ladder, places, torch.tensor(layer % (ladder.freed + 1)), cursor, first)
    position = prompt + ladder.capacity + 1 - len(held) + (event - 1) * ladder.freed
    until[keys] = torch.where(event == FOREVER, FOREVER, position.clamp(max=FOREVER))
    return until


def _gather(
    held: list[int], cursor: int, rungs: int, slots: int, kept: int, layer: int, stride: int
) -> list[int]:
    """What is left of a layer's list after some rungs from the cursor on were compacted."""
    offset = layer % (slots - kept + 1)
    places = [
        cursor + slots * rung + offset + stride * place
        for rung in range(rungs)
        for place in range(kept)
    ]
    if places and max(places) >= len(held):
        raise ArgumentError(
            f"the compaction of the prompt reads place {max(places)} of a list of {len(held)} keys "
            f"in layer {layer}; shorten the prompt, enlarge `capacity` or take `overlap` 0"
        )
    middle = [held[place] for place in places]
    return [*held[:cursor], *middle, *held[cursor + slots * rungs :]]


def dropped_at(
    ladder: Ladder,
    slots: Tensor,
    kind: Tensor,
    cursor: int | None = None,
    first: int | None = None,
) -> Tensor:
    """The number, from 1 on, of the compaction event that drops each key of a list.

    Args:
        ladder: The ladder.
        slots: Places in the list before the first event, int64.
        kind: `layer % (freed + 1)`, int64, broadcasts with `slots`.
        cursor: Where the first pass begins; after the sinks if not given. Later ones begin there.
        first: Rungs of the first pass; as many as of every pass if not given.

    Returns:
        int64, `FOREVER` for keys that stay.
    """
    slots, kind = torch.broadcast_tensors(slots, kind)  # type: ignore[no-untyped-call]
    event = torch.full_like(slots, FOREVER)
    start = ladder.sinks if cursor is None else cursor
    rungs = ladder.rungs if first is None else first
    passed = torch.zeros_like(slots)  # events of the passes that a key has been through
    place, undecided = slots.clone(), torch.ones_like(slots, dtype=torch.bool)
    while bool(undecided.any()):
        end = start + rungs * ladder.slots
        behind = place >= end
        inside = (place >= start) & ~behind
        rung = (place - start) // ladder.slots
        column = (place - start) % ladder.slots - kind
        kept = (column >= 0) & (column < ladder.kept)
        dropped = undecided & inside & ~kept
        event[dropped] = (passed + rung + 1)[dropped]
        moved = torch.where(inside, start + ladder.kept * rung + column, place)
        moved = torch.where(behind, place - rungs * ladder.freed, moved)
        passed = passed + rungs
        whole = start == ladder.sinks and rungs == ladder.rungs
        # A key that a whole pass leaves where it is stays there for good.
        undecided = undecided & ~dropped & ~((moved == place) & whole)
        place = moved
        start, rungs = ladder.sinks, ladder.rungs
    return event
