"""Named sets of patterns and shapes for `patterncc bench --suite`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from patterncc.bench.request import Phase, Request
from patterncc.call import Call
from patterncc.codegen.problem import DType, Problem
from patterncc.dsl import library, load
from patterncc.dsl.errors import ConfigError
from patterncc.example_values import USUAL_LAYERS, Example, example

DOCUMENTS = 64  # of a packed batch


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a call whose rows are all its keys."""

    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class Subject:
    """A pattern of a suite.

    Attributes:
        name: In tables.
        text: Of the pattern, or the name of a library pattern, whose example fills in the rest.
        tables: The tables of a call of some length.
    """

    name: str
    text: str
    tables: Callable[[int], Mapping[str, Any]] = lambda length: {}


@dataclass(frozen=True, slots=True)
class Suite:
    """Patterns at shapes.

    Attributes:
        summary: What it is, in words.
        patterns: Its patterns.
        shapes: Each of them is measured at all.
        peers: As `--peers` has them, where nobody names others; all if `None`.
        phases: What is timed where nobody asks for something else; all if empty.
        aims: By phase: how many times as fast as the best of these peers patterncc is to be.
    """

    summary: str
    patterns: Sequence[Subject]
    shapes: Sequence[Shape]
    peers: str | None = None
    phases: tuple[Phase, ...] = ()
    aims: Mapping[Phase, float] = field(default_factory=dict)

    def only(self, names: str | None) -> Sequence[Subject]:
        """The patterns of a list such as `causal,nsa`; all if none is given.

        Raises:
            ConfigError: There is no such pattern in it.
        """
        if names is None:
            return self.patterns
        known = {subject.name: subject for subject in self.patterns}
        asked = list(filter(None, names.split(",")))
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise ConfigError(f"--only has {unknown[0]!r}, not of this suite", tuple(known))
        return [known[name] for name in dict.fromkeys(asked)]


def drawn_documents(length: int) -> dict[str, Any]:
    """`DOCUMENTS` packed documents, their lengths drawn from a log-normal distribution and made to
    fill the text: many are short, a few long."""
    count = min(DOCUMENTS, length)
    weights = np.random.default_rng(0).lognormal(0.0, 1.0, count)
    inner = np.rint(np.cumsum(weights) / weights.sum() * (length - count)).astype(np.int64)
    return {"doc": np.r_[0, inner + np.arange(1, count + 1)]}


_FULL = Subject("full", "full")
_CAUSAL = Subject("causal", "causal")
_WIDE = Subject("window 4096", "window(4096)")
_NARROW = Subject("window 1024", "window(1024)")
_SINKS = Subject("sinks 64 + window 4096", "streaming(64, 4096)")
_DILATED = Subject("dilated 512 step 8", "dilated(512, 8)")
_STRIDED = Subject("strided blocks", "local_strided(64, 16, 8)")
_LADDER = Subject("ladder", "ladder(64, 1024, 128, 8)")
_PACKED = Subject(
    f"packed, {DOCUMENTS} documents",
    "pattern packed(doc: segments): causal and doc[q] == doc[k]",
    drawn_documents,
)
_DESIGN = (_FULL, _CAUSAL, _WIDE, _NARROW, _SINKS, _DILATED, _STRIDED, _LADDER, _PACKED)
_USUAL = (_FULL, _CAUSAL, _NARROW, _SINKS, _LADDER)
_SHAPE = Shape(1, 16, 16, 16384, 128)

SUITES: Mapping[str, Suite] = {
    "design": Suite("nine patterns, 16 heads, 16384 tokens, head_dim 128", _DESIGN, [_SHAPE]),
    "short": Suite(
        "four patterns at 1024 and 2048 tokens, batch 16",
        (
            _FULL,
            _CAUSAL,
            Subject("window 256", "window(256)"),
            Subject("sinks 64 + window 256", "streaming(64, 256)"),
        ),
        [replace(_SHAPE, batch=16, length=1024), replace(_SHAPE, batch=16, length=2048)],
    ),
    "d64": Suite("five patterns, head_dim 64", _USUAL, [replace(_SHAPE, head_dim=64)]),
    "gqa": Suite(
        "five patterns, 32 heads on 8 key/value heads, 32768 tokens",
        _USUAL,
        [Shape(1, 32, 8, 32768, 128)],
    ),
    "batch": Suite("five patterns, batch 4", _USUAL, [replace(_SHAPE, batch=4)]),
    "packed": Suite("packed documents alone", (_PACKED,), [_SHAPE]),
    "library": Suite(
        "every library pattern, with the example that it has, beside FlexAttention",
        [Subject(name, name) for name in library.names()],
        [_SHAPE],
        peers="flex",
        phases=("forward", "backward"),
        aims={"forward": 1.4, "backward": 1.3},
    ),
}


def suite_named(name: str) -> Suite:
    """The suite of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in SUITES:
        raise ConfigError(f"--suite is {name!r}", tuple(SUITES))
    return SUITES[name]


def parse_shape(text: str) -> Shape:
    """A shape such as `1x16x16384x128` or `1x32:8x32768x128`: batch, heads, length, head_dim.

    Raises:
        ConfigError: It is none.
    """
    found = re.fullmatch(r"(\d+)x(\d+)(?::(\d+))?x(\d+)([KkMm]?)x(\d+)", text)
    if found is None:
        raise ConfigError(
            f"--shapes has {text!r}", ("1x16x16384x128", "1x32:8x32Kx128 (heads:key/value heads)")
        )
    batch, heads, kv_heads, length, unit, head_dim = found.groups()
    factor = {"": 1, "K": 1 << 10, "M": 1 << 20}[unit.upper()]
    return Shape(
        int(batch), int(heads), int(kv_heads or heads), int(length) * factor, int(head_dim)
    )


def request_of(subject: Subject, shape: Shape, dtype: DType, device: str, seed: int) -> Request:
    """A pattern of a suite at a shape.

    Raises:
        ConfigError: The sizes cannot be.
    """
    sizes = {
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "layers": USUAL_LAYERS.get(subject.text, 1),
        "kv_len": shape.length,
        "batch": shape.batch,
    }
    pattern = load(subject.text)
    found = example(subject.text, pattern, sizes, seed) or Example()
    numbers: dict[str, Any] = {name: found.numbers[name] for name in pattern.open_numbers}
    if numbers:
        pattern = load(subject.text, **numbers)
    call = Call.of(
        pattern,
        shape.length,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        layers=sizes["layers"],
        tables={**found.tables, **subject.tables(shape.length)},
    )
    problem = Problem(dtype, shape.head_dim, shape.head_dim, shape.heads // shape.kv_heads)
    return Request(subject.name, call, problem, device, shape.batch, 0, seed)
