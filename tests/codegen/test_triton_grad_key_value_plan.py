"""What the gradients of key and value launch, with what memory, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.backward_plan import BackwardPlanner
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.ir import Passes
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError

MULTIPROCESSORS = 132
DESCRIPTOR = KernelConfig(64, 64, 4, 2, "descriptor")


def _launches(
    text: str,
    length: int,
    heads: tuple[int, int] = (8, 2),
    config: KernelConfig | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    target: str = "cuda:90",
) -> dict[str, list[Launch]]:
    """The launches of a call by kernel, in bfloat16."""

    def lowered(block_q: int, block_k: int) -> Sequence[Passes]:
        return [lower_passes(load(text), block_q, block_k)]

    def tensor(name: str, count: int) -> Layout:
        strides = (count * length * 64, length * 64, 64, 1)
        return Layout(name, 4096, (1, count, length, 64), strides, 2)

    rows, keys = heads
    named = {"query": rows, "grad_out": rows, "key": keys, "value": keys, "out": rows}
    launches = BackwardPlanner(lowered, BackwardConfig(None, config)).plan(
        Problem("bfloat16", 64, 64, rows // keys),
        target,
        [tensor(name, count) for name, count in named.items()],
        {"q_offset": 0, "layer": 0},
        0.125,
        shapes or {},
        multiprocessors=MULTIPROCESSORS,
        needs_query=False,
    )
    assert launches[0].source.name == "delta"
    found: dict[str, list[Launch]] = {}
    for launch in launches:
        found.setdefault(launch.source.name, []).append(launch)
    return found


def _buffers(launches: dict[str, list[Launch]]) -> dict[str, tuple[int, ...]]:
    every = (buffer for group in launches.values() for one in group for buffer in one.buffers)
    return {buffer.name: buffer.shape for buffer in every}


def test_even_work() -> None:
    launches = _launches("causal", 16384)
    assert [*launches] == ["delta", "grad_key_value"]
    (kernel,) = launches["grad_key_value"]
    assert kernel.grid == (256, 2, 1)
    assert [one.tensor for one in kernel.described] == [
        *("query", "grad_out", "key", "value", "row_lse", "row_delta")
    ]
    assert kernel.pointers == ("grad_key", "grad_value", "sums")
    assert _buffers(launches) == {
        "row_lse": (1, 8, 16384),
        "row_delta": (1, 8, 16384),
        "sums": (1,),
    }


def test_row_numbers_go_on_after_the_last_row() -> None:
    assert _buffers(_launches("causal", 1000))["row_lse"] == (1, 8, 1024)


def test_a_tall_column() -> None:
    launches = _launches("streaming(64, 1024)", 16384)
    assert [*launches] == ["delta", "grad_key_value", "sum_chunks"]
    (kernel,), (sums,) = launches["grad_key_value"], launches["sum_chunks"]
    assert kernel.grid == (8 + 256, 2, 1)
    assert sums.grid == (64 // 16, 2, 1)
    assert _buffers(launches)["sums"] == (1, 2, 8, 64, 128)


def test_memory_for_sums_is_bounded() -> None:
    for text in ("streaming(64, 1024)", "ladder(4, 1024, 128, 8)", "local_strided(64, 16, 8)"):
        for length in (4096, 65536, 1 << 20):
            sums = _buffers(_launches(text, length, (32, 8)))["sums"]
            assert 4 * prod(sums) <= 4 * 8 * 2 * MULTIPROCESSORS * 64 * 128 * 4


def test_passes_share_float32_sums() -> None:
    launches = _launches("window(40) or causal and k % 8 == 3", 2000)
    first, last = launches["grad_key_value"]
    states = ("grad_key_state", "grad_value_state")
    assert [buffer.name for buffer in first.buffers] == [*states, "sums"]
    assert [buffer.name for buffer in last.buffers] == ["sums"]
    assert first.pointers[-3:] == (*states, "sums")
    assert {*states, "grad_key", "grad_value"} <= {*last.pointers}


def test_every_class_of_keys_has_programs() -> None:
    (kernel,) = _launches("causal and k % 8 == 3", 4096)["grad_key_value"]
    assert kernel.grid[0] >= 8 * 4096 // 8 // 64


def test_lists() -> None:
    text = "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 64, k // 64]"
    launches = _launches(text, 4096, shapes={"keep": (8, 64, 64)})
    assert [*launches] == ["delta", "list_tiles", "grad_key_value"]
    (lists,), (kernel,) = launches["list_tiles"], launches["grad_key_value"]
    assert lists.grid == (64, 8, 1)  # of each query head
    assert kernel.grid == (64, 2, 1)
    assert _buffers(launches)["tiles"] == (64 * 8, 65)


def test_lists_are_as_long_as_the_window() -> None:
    text = "pattern p(keep: bool[*, *]): window(1024) and keep[q // 64, k // 64]"
    launches = _launches(text, 1 << 20, shapes={"keep": (1 << 14, 1 << 14)})
    assert _buffers(launches)["tiles"] == (1 << 14, 1 + 17)
    by_head = (
        "pattern p(keep: bool[*, *], w: int[head]): window(w[head]) and keep[q // 64, k // 64]"
    )
    launches = _launches(by_head, 4096, shapes={"keep": (64, 64), "w": (8,)})
    assert _buffers(launches)["tiles"] == (64 * 8, 1 + 64)


def test_rows_of_a_class_that_fill_no_tile_come_by_pointers() -> None:
    (kernel,) = _launches("dilated(10, 16)", 700)["grad_key_value"]
    assert kernel.source.config.load == "pointer"
    with pytest.raises(ConfigError, match="of 700 rows every 16th are 43"):
        _launches("dilated(10, 16)", 700, config=DESCRIPTOR)
    (kernel,) = _launches("dilated(10, 16)", 1100)["grad_key_value"]
    assert kernel.source.config.load == "descriptor"
    grouped = {one.tensor for one in kernel.described if len(one.box) == 5}
    assert grouped == {"query", "grad_out"}


def test_a_number_that_is_not_given_is_named() -> None:
    with pytest.raises(ConfigError, match="sinks"):
        _launches("streaming", 2000)
