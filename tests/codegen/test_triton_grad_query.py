"""The query's gradient in Triton's interpreter, against float64 autograd over the dense mask."""

from __future__ import annotations

import re
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.ir import DENSE, Q_CLASS, Tiling
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl import load
from patterncc.dsl.library import source
from patterncc.dsl.mask import Const
from patterncc.dsl.pattern import TableType
from tests.codegen.gradients import Case, differentiate
from tests.codegen.interpreter import Call

BY_DESCRIPTOR = KernelConfig(32, 32, 4, 1, "descriptor")
SMALL_BOXES = KernelConfig(16, 16, 4, 1, "descriptor")
WIDE = KernelConfig(16, 64, 4, 1)
TALL = KernelConfig(64, 16, 4, 1, order="reverse")
HALF = "float16"
DOCUMENTS = "pattern p(doc: segments): causal and doc[q] == doc[k]"
BLOCKS = "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 16, k // 16]"


def _differentiates(worker: ProcessPoolExecutor, case: Case) -> None:
    found = worker.submit(differentiate, case).result()
    assert found.query < (2e-3 if case.call.dtype == HALF else 3e-6), found
    assert found.hidden


CASES = (
    Case(Call("full", 50, 70), with_lse=False),
    Case(Call("causal", 100, 100, batch=2)),
    Case(Call("causal", 70, 130, dtype=HALF)),
    Case(Call("causal", 130, 70, config=BY_DESCRIPTOR)),  # rows before the first key
    Case(Call("causal", 40, 90, offset=120)),  # rows after the last key
    Case(Call("causal", 1, 77)),
    Case(Call("causal", 64, 64, config=TALL)),
    Case(Call("window(40)", 100, 100, heads=(6, 2)), expanded=True),
    Case(Call("window", 90, 90, {"n": 0})),  # no row has keys
    Case(Call("window", 64, 100, {"n": 33}, offset=80, dtype=HALF)),
    Case(Call("window(33)", 96, 96, config=WIDE, heads=(6, 2))),
    Case(Call("window(33)", 96, 96, config=BY_DESCRIPTOR, heads=(6, 2), dtype=HALF)),
    Case(Call("streaming(5, 20)", 120, 120, heads=(4, 2))),
    Case(Call("k > q", 90, 70)),  # the last rows have no keys
    Case(Call("ladder(4, 30, 50, 7)", 60, 190, {"layer": 2}, heads=(1, 1))),  # classes as lanes
    Case(Call("if head in {0, 3} then causal else streaming(4, 20)", 70, 90, heads=(4, 2))),
    Case(Call("k <= q and (k + batch) % 3 != 1", 40, 60, batch=2, heads=(1, 1))),
    Case(Call("causal", 64, 64, scale=-0.7)),
    Case(Call("causal", 64, 64, scale=0.0)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.call.text}")
def test_gradient(worker: ProcessPoolExecutor, case: Case) -> None:
    _differentiates(worker, case)


@pytest.mark.parametrize("config", [WIDE, BY_DESCRIPTOR], ids=["pointer", "descriptor"])
@pytest.mark.parametrize(
    ("head_dim", "value_head_dim"), [(8, 8), (24, 40), (80, 80), (96, 16), (192, 128)]
)
def test_head_dims(
    worker: ProcessPoolExecutor, head_dim: int, value_head_dim: int, config: KernelConfig
) -> None:
    widths = {"head_dim": head_dim, "value_head_dim": value_head_dim}
    call = Call("window(30)", 50, 60, dtype=HALF, config=config, scale=0.1, **widths)  # type: ignore[arg-type]
    _differentiates(worker, Case(call))


@pytest.mark.parametrize("head_dim", [16, 80, 136])
def test_head_dims_in_float32(worker: ProcessPoolExecutor, head_dim: int) -> None:
    _differentiates(worker, Case(Call("causal", 50, 60, head_dim=head_dim, scale=0.1)))


# ------------------------------------------------------------------------------------ drawn calls

TEXTS = (
    "causal",
    "full",
    "window(21)",
    "around(20)",
    "streaming(5, 20)",
    "chunked(50)",
    "dilated(10, 6)",
    "longformer(20, 3)",
    "local_strided(16, 2, 3)",
    "k > q",
    "q % 7 != 3 and window(30)",  # rows without keys among others
    "if head == 0 then causal else window(9)",
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=st.sampled_from(TEXTS),
    lengths=st.tuples(st.integers(1, 100), st.integers(1, 100)),
    offset=st.one_of(st.none(), st.integers(-30, 110)),
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3)]),
    widths=st.sampled_from([(16, 16), (16, 24), (40, 16)]),
    dtype=st.sampled_from(["float32", HALF]),
    config=st.sampled_from([None, BY_DESCRIPTOR, WIDE, TALL]),
    with_lse=st.booleans(),
    expanded=st.booleans(),
    scale=st.sampled_from([0.3, -0.2, 1.0]),
)
def test_drawn(
    worker: ProcessPoolExecutor,
    text: str,
    lengths: tuple[int, int],
    offset: int | None,
    heads: tuple[int, int],
    widths: tuple[int, int],
    dtype: str,
    config: KernelConfig | None,
    with_lse: bool,
    expanded: bool,
    scale: float,
) -> None:
    if expanded and config == BY_DESCRIPTOR:
        config = None  # a broadcast axis cannot be described
    call = Call(
        text,
        *lengths,
        offset=offset,
        heads=heads,
        head_dim=widths[0],
        value_head_dim=widths[1],
        dtype=dtype,
        config=config,
        scale=scale,
    )
    _differentiates(worker, Case(call, with_lse, expanded))


