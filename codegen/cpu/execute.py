"""Runs one call of a CPU plan on the views of some heads: the kernel, dead rows, merging.

A key that a row does not see has no influence on it, NaN or infinite as the key or its value may
be. The flash kernel adds its mask to the scores, which does not hide a NaN; so masked calls take
the matrix products wherever the inputs admit a score or a value that is not finite.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from patterncc.codegen.cpu import kernels
from patterncc.codegen.cpu.blocks import BlockRange, blocks, key_blocks, row_blocks
from patterncc.codegen.cpu.heads import HeadPlan
from patterncc.codegen.cpu.jobs import Job, head_views
from patterncc.codegen.cpu.kernels import Kernel
from patterncc.codegen.cpu.plan import Call, Plan
from patterncc.codegen.cpu.scores import ScoreTerm, places_of
from patterncc.codegen.cpu.tensors import wide_type

_MAX_NUMBERS = 1 << 24  # that a kernel call returns; more blocks are run in several calls
_VECTOR = 16  # keys: of fewer, torch's kernel takes a row of NaN for one that sees nothing


@dataclass(slots=True)
class Whole:
    """A tensor of a call, `[batch, heads, length, dim]`, and its norm, found where it is asked for.

    Serves calls that together read all of it: the parts of a class of rows lie apart in memory, and
    each would take longer to look at than it is worth.
    """

    numbers: Tensor
    found: float | None = None

    @property
    def norm(self) -> float:
        if self.found is None:
            self.found = float(
                torch.linalg.vector_norm(self.numbers, dtype=wide_type(self.numbers.dtype))
            )
        return self.found


@dataclass(slots=True)
class Input:
    """A tensor `[heads, length, dim]`, and a bound of how large numbers are in part of it.

    Attributes:
        numbers: The tensor.
        whole: What it is part of, if that is to be looked at first.
        low, high: The positions along `length` that were looked at.
        square: The sum of squares there; not finite if a number there is not.
    """

    numbers: Tensor
    whole: Whole | None = None
    low: int = 0
    high: int = 0
    square: float = 0.0

    def norm(self, of: BlockRange) -> float:
        """A bound of the norm of the blocks; looks at no position that is known already."""
        if self.whole is not None and math.isfinite(self.whole.norm):
            return self.whole.norm
        start, stop = of.start, of.stop
        if start > self.high or stop < self.low or self.low == self.high:
            self.low = self.high = start
            self.square = 0.0
        for low, high in ((start, self.low), (self.high, stop)):
            if low < high:
                norm = _norm(self.numbers[:, low:high])
                self.square += norm * norm  # `**` would raise where this is infinite
        self.low, self.high = min(self.low, start), max(self.high, stop)
        return math.sqrt(self.square)


@dataclass(frozen=True, slots=True)
class Operands:
    """Tensors of some heads that share a plan, batch and heads as one axis, all views.

    Shapes: query `[heads, q_len, dim]`, key and value `[kv_heads, kv_len, dim]`, out
    `[heads, q_len, value_dim]`, lse `[heads, q_len]`, heads as in `head_numbers`. The job is that
    of their class of rows.
    """

    query: Input
    key: Input
    value: Input
    out: Tensor
    lse: Tensor
    job: Job
    heads: Tensor


def additive_mask(plan: Plan, call: Call, dtype: torch.dtype) -> Tensor | None:
    """0 where a row of the call sees a key, -inf elsewhere: `[size, keys]`; None if it sees all."""
    if call.masks is None:
        return None
    hidden = torch.from_numpy(~plan.call_mask(call))
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -math.inf)


def operands(
    part: HeadPlan,
    job: Job,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    heads: Tensor,
    whole: tuple[Whole | None, Whole | None, Whole | None],
) -> Iterator[Operands]:
    """The views of the heads of a plan in one class of rows.

    Args:
        part: The plan and its heads.
        job: The class of rows.
        query, key, value, out, lse: Of all heads and rows.
        heads: Of all, as in `head_numbers`.
        whole: What query, key and value are part of, where their classes are many.
    """
    of_rows = [heads, *(tensor[:, :, job.rows] for tensor in (query, out, lse))]
    of_keys = [tensor[:, :, job.keys] for tensor in (key, value)]
    for (numbers, q, o, s), (k, v) in head_views(part, of_rows, of_keys):
        inputs = Input(q, whole[0]), Input(k, whole[1]), Input(v, whole[2])
        yield Operands(*inputs, o, s, job, numbers)


def run(
    call: Call,
    mask: Tensor | None,
    on: Operands,
    kernel: Kernel,
    scale: float,
    first: bool,
    score: ScoreTerm | None = None,
) -> None:
    """Runs a call on some heads: writes its rows if they hold nothing yet, else merges into them.

    Args:
        call: Of the plan of these heads.
        mask: Its `additive_mask`, if it has a mask.
        on: The heads.
        kernel: What to run, of `kernels`.
        scale: Factor of the scores.
        first: Whether nothing but this plan has written these rows.
        score: What makes logits of scores; then `kernel` is not run, but the matrix products.
    """
    heads, _, dim = on.query.numbers.shape
    few = max(1, _MAX_NUMBERS // (heads * call.size * dim))
    for low in range(0, call.count, few):
        count = min(few, call.count - low)
        rows, keys = row_blocks(call, low, count), key_blocks(call, low, count)
        key, value = on.key, on.value
        if len(call.spans) > 1:
            key, value = (
                Input(torch.cat([x.numbers[:, slice(*span)] for span in call.spans], dim=1))
                for x in (key, value)
            )
            keys = BlockRange(0, 0, call.keys, 1)
        safe = (mask is None and call.keys >= _VECTOR) or (
            _finite_scores(on.query.norm(rows), key.norm(keys), scale, key.numbers.dtype)
            # Nothing that is hidden may be infinite or NaN.
            and (mask is None or math.isfinite(value.norm(keys)))
        )
        chosen = kernel if safe else kernels.matmul
        if score is not None:
            chosen = _with_score(score, call, on, low, count)
        out, lse = _attend(
            chosen,
            blocks(on.query.numbers, rows),
            blocks(key.numbers, keys),
            blocks(value.numbers, keys),
            mask,
            scale,
        )
        if call.dead is not None:
            dead = torch.from_numpy(call.dead)
            out.masked_fill_(dead[:, None], 0)
            lse.masked_fill_(dead, -math.inf)
        _put(
            out[..., : on.out.shape[-1]],
            lse,
            blocks(on.out, rows),
            blocks(on.lse[..., None], rows)[..., 0],
            first and call.first,
        )


def _norm(numbers: Tensor) -> float:
    """The Euclidean norm of `[heads, length, dim]`; infinite or not a number if a number there is.

    Heads that lie apart in memory are reduced one by one: torch is four times as slow on all at
    once, as they are not one stretch of memory.
    """
    wide = wide_type(numbers.dtype)
    head, place, _ = numbers.stride()
    if len(numbers) > 1 and (head == 0 or head > place):
        numbers = torch.linalg.vector_norm(numbers, dim=(1, 2), dtype=wide)
    return float(torch.linalg.vector_norm(numbers, dtype=wide))


def _finite_scores(query: float, key: float, scale: float, dtype: torch.dtype) -> bool:
    """Whether no score can overflow, by the norms of query and key and Cauchy and Schwarz."""
    return query * key * max(1.0, abs(scale)) < 0.25 * torch.finfo(wide_type(dtype)).max


def _with_score(score: ScoreTerm, call: Call, on: Operands, low: int, count: int) -> Kernel:
    """The matrix products for some blocks of a call, with logits instead of scores."""
    turned = len(on.query.numbers) != len(on.key.numbers)  # by `_attend`
    places = places_of(call, on.job, on.heads, low, count).turned(turned)

    def logits(scores: Tensor, outer: slice, rows: slice) -> Tensor:
        return score(scores, places.part(outer, rows))

    return partial(kernels.matmul, logits=logits)


def _attend(
    kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Runs a kernel on operands `[heads, blocks, length, dim]`, with fewer key heads or as many.

    It is fastest with the blocks of a head side by side, as neighbours share keys, but finds the
    key head of a query head only with the heads of a block side by side.
    """
    if len(query) == len(key):
        return kernel(query, key, value, mask, scale)
    out, lse = kernel(
        query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), mask, scale
    )
    return out.transpose(0, 1), lse.transpose(0, 1)


def _put(out: Tensor, lse: Tensor, held: Tensor, held_lse: Tensor, first: bool) -> None:
    """Writes results over what is held, or merges the two as parts of one softmax."""
    if first:
        held.copy_(out)
        held_lse.copy_(lse)
        return
    # Both parts may be empty, and then the difference is not a number.
    share = torch.where(lse == -math.inf, 0, (lse - held_lse).sigmoid())
    held.lerp_(out.to(held.dtype), share[..., None])
    held_lse.copy_(torch.logaddexp(held_lse, lse))
