"""Parameters, places and tables at which the tests look at library patterns, all of them small."""

import math
from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

from tests.dsl.lacache_cache import LadderCache, lifetimes, streamed


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
    rng = Random(seed)

    def draw(shape: tuple[int, ...]) -> Any:
        return [draw(shape[1:]) for _ in range(shape[0])] if shape else rng.random() < 0.25

    return draw(shape)


def case(name: str, values: str, size: int = 40, **others: Any) -> Case:
    """`values` as in a call; others are coordinates, sizes and tables."""
    numbers = {k: int(v) for k, v in (pair.split("=") for pair in values.split())}
    env = {key: value for key, value in others.items() if isinstance(value, int)}
    return Case(name, numbers, env, {k: v for k, v in others.items() if k not in env}, size)


def basic_cases() -> Iterator[Case]:
    """The patterns of `tests.dsl.references`."""
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


def system_cases() -> Iterator[Case]:
    """The patterns of `tests.dsl.references_systems`."""
    for numbers in (
        "block=4 sinks=1 local=2",
        "block=8 sinks=0 local=1",
        "block=3 sinks=2 local=4",
    ):
        yield case("block_streaming", numbers)
    for layer in range(3):
        numbers = "start=1 sinks=2 window=5 last=3"
        yield case("triangle_mix", numbers, layer=layer, kv_len=40)
        yield case("late_window", "n=5 first=1", layer=layer)
        yield case("masformer", "first=1 block=6", layer=layer)
    for kv_head, retrieval in ((0, [True, False]), (1, [True, False])):
        for numbers in ("chunk=8 sinks=2 window=5", "chunk=13 sinks=4 window=0"):
            yield case("duo_chunked", numbers, kv_head=kv_head, retrieval=retrieval)
        for batch in (0, 1):
            numbers, where = "page=4 sinks=3 window=6", {"batch": batch, "head": 2 * kv_head}
            table = coins(4, 2, 4, 10)
            yield case(
                "lserve", numbers, kv_head=kv_head, retrieval=retrieval, pages=table, **where
            )
    for layer in range(7):
        yield case("alternating", "n=6 period=3", layer=layer)
        yield case("modernbert", "n=3 period=3", layer=layer)
        yield case("llama4", "chunk=7 period=4", layer=layer)
        yield case("longgen", "sinks=2 window=5", layer=layer, layers=7)
        numbers = "block=4 local=2 stride=3 offset=1"
        yield case("longgen_blocks", numbers, layer=layer, layers=7, heads=4, kv_head=1)
    image = [-1] * 5 + [0] * 12 + [-1] * 4 + [1] * 9 + [2] * 6 + [-1] * 4
    for layer in (0, 1, 2):
        yield case("gemma3_images", "n=6 period=3", layer=layer, image=image)
        for batch in (0, 1, 2):
            padding = [0, 5, 38]
            yield case(
                "llama4_padded", "chunk=7 period=3", layer=layer, batch=batch, left_pad=padding
            )
    for kv_head in range(4):
        numbers = "dense=1 block=4 local=2 stride=4 offset=0"
        yield case("local_stride_heads", numbers, heads=4, kv_heads=4, kv_head=kv_head)
        numbers = numbers.replace("dense=1", "dense=0")
        yield case("local_stride_heads", numbers, heads=4, kv_heads=4, kv_head=kv_head)
    for numbers in ("block=4 left=2 right=1 stride=3", "block=2 left=1 right=4 stride=5"):
        yield case("local_stride_both", numbers)
    for chunk in (1, 6, 16, 64):
        yield case("megalodon", f"chunk={chunk}")
        yield case("gecko", f"chunk={chunk}")
    for head, heads, group in ((0, 4, 8), (1, 4, 10), (2, 4, 8), (3, 4, 20), (4, 5, 8)):
        yield case("s2_wrapped", f"group={group}", head=head, heads=heads, kv_len=40)
        yield case("sinklora", f"group={group} sinks=3", head=head, heads=heads)

    for batch in (0, 1):
        for numbers in ("window=2 dilation=1", "window=3 dilation=3"):
            yield case("longformer_tokens", numbers, batch=batch, seen=coins(5, 2, 40))
    for numbers in (
        "block=4 before=1 after=1",
        "block=8 before=2 after=0",
        "block=5 before=0 after=3",
    ):
        yield case("block_window", numbers)
    for blocks, local, count, turns, rows in (
        *((10, 4, 1, 1, 0), (10, 4, 1, 4, 1), (12, 4, 2, 2, 0), (7, 4, 2, 2, 1), (9, 8, 3, 2, 0)),
        *((10, 3, 1, 3, 1), (3, 4, 1, 1, 0)),
    ):
        for head in (0, 1, 3):
            numbers = f"block=4 local={local} count={count} turns={turns} rows={rows}"
            length = blocks * 4 - (head == 3)
            yield case("deepspeed_fixed", numbers, length, head=head, kv_len=length)
    for head in (0, 1):
        windows, columns, random = [0, 8, 12, 28, 40], coins(6, 2, 10), coins(7, 2, 10, 10)
        tables = {"windows": windows, "columns": columns, "random": random}
        yield case("deepspeed_variable", "block=4", head=head, **tables)
        for numbers in ("window=3 globals=1", "window=1 globals=0", "window=4 globals=3"):
            yield case("deepspeed_bigbird", f"block=4 {numbers}", head=head, random=random)
        yield case("deepspeed_longformer", "block=4 window=3", globals=coins(8 + head, 10))
    yield case("clustered", "", cluster=[(7 * token * token) % 5 for token in range(40)])

    for head in (0, 1):
        rows, square, tokens = coins(9, 2, 10, 40), coins(10, 2, 10, 10), coins(11, 2, 40)
        yield case("minference", "block=4", head=head, keep=rows)
        diagonals = {"columns": coins(12, 2, 10), "diagonals": coins(13, 2, 10)}
        yield case("flexprefill", "block=4", head=head, keep=square, **diagonals)
        yield case("causal_blocks", "size=4", head=head, keep=square)
        for length in (40, 33, 9):
            plan = coins(14, 2, 5, 10)
            yield case("sale", "rows=8 columns=4", length, head=head, kv_len=length, keep=plan)
        numbers = "rows=8 columns=4 sinks=3 window=6"
        yield case("hip", numbers, head=head, keep=coins(15, 2, 5, 10))
        yield case("squeezed", "context=23", head=head, kept=tokens)
    yield case("minference_dilated", "sinks=3 reach=12")
    yield case("minference_dilated_window", "sinks=3 window=6 reach=14")
    yield case("minference_dilated_window", "sinks=2 window=5 reach=15")
    for batch, head in ((0, 0), (1, 1)):
        by_token, tokens = coins(16, 2, 2, 40, 10), coins(17, 2, 2, 40)
        where = {"batch": batch, "head": head}
        grouped = {"batch": batch, "kv_head": head}
        yield case("nsa", "block=4", keep=by_token, **grouped)
        for dense in (0, 100):
            numbers = f"block=4 first=1 local=2 dense={dense}"
            yield case("infllm_v2", numbers, kv_len=40, keep=by_token, **grouped)
        yield case("moba", "chunk=4", keep=by_token, **where)
        yield case("landmark", "block=4", keep=by_token, **where)
        for layer in (1, 2):
            pages = coins(18, 2, 2, 10)
            yield case("quest", "page=4 dense=2", layer=layer, pages=pages, **where)
        yield case("h2o", "recent=6", heavy=tokens, **where)
        for prompt in ([30, 12], [40, 3]):
            yield case("snapkv", "window=3", prompt=prompt, kept=tokens, **where)
    yield case("eviction", "", until=[q + 1 + (5 * q) % 17 for q in range(40)])
    for layers, *ladder in ((8, 22, 4, 0, 2), (8, 20, 4, 2, 1), (5, 16, 2, 0, 0), (9, 25, 3, 1, 3)):
        yield from ladder_cases(layers, *ladder)

    yield case("packed", "", doc=[0, 5, 6, 6, 30, 40])
    for batch in (0, 1):
        yield case("prefix_lengths", "", batch=batch, length=[0, 17])
        yield case("tree", "nodes=11", batch=batch, kv_len=40, ancestors=coins(19, 2, 11, 11))
    for length, kernel, stride, dilation in (
        *((20, 5, 1, 1), (20, 4, 1, 1), (21, 5, 3, 1), (23, 3, 2, 4), (20, 6, 4, 2)),
    ):
        numbers = f"kernel={kernel} stride={stride} dilation={dilation}"
        yield case("neighborhood_causal", numbers, length, kv_len=length)
    for layer, head in ((0, 0), (0, 1), (1, 1)):
        by_head = {
            "depth_window": [[1, 3], [5, 1]],
            "row_window": [[3, 1], [1, 3]],
            "column_window": [[1, 3], [3, 5]],
        }
        numbers = "tile=2 depth=2 rows=3 columns=4 text=3"
        yield case("sliding_tile_heads", numbers, 53, layer=layer, head=head, **by_head)
    for sizes, kernels in (((3, 4, 5), (3, 3, 3)), ((2, 5, 4), (1, 4, 3)), ((4, 3, 3), (2, 3, 1))):
        numbers = "frames={} height={} width={}".format(*sizes)
        numbers += " frame_kernel={} row_kernel={} column_kernel={}".format(*kernels)
        yield case("neighborhood_3d", numbers, math.prod(sizes))


def ladder_cases(layers: int, capacity: int, span: int, overlap: int, sinks: int) -> Iterator[Case]:
    """Cases of `lacache`, its table taken from a simulation of the cache."""
    ladder = LadderCache(layers, span, overlap, capacity, sinks)
    rungs = (capacity + ladder.freed // 2 - sinks - layers) // ladder.kept
    entries = sinks + ladder.rung * rungs
    length = 90
    lived = lifetimes(streamed(layers, span, overlap, capacity, sinks, 4 * length + entries))
    table = [life for layer in range(ladder.freed + 1) for life in lived[layer][:entries]]
    ends = [life for life in table if life < 1 << 30]
    numbers = f"capacity={capacity} span={span} overlap={overlap} sinks={sinks}"
    numbers += f" recent={min(ends)} reach={max(ends)}"
    for layer in range(min(layers, ladder.freed + 2)):
        yield case(
            "lacache", numbers, length, lifetime=table, layer=layer, layers=layers, kv_len=length
        )
