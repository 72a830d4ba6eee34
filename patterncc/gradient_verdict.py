"""Are gradients right? Those of query, key and value against autograd through dense attention in
float64.

Bounded in memory and time: where the pairs are too many, only some rows have a gradient to pass on,
so that the gradients of all keys can be checked whole.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from patterncc.call import Call
from patterncc.codegen import reference
from patterncc.codegen.judging import sample
from patterncc.verdict import mask_rows

MOST_PAIRS = 1 << 25  # pairs of (row, key) that are checked, over all heads
NAMES = ("grad_query", "grad_key", "grad_value")
_EDGE = 8  # rows at each end that are always checked
_PROCESSOR = torch.device("cpu")
_CHUNK = 1 << 20  # pairs that autograd holds at a time

# Largest error of a gradient, in units of its largest entry. Besides their own rounding, gradients
# have that of the output and of the weights, which are rounded for tensor cores.
_TOLERANCE = {
    torch.float16: 2.0**-8,
    torch.bfloat16: 2.0**-5,
    torch.float32: 2e-5,
    torch.float64: 1e-11,
}


@dataclass(frozen=True, slots=True)
class GradientVerdict:
    """How far gradients are from the oracle's.

    Attributes:
        rows: Rows of each head.
        checked: Of those, how many had a gradient to pass on.
        errors: For each of `NAMES` the largest difference, in units of the largest entry of the
            right gradient; infinite if one is not a number and should be.
        tolerance: What they may be.
    """

    rows: int
    checked: int
    errors: Mapping[str, float]
    tolerance: float

    @property
    def right(self) -> bool:
        """Whether the gradients are right."""
        return all(error <= self.tolerance for error in self.errors.values())


def sampled_rows(call: Call, batch: int, seed: int, most_pairs: int = MOST_PAIRS) -> Tensor:
    """Rows whose gradients are checked, int64, rising."""
    most = most_pairs // max(1, batch * call.heads * call.kv_len)
    return sample(call.q_len, max(2 * _EDGE, most), seed, _EDGE)


def judge_gradients(
    call: Call,
    inputs: tuple[Tensor, Tensor, Tensor],
    grad_out: Tensor,
    grads: Sequence[Tensor],
    rows: Tensor,
    *,
    layer: int = 0,
    scale: float | None = None,
    device: torch.device = _PROCESSOR,
) -> GradientVerdict:
    """Compares gradients with those of dense attention in float64.

    Args:
        call: The pattern and the sizes of the call.
        inputs: Query `[batch, heads, q_len, head_dim]`, key and value, as the kernel got them.
        grad_out: Gradient of the output, 0 in all rows but `rows`.
        grads: Of query, key and value.
        rows: Rows that pass a gradient on, int64, rising.
        layer: Layer number.
        scale: Factor of the scores; `head_dim ** -0.5` if not given.
        device: Where dense attention is computed.
    """
    query, key, value = inputs
    batch, heads, q_len, head_dim = query.shape
    group = heads // key.shape[1]
    scale = head_dim**-0.5 if scale is None else scale
    rows = rows.to(device)
    others = torch.ones(q_len, dtype=torch.bool, device=device)
    others[rows] = False
    worst = [_Worst(), _Worst(), _Worst()]
    for index in range(batch):
        for kv_head in range(key.shape[1]):
            k, v = (tensor[index, kv_head].to(device).double() for tensor in (key, value))
            grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
            for head in range(kv_head * group, (kv_head + 1) * group):
                got = grads[0][index, head].to(device).double()
                worst[0].see(got[others], torch.zeros((), device=device))
                env = call.env(head, layer) | {"batch": index}
                for part in torch.split(rows, max(1, _CHUNK // call.kv_len)):
                    here = part.to(query.device)
                    found = _dense_gradients(
                        query[index, head, here].to(device).double(),
                        k,
                        v,
                        mask_rows(call, env, part),
                        scale,
                        grad_out[index, head, here].to(device).double(),
                    )
                    worst[0].see(got[part], found[0])
                    grad_k += found[1]
                    grad_v += found[2]
            worst[1].see(grads[1][index, kv_head].to(device).double(), grad_k)
            worst[2].see(grads[2][index, kv_head].to(device).double(), grad_v)
    errors = {name: found.error for name, found in zip(NAMES, worst, strict=True)}
    return GradientVerdict(q_len, len(rows), errors, _TOLERANCE[query.dtype])


def _dense_gradients(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, grad_out: Tensor
) -> tuple[Tensor, ...]:
    """The gradients that some rows of one head give query, key and value."""
    with torch.enable_grad(), query.device:
        leaves = [tensor.detach()[None, None].requires_grad_() for tensor in (query, key, value)]
        out, _ = reference.dense_attention(leaves[0], leaves[1], leaves[2], mask, scale)
        grads = torch.autograd.grad(out, leaves, grad_out[None, None])
    return tuple(grad[0, 0] for grad in grads)


@dataclass(slots=True)
class _Worst:
    """The largest difference so far, and the largest right entry."""

    difference: float = 0.0
    largest: float = 0.0

    def see(self, got: Tensor, wanted: Tensor) -> None:
        if got.numel() == 0:
            return
        difference = float(torch.where(got == wanted, 0.0, (got - wanted).abs()).max())
        if math.isnan(difference):
            difference = math.inf
        self.difference = max(self.difference, difference)
        self.largest = max(self.largest, float(wanted.abs().max()))

    @property
    def error(self) -> float:
        return self.difference / self.largest if self.largest > 0 else self.difference
