"""Block-sparse attention on the CPU, forward: runs the calls of `cpu_plan` on torch tensors.

Each call goes to aten's own CPU flash kernel, on strided views of the keys. Where this torch lacks
that kernel, or it does not do as it should, calls go to a loop of matrix products instead;
`cpu_kernel_name` says which it is.

A key that a row does not see has no influence on it, NaN or infinite as the key or its value may
be. The flash kernel adds its mask to the scores, which does not hide a NaN; so masked calls take
the matrix products wherever the inputs admit a score or a value that is not finite.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from patterncc.codegen import cpu_kernels
from patterncc.codegen.config import KernelConfig
from patterncc.codegen.cpu_heads import HeadPlan, PlanStore
from patterncc.codegen.cpu_kernels import Kernel
from patterncc.codegen.cpu_plan import Call, Plan
from patterncc.codegen.ir import BlockProgram
from patterncc.dsl.errors import ArgumentError, UnsupportedError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MAX_NUMBERS = 1 << 24  # that a kernel call returns; more blocks are run in several calls

plans = PlanStore()


def default_config() -> KernelConfig:
    """The tile shape to lower for; plans join tiles where taller ones are faster."""
    return KernelConfig(block_q=64, block_k=64)


def cpu_kernel_name() -> str:
    """Which kernel runs here: `aten flash` or `matmul`."""
    return "aten flash" if cpu_kernels.flash_works() else "matmul"


@torch.no_grad()
def attention(
    program: BlockProgram,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    env: Mapping[str, int] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention under a lowered pattern, without a gradient.

    Args:
        program: The pattern, lowered for any tile shape; `default_config` has a good one.
        query: `[batch, heads, q_len, head_dim]`, float16, bfloat16, float32 or float64, with any
            strides.
        key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
        value: `[batch, kv_heads, kv_len, value_head_dim]`.
        env: Run-time numbers by name, `layer` (0 unless given), `layers` where the pattern reads
            it, and `q_offset`, the position of row 0 (`kv_len - q_len` unless given). What the
            tensors tell is taken from them.
        scale: Factor of the scores; `1 / sqrt(head_dim)` if not given.

    Returns:
        The output `[batch, heads, q_len, value_head_dim]` in the type of `query`, contiguous, and
        the natural log-sum-exp of the visible scores `[batch, heads, q_len]`, float32 (float64
        for float64). A row that sees nothing gets 0 and -inf.

    Raises:
        ArgumentError: A shape or type does not fit, or a scalar that the pattern reads is missing.
        UnsupportedError: The tensors are not on the CPU, or of another type.
    """
    _check(query, key, value)
    batch, heads, q_len, head_dim = query.shape
    _, kv_heads, kv_len, value_dim = value.shape
    scale = 1 / math.sqrt(head_dim) if scale is None else float(scale)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    if 0 in (batch, heads, q_len, kv_len):
        return (
            query.new_zeros(batch, heads, q_len, value_dim),
            query.new_full((batch, heads, q_len), -math.inf, dtype=wide),
        )
    scalars = {"layer": 0, "q_offset": kv_len - q_len, **(env or {})}
    scalars |= {"q_len": q_len, "kv_len": kv_len, "heads": heads, "kv_heads": kv_heads}
    found = plans.find(program, scalars, batch)

    # Merging in a narrow type would round the weights, too.
    out_dtype = wide if any(part.plan.merges for part in found) else query.dtype
    untouched = any(part.plan.untouched for part in found)
    out = (torch.zeros if untouched else torch.empty)(
        batch, heads, q_len, value_dim, dtype=out_dtype
    )
    lse = torch.full((batch, heads, q_len), -math.inf, dtype=wide)
    flash = cpu_kernels.flash_works()
    width = max(head_dim, value_dim) if flash else 0  # the flash kernel wants them equal
    query, key, value = (_readable(tensor, width) for tensor in (query, key, value))
    kernel = cpu_kernels.flash if flash else cpu_kernels.matmul
    for part in found:
        operands = list(_operands(part, query, key, value, out, lse))
        for call in part.plan.calls:
            mask = None if call.masks is None else _additive_mask(part.plan, call, wide)
            for operand in operands:
                _run(call, mask, operand, kernel, scale)
    return out.to(query.dtype), lse


