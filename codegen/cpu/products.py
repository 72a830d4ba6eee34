"""What kernels of matrix products share: few rows at a time, no influence of hidden pairs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from patterncc.codegen.cpu.accumulate import Block
from patterncc.codegen.cpu.kernels import seen_products
from patterncc.codegen.cpu.scores import Places

_MAX_SCORES = 1 << 20  # of a stack


@dataclass(frozen=True, slots=True)
class Stack:
    """Some rows of a block. The heads that share a key head are more rows of one head.

    Attributes:
        rows: Tensors `[outer, kv_heads, group * length, dim]`.
        keys: Tensors `[outer, kv_heads, keys, dim]`.
        hidden: bool `[group * length, keys]`, the pairs that do not count; None if all do.
        shape: `(outer, heads, length, keys)`: of the scores, one head a head.
        places: Finds where scores of that shape lie.
    """

    rows: list[Tensor]
    keys: list[Tensor]
    hidden: Tensor | None
    shape: tuple[int, int, int, int]
    places: Callable[[], Places]

    def hide(self, scores: Tensor) -> Tensor:
        """Scores `[outer, kv_heads, group * length, keys]`, 0 in place where they are hidden."""
        return scores if self.hidden is None else scores.masked_fill_(self.hidden, 0)

    def for_rows(self, weights: Tensor, numbers: Tensor) -> Tensor:
        """`weights @ numbers`, of weights that are 0 where hidden and numbers of the keys."""
        return seen_products(weights, numbers, self.hidden)

    def for_keys(self, weights: Tensor, numbers: Tensor) -> Tensor:
        """`weights^T @ numbers`, of weights that are 0 where hidden and numbers of the rows."""
        return seen_products(weights.mT, numbers, None if self.hidden is None else self.hidden.mT)


Step: TypeAlias = Callable[[Stack], tuple[list[Tensor], list[Tensor]]]
"""Returns what to add for the rows of a stack and for its keys, of shapes as its operands."""


def by_rows(block: Block, run: Step) -> tuple[list[Tensor], list[Tensor]]:
    """Runs a step on a block, so many rows at a time that their scores are not too many."""
    for_rows: list[list[Tensor]] = []
    for_keys: list[Tensor] = []
    for stack in _stacks(block):
        own, shared = run(stack)
        outer, heads, length, _ = stack.shape
        for_rows.append([x.view(outer, heads, length, -1) for x in own])
        if for_keys:
            for total, part in zip(for_keys, shared, strict=True):
                total.add_(part)
        else:
            for_keys = shared
    if len(for_rows) == 1:
        return for_rows[0], for_keys
    return [torch.cat(parts, dim=2) for parts in zip(*for_rows, strict=True)], for_keys


def _stacks(block: Block) -> Iterator[Stack]:
    outer, heads, rows, _ = block.rows[0].shape
    kv_heads, keys = block.keys[0].shape[1:3]
    group = heads // kv_heads
    few = max(1, min(rows, _MAX_SCORES // (outer * heads * keys)))
    for low in range(0, rows, few):
        some = slice(low, min(low + few, rows))
        length = some.stop - low
        hidden = None if block.hidden is None else block.hidden.pairs[some].repeat(group, 1)

        def places(some: slice = some) -> Places:
            return block.places().part(slice(None), some)

        yield Stack(
            [
                x[:, :, some].reshape(outer, kv_heads, group * length, x.shape[-1])
                for x in block.rows
            ],
            block.keys,
            hidden,
            (outer, heads, length, keys),
            places,
        )
