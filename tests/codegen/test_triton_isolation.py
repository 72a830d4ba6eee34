"""Numbers that are not finite reach the rows and keys that see them and nothing else: forward and
backward kernels in Triton's interpreter."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patterncc.codegen.gpu.chunk_source import Progression
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.ir import DENSE, Q_CLASS, Patches, Tiling
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl.mask import Const
from tests.codegen.crossing import each_with_one
from tests.codegen.interpreter import Call
from tests.codegen.isolation import NAMES, Isolation, Plant, Reached, isolate
from tests.codegen.score_calls import ScoreCall

NAN, INF = math.nan, math.inf
BY_DESCRIPTOR = KernelConfig(32, 32, 4, 1, "descriptor")
SMALL_BOXES = KernelConfig(16, 16, 4, 1, "descriptor")
WIDE = KernelConfig(16, 64, 4, 1)
HALF = "float16"


def _stays(worker: ProcessPoolExecutor, isolation: Isolation) -> Reached:
    found: Reached = worker.submit(isolate, isolation).result()
    assert not found.complaints, found
    return found


GARBAGE = tuple(Plant(name, 0, 37, None, NAN) for name in NAMES)
"""A whole row of each tensor."""

MIXED = (
    Plant("query", 1, 22, 3, INF),
    Plant("key", 0, 11, 5, -INF),
    Plant("value", 0, 41, 2, INF),
    Plant("value", 0, 43, 2, -INF),
    Plant("value", 0, 12, 7, NAN),
    Plant("grad_out", 0, 30, 2, INF),
    Plant("grad_out", 1, 33, 2, -INF),
    Plant("grad_out", 0, 50, 1, NAN),
)

CALLS = {
    "window": Call("window(9)", 70, 70),
    "documents": Call(
        "pattern p(doc: segments): causal and doc[q] == doc[k]",
        70,
        70,
        tables={"doc": [0, 21, 21, 40, 63, 70]},
    ),
    "blocks": Call(
        "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 16, k // 16]",
        70,
        70,
        tables={"keep": (np.random.default_rng(0).random((2, 5, 5)) < 0.5).tolist()},
        config=BY_DESCRIPTOR,
    ),
    "by head": Call("if head == 0 then causal else window(9)", 70, 70, dtype=HALF),
    "classes": Call(
        "dilated(5, 3)", 71, 71, passes=(("dilated(5, 3)", residue_tiling(3)),), config=SMALL_BOXES
    ),
    "classes by pointers": Call(
        "dilated(5, 3)", 71, 71, passes=(("dilated(5, 3)", residue_tiling(3)),)
    ),
    "key classes": Call(
        "causal and k % 4 == 1",
        70,
        90,
        passes=(("causal and k % 4 == 1", Tiling(1, 4, Const(1))),),
        config=SMALL_BOXES,
    ),
    "other classes": Call(
        "causal and k % 8 == q % 4",
        70,
        90,
        passes=(("causal and k % 8 == q % 4", Tiling(4, 8, Q_CLASS)),),
        heads=(4, 2),
    ),
    "passes": Call(
        "window(9) or dilated(7, 4)",
        70,
        70,
        passes=(
            ("window(9)", DENSE),
            ("q - k >= 9 and dilated(7, 4)", residue_tiling(4)),
        ),
    ),
    "three passes in float16": Call(
        "window(9) or dilated(7, 4) or k < 3 and k <= q",
        70,
        70,
        passes=(
            ("window(9)", DENSE),
            ("q - k >= 9 and k >= 3 and dilated(7, 4)", residue_tiling(4)),
            ("k < 3 and q - k >= 9", DENSE),
        ),
        config=SMALL_BOXES,
        dtype=HALF,
        heads=(4, 2),
        value_head_dim=24,
    ),
    "patches": Call(
        "neighborhood(9, 8, 3)",
        72,
        72,
        config=SMALL_BOXES,
        patches=Patches((8,), (3, 5), (2, 8), (5, 3), (4, 4)),
    ),
    "patches by pointers, ragged": Call(
        "q // 8 // 3 == k // 8 // 3 and q % 8 // 4 == k % 8 // 4",
        61,
        69,
        config=KernelConfig(16, 16, 4, 1),
        patches=Patches((8,), (2, 8), (4, 4), (4, 4), (3, 5)),
        fills=True,
    ),
    "runs of all rows": Call(
        "pattern p(v: bool[kv_head, *]): causal and v[kv_head, k]",
        60,
        60,
        tables={"v": (np.random.default_rng(1).random((1, 60)) < 0.4).tolist()},
        chosen=True,
        transposed=True,
        config=SMALL_BOXES,
    ),
    "runs of a query tile": Call(
        "pattern p(keep: bool[kv_head, *, *]): causal and keep[kv_head, q // 16, k // 4]",
        60,
        60,
        tables={"keep": (np.random.default_rng(1).random((1, 4, 15)) < 0.5).tolist()},
        chosen=True,
        transposed=True,
        config=KernelConfig(16, 16, 4, 1),
    ),
    "ragged": Call("around(11)", 45, 61, offset=7, heads=(6, 2), head_dim=24, value_head_dim=40),
    "rows without keys": Call("q % 7 != 3 and window(30)", 70, 50, config=WIDE),
    "keys without rows": Call("causal", 40, 70, offset=0, config=BY_DESCRIPTOR, dtype=HALF),
    "full": Call("full", 50, 70),
    "negative scale": Call("window(12)", 70, 70, scale=-0.3, config=BY_DESCRIPTOR),
    "lanes": Call("ladder(4, 30, 50, 7)", 60, 120, {"layer": 2}, heads=(1, 1)),
    "lines": Call(
        "sliding_tile(tile = 16, depth = 2, rows = 2, columns = 5, depth_window = 1)", 210, 210
    ),
}


PLANTS = {"garbage": GARBAGE, "mixed": MIXED}


@pytest.mark.parametrize(("name", "planted"), each_with_one(CALLS, [*PLANTS]))
def test_it_reaches_what_sees_it(worker: ProcessPoolExecutor, name: str, planted: str) -> None:
    found = _stays(worker, Isolation(ScoreCall(CALLS[name]), PLANTS[planted]))
    assert found.wild
    assert found.tame or name == "full"


def test_nobody_sees_it(worker: ProcessPoolExecutor) -> None:
    """Garbage in padding, of all tensors: there is nothing to be seen of it."""
    call = Call("k < 33 and q < 40 and window(20)", 64, 64, config=BY_DESCRIPTOR)
    plants = [
        Plant(name, head, row, None, NAN)
        for name in NAMES[1:3]
        for head in (0, 1)
        for row in range(33, 64)
    ]
    plants += [
        Plant(name, head, row, None, INF)
        for name in ("query", "grad_out")
        for head in (0, 1)
        for row in range(40, 64)
    ]
    found = _stays(worker, Isolation(ScoreCall(call), tuple(plants)))
    assert not found.wild


def test_everything_is_wild(worker: ProcessPoolExecutor) -> None:
    plants = tuple(
        Plant(name, head, row, None, NAN) for name in NAMES for head in (0, 1) for row in range(70)
    )
    assert not _stays(worker, Isolation(ScoreCall(Call("streaming(3, 20)", 70, 70)), plants)).tame


@pytest.mark.parametrize("resumes", [False, True])
def test_chunks(worker: ProcessPoolExecutor, resumes: bool) -> None:
    """Key tiles that are split: each chunk is repaired by itself."""
    call = Call("streaming(3, 20)", 90, 90, heads=(4, 2))
    if resumes:
        parts = (("k < 3 and k <= q", DENSE), ("k >= 3 and window(20)", DENSE))
        call = Call("k <= q and (k < 3 or q - k < 20)", 90, 90, heads=(4, 2), passes=parts)
    split = (Progression(0, 1, 2, 3),)
    for plants in (GARBAGE, MIXED):
        assert _stays(worker, Isolation(ScoreCall(call), plants, split)).tame


# ------------------------------------------------------------------------------------ score terms

TERMS = {
    "softcap": ScoreCall(Call("window(9)", 70, 70), "softcap(score, 5)"),
    "bias by key": ScoreCall(Call("window(9)", 70, 70), "score + bias[k]", shapes={"bias": (70,)}),
    "sink": ScoreCall(Call("window(9)", 70, 70), sink="0.5"),
}


@pytest.mark.parametrize("name", TERMS)
def test_score_terms(worker: ProcessPoolExecutor, name: str) -> None:
    for plants in (GARBAGE, MIXED):
        assert _stays(worker, Isolation(TERMS[name], plants)).tame


@pytest.mark.parametrize("number", [NAN, INF, -INF])
def test_entries_of_tables(worker: ProcessPoolExecutor, number: float) -> None:
    """An entry reaches the rows that look it up; minus infinity hides the key, its value, too."""
    plants = (Plant("bias", 0, 37, None, number), Plant("value", 0, 37, None, NAN))
    found = _stays(worker, Isolation(TERMS["bias by key"], plants))
    assert found.tame and bool(found.wild) == (number != -INF)


# ------------------------------------------------------------------------------------ drawn

TEXTS = (
    "causal",
    "window(21)",
    "around(9)",
    "streaming(5, 20)",
    "chunked(30)",
    "dilated(6, 5)",
    "longformer(12, 3)",
    "local_strided(16, 2, 3)",
    "k > q",
    "q % 7 != 3 and window(30)",
    "if head == 0 then causal else window(9)",
)

_plants = st.builds(
    Plant,
    name=st.sampled_from(NAMES),
    head=st.integers(0, 3),
    row=st.integers(0, 99),
    column=st.one_of(st.none(), st.integers(0, 15)),
    number=st.sampled_from([NAN, INF, -INF]),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.sampled_from(TEXTS),
    lengths=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    offset=st.one_of(st.none(), st.integers(-20, 60)),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    value_head_dim=st.sampled_from([16, 24]),
    dtype=st.sampled_from(["float32", HALF]),
    config=st.sampled_from([None, BY_DESCRIPTOR, WIDE]),
    chosen=st.booleans(),
    plants=st.lists(_plants, min_size=1, max_size=6),
)
def test_drawn(
    worker: ProcessPoolExecutor,
    text: str,
    lengths: tuple[int, int],
    offset: int | None,
    heads: tuple[int, int],
    value_head_dim: int,
    dtype: str,
    config: KernelConfig | None,
    chosen: bool,
    plants: list[Plant],
) -> None:
    call = Call(
        text,
        *lengths,
        offset=offset,
        heads=heads,
        value_head_dim=value_head_dim,
        dtype=dtype,
        config=config,
    )
    if chosen:
        # Descriptors of classes need a tile's worth of keys in each.
        config = None if config is None else replace(config, load="pointer")
        call = replace(call, chosen=True, transposed=True, config=config)
    _stays(worker, Isolation(ScoreCall(call), tuple(plants)))
