"""Numbers that are not finite stay with the rows that see them where Gluon writes the forward
kernel, in the emulator: it repairs what it may have spoiled by itself."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product

import pytest

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.isolation_source import SPOILED
from patterncc.codegen.gpu.launches import Launch
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
KEPT = {f"{name}, kept": replace(config, peaks="kept") for name, config in CONFIGS.items()}
DTYPES = dict.fromkeys(CONFIGS, "float16") | dict.fromkeys(KEPT, "bfloat16")

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
    case = ScoreCall(replace(call, head_dim=64, dtype=DTYPES[shape], config=BACKWARD))
    isolation = Isolation(case, plants, emulated=(CONFIGS | KEPT)[shape])
    found: Reached = worker.submit(isolate, isolation).result()
    assert not found.complaints, found
    return found


@pytest.mark.parametrize(
    ("name", "how"), each_with_one(CALLS, [", ".join(pair) for pair in product(DTYPES, PLANTS)])
)
def test_it_reaches_what_sees_it(worker: ProcessPoolExecutor, name: str, how: str) -> None:
    shape, planted = how.rsplit(", ", 1)
    found = _stays(worker, CALLS[name], shape, *PLANTS[planted])
    assert found.wild and found.tame


@pytest.mark.parametrize("shape", DTYPES)
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


def _plan(config: KernelConfig, text: str, *, isolates: bool) -> list[Launch]:
    problem = Problem("bfloat16", 64, 64, isolates=isolates)
    layouts = [
        Layout(name, 0, (1, 2, 300, 64), (38400, 19200, 64, 1), 2)
        for name in ("query", "key", "value", "out")
    ]
    planner = Planner(lowered(load(text)), config)
    return list(planner.plan(problem, "cuda:90", layouts, {"q_offset": 0}, 0.125))


@pytest.mark.parametrize("shape", DTYPES)
def test_what_is_launched(shape: str) -> None:
    """One kernel, which leaves no note in memory."""
    config = (CONFIGS | KEPT)[shape]
    (one,), (other,) = (_plan(config, "causal", isolates=isolates) for isolates in (True, False))
    assert not one.buffers and SPOILED not in one.source.parameters
    assert "find_left_out" in one.source.text and "find_left_out" not in other.source.text
    assert one.source.parameters == other.source.parameters


@pytest.mark.parametrize("shape", DTYPES)
def test_loops_are_the_usual_ones(shape: str) -> None:
    """What warps do up to the values of the last tile is the same to the letter."""
    config = (CONFIGS | KEPT)[shape]
    texts = [
        _plan(config, "streaming(5, 70)", isolates=isolates)[0].source.text
        for isolates in (True, False)
    ]
    one, other = (text[text.index("def load_tiles") :] for text in texts)
    one, other = (text[: text.index("# The values of the last tile")] for text in (one, other))
    for name in ("spoiled", "rings_over", "again_ready", "key_desc_0", "value_desc_0"):
        one, other = (text.replace(f"    {name},\n", "") for text in (one, other))
    assert one == other


def test_it_would_tell(worker: ProcessPoolExecutor) -> None:
    """Without the repair what is hidden reaches the tile."""
    found: Reached = worker.submit(_without_repair).result()
    assert found.complaints


def _without_repair() -> Reached:
    from unittest.mock import patch

    from patterncc.codegen.gpu.steps import problem_of

    case = ScoreCall(replace(CALLS["causal"], head_dim=64, dtype="float16", config=BACKWARD))
    with patch(
        "patterncc.codegen.gpu.forward.problem_of",
        lambda *of, isolates: problem_of(*of, isolates=False),
    ):
        return isolate(Isolation(case, BORDERS, emulated=SMALL))
