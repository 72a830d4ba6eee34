"""torch's guards as what tells calls apart: whether tensors are like those of a call before.

One call of C++ compares the types of tensors, their dispatch keys together with the thread's
(autograd, modes, transforms, tracing, inference mode, negation), dtypes, devices, sizes, strides
and whether they require gradients. It is torch's own affair how, so it is tried here, and where it
does not do that there is none.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

_torch: Any = torch  # the parts of torch that have no types


def comparison(
    tensors: Sequence[Tensor], resized: Collection[int] = ()
) -> Callable[..., bool] | None:
    """What tells whether as many tensors are like these, no two of them the same; None where torch
    has nothing that does.

    Args:
        tensors: What others are compared with; they are not kept alive.
        resized: The places of those whose sizes may be others.
    """
    return None if guards is None else guards(tensors, resized)


def _tensor_guards() -> Callable[..., Callable[..., bool]] | None:
    """What makes comparisons; None where torch has none that can."""
    kind = getattr(
        getattr(getattr(_torch._C, "_dynamo", None), "guards", None), "TensorGuards", None
    )
    if kind is None or not hasattr(_torch._C, "_len_torch_dispatch_stack"):
        return None

    def make(tensors: Sequence[Tensor], resized: Collection[int] = ()) -> Callable[..., bool]:
        sizes = strides = None
        if resized:
            sizes = [
                [None] * tensor.dim() if place in resized else list(tensor.shape)
                for place, tensor in enumerate(tensors)
            ]
            strides = [list(tensor.stride()) for tensor in tensors]
        check: Callable[..., bool] = kind(
            *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
        ).check
        return check

    return make if _compares(make) else None


def _compares(make: Callable[..., Callable[..., bool]]) -> bool:
    """Do guards take these arguments and tell tensors apart? They are torch's own affair."""
    plain = torch.zeros(2, 3, device="cpu")
    line = torch.zeros(3, dtype=torch.int32, device="cpu")
    others = (plain[:1], plain.double(), plain.mT.contiguous().mT, plain.clone().requires_grad_())
    lines = (torch.zeros(8, dtype=torch.int32, device="cpu")[::2], line.long(), line[None])
    try:
        same = make((plain, line))
        found = [same(plain, line.clone()), *(same(other, line) for other in others)]
        found.append(same(plain, line[:2]))
        same = make((plain, line), (1,))
        resized = [same(plain, line[:2]), *(same(plain, other) for other in lines)]
        resized += [same(other, line) for other in others]
    except (TypeError, RuntimeError):
        return False
    return found == [True] + [False] * 5 and resized == [True] + [False] * 7


# What a first call is inside of, a transform, a mode or inference, is its thread's affair: another
# thread has none of it.
with ThreadPoolExecutor(1) as _apart:
    guards = _apart.submit(_tensor_guards).result()
