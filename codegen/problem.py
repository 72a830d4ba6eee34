"""`Problem`: what a kernel is specialised on. Lengths, batch, offsets and run-time numbers are not
part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from patterncc.dsl.score.terms import PLAIN, ScoreTerms

DType: TypeAlias = Literal["float16", "bfloat16", "float32", "float64"]


@dataclass(frozen=True, slots=True)
class Problem:
    """The shape class of an attention call, and what it does to its scores.

    Attributes:
        dtype: Of query, key, value and output; scores, softmax and lse are float32 (float64 for
            float64).
        head_dim: Of query and key.
        value_head_dim: Of value and output.
        group: Query heads per key/value head.
        terms: Which logits enter the softmax.
        isolates: Whether numbers that are not finite are kept from rows and keys that do not see
            them. True: by all kernels; those that cannot do so by themselves note what they may
            have spoiled, and others repair it. None: by those forward kernels that can do so by
            themselves, which are Gluon's. False: by none.
    """

    dtype: DType
    head_dim: int
    value_head_dim: int
    group: int = 1
    terms: ScoreTerms = PLAIN
    isolates: bool | None = None
