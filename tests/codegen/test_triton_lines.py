"""Kernels with loops over the lines of a raster in Triton's interpreter, against float64: the
output and all gradients, with text behind the video and calls that end within it."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.chunk_source import Progression
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.lower import lower
from patterncc.dsl import load
from tests.codegen.gradients import Case, differentiate, differentiate_key_value
from tests.codegen.interpreter import Call, attend

POINTER = KernelConfig(16, 16, 4, 1)
TALL = KernelConfig(32, 16, 4, 1)
DESCRIPTOR = KernelConfig(16, 16, 4, 1, "descriptor")
VIDEO = "sliding_tile(tile = 16, depth = 3, rows = 3, columns = 4)"  # of 576 tokens
TEXT = "sliding_tile(tile = 16, depth = 1, rows = 3, columns = 4, text = 37)"  # behind 192
LONG = "sliding_tile(tile = 32, depth = 2, rows = 2, columns = 3, text = 37)"  # behind 384
BY_HEAD = """
pattern by_head(d: int[layer, head], r: int[layer, head], c: int[layer, head]):
    sliding_tile_heads(d, r, c, tile = 16, depth = 2, rows = 3, columns = 3)
"""
WINDOWS = {"d": [[1, 1], [3, 1]], "r": [[1, 3], [1, 1]], "c": [[3, 1], [1, 3]]}

CALLS = (
    Call(VIDEO, 576, 576, config=POINTER, heads=(1, 1)),
    Call(VIDEO, 350, 450, config=DESCRIPTOR, offset=0, values={"row_window": 1}),
    Call(VIDEO, 90, 500, config=POINTER, offset=384, heads=(4, 2)),
    Call(VIDEO, 90, 400, config=DESCRIPTOR, offset=33),  # begins within a frame: visits all tiles
    Call(TEXT, 229, 229, config=POINTER),
    Call(LONG, 421, 425, config=TALL, offset=0, heads=(1, 1)),
    Call(TEXT, 250, 250, config=DESCRIPTOR, batch=2, values={"text": 50}),
    Call(TEXT, 192, 192, config=POINTER, values={"text": 0, "column_window": 1}),
    Call(BY_HEAD, 288, 288, config=DESCRIPTOR, tables=WINDOWS, values={"layer": 1}),
)


def _name(call: Call) -> str:
    return f"{CALLS.index(call)} {call.q_len}x{call.kv_len}"


def test_their_programs_have_loops_around_loops() -> None:
    for text in (VIDEO, TEXT, BY_HEAD):
        program = lower(load(text), 16, 16, within=True)
        for sweeps in (program.forward, program.transposed or ()):
            assert max(len(sweep.repeats) for sweep in sweeps) == 2
        assert not program.ignored


@pytest.mark.parametrize("call", CALLS, ids=_name)
def test_forward(worker: ProcessPoolExecutor, call: Call) -> None:
    found = worker.submit(attend, call).result()
    assert max(found.out, found.lse) < 2e-6, found


@pytest.mark.parametrize("call", CALLS, ids=_name)
def test_gradients(worker: ProcessPoolExecutor, call: Call) -> None:
    whole = Case(call, config=BackwardConfig(call.config, call.config))
    split = replace(whole, split=(Progression(0, 1, 2, 3),))
    found = worker.submit(differentiate, whole).result()
    assert max(found.query, found.key, found.value) < 2e-6 and found.hidden, found
    found = worker.submit(differentiate_key_value, split).result()
    assert max(found.key, found.value) < 2e-6 and found.hidden, found
