"""The gradients of keys and values in Triton's interpreter, against float64 autograd over the dense
mask."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.chunk_source import Progression
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.ir import DENSE, Q_CLASS, Tiling
from patterncc.codegen.tiling import residue_tiling
from patterncc.dsl.build import add, modulo, multiply
from patterncc.dsl.mask import Const, Predicate, Var
from tests.codegen.drawing import Shape, masks, numbers, shapes
from tests.codegen.gradients import Case, differentiate_key_value, differentiate_mask
from tests.codegen.interpreter import Call

HALF = "float16"
SMALL = KernelConfig(16, 16, 4, 1)
WIDE = KernelConfig(64, 16, 4, 1, order="reverse")
TALL = KernelConfig(16, 64, 4, 1)
DESCRIPTOR = KernelConfig(16, 32, 4, 1, "descriptor")  # row numbers by pointers
BOXES = KernelConfig(32, 32, 4, 1, "descriptor")  # row numbers by descriptors, too
SOME = (Progression(1, 3, 2, 2), Progression(0, 1, 1, 5))


def _case(
    text: str,
    *lengths: int,
    config: KernelConfig | None = None,
    split: tuple[Progression, ...] | None = None,
    expanded: bool = False,
    **options: object,
) -> Case:
    call = Call(text, *lengths, **options)  # type: ignore[arg-type]
    return Case(call, expanded=expanded, config=BackwardConfig(None, config), split=split)


def _differentiates(worker: ProcessPoolExecutor, case: Case) -> None:
    found = worker.submit(differentiate_key_value, case).result()
    limit = 4e-3 if case.call.dtype == HALF else 2e-6
    assert found.key < limit, found
    assert found.value < limit, found
    assert found.hidden


def _name(case: Case) -> str:
    return f"{case.call.text.removeprefix('pattern p')} {case.call.q_len}x{case.call.kv_len}"


# ------------------------------------------------------------------------------------ dense

CASES = (
    _case("full", 50, 70, expanded=True),
    _case("causal", 100, 100, batch=2),
    _case("causal", 70, 130, dtype=HALF, heads=(6, 2)),
    _case("causal", 130, 70, config=DESCRIPTOR, heads=(4, 2)),  # rows before the first key
    _case("causal", 130, 70, config=BOXES, heads=(4, 2)),
    _case("causal", 40, 90, offset=120, config=WIDE),  # rows after the last key
    _case("causal", 1, 77),
    _case("causal", 64, 70, scale=-0.7),
    _case("causal", 64, 64, scale=0.0),
    _case("window", 90, 90, values={"n": 0}),  # nothing is seen
    _case("window", 64, 100, values={"n": 33}, offset=80, dtype=HALF),
    _case("window(33)", 96, 96, config=DESCRIPTOR, heads=(6, 2), dtype=HALF),
    _case("around(20)", 60, 110, offset=10, config=TALL),
    _case("streaming(5, 20)", 120, 120, heads=(4, 2)),
    _case("streaming(5, 20)", 120, 120, heads=(4, 2), config=SMALL, split=SOME),
    _case("streaming", 100, 140, values={"sinks": 50, "window": 30}, config=DESCRIPTOR),
    _case("streaming", 100, 140, values={"sinks": 50, "window": 30}, config=BOXES, dtype=HALF),
    _case("tri_shape(40, 30, 20)", 90, 150, heads=(1, 1)),
    _case("k > q", 90, 70),  # the first key is not seen
    _case("k > q", 90, 70, config=SMALL, split=(Progression(0, 1, 5, 2),)),
    _case("chunks_back(20, 1)", 90, 120),
    _case("ladder(4, 30, 24, 3)", 100, 130, values={"layer": 5}, heads=(2, 1)),
    _case("ladder(4, 30, 50, 7)", 60, 190, values={"layer": 2}, heads=(1, 1)),  # lanes
    _case("longformer(20, 3)", 80, 80, config=SMALL, split=(Progression(0, 1, 1, 4),)),
    _case("s2(32)", 64, 64, heads=(2, 1)),
    _case("if head in {0, 3} then causal else streaming(4, 20)", 70, 90, heads=(4, 2)),
    _case("if head in {0, 3} then causal else streaming(4, 20)", 70, 90, split=SOME, config=SMALL),
    _case("k <= q and (k + batch) % 3 != 1", 40, 60, batch=2, heads=(2, 1)),
    _case("full", 40, 160, config=SMALL, split=(Progression(0, 1, 10, 2),)),
)


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_gradients(worker: ProcessPoolExecutor, case: Case) -> None:
    _differentiates(worker, case)


@pytest.mark.parametrize("config", [TALL, DESCRIPTOR], ids=["pointer", "descriptor"])
@pytest.mark.parametrize(
    ("head_dim", "value_head_dim"), [(8, 8), (24, 40), (80, 80), (96, 16), (192, 128)]
)
def test_head_dims(
    worker: ProcessPoolExecutor, head_dim: int, value_head_dim: int, config: KernelConfig
) -> None:
    _differentiates(
        worker,
        _case(
            "window(30)",
            50,
            60,
            config=config,
            split=(Progression(0, 1, 1, 2),),
            dtype=HALF,
            scale=0.1,
            head_dim=head_dim,
            value_head_dim=value_head_dim,
        ),
    )


@pytest.mark.parametrize("head_dim", [80, 136])
def test_head_dims_in_float32(worker: ProcessPoolExecutor, head_dim: int) -> None:
    _differentiates(worker, _case("causal", 50, 60, head_dim=head_dim, scale=0.1))


@settings(
    max_examples=15, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
@given(
    mask=masks,
    shape=shapes(),
    values=numbers,
    heads=st.sampled_from([(1, 1), (2, 1), (4, 2)]),
    config=st.sampled_from([TALL, WIDE, DESCRIPTOR, BOXES]),
    chunks=st.integers(1, 3),
)
def test_drawn_masks(
    worker: ProcessPoolExecutor,
    mask: Predicate,
    shape: Shape,
    values: dict[str, int],
    heads: tuple[int, int],
    config: KernelConfig,
    chunks: int,
) -> None:
    tiles = -(-shape.kv_len // config.block_k)
    split = (Progression(0, 2, -(-tiles // 2), chunks),) if chunks > 1 else ()
    found = worker.submit(differentiate_mask, mask, shape, values, heads, config, split).result()
    if found is not None:
        assert max(found.key, found.value) < 2e-6, found
        assert found.hidden


# ------------------------------------------------------------------------------------ classes


def _in(text: str, tiling: Tiling, *lengths: int, **options: object) -> Case:
    return _case(text, *lengths, passes=((text, tiling),), **options)  # type: ignore[arg-type]


EIGHT = residue_tiling(8)
MINUS_LAYER = modulo(multiply(Const(-1), Var("layer")), Const(4))
THRICE = Tiling(8, 8, modulo(add(multiply(Const(3), Q_CLASS), Const(5)), Const(8)))
TWICE = Tiling(4, 4, modulo(multiply(Const(2), Q_CLASS), Const(4)))  # two classes of rows a key
CLASSES = (
    _in("dilated(10, 8)", EIGHT, 100, 100),
    _in("dilated(10, 8)", EIGHT, 150, 133, config=KernelConfig(16, 16, 4, 1, "descriptor")),
    _in("dilated(10, 8)", EIGHT, 133, 150, config=DESCRIPTOR, dtype=HALF, heads=(4, 2)),
    _in("dilated(10, 8)", EIGHT, 128, 130, config=DESCRIPTOR, offset=-5, batch=2),
    _in("dilated(10, 8)", EIGHT, 300, 50, config=WIDE, offset=-20),
    _in("dilated(10, 8)", EIGHT, 90, 3),  # classes without keys
    _in("dilated(10, 8)", EIGHT, 5, 40),  # classes without rows
    _in("dilated(10, 8)", EIGHT, 100, 100, config=SMALL, split=(Progression(3, 8, 1, 2),)),
    _in("k % 8 == q % 8 and q // 64 == k // 64", EIGHT, 140, 140),
    _in("causal and k % 8 == (3 * q + 5) % 8", THRICE, 90, 120, heads=(4, 2)),
    _in("causal and k % 4 == 2 * q % 4", TWICE, 70, 90, heads=(4, 2)),
    _in("causal and k % 4 == 1", Tiling(1, 4, Const(1)), 90, 120),
    _in("causal and k % 4 == 1", Tiling(1, 4, Const(1)), 90, 120, config=DESCRIPTOR),
    _in("(k + layer) % 4 == 0 and k <= q", Tiling(1, 4, MINUS_LAYER), 77, 99, values={"layer": 6}),
    _in("causal and k % 8 == q % 4", Tiling(4, 8, Q_CLASS), 100, 130, heads=(3, 1)),
    _in("q % 5 == 2 and k <= q", Tiling(5, 1, Const(0)), 90, 90),
    _in("q % 5 == 2 and k <= q", Tiling(5, 1, Const(0)), 90, 90, config=DESCRIPTOR, split=SOME),
)


@pytest.mark.parametrize("case", CLASSES, ids=_name)
def test_classes(worker: ProcessPoolExecutor, case: Case) -> None:
    _differentiates(worker, case)


NEAR, FAR = "window(20)", "q - k >= 20 and dilated(12, 8)"
PASSES = (
    _case("window(20) or dilated(12, 8)", 100, 130, passes=((NEAR, DENSE), (FAR, EIGHT))),
    _case(
        "window(20) or dilated(12, 8)", 60, 130, passes=((FAR, EIGHT), (NEAR, DENSE)), dtype=HALF
    ),
    _case(
        "window(20) or dilated(12, 8) or k < 3 and k <= q",
        130,
        140,
        passes=(
            (NEAR, DENSE),
            (f"{FAR} and k >= 3", EIGHT),
            ("k < 3 and q - k >= 20", DENSE),
        ),
        config=KernelConfig(16, 16, 4, 1, "descriptor"),
        heads=(4, 2),
        value_head_dim=24,
        dtype=HALF,
        split=(Progression(0, 2, 3, 3),),
    ),
    # Keys of classes that neither pass knows.
    _case(
        "causal and k % 4 == 1 or causal and k % 4 == 3",
        80,
        80,
        passes=(
            ("causal and k % 4 == 3", Tiling(1, 4, Const(3))),
            ("causal and k % 4 == 1", Tiling(1, 4, Const(1))),
        ),
        dtype=HALF,
    ),
)


@pytest.mark.parametrize("case", PASSES, ids=_name)
def test_passes(worker: ProcessPoolExecutor, case: Case) -> None:
    _differentiates(worker, case)


# ------------------------------------------------------------------------------------ tables

CU = [0, 7, 7, 30, 31, 52]  # an empty document, one of one token; some positions lie after all
KEEP = [[[h + i * j % 3 == 1 for j in range(6)] for i in range(7)] for h in range(4)]
DILATED = "pattern p(keep: bool[head, *, *]): dilated(9, 3) and keep[head, q // 8, k // 8]"
EVERY_FIFTH = "pattern p(keep: bool[*, *]): q % 5 == 2 and k <= q and keep[q // 8, k // 8]"
TABLES = (
    _case("pattern p(w: int[head]): window(w[head])", 40, 50, tables={"w": [3, 20]}),
    _case(
        "pattern p(retrieval: bool[kv_head]): if retrieval[kv_head] then causal else window(5)",
        40,
        40,
        heads=(4, 2),
        tables={"retrieval": [True, False]},
        split=SOME,
    ),
    _case("pattern p(doc: segments): causal and doc[q] == doc[k]", 60, 60, tables={"doc": CU}),
    _case(
        "pattern p(doc: segments): causal and doc[q] == doc[k]",
        60,
        60,
        config=DESCRIPTOR,
        heads=(4, 2),
        dtype=HALF,
        tables={"doc": CU},
    ),
    _case("pattern p(doc: segments): doc[q] == doc[k]", 40, 60, offset=-9, tables={"doc": CU}),
    _case("pattern p(doc: segments): doc[q] != doc[k] and causal", 60, 60, tables={"doc": CU}),
    _case("pattern p(doc: segments): doc[q] == doc[k] and k >= q", 60, 60, tables={"doc": CU}),
    _case(
        "pattern p(doc: segments): causal and doc[q] == doc[k] and "
        "chunked(8) at (q - start(doc, q), k - start(doc, k))",
        60,
        60,
        tables={"doc": CU},
    ),
    _case(
        "pattern p(rank: int[token]): rank[k] <= rank[q] and q - k < rank[k - 3]",
        40,
        44,
        tables={"rank": [n * 7 % 11 for n in range(36)]},
    ),
    _case(
        "pattern p(keep: bool[head, *, *]): causal and keep[head, q // 8, k // 8]",
        50,
        60,
        heads=(4, 2),
        config=SMALL,
        tables={"keep": KEEP},
    ),
    _case(
        "pattern p(keep: bool[*, *]): causal and keep[q // 8, k // 16]",
        90,
        90,
        heads=(4, 2),
        batch=2,
        config=KernelConfig(16, 16, 4, 1, "descriptor"),
        tables={"keep": KEEP[1]},
    ),
    _case(
        "pattern p(keep: bool[batch, kv_head, *, *]): keep[batch, kv_head, q, k // 16]",
        60,
        60,
        batch=2,
        config=SMALL,
        tables={
            "keep": [
                [[[(i * j + b) % 5 > 2 for j in range(4)] for i in range(55)]] for b in range(2)
            ]
        },
    ),
    _case(
        DILATED, 90, 90, passes=((DILATED, residue_tiling(3)),), tables={"keep": KEEP}, config=SMALL
    ),
    _case(
        EVERY_FIFTH,
        90,
        90,
        passes=((EVERY_FIFTH, Tiling(5, 1, Const(0))),),
        tables={"keep": KEEP[0]},
        config=SMALL,
    ),
)


@pytest.mark.parametrize("case", TABLES, ids=_name)
def test_tables(worker: ProcessPoolExecutor, case: Case) -> None:
    _differentiates(worker, case)
