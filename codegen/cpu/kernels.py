"""The two kernels that run one call of a plan: aten's CPU flash attention, and matrix products.

Both take query `[outer, heads, rows, dim]`, key `[outer, kv_heads, keys, dim]`, value
`[outer, kv_heads, keys, value_dim]` with `keys > 0`, an additive mask `[rows, keys]` of 0 and -inf
or `None`, and a scale; they return the output `[outer, heads, rows, value_dim]` and the natural
log-sum-exp `[outer, heads, rows]`. Of a row that the mask hides wholly the output is 0 and the
log-sum-exp is not specified.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], tuple[Tensor, Tensor]]

_MAX_SCORES = 1 << 22  # held at a time by `matmul`


class Logits(Protocol):
    """What the softmax takes instead of scores."""

    def __call__(self, scores: Tensor, outer: slice, rows: slice) -> Tensor:
        """Logits of scaled scores `[outer, heads, rows, keys]`, those of part of a call."""


def flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """aten's kernel, which the value dimension must fit: `value_dim == dim`.

    It adds the mask to the scores, so a score or value that is not finite gets through it.
    """
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(
        query,
        key,
        value,
        0.0,
        False,
        attn_mask=None if mask is None else mask[None, None],
        scale=scale,
    )
    return out, lse


def matmul(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    logits: Logits | None = None,
) -> tuple[Tensor, Tensor]:
    """Two matrix products with a softmax between, in float32 or wider, some rows at a time.

    Nothing that the mask hides from a row has any influence on it. What the softmax takes are the
    scores, or what `logits` makes of them.
    """
    outer, heads, rows, _ = query.shape
    keys = key.shape[2]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    out = query.new_empty(outer, heads, rows, value.shape[-1], dtype=wide)
    lse = query.new_empty(outer, heads, rows, dtype=wide)
    few_rows = max(1, min(rows, _MAX_SCORES // (heads * keys)))
    few_outer = max(1, _MAX_SCORES // (heads * keys * few_rows))
    for low in range(0, outer, few_outer):
        blocks = slice(low, low + few_outer)
        k, v = key[blocks].to(wide), value[blocks].to(wide)
        for row in range(0, rows, few_rows):
            some = slice(row, row + few_rows)
            hidden = None if mask is None else mask[some] != 0
            out[blocks, :, some], lse[blocks, :, some] = _products(
                query[blocks, :, some].to(wide),
                k,
                v,
                hidden,
                scale,
                None if logits is None else partial(logits, outer=blocks, rows=some),
            )
    return out, lse


def _products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    hidden: Tensor | None,
    scale: float,
    logits: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    outer, heads, rows, dim = query.shape
    kv_heads, keys = key.shape[1:3]
    grouped = query.reshape(outer, kv_heads, heads // kv_heads * rows, dim)
    scores = (grouped @ key.mT * scale).view(outer, heads, rows, keys)
    if logits is not None:
        scores = logits(scores if hidden is None else scores.masked_fill_(hidden, 0)).clone()
    if hidden is not None:
        scores = scores.masked_fill_(hidden, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = scores.sub_(lse[..., None]).exp_()
    if hidden is not None:
        weights = weights.masked_fill_(hidden, 0)  # also where a row that sees nothing got NaN
    if logits is not None:  # which may be -inf for all that a row sees
        weights = weights.masked_fill_((lse == -torch.inf)[..., None], 0)

    group = heads // kv_heads
    out = seen_products(
        weights.view(outer, kv_heads, group * rows, keys),
        value,
        None if hidden is None else hidden.repeat(group, 1),
    )
    return out.view(outer, heads, rows, -1), lse


def seen_products(weights: Tensor, numbers: Tensor, hidden: Tensor | None) -> Tensor:
    """`weights @ numbers`, where what is hidden has no influence, finite or not.

    Args:
        weights: `[..., rows, columns]`, 0 where hidden.
        numbers: `[..., columns, dim]`.
        hidden: bool `[rows, columns]`, or None.
    """
    if hidden is None:
        return weights @ numbers
    wild = ~numbers.isfinite()  # 0 times these is not 0
    if not bool(wild.any()):
        return weights @ numbers
    clean = weights @ numbers.masked_fill(wild, 0)
    touched = (~hidden).to(weights.dtype) @ wild.to(weights.dtype) > 0
    return torch.where(touched, weights @ numbers, clean)


@cache
def flash_works() -> bool:
    """Whether this torch has the kernel, and it does grouped heads, masks and strides rightly.

    The operator is private to torch and has changed before, hence a trial on a few numbers.
    """
    if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        return False
    numbers = torch.linspace(-1, 1, 96, dtype=torch.float32)
    query = (7 * numbers).sin().view(2, 4, 3, 4)
    key = (5 * numbers).cos().as_strided((2, 2, 5, 4), (0, 20, 4, 1))
    value = (3 * numbers).sin().as_strided((2, 2, 5, 4), (8, 20, 4, 1))
    mask = torch.zeros(3, 5)
    mask[0, 2:] = mask[2, :4] = -torch.inf
    with torch.no_grad():
        try:
            found = flash(query, key, value, mask, 0.5)
        except (RuntimeError, TypeError):
            return False
        expected = matmul(query, key, value, mask, 0.5)
    return all(
        one.shape == other.shape and bool(torch.allclose(one.float(), other, atol=1e-5))
        for one, other in zip(found, expected, strict=True)
    )
