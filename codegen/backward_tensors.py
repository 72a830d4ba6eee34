"""What gradients of attention are computed from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class BackwardTensors(NamedTuple):
    """The inputs and results of a call, and the gradients of the results, in the order in which
    operators and executors take them. Strides are free.

    Attributes:
        grad_out: Gradient of the output, shape and dtype as `out`.
        grad_lse: Gradient of the lse, shape and dtype as `lse`; None where nothing depends on it.
        query: `[batch, heads, q_len, head_dim]`.
        key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
        value: `[batch, kv_heads, kv_len, value_head_dim]`.
        out: The forward's output, `[batch, heads, q_len, value_head_dim]`.
        lse: The forward's natural logarithms, `[batch, heads, q_len]`, float32 (float64 for
            float64); -inf for rows without keys.
    """

    grad_out: Tensor
    grad_lse: Tensor | None
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    lse: Tensor
