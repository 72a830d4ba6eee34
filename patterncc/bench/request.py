"""`Request`: one call that is to be timed beside peers, as a value that another process can use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from patterncc.call import Call
from patterncc.codegen.facts.pair_counts import count_pairs, pair_program
from patterncc.codegen.problem import Problem
from patterncc.dsl.pattern import SegmentsType
from patterncc.trial import random_input

Phase: TypeAlias = Literal["forward", "backward", "both", "fresh"]
PHASES: tuple[Phase, ...] = get_args(Phase)
PHASE_WORDS: dict[Phase, str] = {
    "forward": "forward",
    "backward": "backward",
    "both": "forward+backward",
    "fresh": "mask+forward+backward",
}

# Of the five products of a backward to the two of a forward, as is usual, whatever a peer does.
_PRODUCTS: dict[Phase, float] = {"forward": 1.0, "backward": 2.5, "both": 3.5, "fresh": 3.5}

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Request:
    """A call of a pattern on a device.

    Attributes:
        name: What tables and pictures call it.
        call: The pattern, its sizes and its tables.
        problem: Type and head sizes.
        device: `cpu`, `cuda:0`.
        batch: Batch size.
        layer: Layer number.
        seed: Of the random input and of the rows that are checked.
    """

    name: str
    call: Call
    problem: Problem
    device: str
    batch: int = 1
    layer: int = 0
    seed: int = 0

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        return float(self.problem.head_dim**-0.5)

    @property
    def packed(self) -> bool:
        """Whether it is about packed documents, whose mask is another for every batch of them."""
        return any(isinstance(table.type, SegmentsType) for table in self.call.pattern.tables)

    @property
    def shape(self) -> str:
        """Its sizes in a few words."""
        call = self.call
        heads = str(call.heads) if call.heads == call.kv_heads else f"{call.heads}:{call.kv_heads}"
        length = str(call.q_len) if call.q_len == call.kv_len else f"{call.q_len}/{call.kv_len}"
        return f"B{self.batch} H{heads} S{length} D{self.problem.head_dim}"

    @cached_property
    def pairs(self) -> int:
        """Visible pairs of all heads of one batch entry, counted exactly.

        Raises:
            UnsupportedError: The pattern cannot be lowered, or too many pairs have to be looked at
                one by one.
        """
        call = self.call
        program = pair_program(call.pattern, call.sizes, within=call.within, transposed=False)
        heads = range(call.heads) if call.differs_by_head else [0]
        found = [count_pairs(program, call.env(head, self.layer)).rows for head in heads]
        return call.heads // len(heads) * int(sum(int(np.sum(rows)) for rows in found))

    def take_pairs(self, pairs: int) -> None:
        """Takes over what another process counted as `pairs`."""
        self.__dict__["pairs"] = pairs

    @property
    def density(self) -> float:
        """Visible pairs of all pairs."""
        return self.pairs / (self.call.heads * self.call.q_len * self.call.kv_len)

    def flops(self, phase: Phase) -> float:
        """Operations of a phase on visible pairs: two products forward, 2.5 times that backward."""
        both = self.problem.head_dim + self.problem.value_head_dim
        return _PRODUCTS[phase] * 2 * self.batch * self.pairs * both

    def input(self) -> tuple[Tensor, Tensor, Tensor]:
        """Random query, key and value, `[batch, heads, length, head_dim]`."""
        return random_input(
            self.call, self.problem, torch.device(self.device), self.batch, self.seed
        )

    def tables(self) -> dict[str, Tensor]:
        """The tables of the call on its device, numbers as int32, which kernels read."""
        found = {}
        for name, table in self.call.tables.items():
            tensor = torch.from_numpy(table)
            dtype = torch.bool if tensor.dtype == torch.bool else torch.int32
            found[name] = tensor.to(self.device, dtype)
        return found
