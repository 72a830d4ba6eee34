"""Are gradients right? Those of query, key, value and the tables of score terms against autograd
through dense attention in float64.

Bounded in memory and time: where the pairs are too many, only some rows have a gradient to pass on,
so that the gradients of all keys can be checked whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patterncc.call import Call
from patterncc.codegen.judging import (
    GRADIENT_TOLERANCE,
    GradientError,
    dense_gradients,
    sample,
)
from patterncc.verdict import PLAIN_ORACLE, Oracle, mask_rows

MOST_PAIRS = 1 << 25  # pairs of (row, key) that are checked, over all heads
NAMES = ("grad_query", "grad_key", "grad_value")
_EDGE = 8  # rows at each end that are always checked
_CHUNK = 1 << 20  # pairs that autograd holds at a time

# An entry of a table has the sum of all pairs that read it, most of which cancel.
_TABLE_FACTOR = 8


@dataclass(frozen=True, slots=True)
class GradientVerdict:
    """How far gradients are from the oracle's.

    Attributes:
        rows: Rows of each head.
        checked: Of those, how many had a gradient to pass on.
        errors: For each of `NAMES`, and `grad_TABLE` of each table, the largest difference, in
            units of the largest entry of the right gradient; infinite if one is not a number and
            should be.
        tolerance: What those of `NAMES` may be.
    """

    rows: int
    checked: int
    errors: Mapping[str, float]
    tolerance: float

    def allowed(self, name: str) -> float:
        """What an error may be."""
        return self.tolerance if name in NAMES else _TABLE_FACTOR * self.tolerance

    @property
    def right(self) -> bool:
        """Whether the gradients are right."""
        return all(error <= self.allowed(name) for name, error in self.errors.items())


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
    oracle: Oracle = PLAIN_ORACLE,
) -> GradientVerdict:
    """Compares gradients with those of dense attention in float64.

    Args:
        call: The pattern and the sizes of the call.
        inputs: Query `[batch, heads, q_len, head_dim]`, key and value, as the kernel got them.
        grad_out: Gradient of the output, 0 in all rows but `rows`.
        grads: Of query, key and value, then of the oracle's tables in their order.
        rows: Rows that pass a gradient on, int64, rising.
        layer: Layer number.
        scale: Factor of the scores; `head_dim ** -0.5` if not given.
        oracle: What is right.
    """
    query, key, value = inputs
    batch, heads, q_len, head_dim = query.shape
    group = heads // key.shape[1]
    scale = head_dim**-0.5 if scale is None else scale
    device = oracle.device
    rows = rows.to(device)
    others = torch.ones(q_len, dtype=torch.bool, device=device)
    others[rows] = False
    worst = [GradientError() for _ in grads]
    of_tables = [torch.zeros_like(table) for table in oracle.tables.values()]
    for index in range(batch):
        for kv_head in range(key.shape[1]):
            k, v = (tensor[index, kv_head].to(device).double() for tensor in (key, value))
            grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
            for head in range(kv_head * group, (kv_head + 1) * group):
                got = grads[0][index, head].to(device).double()
                worst[0].see(got[others], torch.zeros((), dtype=torch.float64, device=device))
                env = call.env(head, layer) | {"batch": index}
                for part in torch.split(rows, max(1, _CHUNK // call.kv_len)):
                    here = part.to(query.device)
                    mask = mask_rows(call, env, part)
                    found = dense_gradients(
                        query[index, head, here].to(device).double(),
                        k,
                        v,
                        grad_out[index, head, here].to(device).double(),
                        partial(_attend, mask=mask, scale=scale, oracle=oracle, rows=part, env=env),
                        tuple(oracle.tables.values()),
                    )
                    worst[0].see(got[part], found[0])
                    grad_k += found[1]
                    grad_v += found[2]
                    for total, share in zip(of_tables, found[3:], strict=True):
                        total += share
            worst[1].see(grads[1][index, kv_head].to(device).double(), grad_k)
            worst[2].see(grads[2][index, kv_head].to(device).double(), grad_v)
    for place, total in enumerate(of_tables, len(NAMES)):
        worst[place].see(grads[place].to(device).double(), total)
    names = (*NAMES, *(f"grad_{name}" for name in oracle.tables))
    errors = {name: found.relative for name, found in zip(names, worst, strict=True)}
    return GradientVerdict(q_len, len(rows), errors, GRADIENT_TOLERANCE[query.dtype])


def _attend(
    *leaves: Tensor,
    mask: Tensor,
    scale: float,
    oracle: Oracle,
    rows: Tensor,
    env: Mapping[str, Any],
) -> Tensor:
    """What the oracle makes of query, key, value and its tables."""
    query, key, value, *tables = leaves
    own = replace(oracle, tables=dict(zip(oracle.tables, tables, strict=True)))
    return own(query, key, value, mask, scale, rows, env)[0]