# ------------------------------------------------------------------------------------ variables


def _in(text: str, tiling: Tiling, *lengths: int, **options: object) -> Case:
    return Case(Call(text, *lengths, passes=((text, tiling),), **options))  # type: ignore


EIGHT = residue_tiling(8)
NEAR, FAR = "window(20)", "q - k >= 20 and dilated(12, 8)"
BOTH = "window(20) or dilated(12, 8)"
CLASSES = (
    _in("dilated(10, 8)", EIGHT, 100, 100),
    _in("dilated(10, 8)", EIGHT, 133, 150, config=SMALL_BOXES, dtype=HALF),  # incomplete groups
    _in("dilated(10, 8)", EIGHT, 130, 128, config=SMALL_BOXES, offset=-5),
    _in("dilated(10, 8)", EIGHT, 3, 90),  # classes without rows
    _in("dilated(10, 8)", EIGHT, 40, 5),  # classes without keys
    _in("(q - k) % 6 == 0", residue_tiling(6), 70, 101, config=SMALL_BOXES, heads=(4, 2)),
    _in("causal and k % 4 == 1", Tiling(1, 4, Const(1)), 90, 120, config=SMALL_BOXES),
    _in("causal and k % 8 == q % 4", Tiling(4, 8, Q_CLASS), 100, 130, heads=(3, 1)),
    _in("q % 5 == 2 and k <= q", Tiling(5, 1, Const(0)), 90, 90),
    Case(Call(BOTH, 100, 130, passes=((NEAR, DENSE), (FAR, EIGHT)))),
    Case(Call(BOTH, 60, 130, passes=((FAR, EIGHT), (NEAR, DENSE)), dtype=HALF, head_dim=24)),
    Case(
        Call(
            f"{BOTH} or k < 3 and k <= q",
            90,
            140,
            passes=((NEAR, DENSE), (f"{FAR} and k >= 3", EIGHT), ("k < 3 and q - k >= 20", DENSE)),
            config=SMALL_BOXES,
            heads=(4, 2),
            value_head_dim=24,
            dtype=HALF,
        )
    ),
    # Rows that see keys in one pass only, in the other only, in none.
    Case(
        Call(
            "if q < 30 then window(9) else q < 60 and dilated(5, 8)",
            90,
            90,
            passes=(
                ("q < 30 and window(9)", DENSE),
                ("30 <= q and q < 60 and dilated(5, 8)", EIGHT),
            ),
        )
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.call.text} {case.call.q_len}")
def test_classes_and_passes(worker: ProcessPoolExecutor, case: Case) -> None:
    _differentiates(worker, case)


# ------------------------------------------------------------------------------------ tables

_random = np.random.default_rng(0)
TABLES = (
    Call(DOCUMENTS, 100, 100, tables={"doc": [0, 7, 7, 40, 93, 100]}),
    Call(DOCUMENTS, 60, 100, tables={"doc": [0, 50, 80]}),  # rows in no document
    Call("pattern p(w: int[head]): window(w[head])", 60, 60, tables={"w": [5, 30]}),
    Call(BLOCKS, 90, 90, tables={"keep": (_random.random((2, 6, 6)) < 0.4).tolist()}),
    Call(
        BLOCKS,
        90,
        90,
        tables={"keep": (_random.random((2, 4, 9)) < 0.4).tolist()},
        config=BY_DESCRIPTOR,
        dtype=HALF,
    ),
)


@pytest.mark.parametrize("call", TABLES, ids=lambda call: f"{call.text} {call.q_len}")
def test_tables(worker: ProcessPoolExecutor, call: Call) -> None:
    _differentiates(worker, Case(call))


@pytest.mark.parametrize(
    "name", ["bigbird", "eviction", "h2o", "minference", "snapkv", "vertical_slash"]
)
def test_library(worker: ProcessPoolExecutor, name: str) -> None:
    """Patterns of several passes, one of them from a table; most have keys that are gathered."""
    text = re.sub(r"block = \d+", "block = 12", source(name).text)
    text = re.sub(r"(recent|window) = \d+", r"\1 = 9", text)
    sizes = {"batch": 1, "head": 2, "kv_head": 1}
    tables = {}
    for table in load(text).tables:
        assert isinstance(table.type, TableType)
        drawn = _random.random([sizes.get(str(axis), 100) for axis in table.type.axes])
        whole = table.type.element == "int"
        tables[table.name] = ((100 * drawn).astype(int) if whole else drawn < 0.1).tolist()
    config = KernelConfig(16, 16, 4, 1)
    _differentiates(worker, Case(Call(text, 70, 90, config=config, tables=tables, chosen=True)))


# ------------------------------------------------------------------------------------ bad numbers


def test_numbers_that_are_not_finite(worker: ProcessPoolExecutor) -> None:
    """What one row or one hidden key holds stays away from the rows that do not see it."""
    from tests.codegen.gradients import stray

    assert worker.submit(stray).result() == []
