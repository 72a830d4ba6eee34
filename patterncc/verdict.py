"""Is a result right? Attention's output against the dense oracle in float64, row by row.

Bounded in memory and time at every length; the sample is drawn from a seed, so a run repeats.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from patterncc.call import Call
from patterncc.codegen import judging, reference
from patterncc.codegen.judging import LSE_TOLERANCE, OUTPUT_TOLERANCE, distance, sample
from patterncc.codegen.score import reference as score_reference
from patterncc.dsl.score.terms import PLAIN, ScoreTerms

MOST_PAIRS = 1 << 27  # pairs of (row, key) that are checked, over all heads
_EDGE = 32  # rows at each end that are always checked
_PROCESSOR = torch.device("cpu")
_CHUNK = 1 << 22  # pairs of a head whose logits are held at a time


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


@dataclass(frozen=True, slots=True)
class Oracle:
    """Dense attention in float64, of some rows of a call.

    Attributes:
        terms: Score terms.
        numbers: What they read, by name.
        tables: What they read, by name, on its device.
        device: Where it computes.
    """

    terms: ScoreTerms = PLAIN
    numbers: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    tables: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    device: torch.device = _PROCESSOR

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        scale: float,
        rows: Tensor,
        env: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Output and lse of the rows that `query` holds.

        Args:
            query: `[batch, heads, len(rows), head_dim]`.
            key: `[batch, kv_heads, kv_len, head_dim]`.
            value: `[batch, kv_heads, kv_len, value_head_dim]`.
            mask: Of those rows, broadcast over batch and heads.
            scale: Factor of the scores.
            rows: Which rows of the call they are.
            env: Scalars of the call, with `batch`, `head` and `kv_head` of the first entry.
        """
        with self.device:  # where the references then make their tensors
            return self._attention(query, key, value, mask, scale, rows, env)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        scale: float,
        rows: Tensor,
        env: Mapping[str, Any],
    ) -> tuple[Tensor, Tensor]:
        if self.terms.plain:
            return reference.dense_attention(query, key, value, mask, scale)
        scalars = {name: number for name, number in env.items() if isinstance(number, int)}
        mask = mask.broadcast_to(*query.shape[:3], key.shape[2])
        found = [
            score_reference.dense_attention(
                query[:, :, part],
                key,
                value,
                mask[:, :, part],
                scale,
                self.terms,
                env=scalars,
                numbers=self.numbers,
                tables=self.tables,
                rows=rows[part],
            )
            for part in torch.split(torch.arange(len(rows)), max(1, _CHUNK // key.shape[2]))
        ]
        return torch.cat([out for out, _ in found], 2), torch.cat([lse for _, lse in found], 2)


PLAIN_ORACLE = Oracle()


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
    oracle: Oracle = PLAIN_ORACLE,
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
        oracle: What is right.
    """
    batch, heads, q_len, head_dim = query.shape
    most = max(2 * _EDGE, most_pairs // max(1, batch * heads * call.kv_len))
    rows = sample(q_len, most, seed, _EDGE).to(oracle.device)
    scale = head_dim**-0.5 if scale is None else scale
    error = lse_error = 0.0
    for index in range(batch):
        masks: list[Tensor] = []
        for head in range(heads if call.differs_by_head else 1):
            env = call.env(head, layer) | {"batch": index}
            masks.append(mask_rows(call, env, rows))
        part = slice(index, index + 1)
        wanted, wanted_lse = oracle(
            query[part, :, rows.to(query.device)].to(oracle.device),
            key[part].to(oracle.device),
            value[part].to(oracle.device),
            torch.stack(masks)[None],
            scale,
            rows,
            call.env(0, layer) | {"batch": index},
        )
        got = out[part, :, rows.to(out.device)].to(oracle.device).double()
        error = max(error, distance(got, wanted))
        if lse is not None:
            got_lse = lse[part, :, rows.to(lse.device)].to(oracle.device).double()
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
