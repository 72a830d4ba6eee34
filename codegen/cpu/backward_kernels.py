"""The two kernels that compute gradients of blocks: aten's CPU flash backward, and matrix products.

Both take as operands of rows query, grad_out, out, lse and delta, as operands of keys key and
value, all float32 or float64, lse and delta with a dim of 1; and give grad_query for the rows,
grad_key and grad_value for the keys. Either takes the lse of rows that see nothing as 0.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from patterncc.codegen.cpu.accumulate import Block, Hidden
from patterncc.codegen.cpu.scores import Places, ScoreTerm

_MAX_SCORES = 1 << 20  # held at a time by `matmul`


def flash(block: Block, scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """aten's kernel; `value_dim == dim`, and delta is `grad_out.out`, which it computes itself.

    It adds the mask to the scores, so what is not finite gets through it.
    """
    query, grad_out, out, lse, _ = block.rows
    key, value = block.keys
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    grad_query, grad_key, grad_value = kernel(
        grad_out,
        query,
        key,
        value,
        out,
        lse[..., 0],
        0.0,
        False,
        attn_mask=None if block.hidden is None else block.hidden.additive[None, None],
        scale=scale,
    )
    return [grad_query], [grad_key, grad_value]


def matmul(
    block: Block,
    scale: float,
    term: ScoreTerm | None = None,
    term_sums: Sequence[Tensor] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """Five matrix products, some rows at a time.

    Nothing passes between a row and a key that the mask hides from it.

    Args:
        block: The operands.
        scale: Factor of the scores.
        term: What makes logits of the scores.
        term_sums: For each of its parameters, what its gradient is added to.
    """
    query = block.rows[0]
    outer, heads, length, _ = query.shape
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    key_grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in block.keys]
    places = None if term is None else block.places()
    few = max(1, min(length, _MAX_SCORES // (outer * heads * block.keys[0].shape[2])))
    for low in range(0, length, few):
        some = slice(low, low + few)
        pull_back = None
        if term is not None and places is not None:
            pull_back = _Logits(term, places.part(slice(None), some), term_sums)
        grad_query[:, :, some], *parts = _products(
            [x[:, :, some] for x in block.rows],
            block.keys,
            None if block.hidden is None else block.hidden.pairs[some],
            scale,
            pull_back,
        )
        for total, part in zip(key_grads, parts, strict=True):
            total.add_(part)
    return [grad_query], key_grads


class _Logits:
    """The logits of some scores, and the way back from their gradient to that of the scores.

    Args:
        term: Makes logits of scores.
        places: Where they lie.
        sums: For each parameter of the term, what its gradient is added to.
    """

    def __init__(self, term: ScoreTerm, places: Places, sums: Sequence[Tensor]) -> None:
        self._term = term
        self._places = places
        self._sums = sums
        self._scores: Tensor | None = None
        self._logits: Tensor | None = None

    def forward(self, scores: Tensor, shape: Sequence[int]) -> Tensor:
        """The logits; `shape` is that of the scores for the term."""
        with torch.enable_grad():
            self._scores = scores.view(shape).requires_grad_()
            self._logits = self._term(self._scores, self._places)
        return self._logits.detach().view(scores.shape)

    def backward(self, grad_logits: Tensor) -> Tensor:
        """The gradient of the scores; adds those of the parameters."""
        assert self._scores is not None
        assert self._logits is not None
        inputs = [self._scores, *self._term.parameters]
        grad_scores, *grads = torch.autograd.grad(
            self._logits,
            inputs,
            grad_logits.view(self._logits.shape),
            allow_unused=True,
            materialize_grads=True,
        )
        for total, part in zip(self._sums, grads, strict=True):
            total.add_(part)
        return grad_scores.view(grad_logits.shape)


def _products(
    rows: list[Tensor],
    keys: list[Tensor],
    hidden: Tensor | None,
    scale: float,
    logits: _Logits | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    outer, heads, length, _ = rows[0].shape
    key, value = keys
    kv_heads = key.shape[1]
    group = heads // kv_heads
    # The heads that share a key head are more rows.
    query, grad_out, _, lse, delta = (
        x.reshape(outer, kv_heads, group * length, x.shape[-1]) for x in rows
    )
    unseen = None if hidden is None else hidden.repeat(group, 1)
    by_keys = None if unseen is None else unseen.mT
    weights = (query @ key.mT).mul_(scale)
    if logits is not None:
        if unseen is not None:
            weights.masked_fill_(unseen, 0)
        weights = logits.forward(weights, (outer, heads, length, key.shape[2])).sub(lse).exp_()
    else:
        weights = weights.sub_(lse).exp_()
    if unseen is not None:
        weights.masked_fill_(unseen, 0)
    grad_value = seen_products(weights.mT, grad_out, by_keys)
    grad_scores = (grad_out @ value.mT).sub_(delta).mul_(weights)
    if unseen is not None:
        grad_scores.masked_fill_(unseen, 0)  # 0 times what is not finite
    if logits is not None:
        grad_scores = logits.backward(grad_scores)
        if unseen is not None:
            grad_scores = grad_scores.masked_fill(unseen, 0)
    grad_scores *= scale
    grad_query = seen_products(grad_scores, key, unseen).view(outer, heads, length, -1)
    return grad_query, seen_products(grad_scores.mT, query, by_keys), grad_value


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
    if not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward"):
        return False
    with torch.no_grad():
        return all(_agree(dtype) for dtype in (torch.float32, torch.float64))


def _agree(dtype: torch.dtype) -> bool:
    """Whether both kernels find the same, with a mask that hides all from a row, and without."""
    numbers = torch.linspace(-1, 1, 96, dtype=dtype)
    query, grad_out = (7 * numbers).sin().view(2, 4, 3, 4), (2 * numbers).cos().view(2, 4, 3, 4)
    out, lse = (9 * numbers).cos().view(2, 4, 3, 4), (4 * numbers[:24]).cos().view(2, 4, 3, 1)
    key = (5 * numbers).cos().as_strided((2, 2, 5, 4), (0, 20, 4, 1))
    value = (3 * numbers).sin().as_strided((2, 2, 5, 4), (8, 20, 4, 1))
    pairs = torch.zeros(3, 5, dtype=torch.bool)
    pairs[0, 2:] = pairs[1] = True
    delta = (grad_out * out).sum(-1, keepdim=True)
    for hidden in (None, Hidden(pairs, dtype)):
        block = Block([query, grad_out, out, lse, delta], [key, value], hidden, _nowhere)
        try:
            for_rows, for_keys = flash(block, 0.5)
        except (RuntimeError, TypeError):
            return False
        found = [*for_rows, *for_keys]
        for_rows, for_keys = matmul(block, 0.5)
        for one, other in zip(found, [*for_rows, *for_keys], strict=True):
            if one.shape != other.shape or not torch.allclose(one, other, atol=1e-5):
                return False
    return True


def _nowhere() -> Places:
    raise AssertionError("no score term asks for places")
