"""The blocks of a call as strided views: reading their rows and keys, and adding to them."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from patterncc.codegen.cpu.plan import Call


@dataclass(frozen=True, slots=True)
class BlockRange:
    """Blocks along the length of a tensor: `[start, start + size) + step * block`, `count` of them.

    Those of rows are disjoint; those of keys may overlap, and are one and the same where the step
    is 0.
    """

    start: int
    step: int
    size: int
    count: int

    @property
    def stop(self) -> int:
        """Where the last block ends."""
        return self.start + (self.count - 1) * self.step + self.size


def row_blocks(call: Call, low: int, count: int) -> BlockRange:
    """The rows of `count` blocks of a call from block `low` on."""
    return BlockRange(call.row + low * call.row_step, call.row_step, call.size, count)


def key_blocks(call: Call, low: int, count: int) -> BlockRange:
    """The keys of `count` blocks of a call, of one span, from block `low` on."""
    return BlockRange(call.spans[0][0] + low * call.key_step, call.key_step, call.keys, count)


def blocks(tensor: Tensor, of: BlockRange) -> Tensor:
    """Blocks along the length of `[heads, length, dim]`: a view `[heads, count, size, dim]`."""
    heads, _, dim = tensor.shape
    head, place, _ = tensor.stride()
    return tensor.as_strided(
        (heads, of.count, of.size, dim),
        (head, of.step * place, place, 1),
        tensor.storage_offset() + of.start * place,
    )


def key_views(call: Call, tensor: Tensor, low: int, count: int) -> Tensor:
    """The keys of blocks of a call: `[kv_heads, count, keys, dim]`, a copy if they are gathered."""
    if len(call.spans) == 1:
        return blocks(tensor, key_blocks(call, low, count))
    return torch.cat([tensor[:, slice(*span)] for span in call.spans], dim=1)[:, None]


def add_rows(call: Call, total: Tensor, part: Tensor, low: int, count: int) -> None:
    """Adds `[heads, count, size, dim]` to the rows of blocks in `[heads, q_len, dim]`."""
    blocks(total, row_blocks(call, low, count)).add_(part)


def add_keys(call: Call, total: Tensor, part: Tensor, low: int, count: int) -> None:
    """Adds `[kv_heads, count, keys, dim]` to the keys of blocks in `[kv_heads, kv_len, dim]`.

    Blocks that overlap are added in turns, each of which writes every place at most once; so the
    order of a sum depends on nothing but the call.
    """
    for to, some in _apart(call, part, low, count):
        blocks(total, to).add_(some)


def _apart(call: Call, part: Tensor, low: int, count: int) -> Iterator[tuple[BlockRange, Tensor]]:
    """Parts of `[kv_heads, count, keys, dim]`, and disjoint blocks of keys that each is for."""
    if len(call.spans) > 1:
        sizes = [stop - start for start, stop in call.spans]
        for (start, _), some in zip(call.spans, torch.split(part, sizes, dim=2), strict=True):
            yield BlockRange(start, 0, some.shape[2], 1), some
        return
    keys = key_blocks(call, low, count)
    if keys.step == 0:
        yield BlockRange(keys.start, 0, keys.size, 1), part.sum(1, keepdim=True)
        return
    turns = min(count, -(-keys.size // keys.step))
    for turn in range(turns):
        some = part[:, turn::turns]
        start = keys.start + turn * keys.step
        yield BlockRange(start, turns * keys.step, keys.size, some.shape[1]), some