# A range of blocks along an axis: where the first starts, from one to the next, their length, how
# many.
_Range: TypeAlias = tuple[int, int, int, int]


@dataclass(slots=True)
class _Input:
    """A tensor `[heads, length, dim]`, and a bound of how large numbers are in part of it.

    Attributes:
        numbers: The tensor.
        low, high: The positions along `length` that were looked at.
        square: The sum of squares there; not finite if a number there is not.
    """

    numbers: Tensor
    low: int = 0
    high: int = 0
    square: float = 0.0

    def norm(self, blocks: _Range) -> float:
        """A bound of the norm of the blocks; looks at no position that is known already."""
        start, step, size, count = blocks
        stop = start + (count - 1) * step + size
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
class _Operands:
    """Tensors of some heads that share a plan, batch and heads as one axis, all views.

    Shapes: query `[heads, q_len, dim]`, key and value `[kv_heads, kv_len, dim]`, out
    `[heads, q_len, value_dim]`, lse `[heads, q_len]`.
    """

    query: _Input
    key: _Input
    value: _Input
    out: Tensor
    lse: Tensor


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        if tensor.ndim != 4:
            raise ArgumentError(
                f"`{name}` has {tensor.ndim} axes; it needs 4: batch, heads, length, dimension"
            )
        if tensor.device.type != "cpu":
            raise UnsupportedError(f"`{name}` is on {tensor.device}; this executor is for the CPU")
        if tensor.dtype != query.dtype:
            raise ArgumentError(f"`{name}` is {tensor.dtype}; it must be {query.dtype}, as `query`")
        if tensor.shape[0] != query.shape[0]:
            raise ArgumentError(
                f"`{name}` has a batch of {tensor.shape[0]}; `query` has {query.shape[0]}"
            )
    if query.dtype not in _DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise UnsupportedError(f"attention on the CPU cannot be done in {query.dtype}", names)
    if key.shape[1:3] != value.shape[1:3]:
        raise ArgumentError(
            f"`key` has {key.shape[1]} heads and {key.shape[2]} keys; `value` has "
            f"{value.shape[1]} and {value.shape[2]}"
        )
    if key.shape[3] != query.shape[3] or query.shape[3] == 0 or value.shape[3] == 0:
        raise ArgumentError(
            f"the head dimensions of `query`, `key` and `value` are {query.shape[3]}, "
            f"{key.shape[3]} and {value.shape[3]}; they must be positive, the first two equal"
        )
    if key.shape[1] == 0 or query.shape[1] % key.shape[1] != 0:
        raise ArgumentError(
            f"`query` has {query.shape[1]} heads, which {key.shape[1]} key heads do not divide"
        )


def _readable(tensor: Tensor, width: int) -> Tensor:
    """The tensor as the kernels can read it: rows apart in memory, of neighbouring numbers.

    It gets zeros up to `width` numbers a row.
    """
    missing = width - tensor.shape[3]
    if missing > 0:
        return torch.nn.functional.pad(tensor, (0, missing))
    if tensor.stride(3) != 1 or tensor.stride(2) < tensor.shape[3]:
        # Not `contiguous`, which leaves odd strides of axes of size 1 as they are.
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor


def _additive_mask(plan: Plan, call: Call, dtype: torch.dtype) -> Tensor:
    """0 where a row of the call sees a key, -inf elsewhere: `[size, keys]`."""
    hidden = torch.from_numpy(~plan.call_mask(call))
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -math.inf)


