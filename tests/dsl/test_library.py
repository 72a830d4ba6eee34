"""Every library pattern against a reference written from its published formula, pair by pair."""

import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from patterncc.dsl import diagnose, library, load
from patterncc.dsl.errors import PatternError
from patterncc.dsl.evaluate import allows
from patterncc.dsl.formatter import format_source
from tests.dsl.references import REFERENCES


class Case(NamedTuple):
    """A library pattern with parameters, at one place of a call."""

    name: str
    values: dict[str, Any]
    env: dict[str, int]
    tables: dict[str, Any]
    size: int = 40

    def __str__(self) -> str:
        return f"{self.name}-{'-'.join(map(str, [*self.values.values(), *self.env.values()]))}"


def coins(seed: int, *shape: int) -> Any:
    """A table of truth values, one in four of them true."""
    rng = random.Random(seed)

    def draw(shape: tuple[int, ...]) -> Any:
        return [draw(shape[1:]) for _ in range(shape[0])] if shape else rng.random() < 0.25

    return draw(shape)


def cases() -> Iterator[Case]:
    def case(name: str, values: str, size: int = 40, **others: Any) -> Case:
        """`values` as in a call; others are coordinates, sizes and tables."""
        numbers = {k: int(v) for k, v in (pair.split("=") for pair in values.split())}
        env = {key: value for key, value in others.items() if isinstance(value, int)}
        return Case(name, numbers, env, {k: v for k, v in others.items() if k not in env}, size)

    for name in ("full", "causal"):
        yield case(name, "")
    for n in (1, 2, 7, 100):
        for name in ("window", "around", "sinks", "prefix", "chunked", "block_causal", "strided"):
            yield case(name, f"n={n}")
        yield case("tail", f"n={n}", kv_len=40)
        for m in (0, 1, 3):
            yield case("chunks_back", f"n={n} m={m}")
        for step in (1, 2, 5):
            yield case("dilated", f"n={n} step={step}")

    for numbers in ("sinks=4 window=8", "sinks=1 window=1", "sinks=50 window=2"):
        yield case("streaming", numbers)
        for last in (1, 5, 100):
            yield case("tri_shape", f"{numbers} last={last}", kv_len=40)
        for kv_head in range(3):
            yield case("duo", numbers, kv_head=kv_head, retrieval=[True, False, True])
    yield case("streaming", "sinks=0 window=3")

    for numbers in (
        "block=4 local=2 stride=3",
        "block=3 local=1 stride=2",
        "block=8 local=3 stride=4",
    ):
        yield case("local_strided", numbers)
        for heads, kv_head, offset in ((2, 0, 0), (2, 1, 0), (8, 3, 1), (1, 0, 0)):
            yield case("local_stride", f"{numbers} offset={offset}", heads=heads, kv_head=kv_head)
    for layer in range(4):
        yield case("ladder", "sinks=2 recent=5 rung=4 period=3 kept=1", layer=layer)
        yield case("ladder", "sinks=0 recent=1 rung=3 period=5 kept=2", layer=layer)

    for numbers in ("window=3 dilation=1 globals=0", "window=3 dilation=2 globals=1",
                    "window=5 dilation=3 globals=4"):  # fmt: skip
        yield case("longformer", numbers)
    for block, size in ((4, 40), (6, 40), (8, 24)):
        for head in (0, 1):
            plan = coins(block, 2, 10, 10)
            yield case("bigbird", f"block={block}", size, head=head, kv_len=size, random=plan)
    for numbers in ("context=16 block=4 verticals=4 width=1",
                    "context=12 block=2 verticals=3 width=2",
                    "context=8 block=4 verticals=2 width=1"):  # fmt: skip
        for head in (0, 1, 2, 5):
            yield case("sparse_fixed", numbers, head=head)
    for numbers in ("local=4 stride=4", "local=3 stride=8", "local=1 stride=5"):
        yield case("sparse_strided", numbers)
    for heads, head, group in ((4, 0, 8), (4, 1, 8), (4, 2, 8), (4, 3, 10), (5, 2, 8)):
        yield case("s2", f"group={group}", head=head, heads=heads)
    for segment, ratio, heads in ((8, 2, 4), (12, 3, 6), (16, 4, 6), (8, 1, 4)):
        for head in range(heads):
            yield case("longnet", f"segment={segment} ratio={ratio}", head=head, heads=heads)

    for height, width, window in ((6, 6, 3), (4, 8, 2), (3, 9, 3)):
        for layer in (0, 1):
            numbers = f"height={height} width={width} window={window}"
            yield case("swin", numbers, height * width, layer=layer)
    for length, kernel, stride, dilation in (
        *((20, 5, 1, 1), (20, 4, 1, 1), (21, 5, 3, 1), (23, 3, 2, 4), (20, 6, 4, 2)),
        *((7, 7, 1, 1), (16, 3, 1, 5)),
    ):
        numbers = f"kernel={kernel} stride={stride} dilation={dilation}"
        yield case("neighborhood_1d", numbers, length, kv_len=length)
    for height, width, kernel, stride, dilation in (
        *((5, 8, 3, 1, 1), (6, 6, 4, 2, 1), (7, 6, 3, 1, 2)),
    ):
        numbers = f"height={height} width={width} kernel={kernel} stride={stride}"
        yield case("neighborhood", f"{numbers} dilation={dilation}", height * width)
    for tile, depth, rows, columns, windows, text in (
        (2, 2, 3, 4, (1, 3, 3), 0),
        (2, 3, 2, 3, (3, 1, 1), 5),
        (3, 1, 4, 3, (1, 3, 1), 2),
    ):
        numbers = f"tile={tile} depth={depth} rows={rows} columns={columns} text={text}"
        numbers += " depth_window={} row_window={} column_window={}".format(*windows)
        yield case("sliding_tile", numbers, tile * depth * rows * columns + text + 3)
    for block, size in ((4, 40), (3, 40), (8, 36)):
        yield case("block_diffusion", f"block={block}", size, kv_len=size)

    yield case("document", "", doc=[0, 5, 6, 6, 30, 40])
    for head in (0, 1):
        verticals, slashes = coins(1, 2, 40), coins(2, 2, 40)
        yield case("vertical_slash", "", head=head, verticals=verticals, slashes=slashes)
        yield case("blocks", "size=5", head=head, keep=coins(3, 2, 8, 8))


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_its_formula(case: Case) -> None:
    pattern = load(case.name, **case.values)
    reference = REFERENCES[case.name]
    for q in range(case.size):
        for k in range(case.size):
            expected = reference(q, k, **case.values, **case.env, **case.tables)
            assert allows(pattern, q, k, case.env, case.tables) == expected, (q, k)


