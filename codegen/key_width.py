"""How wide the key tiles of a pattern start out, where nothing was tuned: by counted work.

Keys that come in runs narrower than a tile make every tile partial and most of it vain; in tiles
that a run fills they are a progression of full ones. Narrow tiles are slower by their area, so it
takes a count to tell. As the choice among passes it depends on the pattern alone, never on a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from patterncc.codegen.choice import counted_work
from patterncc.codegen.ir import Passes
from patterncc.dsl.pattern import Pattern

COSTS: Mapping[int, float] = {64: 1.0, 32: 1.17 / 2, 16: 1.78 / 4}
"""What a tile takes, by its number of keys, beside one of 64.

Measured for `causal` and `window(1024)` with tiles of 64 rows, 4 warps and 3 stages on one H200
(benchmarks/gpu_key_tiles.py, bfloat16, head dimension 128), where no tile but the last is vain."""

_LEAST_GAIN = 0.1  # of the work: less is not worth that another width is compiled
_MOST_FULL = 0.5  # of the work in full tiles: narrower ones can gain in the others alone


def key_width(
    pattern: Pattern,
    lower: Callable[[int], Passes],
    block_k: int,
    sizes: Mapping[str, int] | None = None,
) -> int:
    """The number of keys of a tile with the least counted work, `block_k` or less.

    Args:
        pattern: The pattern.
        lower: Gives its programs for a width of key tiles.
        block_k: The width to start from. What it costs to go below others than those of `COSTS` is
            not known, and they are kept.
        sizes: Sizes by which the pattern divides.
    """
    if block_k not in COSTS:
        return block_k
    passes = lower(block_k)
    if any(program.listed for program in passes):
        return block_k  # what tables list is not known before a call
    work = counted_work(pattern, passes, sizes)
    if work.full > _MOST_FULL * work.cost():
        return block_k
    costs = {block_k: (1 - _LEAST_GAIN) * work.cost(COSTS[block_k])}
    for width, tile in COSTS.items():
        if width < block_k:
            costs[width] = counted_work(pattern, lower(width), sizes).cost(tile)
    return min(costs, key=costs.__getitem__)
