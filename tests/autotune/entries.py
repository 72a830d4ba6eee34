"""Keys and entries that tests of the store share, and the processes that write them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from patterncc.autotune.entries import Entry
from patterncc.autotune.key import ConfigKey
from patterncc.autotune.store import TunedStore

KEY = ConfigKey(
    device="NVIDIA H200",
    target="cuda:90",
    compiler="triton 3.6.0",
    pattern="causal",
    pattern_class="dense, growing",
    phase="forward",
    dtype="bfloat16",
    head_dim=128,
    value_head_dim=128,
    group=1,
    q_len=16384,
    kv_len=16384,
    density=0.5,
)
CONFIG = {
    "block_q": 64,
    "block_k": 64,
    "num_warps": 4,
    "num_stages": 3,
    "load": "descriptor",
    "order": "reverse",
    "neighbours": "tiles",
    "max_registers": None,
    "emitter": "triton",
    "peaks": "each",
}


def entry(config: dict[str, Any] | None = None, seconds: float = 1e-3, **fields: Any) -> Entry:
    """An entry for `KEY` with some fields changed."""
    return Entry(
        replace(KEY, **fields),
        {**CONFIG, **(config or {})},
        seconds,
        2e-3,
        trials=10,
        legal=100,
        call={"batch": 1, "heads": 16, "q_len": 16384, "kv_len": 16384},
        written_by="patterncc 0.1.0",
        date="2026-11-23T05:40:00+00:00",
    )


def write_many(folder: str, writer: int, keys: int) -> None:
    """Puts an entry for each of some keys, of which all writers have the same, again and again."""
    store = TunedStore(Path(folder), None)
    for round_ in range(10):
        for number in range(keys):
            store.put(entry(seconds=1e-3 * (1 + writer), q_len=2 ** (number + 4)))
        found = store.entries()
        assert len(found) == keys, (round_, len(found))


if __name__ == "__main__":
    write_many(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
