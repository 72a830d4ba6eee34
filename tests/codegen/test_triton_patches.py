"""Kernels whose tiles are patches of a raster in Triton's interpreter, against float64: the output
and all gradients, ragged rasters, offsets, boxes of descriptors."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest

from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.chunk_source import Progression
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.ir import Patches
from patterncc.codegen.lower import specialise
from patterncc.codegen.monotone import Side
from patterncc.codegen.patch_grid import grid_before
from patterncc.codegen.raster import rasters
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.mask import Const, IntExpr
from tests.codegen.gradients import Case, differentiate, differentiate_key_value
from tests.codegen.interpreter import Call, attend

POINTER = KernelConfig(32, 16, 4, 1)
DESCRIPTOR = KernelConfig(16, 16, 4, 1, "descriptor")
HALF = "float16"
SMALL = "neighborhood(9, 8, 5)"
BLOCKS = "q // 8 // 3 == k // 8 // 3 and q % 8 // 4 == k % 8 // 4"
VIDEO = "neighborhood_3d(4, 5, 6, 3, 3, 5)"
DILATED = "neighborhood(10, 8, 3, dilation = 2)"  # a raster of four axes
EDGE = "q // 10 - k // 10 <= 2 and k // 10 <= q // 10 and abs(q % 10 - k % 10) <= 3"


def patches(
    sizes: tuple[int, ...], query: tuple[int, ...], key: tuple[int, ...], turned: bool = False
) -> Patches:
    """Patches that pass as they are held, or turned by a quarter."""
    if turned:
        return Patches(sizes, query, key, key[::-1], query[::-1])
    return Patches(sizes, query, key, key, query)


BOXES = Patches((8,), (3, 4), (2, 8), (3, 5), (4, 4))

ODD = "(q // 10 - 3) // 4 == (k // 10 - 3) // 4 and (q % 10 - 2) // 4 == (k % 10 - 2) // 4"
BY_LAYER = "swin(10, 10, 5)"
CUT = Patches((10,), (4, 4), (4, 4), (4, 4), (4, 4), (Const(1), Const(2)), (Const(1), Const(2)))


def shifted(query: tuple[int, int], key: tuple[int, int], passing: tuple[int, int]) -> Patches:
    """Patches on the grid of the layer's windows."""
    (raster,) = rasters(specialise(load(BY_LAYER).body, {}))

    def grid(side: Side, extents: tuple[int, int]) -> tuple[IntExpr, ...]:
        masks = zip(raster.axes, extents, strict=True)
        return tuple(grid_before(axis, side, extent) for axis, extent in masks)

    return Patches((10,), query, passing, key, passing, grid("q", query), grid("k", key))


CALLS = (
    Call(ODD, 100, 100, config=DESCRIPTOR, patches=CUT, fills=True),
    Call(ODD, 77, 93, config=POINTER, patches=CUT, offset=16, heads=(2, 1)),
    Call(
        BY_LAYER,
        100,
        100,
        config=POINTER,
        patches=shifted((5, 5), (5, 3), (4, 4)),
        values={"layer": 1},
    ),
    Call(
        BY_LAYER,
        55,
        95,
        config=POINTER,
        patches=shifted((5, 5), (3, 5), (2, 8)),
        values={"layer": 1},
        offset=40,
    ),
    Call(BY_LAYER, 100, 100, config=POINTER, patches=shifted((5, 5), (3, 5), (2, 8))),
    Call(SMALL, 72, 72, config=POINTER, patches=patches((8,), (4, 8), (2, 8), turned=True)),
    Call(SMALL, 72, 72, config=DESCRIPTOR, patches=patches((8,), (4, 4), (4, 4)), dtype=HALF),
    Call(SMALL, 72, 72, config=DESCRIPTOR, patches=BOXES, heads=(4, 2)),
    Call(SMALL, 72, 72, config=POINTER, patches=patches((8,), (5, 6), (3, 5)), heads=(4, 2)),
    Call(SMALL, 61, 70, config=POINTER, patches=patches((8,), (8, 4), (4, 4)), batch=2),
    Call(SMALL, 1, 72, config=POINTER, patches=patches((8,), (8, 4), (4, 4)), offset=37),
    Call(SMALL, 30, 72, config=POINTER, patches=patches((8,), (2, 3), (4, 3)), offset=21),
    Call(BLOCKS, 72, 72, config=POINTER, patches=patches((8,), (3, 8), (4, 4)), fills=True),
    Call(BLOCKS, 72, 72, config=DESCRIPTOR, patches=patches((8,), (4, 4), (4, 4)), fills=True),
    Call(BLOCKS, 53, 69, config=POINTER, patches=patches((8,), (4, 4), (2, 8)), fills=True),
    Call(VIDEO, 120, 120, config=POINTER, patches=patches((5, 6), (2, 4, 4), (1, 4, 4))),
    Call(VIDEO, 90, 113, config=POINTER, patches=patches((5, 6), (2, 5, 3), (2, 2, 4))),
    Call(DILATED, 80, 80, config=POINTER, patches=patches((2, 4, 2), (2, 2, 4, 2), (3, 1, 4, 1))),
    Call(EDGE, 85, 85, config=POINTER, patches=patches((10,), (4, 8), (2, 8)), fills=True),
    Call(EDGE, 80, 80, config=DESCRIPTOR, patches=patches((10,), (4, 4), (2, 8)), fills=True),
)


def _name(call: Call) -> str:
    assert call.patches is not None and call.config is not None
    shapes = ("x".join(map(str, each)) for each in (call.patches.query, call.patches.passing_keys))
    return f"{call.text[:20]} {call.q_len}x{call.kv_len} {'-'.join(shapes)} {call.config.load}"


@pytest.mark.parametrize("call", CALLS, ids=_name)
def test_forward(worker: ProcessPoolExecutor, call: Call) -> None:
    found = worker.submit(attend, call).result()
    limit = 2e-3 if call.dtype == HALF else 2e-6
    assert found.out < limit, found
    assert found.lse < limit, found


def test_no_boxes_are_refused(worker: ProcessPoolExecutor) -> None:
    """Descriptors were asked for, and what they cannot load is named."""
    call = Call(SMALL, 72, 72, config=DESCRIPTOR, patches=patches((8,), (3, 4), (3, 5)))
    with pytest.raises(ConfigError, match="patches of 3 x 5 places are no boxes of a descriptor"):
        worker.submit(attend, call).result()
    ragged = Call(SMALL, 61, 70, config=DESCRIPTOR, patches=BOXES)
    with pytest.raises(ConfigError, match="70 keys are no whole lines of a raster 8 wide"):
        worker.submit(attend, ragged).result()
    early = Case(Call(SMALL, 16, 72, config=DESCRIPTOR, patches=BOXES, offset=5))
    case = Case(early.call, config=BackwardConfig(DESCRIPTOR, DESCRIPTOR))
    with pytest.raises(ConfigError, match="position 5 begins no line of a raster 8 wide"):
        worker.submit(differentiate_key_value, case).result()


@pytest.mark.parametrize("call", CALLS, ids=_name)
def test_gradients(worker: ProcessPoolExecutor, call: Call) -> None:
    limit = 4e-3 if call.dtype == HALF else 2e-6
    whole = Case(call, config=BackwardConfig(call.config, call.config))
    split = Case(call, config=whole.config, split=(Progression(0, 1, 2, 3),))
    found = worker.submit(differentiate, whole).result()
    assert max(found.query, found.key, found.value) < limit and found.hidden, found
    found = worker.submit(differentiate_key_value, split).result()
    assert max(found.key, found.value) < limit and found.hidden, found
