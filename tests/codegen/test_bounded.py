"""Lowering ends in bounded time, whatever the mask."""

from __future__ import annotations

import time

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.lower import lower
from patterncc.dsl.loader import load

UNION = " or ".join(f"(q // {size} == k // {size} and q - k < {size + 3})" for size in range(8, 72))
WINDOWS = " or ".join(f"{64 * n} <= q - k < {64 * n + 9}" for n in range(64))
AWKWARD = (
    "pattern p(a = 20): q % 3 == k % 3 and q % 100 == k % 100 and "
    "(if head + a < 0 then 0 < head else head != k - q - (q + k) % 3)"
)


@pytest.mark.parametrize(
    ("text", "most"),
    [
        (WINDOWS, 2.0),
        (f"causal and ({WINDOWS})", 2.0),
        (UNION, 4.0),
        (AWKWARD, 2.0),
        ("swin", 2.0),
        ("neighborhood_3d", 2.0),
        ("sliding_tile", 2.0),
    ],
    ids=["64 windows", "64 causal windows", "64 chunks", "moduli", "swin", "3-D", "tiles"],
)
def test_lowering_ends(text: str, most: float) -> None:
    pattern = load(text)
    start = time.process_time()
    lower(pattern, 64, 64, sizes={"heads": 8}, within=True)
    lower_passes(pattern, 64, 64, sizes={"heads": 8}, within=True, transposed=False)
    assert time.process_time() - start < 3 * most  # for both, on a slow machine
