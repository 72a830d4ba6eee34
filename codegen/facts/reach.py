"""How far information travels through a stack of layers.

In one layer, a position takes in what the positions it attends to hold, and keeps what it held
itself (the residual stream). So what the input token at `k` can influence after some layers is the
composition of their relations, each joined with the identity; the heads of a layer are joined too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from patterncc.codegen.facts.hops import Hops, Positions, Relations
from patterncc.codegen.facts.layers import Stack, stack
from patterncc.codegen.facts.questions import ask
from patterncc.codegen.facts.runs import Run, runs_of
from patterncc.codegen.pieces import TooIntricateError
from patterncc.codegen.presburger.chains import Chain
from patterncc.codegen.presburger.exact import refuse_tables
from patterncc.dsl.build import compare
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.mask import Const, K, Predicate, Q, Var, variables
from patterncc.dsl.pattern import Pattern

if TYPE_CHECKING:
    from networkx import DiGraph

Method: TypeAlias = Literal["relations", "positions"]

MOST_LAYERS = 4096
MOST_TOKENS = 1 << 20
MOST_WORK = 1 << 28  # tokens times layers
# Layers up to which the smallest number that is enough is looked for: where all are alike, or not.
MOST_TRIED = {True: 256, False: 64}
MOST_NODES = 1 << 16  # of a graph
MOST_EDGES = 1 << 21


@dataclass(frozen=True, slots=True)
class State:
    """The positions whose content at one height of the stack can influence the chosen position.

    Attributes:
        layer: The layer of which they are the input; the number of layers for the output of the
            last, where it is the position alone.
        reached: How many they are.
        earliest: The first of them.
        runs: Which they are.
    """

    layer: int
    reached: int
    earliest: int
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Reach:
    """How far information travels to the last position of a sequence.

    Attributes:
        q_len: Tokens of the sequence.
        layers: Layers of the stack.
        states: From the output of the last layer down to the input of layer 0.
        enough: The smallest number of layers, counted from layer 0, after which every earlier token
            can influence the last; `None` where there is none up to `tried`.
        tried: Up to how many layers that was looked for; `None` where it is proved that no number
            of layers like these is enough.
        path: Positions from the last at the output down to the earliest token that reaches it, one
            for each state: each reads the next, or is it.
        method: How that was computed, exactly either way: by composing `relations` as integer sets
            or, where that outgrows its budget, by looking at all `positions`.
        form: Which token `k` position `q` is influenced by through the top `form_layers` layers: a
            predicate of `q`, `k` and perhaps the length `kv_len`, for every length, where both
            positions exist.
        form_layers: All layers, or as many of the top ones as isl composed within its budget.
    """

    q_len: int
    layers: int
    states: tuple[State, ...]
    enough: int | None
    tried: int | None
    path: tuple[int, ...]
    method: Method
    form: Predicate
    form_layers: int


def reach(
    pattern: Pattern,
    q_len: int,
    layers: int,
    sizes: Mapping[str, int],
    *,
    method: Method | None = None,
    batch: int = 0,
) -> Reach:
    """How far information travels to the last position of a sequence.

    Args:
        pattern: Its run-time numbers have values.
        q_len: Tokens of the sequence, all of them queries and keys.
        layers: Layers of the stack.
        sizes: `heads`, `kv_heads`, and what the pattern reads as `layers`.
        method: How to compute; by relations where they are simple enough if not given.
        batch: Index in the batch.

    Raises:
        ConfigError: There are no or too many layers or tokens, or a number has no value.
        UnsupportedError: The pattern reads a table, or is too intricate both to be composed and to
            be looked at position by position; the message says so.
    """
    _check(q_len, layers)
    refuse_tables(pattern.body)
    for name in pattern.open_numbers:
        raise ConfigError(f"`{name}` has no value")
    # Of a pattern that reads the number of layers, a lower stack would be another pattern.
    reads = variables(pattern.body)
    most = min(MOST_TRIED["layer" not in reads], MOST_WORK // (8 * q_len))
    spare = layers if "layers" in reads else most
    tallest = max(layers, spare)
    concrete = stack(pattern, tallest, sizes, length=Const(q_len), batch=batch)
    bodies = (pattern.body, pattern.body)  # what is composed divides more often than its parts
    found: _Walked | None = None
    used: Method = "relations"
    if method != "positions":
        try:
            found = ask(bodies, _by_relations, concrete, q_len, layers)
        except TooIntricateError:
            if method == "relations":
                raise
    if found is None:
        used = "positions"
        found = _walk(Positions(pattern, concrete, q_len, sizes, batch), concrete, q_len, layers)
    form, covered = compare("==", Q, K), 0
    with suppress(TooIntricateError):
        symbolic = stack(pattern, layers, sizes, length=Var("kv_len"), batch=batch)
        form, covered = ask(bodies, _form, symbolic)
    return Reach(
        q_len, layers, found.states, found.enough, found.tried, found.path, used, form, covered
    )


def _check(q_len: int, layers: int) -> None:
    for name, value, most in (("layers", layers, MOST_LAYERS), ("q_len", q_len, MOST_TOKENS)):
        if not 1 <= value <= most:
            raise ConfigError(f"{name} is {value}, which must be in 1 .. {most}")
    if layers * q_len > MOST_WORK:
        raise ConfigError(
            f"{layers} layers of {q_len} tokens are more than can be looked through: their product "
            f"is at most {MOST_WORK}"
        )


def _by_relations(layers: Stack, q_len: int, height: int) -> _Walked:
    return _walk(Relations(layers, q_len), layers, q_len, height)


def _form(layers: Stack) -> tuple[Predicate, int]:
    """The closed form for all lengths, through as many of the top layers as there is one for."""
    return Chain(layers.masks, Var("kv_len")).through(layers.kinds[::-1])


@dataclass(frozen=True, slots=True)
class _Walked:
    """What a walk down the stack finds; fields as those of `Reach`."""

    states: tuple[State, ...]
    enough: int | None
    tried: int | None
    path: tuple[int, ...]


def _walk(hops: Hops, layers: Stack, q_len: int, height: int) -> _Walked:
    sets = [hops.start(q_len - 1)]
    for layer in reversed(range(height)):
        sets.append(hops.image(sets[-1], layers.kinds[layer]))
    states = []
    for number, positions in enumerate(sets):
        flags = hops.flags(positions)
        states.append(
            State(
                height - number,
                int(np.count_nonzero(flags)),
                int(np.argmax(flags)),
                runs_of(flags),
            )
        )
    path = [states[-1].earliest]
    for number in range(height, 0, -1):
        held = hops.flags(sets[number - 1])
        below = path[-1]
        if not held[below]:
            readers = hops.readers(below, layers.kinds[height - number]) & held
            below = int(np.flatnonzero(readers)[-1])
        path.append(below)
    enough, tried = _enough(hops, layers, q_len)
    return _Walked(tuple(states), enough, tried, tuple(reversed(path)))


def _enough(hops: Hops, layers: Stack, q_len: int) -> tuple[int | None, int | None]:
    """The smallest number of layers from layer 0 on through which every token reaches the last;
    else up to how many it was looked for, `None` for any number.
    """
    tallest = len(layers.kinds)
    if q_len == 1:
        return 0, 0
    if layers.uniform:
        before = hops.start(q_len - 1)
        count = 1
        for height in range(1, tallest + 1):
            after = hops.image(before, 0)
            reached = int(np.count_nonzero(hops.flags(after)))
            if reached == q_len:
                return height, height
            if reached == count:  # nothing new: nor will there be
                return None, None
            before, count = after, reached
        return None, tallest

    def complete(height: int) -> bool:
        positions = hops.start(q_len - 1)
        for layer in reversed(range(height)):
            positions = hops.image(positions, layers.kinds[layer])
        return bool(hops.flags(positions).all())

    # A higher stack reaches at least as much: its top layers may keep the last position as it is.
    low, high = 0, 1
    while not complete(high):
        if high == tallest:
            return None, tallest
        low, high = high, min(2 * high, tallest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if complete(middle) else (middle, high)
    return high, high


def layer_graph(
    pattern: Pattern, q_len: int, layers: int, sizes: Mapping[str, int], *, batch: int = 0
) -> DiGraph:
    """The flow of information through a stack as a graph, for short sequences.

    Nodes are pairs `(height, position)`: the content of a position at the input of layer `height`,
    or at the output of the last. An edge leads from what is read to who reads it. What reaches a
    node are its ancestors.

    Args:
        pattern, q_len, layers, sizes, batch: As for `reach`.

    Raises:
        ConfigError: The graph would be larger than `MOST_NODES` or `MOST_EDGES`.
        UnsupportedError: As for `reach`.
    """
    import networkx  # slow to load

    _check(q_len, layers)
    refuse_tables(pattern.body)
    if (layers + 1) * q_len > MOST_NODES:
        raise ConfigError(
            f"a graph of {layers} layers and {q_len} tokens has more than {MOST_NODES} nodes"
        )
    own = stack(pattern, layers, sizes, length=Const(q_len), batch=batch)
    hops = Positions(pattern, own, q_len, sizes, batch)
    edges: dict[int, list[tuple[int, int]]] = {}
    count = 0
    for kind in set(own.kinds):
        times = own.kinds.count(kind)
        edges[kind] = []
        for position in range(q_len):
            readers = np.flatnonzero(hops.readers(position, kind)).tolist()
            edges[kind] += ((position, reader) for reader in readers)
            if count + times * len(edges[kind]) > MOST_EDGES:
                raise ConfigError(
                    f"the graph of {layers} layers and {q_len} tokens has more than {MOST_EDGES} "
                    "edges"
                )
        count += times * len(edges[kind])
    graph: Any = networkx.DiGraph()
    for layer, kind in enumerate(own.kinds):
        graph.add_edges_from(
            ((layer, position), (layer + 1, reader)) for position, reader in edges[kind]
        )
    return graph
