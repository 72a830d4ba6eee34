"""Where expressions on the scores enter the matrix products, forward and backward.

A call with such an expression never takes the flash kernels, which know none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from patterncc.codegen.cpu.blocks import BlockRange, row_blocks
from patterncc.codegen.cpu.jobs import Job
from patterncc.codegen.cpu.plan import Call


@dataclass(frozen=True, slots=True)
class Places:
    """Where scores `[outer, heads, rows, keys]` lie: int64 of shapes that broadcast to theirs.

    Attributes:
        q: Positions of the rows, 1 along keys.
        k: Positions of the keys, 1 along rows.
        head: Query heads, 1 along rows and keys.
        batch: Indexes in the batch, 1 along rows and keys.
    """

    q: Tensor
    k: Tensor
    head: Tensor
    batch: Tensor

    def turned(self, whether: bool) -> "Places":
        """With the first two axes exchanged, or as they are."""
        if not whether:
            return self
        q, k, head, batch = (x.transpose(0, 1) for x in (self.q, self.k, self.head, self.batch))
        return Places(q, k, head, batch)

    def part(self, outer: slice, rows: slice) -> "Places":
        """Those of the scores of some rows."""
        q, k, head, batch = (
            x if len(x) == 1 else x[outer] for x in (self.q, self.k, self.head, self.batch)
        )
        return Places(q[:, :, rows], k, head, batch)


PullBack: TypeAlias = Callable[[Tensor], tuple[Tensor, Sequence[Tensor]]]
"""From the gradient of logits to that of their scores, and those of a term's parameters."""


class ScoreTerm(Protocol):
    """An expression on the scores. Operators run where autograd is off, so it has its derivatives
    itself."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The real tensors that it reads and that get a gradient."""

    def with_pull_back(self, scores: Tensor, places: Places) -> tuple[Tensor, PullBack]:
        """The logits as a call gives them, and what makes gradients of theirs. Of a hidden pair
        the gradient is 0, and so it has to stay."""

    def __call__(self, scores: Tensor, places: Places) -> Tensor:
        """The logits of scaled scores `[outer, heads, rows, keys]`, element by element.

        Returns them in the type of the scores, which stay as they are. The scores of pairs that the
        pattern hides are 0, and what becomes of them does not count.
        """


def places_of(call: Call, job: Job, heads: Tensor, low: int, count: int) -> Places:
    """Where the scores `[heads, count, size, keys]` of some blocks of a call lie.

    Args:
        call: Of a plan.
        job: The class of rows.
        heads: int64 `[heads, 2]`, index in the batch and number of each.
        low, count: The blocks.
    """
    block = torch.arange(count)
    rows = _positions(row_blocks(call, low, count))
    keys = torch.cat([torch.arange(*span) for span in call.spans])
    keys = keys + ((low + block) * call.key_step)[:, None]
    q = job.q_offset + job.rows.start + job.rows.step * rows
    k = job.keys.start + job.keys.step * keys
    batch, head = heads.T
    return Places(
        q[None, :, :, None],
        k[None, :, None, :],
        head[:, None, None, None],
        batch[:, None, None, None],
    )


def _positions(of: BlockRange) -> Tensor:
    """int64 `[count, size]`."""
    return of.start + of.step * torch.arange(of.count)[:, None] + torch.arange(of.size)
