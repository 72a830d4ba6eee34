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
# Floors that isl resolves slowly, and ever slower, by its own count of operations.
FLOORS = (
    "pattern p(a = 20, b = 30): max(k, b) % 64 <= q + kv_len - k or "
    "max(a, min(k, head % 3)) % 4 == min(head % 16, q + k) or max(head, layer, q - k) <= kv_len or "
    "q + head % 128 == head + 2 * k - (k - q) // 128 or k + b - q <= 308 or "
    "k - q - (k - q) // 128 <= max(q, layer) or k - k // 7 < a"
)
BRANCHES = (
    "pattern p(a = 20, b = 30): k // 37 == (k - k // 8) % 4 and "
    "q + k - (q + k) // 100 < max(a, abs(k + head)) and "
    "0 <= (if k != (k - q) // 64 then q + k else a // 128) and "
    "a // 7 + min(kv_len, k - q) < "
    "(if (k - q) % 7 <= min(kv_len, (q + k) % 8) then q - k else b)"
)


@pytest.mark.parametrize(
    ("text", "most"),
    [
        (WINDOWS, 2.0),
        (f"causal and ({WINDOWS})", 2.0),
        (UNION, 4.0),
        (AWKWARD, 2.0),
        (FLOORS, 2.0),
        (BRANCHES, 2.0),
        ("swin", 2.0),
        ("neighborhood_3d", 2.0),
        ("sliding_tile", 2.0),
    ],
    ids=[
        "64 windows",
        "64 causal windows",
        "64 chunks",
        "moduli",
        "floors",
        "branches",
        "swin",
        "3-D",
        "tiles",
    ],
)
def test_lowering_ends(text: str, most: float) -> None:
    pattern = load(text)
    start = time.process_time()
    lower(pattern, 64, 64, sizes={"heads": 8}, within=True)
    lower_passes(pattern, 64, 64, sizes={"heads": 8}, within=True, transposed=False)
    assert time.process_time() - start < 3 * most  # for both, on a slow machine