def _operands(
    part: HeadPlan, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor
) -> Iterator[_Operands]:
    """The views of the heads of a plan, in as few pieces as strides and grouping allow."""
    batch, heads = query.shape[:2]
    group = heads // key.shape[1]
    by_batch: dict[int | None, list[int]] = {}
    for index, head in part.places:
        by_batch.setdefault(index, []).extend(range(heads) if head is None else [head])
    if list(by_batch) == [None] and len(by_batch[None]) == heads:
        inputs = (query, key, value)
        if batch == 1 or all(x.stride(0) == x.shape[1] * x.stride(1) for x in inputs):
            q, k, v = (_Input(x.flatten(0, 1)) for x in inputs)
            yield _Operands(q, k, v, out.flatten(0, 1), lse.flatten(0, 1))
            return
    for index, members in by_batch.items():
        for b in range(batch) if index is None else [index]:
            for own, shared in _head_ranges(members, group):
                q, k, v = _Input(query[b, own]), _Input(key[b, shared]), _Input(value[b, shared])
                yield _Operands(q, k, v, out[b, own], lse[b, own])


def _head_ranges(heads: list[int], group: int) -> Iterator[tuple[slice, slice]]:
    """Ranges of ascending query heads that hold whole groups, or lie within one; with key heads."""
    at = 0
    while at < len(heads):
        first = heads[at]
        stop = at + 1
        while stop < len(heads) and heads[stop] == first + stop - at:
            stop += 1
        length = stop - at
        if first % group == 0 and length >= group:
            length -= length % group
        else:
            length = min(length, group - first % group)
        yield (
            slice(first, first + length),
            slice(first // group, (first + length - 1) // group + 1),
        )
        at += length


def _run(call: Call, mask: Tensor | None, on: _Operands, kernel: Kernel, scale: float) -> None:
    """Runs a call on some heads: writes its rows, or merges into what they hold."""
    heads, _, dim = on.query.numbers.shape
    few = max(1, _MAX_NUMBERS // (heads * call.size * dim))
    for low in range(0, call.count, few):
        count = min(few, call.count - low)
        rows = (call.row + low * call.row_step, call.row_step, call.size, count)
        keys = (call.spans[0][0] + low * call.key_step, call.key_step, call.keys, count)
        key, value = on.key, on.value
        if len(call.spans) > 1:
            key, value = (
                _Input(torch.cat([x.numbers[:, slice(*span)] for span in call.spans], dim=1))
                for x in (key, value)
            )
            keys = (0, 0, call.keys, 1)
        hidden_stays_hidden = mask is None or (
            _finite_scores(on.query.norm(rows), key.norm(keys), scale, key.numbers.dtype)
            and math.isfinite(value.norm(keys))
        )
        out, lse = _attend(
            kernel if hidden_stays_hidden else cpu_kernels.matmul,
            _blocks(on.query.numbers, rows),
            _blocks(key.numbers, keys),
            _blocks(value.numbers, keys),
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
            _blocks(on.out, rows),
            _blocks(on.lse[..., None], rows)[..., 0],
            call.first,
        )


def _norm(numbers: Tensor) -> float:
    """The Euclidean norm of `[heads, length, dim]`; infinite or not a number if a number there is.

    Heads that lie apart in memory are reduced one by one: torch is four times as slow on all at
    once, as they are not one stretch of memory.
    """
    wide = torch.float64 if numbers.dtype == torch.float64 else torch.float32
    head, place, _ = numbers.stride()
    if len(numbers) > 1 and (head == 0 or head > place):
        numbers = torch.linalg.vector_norm(numbers, dim=(1, 2), dtype=wide)
    return float(torch.linalg.vector_norm(numbers, dtype=wide))


def _finite_scores(query: float, key: float, scale: float, dtype: torch.dtype) -> bool:
    """Whether no score can overflow, by the norms of query and key and Cauchy and Schwarz."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return query * key * max(1.0, abs(scale)) < 0.25 * torch.finfo(wide).max


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


def _blocks(tensor: Tensor, blocks: _Range) -> Tensor:
    """Blocks along the length of `[heads, length, dim]`: a view `[heads, count, size, dim]`."""
    start, step, size, count = blocks
    heads, _, dim = tensor.shape
    head, place, _ = tensor.stride()
    return tensor.as_strided(
        (heads, count, size, dim),
        (head, step * place, place, 1),
        tensor.storage_offset() + start * place,
    )


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
