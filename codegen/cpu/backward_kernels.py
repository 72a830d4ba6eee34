"""The two kernels that compute gradients of blocks: aten's CPU flash backward, and matrix products.

Both take as operands of rows query, grad_out, out and lse, with a dim of 1 and 0 for rows that see
nothing, as operands of keys key and value, all float32 or float64; and give grad_query for the
rows, grad_key and grad_value for the keys. What `ds` lacks of `p * (grad_out.v)` is, row by row,
`grad_out.out`.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from patterncc.codegen.cpu.accumulate import Block, Hidden
from patterncc.codegen.cpu.products import Stack, by_rows
from patterncc.codegen.cpu.scores import Places, ScoreTerm


def flash(block: Block, scale: float) -> tuple[list[Tensor], list[Tensor]]:
    """aten's kernel, which the value dimension must fit: `value_dim == dim`.

    It adds the mask to the scores, so what is not finite gets through it.
    """
    query, grad_out, out, lse = block.rows
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

    def step(stack: Stack) -> tuple[list[Tensor], list[Tensor]]:
        query, grad_out, out, lse = stack.rows
        key, value = stack.keys
        logits = (query @ key.mT).mul_(scale)
        if term is not None:
            scores = stack.hide(logits).view(stack.shape)
            made, pull_back = term.with_pull_back(scores, stack.places())
            logits = made.clone().view(logits.shape)
        weights = stack.hide(logits.sub_(lse).exp_())
        delta = (grad_out * out).sum(-1, keepdim=True)
        # Hidden once more, as 0 times what is not finite is not 0.
        grad_scores = stack.hide((grad_out @ value.mT).sub_(delta).mul_(weights))
        if term is not None:
            found, grads = pull_back(grad_scores.view(stack.shape))
            grad_scores = stack.hide(found.clone().view(grad_scores.shape))
            for total, part in zip(term_sums, grads, strict=True):
                total.add_(part)
        grad_scores.mul_(scale)
        grad_value = stack.for_keys(weights, grad_out)
        return [stack.for_rows(grad_scores, key)], [stack.for_keys(grad_scores, query), grad_value]

    return by_rows(block, step)


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
    for hidden in (None, Hidden(pairs, dtype)):
        block = Block([query, grad_out, out, lse], [key, value], hidden, _nowhere)
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
