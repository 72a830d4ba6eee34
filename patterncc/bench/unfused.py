"""Does a call compute the scores as a matrix of their own, though it claims one kernel?

A fused kernel is one operator to torch. Attention that is put together from products and a softmax
shows them to torch's profiler, on every device; nothing of what ran is guessed from its time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

OPERATORS = frozenset(
    {
        "aten::softmax",
        "aten::_softmax",
        "aten::_safe_softmax",
        "aten::logsumexp",
        "aten::bmm",
        "aten::baddbmm",
        "aten::_scaled_dot_product_attention_math",
    }
)
"""Operators that no fused attention calls."""

_WARNING = "unfused"  # in what FlexAttention says when nobody compiled it


def unfused_signs(call: Callable[[], object]) -> tuple[str, ...]:
    """What shows that a call is not one fused kernel; () if nothing does.

    Args:
        call: The call, which has run before.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            call()
    signs = sorted({event.name for event in profiler.events() or ()} & OPERATORS)
    signs += ["its own warning" for one in said if _WARNING in str(one.message)]
    return tuple(signs)
