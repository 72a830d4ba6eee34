"""Sums over the visible pairs of a call: runs a kernel on the blocks of its plans.

What all derivatives have in common. Calls may overlap in rows and keys, so results are added, in an
order that depends on the plans alone. Knows nothing of what is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from patterncc.codegen.cpu.blocks import add_keys, add_rows, blocks, key_views, row_blocks
from patterncc.codegen.cpu.heads import HeadPlan
from patterncc.codegen.cpu.jobs import Job, PassJobs, head_numbers, head_views
from patterncc.codegen.cpu.plan import Call
from patterncc.codegen.cpu.scores import Places, places_of

_MAX_NUMBERS = 1 << 20  # that a kernel is given to work on at a time: what stays in a cache


class Hidden:
    """The pairs of a block that do not count.

    Attributes:
        pairs: bool `[rows, keys]`.
        dtype: Of the operands.
    """

    def __init__(self, pairs: Tensor, dtype: torch.dtype) -> None:
        self.pairs = pairs
        self.dtype = dtype

    @cached_property
    def additive(self) -> Tensor:
        """-inf where hidden, else 0, in the type of the operands: what is added to scores."""
        zeros = torch.zeros(self.pairs.shape, dtype=self.dtype)
        return zeros.masked_fill_(self.pairs, -torch.inf)


@dataclass(frozen=True, slots=True)
class Block:
    """The operands of a kernel: one block of some heads, or several that are alike.

    Attributes:
        rows: Tensors `[outer, heads, rows, dim]`.
        keys: Tensors `[outer, kv_heads, keys, dim]`; `kv_heads` divides `heads`.
        hidden: The pairs that do not count; None if all do.
        places: Finds where the pairs lie.
    """

    rows: list[Tensor]
    keys: list[Tensor]
    hidden: Hidden | None
    places: Callable[[], Places]


BlockKernel: TypeAlias = Callable[[Block], tuple[Sequence[Tensor], Sequence[Tensor]]]
"""Returns what to add for the rows of a block and for its keys, of shapes as its operands."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """Of a call, `[batch, heads, q_len, dim]` and `[batch, kv_heads, kv_len, dim]`.

    Attributes:
        rows, keys: Read; the last axis contiguous.
        row_sums, key_sums: Added to; contiguous.
    """

    rows: Sequence[Tensor]
    keys: Sequence[Tensor]
    row_sums: Sequence[Tensor]
    key_sums: Sequence[Tensor]


def accumulate(
    work: Sequence[PassJobs], on: Tensors, kernel_for: Callable[[Hidden | None], BlockKernel]
) -> None:
    """Runs a kernel on all blocks of a call.

    Args:
        work: The plans of the call.
        on: Its tensors.
        kernel_for: The kernel for blocks with such hidden pairs.
    """
    heads = head_numbers(*on.rows[0].shape[:2])
    for each in work:
        for part, jobs in each.places:
            for call in part.plan.calls:
                hidden = None
                if call.masks is not None:
                    pairs = torch.from_numpy(~part.plan.call_mask(call))
                    hidden = Hidden(pairs, on.keys[0].dtype)
                kernel = kernel_for(hidden)
                for job in jobs:
                    for views in _head_views(part, job, on, heads):
                        _run(call, hidden, job, views, kernel)


@dataclass(frozen=True, slots=True)
class _Views:
    """As `Tensors`, batch and heads as one axis, of heads that share a plan.

    Attributes:
        heads: int64 `[heads, 2]`, index in the batch and number of each.
    """

    heads: Tensor
    rows: list[Tensor]
    keys: list[Tensor]
    row_sums: list[Tensor]
    key_sums: list[Tensor]

    def part(self, low: int, high: int) -> "_Views":
        """Those of key heads `[low, high)`."""
        group = len(self.heads) // len(self.keys[0])
        own, shared = slice(low * group, high * group), slice(low, high)
        return _Views(
            self.heads[own],
            [x[own] for x in self.rows],
            [x[shared] for x in self.keys],
            [x[own] for x in self.row_sums],
            [x[shared] for x in self.key_sums],
        )


def _head_views(part: HeadPlan, job: Job, on: Tensors, heads: Tensor) -> Iterator[_Views]:
    """The views of the heads of a plan in one class of rows."""
    of_rows = [x[:, :, job.rows] for x in (*on.rows, *on.row_sums)]
    of_keys = [x[:, :, job.keys] for x in (*on.keys, *on.key_sums)]
    for own, shared in head_views(part, [heads, *of_rows], of_keys):
        sums, more = len(on.rows) + 1, len(on.keys)
        yield _Views(own[0], own[1:sums], shared[:more], own[sums:], shared[more:])


def _run(
    call: Call,
    hidden: Hidden | None,
    job: Job,
    views: _Views,
    kernel: BlockKernel,
) -> None:
    """Runs a kernel on a call for some heads, so many blocks and key heads at a time as fit."""
    kv_heads = len(views.keys[0])
    group = len(views.heads) // kv_heads
    width = max(sum(x.shape[-1] for x in views.keys), group * call.size)
    # No fewer than there are threads: some kernels give each thread whole heads and blocks.
    units = max(torch.get_num_threads(), _MAX_NUMBERS // (call.keys * width))
    few_heads = -(-kv_heads // -(-kv_heads // units))
    few_blocks = max(1, units // few_heads)
    for head in range(0, kv_heads, few_heads):
        some = views.part(head, min(head + few_heads, kv_heads))
        for low in range(0, call.count, few_blocks):
            count = min(few_blocks, call.count - low)
            _run_blocks(call, hidden, job, some, kernel, low, count)


def _run_blocks(
    call: Call,
    hidden: Hidden | None,
    job: Job,
    views: _Views,
    kernel: BlockKernel,
    low: int,
    count: int,
) -> None:
    """Runs a kernel on blocks `[low, low + count)` of a call for some heads.

    Kernels are fastest with the blocks of a head side by side, as neighbours share keys, but find
    the key head of a query head only with the heads of a block side by side.
    """
    rows = [blocks(x, row_blocks(call, low, count)) for x in views.rows]
    keys = [key_views(call, x, low, count) for x in views.keys]
    grouped = len(views.heads) != len(keys[0])

    def turned(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1) if grouped else tensor

    def places() -> Places:
        return places_of(call, job, views.heads, low, count).turned(grouped)

    for_rows, for_keys = kernel(
        Block([turned(x) for x in rows], [turned(x) for x in keys], hidden, places)
    )
    for total, part in zip(views.row_sums, for_rows, strict=True):
        add_rows(call, total, turned(part), low, count)
    for total, part in zip(views.key_sums, for_keys, strict=True):
        add_keys(call, total, turned(part), low, count)
