"""Is a result right? Attention's output against the dense oracle in float64, row by row.

Bounded in memory and time at every length; the sample is drawn from a seed, so a run repeats.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patterncc.call import Call
from patterncc.codegen import judging, reference
from patterncc.codegen.judging import LSE_TOLERANCE, OUTPUT_TOLERANCE, distance, sample

MOST_PAIRS = 1 << 27  # pairs of (row, key) that are checked, over all heads
_EDGE = 32  # rows at each end that are always checked
_PROCESSOR = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far a result is from the oracle's.

    Attributes:
        rows: Rows of each head.
        checked: Of those, how many were compared.
        error: Largest difference of an output; infinite if one is not a number and should be.
        tolerance: What it may be.
        lse_error: Largest difference of an lse; 0 where there was none to compare.
        lse_tolerance: What it may be.
    """

    rows: int
    checked: int
    error: float
    tolerance: float
    lse_error: float
    lse_tolerance: float

    @property
    def right(self) -> bool:
        """Whether the result is right."""
        return self.error <= self.tolerance and self.lse_error <= self.lse_tolerance


def judge(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor | None,
    *,
    layer: int = 0,
    scale: float | None = None,
    seed: int = 0,
    most_pairs: int = MOST_PAIRS,
    device: torch.device = _PROCESSOR,
) -> Verdict:
    """Compares a result with dense attention in float64.

    Args:
        call: The pattern and the sizes of the call.
        query: `[batch, heads, q_len, head_dim]`, as the kernel got it; so the others.
        key: `[batch, kv_heads, kv_len, head_dim]`.
        value: `[batch, kv_heads, kv_len, value_head_dim]`.
        out: The result, `[batch, heads, q_len, value_head_dim]`.
        lse: Its log-sum-exp, `[batch, heads, q_len]`; `None` from who gives none.
        layer: Layer number.
        scale: Factor of the scores; `head_dim ** -0.5` if not given.
        seed: Of the sample.
        most_pairs: Most pairs of a row and a key to look at, over all heads.
        device: Where dense attention is computed.
    """
    batch, heads, q_len, head_dim = query.shape
    most = max(2 * _EDGE, most_pairs // max(1, batch * heads * call.kv_len))
    rows = sample(q_len, most, seed, _EDGE).to(device)
    scale = head_dim**-0.5 if scale is None else scale
    error = lse_error = 0.0
    for index in range(batch):
        masks: list[Tensor] = []
        for head in range(heads if call.differs_by_head else 1):
            env = call.env(head, layer) | {"batch": index}
            masks.append(mask_rows(call, env, rows))
        part = slice(index, index + 1)
        with device:  # where the reference then makes its tensors
            wanted, wanted_lse = reference.dense_attention(
                query[part, :, rows.to(query.device)].to(device),
                key[part].to(device),
                value[part].to(device),
                torch.stack(masks)[None],
                scale,
            )
        got = out[part, :, rows.to(out.device)].to(device).double()
        error = max(error, distance(got, wanted))
        if lse is not None:
            got_lse = lse[part, :, rows.to(lse.device)].to(device).double()
            lse_error = max(lse_error, distance(got_lse, wanted_lse))
    largest = max(1.0, float(value.abs().max()))
    tolerance = OUTPUT_TOLERANCE[query.dtype] * largest
    return Verdict(q_len, len(rows), error, tolerance, lse_error, LSE_TOLERANCE[query.dtype])


def mask_rows(call: Call, env: dict[str, Any], rows: Tensor) -> Tensor:
    """Rows of the mask of one head of a call, as from `judging.mask_rows`."""
    scalars = {name: value for name, value in env.items() if name not in call.tables}
    tables = {name: torch.from_numpy(table).to(rows.device) for name, table in call.tables.items()}
    body = call.pattern.body
    return judging.mask_rows(body, rows, call.kv_len, call.q_offset, scalars, tables)
