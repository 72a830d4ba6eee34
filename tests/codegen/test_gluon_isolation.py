"""Numbers that are not finite stay with the rows that see them where Gluon writes the forward
kernel: it notes what may be spoiled, in the emulator, and Triton's kernel repairs it, in its
interpreter."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product

import pytest

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.isolation_source import SPOILED
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.ir import DENSE
from patterncc.codegen.problem import Problem
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl import load
from tests.codegen.attention import lowered
from tests.codegen.crossing import each_with_one
from tests.codegen.interpreter import Call
from tests.codegen.isolation import Isolation, Plant, Reached, isolate
from tests.codegen.score_calls import ScoreCall

NAN, INF = math.nan, math.inf
WIDE = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
SMALL = KernelConfig(64, 64, 4, 3, "descriptor", emitter="gluon")
LONG = KernelConfig(64, 128, 4, 2, "descriptor", emitter="gluon")
BACKWARD = KernelConfig(64, 64, 4, 1)
CONFIGS = {"128x128": WIDE, "64x64": SMALL, "64x128": LONG}

DOCUMENTS = (0, 21, 21, 90, 133, 150)

BORDERS = tuple(
    Plant(name, head, row, None, number)
    for name, head, number in (("value", 0, NAN), ("key", 1, NAN))
    for row in (63, 64, 127, 128)
)
"""Keys and values at the borders of tiles."""

MIXED = (
    Plant("query", 1, 22, 3, INF),
    Plant("key", 0, 11, 5, -INF),
    Plant("value", 0, 41, 2, INF),
    Plant("value", 0, 43, 2, -INF),
    Plant("value", 1, 100, 7, NAN),
    Plant("value", 1, 101, 63, INF),
    Plant("grad_out", 0, 130, 2, INF),
)

PLANTS = {"borders": BORDERS, "mixed": MIXED}

CALLS = {
    "causal": Call("causal", 150, 150, heads=(2, 1)),
    "window": Call("window(30)", 150, 150),
    "streaming": Call("streaming(5, 70)", 150, 150),
    "documents": Call(
        "pattern p(doc: segments): causal and doc[q] == doc[k]",
        150,
        150,
        tables={"doc": DOCUMENTS},
    ),
    "ragged": Call("around(8)", 77, 151, offset=10),
    "rows without keys": Call("k > q", 150, 140, offset=0),
    "by head": Call("if head == 0 then causal else window(9)", 140, 150),
    # A class has a tile's worth of keys.
    "passes": Call(
        "window(9) or dilated(7, 2)",
        260,
        260,
        passes=(
            ("window(9)", DENSE),
            ("q - k >= 9 and dilated(7, 2)", residue_tiling(2)),
        ),
    ),
}


def _stays(worker: ProcessPoolExecutor, call: Call, shape: str, *plants: Plant) -> Reached:
    case = ScoreCall(replace(call, head_dim=64, dtype="float16", config=BACKWARD))
    isolation = Isolation(case, plants, emulated=CONFIGS[shape])
    found: Reached = worker.submit(isolate, isolation).result()
    assert not found.complaints, found
    return found


@pytest.mark.parametrize(
    ("name", "how"), each_with_one(CALLS, [", ".join(pair) for pair in product(CONFIGS, PLANTS)])
)
def test_it_reaches_what_sees_it(worker: ProcessPoolExecutor, name: str, how: str) -> None:
    shape, planted = how.split(", ")
    found = _stays(worker, CALLS[name], shape, *PLANTS[planted])
    assert found.wild and found.tame


@pytest.mark.parametrize("shape", CONFIGS)
def test_nobody_sees_it(worker: ProcessPoolExecutor, shape: str) -> None:
    """A static cache: of 150 keys the first 100 are there; garbage lies in the others."""
    call = Call("causal", 30, 150, offset=70)
    plants = [
        Plant(name, 0, row, None, number)
        for name, number in (("key", INF), ("value", NAN))
        for row in range(100, 150)
    ]
    found = _stays(worker, call, shape, *plants)
    assert not found.wild


def _plan(config: KernelConfig, text: str, *, isolates: bool = True) -> list[str]:
    problem = Problem("bfloat16", 64, 64, isolates=isolates)
    layouts = [
        Layout(name, 0, (1, 2, 300, 64), (38400, 19200, 64, 1), 2)
        for name in ("query", "key", "value", "out")
    ]
    launches = Planner(lowered(load(text)), config).plan(
        problem, "cuda:90", layouts, {"q_offset": 0}, 0.125
    )
    assert [SPOILED in one.source.parameters for one in launches] == [len(launches) == 2] * len(
        launches
    )
    for one in launches[:-1]:
        warpgroups = config.block_q // 64
        tiles = -(-300 // config.block_q)
        assert [(b.name, b.shape) for b in one.buffers] == [("spoiled", (2 * tiles * warpgroups,))]
    return [one.source.name for one in launches]


@pytest.mark.parametrize("shape", CONFIGS)
def test_what_is_launched(shape: str) -> None:
    """Each warpgroup notes; a kernel repairs where a tile may have hidden pairs, and only then."""
    config = CONFIGS[shape]
    assert _plan(config, "causal") == ["forward", "repair_forward"]
    assert _plan(config, "causal", isolates=False) == ["forward"]


def test_it_would_tell(worker: ProcessPoolExecutor) -> None:
    """Without the repair what is hidden reaches the tile."""
    found: Reached = worker.submit(_without_repair).result()
    assert found.complaints


def _without_repair() -> Reached:
    from unittest.mock import patch

    case = ScoreCall(replace(CALLS["causal"], head_dim=64, dtype="float16", config=BACKWARD))
    with patch("patterncc.codegen.gpu.query_tile_plan.may_spoil", return_value=False):
        return isolate(Isolation(case, BORDERS, emulated=SMALL))