def test_every_pattern_has_a_reference() -> None:
    assert {case.name for case in CASES} == set(REFERENCES) == set(library.names())


def test_streaming_is_streaming_llm() -> None:
    pattern = load("streaming", sinks=4, window=9)
    for q in range(40):
        for k in range(40):
            assert allows(pattern, q, k) == (k <= q and (k < 4 or k >= q - 8))


def test_neighborhoods_have_exactly_kernel_keys() -> None:
    pattern = load("neighborhood_1d", kernel=5, stride=2, dilation=3)
    for q in range(24):
        assert sum(allows(pattern, q, k, {"kv_len": 24}) for k in range(24)) == 5


def test_a_union_of_longnet_branches() -> None:
    pattern = load("longnet(8, 1) or longnet(16, 2)")
    env = {"head": 3, "heads": 4}
    for q in range(40):
        for k in range(40):
            branches = [REFERENCES["longnet"](q, k, w, r, **env) for w, r in ((8, 1), (16, 2))]
            assert allows(pattern, q, k, env) == any(branches)


def test_names_and_summaries() -> None:
    assert list(library.names()) == sorted(library.names())
    for name in library.names():
        assert library.summary(name).endswith(".")
        assert len(library.summary(name)) <= 100
    with pytest.raises(KeyError):
        library.source("casual")


@pytest.mark.parametrize("name", library.names())
def test_files_are_sound(name: str) -> None:
    source = library.source(name)
    assert format_source(source.text) == source.text
    checked = diagnose(name)
    assert checked.errors == checked.warnings == ()
    assert checked.pattern is not None
    assert checked.pattern.name == name


@pytest.mark.parametrize("name", library.names())
def test_loading_is_fast(name: str) -> None:
    load(name)  # builds the parser
    times = []
    for _ in range(5):
        start = time.perf_counter()
        load(name)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.030


def test_a_table_must_be_a_parameter() -> None:
    with pytest.raises(PatternError, match=r"is a parameter of type `segments`"):
        load("document(doc)")
