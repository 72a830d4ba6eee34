"""What the library's patterns compute beyond their visible pairs is bounded, pattern by pattern.

Waste is the area of visited tiles over visible pairs, in tiles of 128 x 128 at 4,096 tokens; keys
that are gathered count in tiles of gathered keys.
"""

from __future__ import annotations

from typing import Any

import pytest

from patterncc import example_values
from patterncc.call import Call
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.facts.counts import count_tiles
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.dsl import library
from patterncc.dsl.loader import load

LENGTH, TILE = 4096, 128

# Few keys to a row: tiles cannot be filled, however they are laid.
NARROW = {
    "around": 3.0,
    "block_window": 8.0,
    "deepspeed_variable": 4.5,
    "modernbert": 3.0,
    "neighborhood_1d": 3.0,
    "neighborhood_causal": 2.1,
    "sinks": 32.0,
    "sparse_strided": 5.5,
    "strided": 16.0,
}
# Columns of blocks much narrower than a tile: every tile meets one. Global rows of Longformer.
COLUMNS = {"deepspeed_fixed": 4.0, "deepspeed_longformer": 5.2, "sparse_fixed": 3.9}
# Rasters in patches; `swin` in a layer whose windows are shifted and cut off by the edge. What does
# not look into units of whole tiles is exact.
RASTERS = {
    "neighborhood": 3.7,
    "neighborhood_3d": 7.3,
    "sliding_tile": 1.0,
    "sliding_tile_heads": 1.0,
    "swin": 5.5,
}
# Tables read by position: blocks narrower than tiles, scattered columns, ids that no bound knows.
TABLES = {
    "bigbird": 2.7,
    "blocks": 3.2,
    "clustered": 9.0,
    "deepspeed_bigbird": 17.0,
    "eviction": 1.5,
    "flexprefill": 4.0,
    "gemma3_images": 3.5,
    "h2o": 1.4,
    "hip": 1.5,
    "lacache": 2.6,
    "landmark": 5.5,
    "longformer_tokens": 7.0,
    "minference": 1.7,
    "nsa": 6.0,
    "packed": 1.8,
    "sale": 2.2,
    "snapkv": 1.2,
    "squeezed": 1.4,
    "vertical_slash": 12.0,
}
BOUND = {**NARROW, **COLUMNS, **RASTERS, **TABLES}
USUAL = 1.75  # where none of these apply


def waste(name: str) -> float:
    pattern = load(library.source(name).text)
    layers = example_values.USUAL_LAYERS.get(name, 8)
    sizes = {"heads": 8, "kv_heads": 8, "layers": layers, "kv_len": LENGTH, "batch": 1}
    example = example_values.example(name, pattern, sizes)
    tables, numbers = ({}, {}) if example is None else (example.tables, example.numbers)
    open_numbers: dict[str, Any] = {
        number.name: 512 for number in pattern.numbers if number.value is None
    }
    pattern = load(library.source(name).text, **{**open_numbers, **numbers})
    call = Call.of(pattern, LENGTH, heads=8, layers=layers, tables=tables)
    passes = lower_passes(
        pattern, TILE, TILE, sizes=call.sizes, within=True, transposed=False, patches=True
    )
    pairs = pair_program(pattern, call.sizes, transposed=False)
    visible = visited = 0
    for head in (0, 5):
        env = call.env(head, layer=1)
        visible += int(count_pairs(pairs, env).rows.sum())
        visited += sum(count_tiles(program, env).visited for program in passes)
    return visited * TILE * TILE / visible


@pytest.mark.parametrize("name", library.names())
def test_waste_is_bounded(name: str) -> None:
    assert waste(name) <= BOUND.get(name, USUAL)


def test_dilation_is_dense_work() -> None:
    pattern = load("dilated(512, 8)")
    call = Call.of(pattern, 16384)
    passes = lower_passes(pattern, TILE, TILE, within=True, transposed=False)
    (dense,) = lower_passes(pattern, TILE, TILE, within=True, transposed=False, tiling="dense")
    env = call.env()
    pairs = int(count_pairs(pair_program(pattern, {}, transposed=False), env).rows.sum())
    area = TILE * TILE
    assert sum(count_tiles(each, env).visited for each in passes) * area <= 1.5 * pairs
    assert count_tiles(dense, env).visited * area >= 8 * pairs
