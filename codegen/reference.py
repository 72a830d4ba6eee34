"""The oracle: the mask of a call straight from its pattern, and dense attention under a mask.

Shares nothing with the lowering, so that it can judge it. Neither fast nor sparse; memory stays
bounded by working on a few rows at a time.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from patterncc.codegen.elementwise import allowed
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.pattern import IntType, Pattern, SegmentsType

__all__ = ["allowed", "dense_attention", "mask"]

_CHUNK = 1 << 21  # pairs of positions held at a time


def mask(
    pattern: Pattern,
    *,
    q_len: int,
    kv_len: int | None = None,
    q_offset: int | None = None,
    head: int = 0,
    kv_head: int | None = None,
    layer: int = 0,
    batch: int = 0,
    heads: int | None = None,
    kv_heads: int | None = None,
    layers: int | None = None,
    values: Mapping[str, int] | None = None,
    tables: Mapping[str, Tensor | Sequence[int]] | None = None,
) -> Tensor:
    """The mask of one head, straight from the pattern.

    Args:
        pattern: A checked pattern.
        q_len: Rows of the call.
        kv_len: Keys of the call; `q_len` if not given.
        q_offset: Position of row 0; `kv_len - q_len` if not given.
        head: Query head.
        kv_head: Its key/value head; found from `heads` and `kv_heads` if not given.
        layer: Layer number.
        batch: Index in the batch.
        heads: Number of query heads, where the pattern reads it.
        kv_heads: Number of key/value heads; `heads` if not given.
        layers: Number of layers, where the pattern reads it.
        values: Run-time numbers by name; others keep their default.
        tables: Tables and segments by name.

    Returns:
        bool `[q_len, kv_len]`.

    Raises:
        ArgumentError: As `allowed`, or a value or table is missing, unknown or of the wrong kind.
    """
    kv_len = q_len if kv_len is None else kv_len
    q_offset = kv_len - q_len if q_offset is None else q_offset
    for name, length in (("q_len", q_len), ("kv_len", kv_len)):
        if length < 0:
            raise ArgumentError(f"`{name}` is {length}; it must not be negative")
    kv_heads = heads if kv_heads is None else kv_heads
    if kv_head is None:
        kv_head = head
        if heads is not None and kv_heads is not None:
            if kv_heads <= 0 or heads % kv_heads != 0:
                raise ArgumentError(f"{heads} heads cannot share {kv_heads} key/value heads evenly")
            kv_head = head // (heads // kv_heads)
    env = {
        "q_len": q_len,
        "kv_len": kv_len,
        "q_offset": q_offset,
        "head": head,
        "kv_head": kv_head,
        "layer": layer,
        "batch": batch,
    }
    sizes = {"heads": heads, "kv_heads": kv_heads, "layers": layers}
    env |= {name: size for name, size in sizes.items() if size is not None}
    env |= _numbers(pattern, values or {})
    tensors = _tables(pattern, tables or {})

    result = torch.empty(q_len, kv_len, dtype=torch.bool)
    k = torch.arange(kv_len)[None, :]
    step = max(1, _CHUNK // max(1, kv_len))
    for row in range(0, q_len, step):
        stop = min(row + step, q_len)
        q = torch.arange(q_offset + row, q_offset + stop)[:, None]
        result[row:stop] = allowed(pattern.body, q, k, env, tensors)
    return result


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    *,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Attention computed densely, in a wide type.

    A key that a row does not see has no influence on it, NaN or infinite as it may be.

    Args:
        query: `[batch, heads, q_len, head_dim]`.
        key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
        value: `[batch, kv_heads, kv_len, value_head_dim]`.
        mask: bool, `[q_len, kv_len]`, or the same with heads, or batch and heads, in front.
        scale: Factor of the scores.
        dtype: What is computed in and returned.

    Returns:
        The output `[batch, heads, q_len, value_head_dim]` and the natural log-sum-exp of the
        visible scores `[batch, heads, q_len]`. A row that sees nothing gets 0 and -inf.
    """
    batch, heads, q_len, _ = query.shape
    kv_heads, kv_len, value_dim = value.shape[1:]
    mask = mask.broadcast_to(batch, heads, q_len, kv_len)
    out = torch.zeros(batch, heads, q_len, value_dim, dtype=dtype)
    lse = torch.full((batch, heads, q_len), -math.inf, dtype=dtype)
    if out.numel() == 0 and lse.numel() == 0:
        return out, lse
    step = max(1, _CHUNK // max(1, kv_len))
    for b in range(batch):
        for head in range(heads):
            kv_head = head // (heads // kv_heads)
            k = key[b, kv_head].to(dtype)
            v = value[b, kv_head].to(dtype)
            for row in range(0, q_len, step):
                rows = slice(row, min(row + step, q_len))
                out[b, head, rows], lse[b, head, rows] = _dense_rows(
                    query[b, head, rows].to(dtype), k, v, mask[b, head, rows], scale
                )
    return out, lse


def _dense_rows(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """`dense_attention` of rows of one head: `[rows, value_head_dim]` and `[rows]`."""
    scores = (query @ key.mT * scale).masked_fill(~mask, -math.inf)
    lse = scores.logsumexp(-1)
    live = mask.any(-1, keepdim=True)
    weights = torch.where(mask & live, (scores - lse[:, None]).exp(), 0)
    wild = ~value.isfinite().all(-1)  # keys whose 0 * value would not be 0
    out = weights @ value.masked_fill(wild[:, None], 0)
    for position in wild.nonzero().flatten().tolist():
        seen = mask[:, position, None]
        out += torch.where(seen, weights[:, position, None] * value[position], 0)
    return out, lse


def _numbers(pattern: Pattern, values: Mapping[str, int]) -> dict[str, int]:
    """The run-time numbers of a call, defaults filled in."""
    names = {parameter.name for parameter in pattern.numbers}
    for name in values:
        if name in dict(pattern.fixed):
            raise ArgumentError(f"`{name}` is fixed when the pattern is compiled; compile it again")
        if name not in names:
            raise ArgumentError(f"the pattern has no run-time number `{name}`{_named(names)}")
    numbers = {}
    for parameter in pattern.numbers:
        number = values.get(parameter.name, parameter.value)
        if number is None:
            raise ArgumentError(f"the number `{parameter.name}` has no default and was not given")
        numbers[parameter.name] = number
    return numbers


def _tables(pattern: Pattern, tables: Mapping[str, Tensor | Sequence[int]]) -> dict[str, Tensor]:
    """The tables of a call as tensors of the declared rank."""
    declared = {parameter.name: parameter.type for parameter in pattern.tables}
    for name in tables:
        if name not in declared:
            raise ArgumentError(f"the pattern has no table `{name}`{_named(declared)}")
    tensors = {}
    for name, kind in declared.items():
        if name not in tables:
            raise ArgumentError(f"the table `{name}` was not given")
        tensor = torch.as_tensor(tables[name])
        rank = 1 if isinstance(kind, SegmentsType | IntType) else len(kind.axes)
        if tensor.ndim != rank:
            raise ArgumentError(f"the table `{name}` has {tensor.ndim} axes; it needs {rank}")
        tensors[name] = tensor
    return tensors


def _named(names: Iterable[str]) -> str:
    """What there is instead, as the end of a sentence."""
    return f"; it has {', '.join(sorted(names))}" if names else ""
