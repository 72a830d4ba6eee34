"""BigBird's random blocks, frozen as a table."""

from __future__ import annotations

from typing import Any

import torch

from patterncc.dsl.errors import ArgumentError
from patterncc.selection.inputs import at_least


def bigbird_random(
    heads: int,
    length: int,
    *,
    block: int = 64,
    count: int = 3,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Random blocks for the library pattern `bigbird`: a draw of its distribution, from a seed.

    Each block row but the first and the last draws blocks that are neither in its window nor at an
    end. The draw is this function's own: Hugging Face draws from numpy's global generator, by a
    plan that depends on the length, and seeds it with the layer.

    Args:
        heads: Query heads.
        length: Tokens.
        block: Tokens of a block.
        count: Blocks that each row draws.
        seed: Of the draw.
        device: Where the table is to be.

    Returns:
        `random`, bool `[heads, blocks, blocks]`.

    Raises:
        ArgumentError: The sequence is so short that the original computes full attention.
    """
    for name, number in (("heads", heads), ("length", length), ("block", block)):
        at_least(name, number, 1)
    at_least("count", count, 0)
    blocks = -(-length // block)
    if blocks <= 5 + 2 * count:
        raise ArgumentError(
            f"`length` is {length}, {blocks} blocks of {block}; BigBird is full attention up to "
            f"{5 + 2 * count} blocks"
        )
    generator = torch.Generator().manual_seed(seed)
    random = torch.zeros(heads, blocks, blocks, dtype=torch.bool)
    for head in range(heads):
        for row in range(1, blocks - 1):
            near = {0, blocks - 1, row - 1, row, row + 1}
            free = torch.tensor([column for column in range(blocks) if column not in near])
            drawn = torch.randperm(len(free), generator=generator)[:count]
            random[head, row, free[drawn]] = True
    return {"random": random.to(device)}
