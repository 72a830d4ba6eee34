"""Patterns and calls drawn from seeds, for `tests.gpu.random_calls`.

Patterns come from the library, from texts with random numbers, and from the strategies of the fuzz
tests (`tests/codegen/drawing.py`, `tests/strategies.py`). All that a kernel is compiled for (the
pattern, dtype, head dimensions, heads for each key/value head, score terms) is drawn once for a
pattern; lengths, offsets, batches, strides, run-time numbers and tables for each of its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import patterncc
from patterncc import example_values
from patterncc.codegen.gpu.table_source import tables_read
from patterncc.dsl import library
from patterncc.dsl.errors import ArgumentError, PatternError
from patterncc.dsl.mask import Predicate, parameters, variables
from patterncc.dsl.pattern import IntType, Parameter, SegmentsType, TableType
from patterncc.dsl.printer import pattern_text
from patterncc.dsl.score.terms import load_terms
from tests import strategies
from tests.codegen import drawing

Origin: TypeAlias = Literal["text", "library", "mask", "tables", "long"]
"""Where a pattern comes from: a text with random numbers, the library, a random mask, one that
reads tables, or a text for calls so long that one pass over them may pay."""

ORIGINS: dict[Origin, int] = {"text": 7, "library": 5, "mask": 5, "tables": 2, "long": 1}
"""Their shares of all patterns."""

TILE = 128  # the largest of the kernels' tiles
MOST = 700  # positions of a call that is not long
LAYERS = 6

SCORES: tuple[tuple[str, str | None], ...] = (
    ("softcap(score, 5)", None),
    ("score", "sinks[head]"),
    ("score + alibi(slopes) * 0.1", None),
    ("softcap(score, cap) + relative_bias(bias, 128)", "sinks[head]"),
)


@dataclass(frozen=True)
class DrawnPattern:
    """A pattern and what its kernels are compiled for.

    Attributes:
        seed: That it was drawn from.
        origin: Where it comes from.
        source: Its text, or a library name.
        fixed: Values of parameters that are fixed when it is compiled.
        deterministic: As of `patterncc.compile`.
        dtype: Of query, key and value.
        head_dims: Of query and key, and of value.
        kv_heads, group: Heads of the key, and heads of the query for each.
        within: Whether all calls have rows that end within the keys.
        score, sink: The score terms; None: there are none.
    """

    seed: int
    origin: Origin
    source: str
    fixed: Mapping[str, int]
    deterministic: bool
    dtype: torch.dtype
    head_dims: tuple[int, int]
    kv_heads: int
    group: int
    within: bool
    score: str | None = None
    sink: str | None = None

    @property
    def heads(self) -> int:
        """Heads of the query."""
        return self.kv_heads * self.group

    @property
    def layers(self) -> int:
        """Layers of the model that calls are part of."""
        return example_values.USUAL_LAYERS.get(self.source, LAYERS)

    def compiled(self) -> patterncc.Attention:
        """What computes attention under it."""
        options: dict[str, Any] = {"score": self.score, "sink": self.sink, **self.fixed}
        return patterncc.compile(self.source, deterministic=self.deterministic, **options)


@dataclass(frozen=True)
class DrawnCall:
    """A call of a drawn pattern; its tensors and tables are drawn from `seed`.

    Attributes:
        seed: That it was drawn from.
        batch, q_len, kv_len, q_offset, layer: Of the call.
        length_first: Whether heads lie next to each other in memory, for each position.
        numbers: Run-time numbers of the pattern by name.
    """

    seed: int
    batch: int
    q_len: int
    kv_len: int
    q_offset: int
    layer: int
    length_first: bool
    numbers: Mapping[str, int] = field(default_factory=dict)


# ------------------------------------------------------------------------------------- patterns


def draw_pattern(number: int, origin: Origin | None = None) -> DrawnPattern:
    """The pattern of a seed.

    Args:
        number: The seed.
        origin: Where it comes from; drawn if not given.
    """
    rng = Random(number)
    drawn_origin = rng.choices(list(ORIGINS), list(ORIGINS.values()))[0]
    origin = origin or drawn_origin
    source, fixed = _SOURCES[origin](rng)
    dtype = rng.choice([torch.bfloat16] * 5 + [torch.float16] * 3 + [torch.float32] * 2)
    width = rng.choice([64, 128])
    head_dims = (width, width if rng.random() < 0.9 else 192 - width)
    score, sink = _score(rng, source) if origin in ("text", "library") else (None, None)
    deterministic = rng.random() < 0.7
    if origin == "long":  # one pass takes such calls alone
        deterministic, head_dims = False, (128, 128)
        dtype = rng.choice([torch.bfloat16, torch.float16])
    return DrawnPattern(
        seed=number,
        origin=origin,
        source=source,
        fixed=fixed,
        deterministic=deterministic,
        dtype=dtype,
        head_dims=head_dims,
        kv_heads=1 if origin == "long" else rng.choice([1, 2, 2, 3]),
        group=rng.choice([1, 2]) if origin == "long" else rng.choice([1, 2, 4]),
        within=origin in ("library", "long") or rng.random() < 0.6,
        score=score,
        sink=sink,
    )


def _score(rng: Random, source: str) -> tuple[str | None, str | None]:
    """Score terms of a pattern, of one in five."""
    score, sink = rng.choice(SCORES)
    if rng.random() > 0.2:
        return None, None
    try:
        patterncc.compile(source, score=score, sink=sink)
    except ArgumentError:  # a name means one thing in the pattern and another in the terms
        return None, None
    return score, sink


def _text(rng: Random) -> tuple[str, dict[str, int]]:
    """A text with random numbers."""

    def n(most: int = 300) -> int:
        return rng.randint(1, most)

    def step() -> int:
        return rng.choice([2, 3, 4, 5, 8, 16])

    atoms: list[Callable[[], str]] = [
        lambda: f"window({n()})",
        lambda: f"causal and (k < {n(20)} or q - k < {n()})",
        lambda: f"streaming({n(20)}, {n()})",
        lambda: f"dilated({n(60)}, {step()})",
        lambda: f"strided({step()})",
        lambda: f"chunked({n()})",
        lambda: f"chunks_back({n(90)}, {n(3)})",
        lambda: f"block_causal({n(100)})",
        lambda: f"prefix({n()})",
        lambda: f"around({n()})",
        lambda: f"tail({n(100)}) and causal",
        lambda: f"tri_shape({n(20)}, {n()}, {n(100)})",
        lambda: f"local_strided({rng.choice([8, 16, 32, 64])}, {n(4)}, {step()})",
        lambda: f"ladder({n(20)}, {n(100)}, {rng.choice([16, 30, 64])}, {step()})",
        lambda: f"longformer({n(100)}, {rng.choice([1, 1, 2, 4])}, {n(10)})",
        lambda: f"k > q + {n(100)}",
        lambda: f"(k // {n(64)} + layer) % {step()} == 0",
    ]
    whole: list[Callable[[], str]] = [
        lambda: "full",
        lambda: "causal",
        lambda: "pattern p(sinks, window): causal and (k < sinks or q - k < window)",
        lambda: "pattern p(low, high): low <= q - k < low + high",
        lambda: f"if head % 2 == 0 then {rng.choice(atoms)()} else {rng.choice(atoms)()}",
        lambda: f"({rng.choice(atoms)()}) or ({rng.choice(atoms)()})",
        lambda: f"({rng.choice(atoms)()}) and ({rng.choice(atoms)()})",
        lambda: f"not ({rng.choice(atoms)()})",
        lambda: "pattern p(doc: segments): causal and doc[q] == doc[k]",
        lambda: f"pattern p(doc: segments): window({n()}) and doc[q] == doc[k]",
        lambda: "pattern p(w: int[head]): 0 <= q - k < w[head]",
        lambda: f"pattern p(keep: bool[head, *, *]): keep[head, q // {step() * 8}, k // 64]",
        lambda: "pattern p(image: int[token]): causal or image[q] == image[k]",
        *atoms,
    ]
    return rng.choice(whole)(), {}


def _library(rng: Random) -> tuple[str, dict[str, int]]:
    """A library pattern; sizes and windows that would be longer than the calls are drawn anew."""
    name = rng.choice(library.names())
    if name in example_values.names():
        return name, {}  # what its tables have to agree with
    pattern = patterncc.compile(name).pattern
    known = dict(pattern.fixed) | {p.name: p.value for p in pattern.numbers if p.value is not None}
    drawn: dict[str, Any] = {each: rng.choice([16, 48, 64, 100]) for each in known}
    drawn = {parameter: drawn[parameter] for parameter, value in known.items() if value > 200}
    try:
        patterncc.compile(name, **drawn)
    except PatternError:  # its parameters depend on each other
        return name, {}
    return name, drawn


def _mask(rng: Random) -> tuple[str, dict[str, int]]:
    """A random mask of the tests of lowering."""
    declared = [Parameter(name, IntType()) for name in drawing.NUMBERS]
    return _drawn(rng, drawing.masks, declared, {"q", "k"}), {}


def _tables(rng: Random) -> tuple[str, dict[str, int]]:
    """A random mask of the tests of the language that reads a table."""
    masks = strategies.predicates(tables=True, covers=False, leaves_at_most=3)
    return _drawn(rng, masks, list(strategies.PARAMETERS), set(strategies.TABLES)), {}


def _drawn(
    rng: Random,
    masks: st.SearchStrategy[Predicate],
    declared: list[Parameter],
    wanted: set[str],
) -> str:
    """The text of the first mask that is a pattern which reads one of the names that are wanted."""
    while True:
        for body in _examples(masks, rng.randrange(1 << 30)):
            read = parameters(body) | {table.name for table in tables_read([body])}
            if not (read | variables(body)) & wanted:
                continue
            text = pattern_text([each for each in declared if each.name in read], body)
            try:
                patterncc.compile(text)
            except PatternError:  # no row sees a key, say
                continue
            return text


def _examples(masks: st.SearchStrategy[Predicate], number: int) -> Iterator[Predicate]:
    """What a strategy draws from a seed, but for the simplest example, which it always draws."""
    found: list[Predicate] = []

    @seed(number)
    @settings(
        max_examples=3,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(masks)
    def draw(body: Predicate) -> None:
        found.append(body)

    draw()
    return iter(found[1:])


def _long(rng: Random) -> tuple[str, dict[str, int]]:
    """A text of dense calls."""
    return rng.choice(["full", "causal", "prefix(500)", "around(4000)", "q - k < 3000"]), {}


_SOURCES: dict[Origin, Callable[[Random], tuple[str, dict[str, int]]]] = {
    "text": _text,
    "library": _library,
    "mask": _mask,
    "tables": _tables,
    "long": _long,
}


# ---------------------------------------------------------------------------------------- calls


def draw_calls(drawn: DrawnPattern, count: int, most: int = MOST) -> list[DrawnCall]:
    """Calls of a pattern, of different lengths.

    Args:
        drawn: The pattern.
        count: How many.
        most: The longest length; of those that are long about an eighth.
    """
    rng = Random(drawn.seed + 1)
    attn = drawn.compiled()
    found: dict[tuple[int, int, int], DrawnCall] = {}
    while len(found) < count:
        q_len, kv_len = _length(rng, most), _length(rng, most)
        if drawn.origin == "long":
            q_len = kv_len = 8 * most + rng.randint(-most // 2, most // 2)
        elif rng.random() < 0.4:
            q_len = kv_len
        if drawn.within:
            q_len, kv_len = min(q_len, kv_len), max(q_len, kv_len)
            offset = kv_len - q_len if rng.random() < 0.7 else rng.randint(0, kv_len - q_len)
        else:
            offset = rng.choice([kv_len - q_len, 0, rng.randint(-40, most)])
        number = rng.randrange(1 << 30)
        found[q_len, kv_len, offset] = DrawnCall(
            seed=number,
            batch=1 if drawn.origin == "long" else rng.choice([1, 1, 2, 3]),
            q_len=q_len,
            kv_len=kv_len,
            q_offset=offset,
            layer=rng.randrange(drawn.layers),
            length_first=rng.random() < 0.3,
            numbers={
                each.name: rng.randint(0, 300)
                for each in attn.pattern.numbers
                if each.value is None or (each.value > 200 and each.name not in drawn.fixed)
            },
        )
    return list(found.values())


def _length(rng: Random, most: int) -> int:
    """A length: often one of few tiles, at times a single row."""
    short = rng.randint(1, min(most, 2 * TILE))
    return rng.choice([rng.randint(1, most), rng.randint(1, most), short, rng.choice([1, 64, 128])])


def values_of(drawn: DrawnPattern, call: DrawnCall) -> dict[str, Any]:
    """The run-time numbers of a call, and its tables on the CPU."""
    pattern = drawn.compiled().pattern
    sizes = {
        "heads": drawn.heads,
        "kv_heads": drawn.kv_heads,
        "layers": drawn.layers,
        "kv_len": call.kv_len,
        "batch": call.batch,
    }
    values: dict[str, Any] = dict(call.numbers)
    example = None
    if drawn.origin == "library":
        example = example_values.example(drawn.source, pattern, sizes, call.seed % 1000)
    if example is not None:
        values |= example.numbers
        return values | {n: torch.as_tensor(table) for n, table in example.tables.items()}
    random = np.random.default_rng(call.seed)
    positions = max(call.kv_len, call.q_offset + call.q_len)
    for table in pattern.tables:
        values[table.name] = torch.as_tensor(_table(table.type, sizes, positions, random))
    return values


def _table(
    kind: object, sizes: Mapping[str, int], positions: int, random: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Random entries of a table."""
    if isinstance(kind, SegmentsType):
        cuts = np.sort(random.integers(0, positions + 1, random.integers(0, 6)))
        return np.array([0, *cuts, positions], np.int64)
    assert isinstance(kind, TableType)
    known = {
        "head": sizes["heads"],
        "kv_head": sizes["kv_heads"],
        "layer": sizes["layers"],
        "batch": sizes["batch"],
        "token": positions,
    }
    shape = [known.get(axis or "", positions // 16 + 1) for axis in kind.axes]
    if kind.element == "bool":
        return random.random(shape) < 0.4
    if "token" in kind.axes:  # such as images, which lie together
        return np.sort(random.integers(-1, 6, shape))
    return random.integers(0, 300, shape)


def score_values(
    drawn: DrawnPattern, call: DrawnCall
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The numbers that the score terms of a call read, and their tables, float32 on the CPU."""
    terms = load_terms(drawn.score, drawn.sink)
    generator = torch.Generator().manual_seed(call.seed)
    shapes = {"slopes": (drawn.heads,), "sinks": (drawn.heads,), "bias": (drawn.heads, 257)}
    tables = {name: torch.randn(shapes[name], generator=generator) for name in terms.tables}
    return dict.fromkeys(terms.numbers, 4.0), tables


def tensors_of(drawn: DrawnPattern, call: DrawnCall, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value; memory past the last row of each is NaN."""
    generator = torch.Generator().manual_seed(call.seed)
    batch, (width, value_width) = call.batch, drawn.head_dims
    shapes = (
        (batch, drawn.heads, call.q_len, width),
        (batch, drawn.kv_heads, call.kv_len, width),
        (batch, drawn.kv_heads, call.kv_len, value_width),
    )
    found = []
    for batch, heads, length, size in shapes:
        numbers = torch.randn((batch, heads, length, size), generator=generator)
        places = (batch, heads, length + 37, size)
        if call.length_first:
            whole = numbers.new_full((batch, length + 37, heads, size), torch.nan).transpose(1, 2)
        else:
            whole = numbers.new_full(places, torch.nan)
        whole[:, :, :length] = numbers
        found.append(whole.to(device, drawn.dtype)[:, :, :length])
    query, key, value = found
    return query, key, value
