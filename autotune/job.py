"""`Job`: one attention call that is to be tuned, as a value that another process can rebuild."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from patterncc.autotune.key import Subject
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.codegen.ir import Passes
from patterncc.codegen.lower import first_row_step, with_transposed
from patterncc.codegen.patch_choice import with_numbers_of_call
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.mask import variables
from patterncc.dsl.pattern import Pattern

_PROGRAMS_KEPT = 512
_BY_HEAD = frozenset({"head", "kv_head"})


@dataclass(frozen=True)
class Job:
    """A call: its pattern, its sizes and its problem.

    Attributes:
        structure: Canonical text of the pattern without run-time defaults.
        problem: Shape class.
        batch, heads, kv_heads: Of the tensors; `kv_heads` divides `heads`.
        q_len, kv_len: Rows and keys.
        q_offset: Position of row 0.
        layer, layers: Layer number, and how many there are.
        numbers: Values of the pattern's run-time numbers, by name.
        tables: Its tables, int64 or bool, of its rank; of segments the `cu_seqlens`.
        seed: Of the random input.
        patches: Whether tiles may be patches of a raster; not with score terms.
    """

    structure: str
    problem: Problem
    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    q_offset: int = 0
    layer: int = 0
    layers: int = 1
    numbers: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict, compare=False)
    seed: int = 0
    patches: bool = False

    @cached_property
    def pattern(self) -> Pattern:
        """The pattern, read back from its text, as its tiles are counted."""
        return with_numbers_of_call(load(self.structure), self.sizes, self.numbers)

    @property
    def sizes(self) -> dict[str, int]:
        """What a pattern may divide by."""
        return {"heads": self.heads, "kv_heads": self.kv_heads, "layers": self.layers}

    def subject(self, phase: str) -> Subject:
        """What is tuned where a phase of the call is."""
        return Subject(
            self.structure,
            self.problem,
            phase,
            tuple(sorted(self.numbers.items())),
            self.q_len,
            self.kv_len,
            self.heads,
            self.kv_heads,
            self.layers,
        )

    @property
    def within(self) -> bool:
        """Whether the rows end within the keys, and begin where programs that are lowered so take
        it for granted (`first_row_step`)."""
        if not 0 <= self.q_offset <= self.kv_len - self.q_len:
            return False
        return self.q_offset == 0 or self.q_offset % first_row_step(self.pattern, self.sizes) == 0

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        return float(self.problem.head_dim**-0.5)

    @property
    def env(self) -> dict[str, int]:
        """The numbers that an executor is given."""
        return {
            "q_offset": self.q_offset,
            "layer": self.layer,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "layers": self.layers,
            **self.numbers,
        }

    def head_env(self, head: int, batch: int = 0) -> dict[str, Any]:
        """Everything that the mask of one head reads, the tables among it."""
        return {
            **self.env,
            "q_len": self.q_len,
            "kv_len": self.kv_len,
            "head": head,
            "kv_head": head // (self.heads // self.kv_heads),
            "batch": batch,
            **self.tables,
        }

    @property
    def counted_heads(self) -> tuple[int, ...]:
        """Heads that stand for all when tiles are counted: every head where masks differ."""
        return tuple(range(self.heads)) if self.differs_by_head else (0,)

    @cached_property
    def differs_by_head(self) -> bool:
        """Whether heads may have different masks."""
        return bool(_BY_HEAD & variables(self.pattern.body))

    def passes(
        self,
        block_q: int,
        block_k: int,
        *,
        transposed: bool = False,
        gather: bool = False,
        patches: bool = False,
    ) -> Passes:
        """The pattern lowered for a tile shape; kept for those used last.

        Args:
            block_q, block_k: The tile shape.
            transposed: Whether the programs have the transposed direction, which the gradients of
                key and value loop in.
            gather: Whether their key tiles may be gathered, as those of the forward kernels on GPUs
                are.
            patches: Whether tiles may be patches of a raster, where those of the job may: they are
                visited by Triton's kernels alone.

        Raises:
            UnsupportedError: For a term that has no lowering.
        """
        sizes = tuple(sorted(self.sizes.items()))
        rest = (sizes, self.within, transposed, gather, self.patches and patches)
        text = self.pattern.text if self.patches else self.structure
        return _lowered(text, block_q, block_k, *rest)

    def alternatives(
        self, block_q: int, block_k: int, *, transposed: bool = False, gather: bool = False
    ) -> tuple[Passes, ...]:
        """What kernels on GPUs choose from: the pattern in patches of a raster, if that is chosen,
        and in consecutive tiles, which all of them visit. Arguments and errors as in `passes`.
        """
        directions = {"transposed": transposed, "gather": gather}
        first = self.passes(block_q, block_k, **directions, patches=True)
        if all(program.patches is None for program in first):
            return (first,)
        return first, self.passes(block_q, block_k, **directions)

    @cached_property
    def density(self) -> float:
        """Visible pairs of all pairs, over the heads counted exactly."""
        program = pair_program(self.pattern, self.sizes, within=self.within, transposed=False)
        heads = self.counted_heads
        pairs = [int(np.sum(count_pairs(program, self.head_env(head)).rows)) for head in heads]
        return float(sum(pairs) / (len(heads) * self.q_len * self.kv_len))

    def __getstate__(self) -> dict[str, Any]:
        """The pattern stays behind: another process reads its own."""
        return {name: value for name, value in self.__dict__.items() if name != "pattern"}


@functools.lru_cache(maxsize=_PROGRAMS_KEPT)
def _lowered(
    text: str,
    block_q: int,
    block_k: int,
    sizes: tuple[tuple[str, int], ...],
    within: bool,
    transposed: bool,
    gather: bool,
    patches: bool,
) -> Passes:
    if transposed:
        forward = _lowered(text, block_q, block_k, sizes, within, False, False, patches)
        return tuple(with_transposed(program) for program in forward)
    return lower_passes(
        load(text),
        block_q,
        block_k,
        sizes=dict(sizes),
        within=within,
        transposed=False,
        gather=gather,
        patches=patches,
    )
