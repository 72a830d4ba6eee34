"""What a call does in tiles of some shape, counted exactly from its block programs: the input of
the cost model. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from patterncc.autotune.job import Job
from patterncc.codegen.classes import row_classes
from patterncc.codegen.gpu.config import tile_order
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.schedule import tile_counts
from patterncc.dsl.mask import Entry, Member, variables, walk

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PassFacts:
    """One pass in tiles of one shape.

    Attributes:
        full, partial: Tiles that each program of the grid visits, int64 `[programs]`, by query tile
            and then by class of rows; of one head after the other where heads differ.
        per_head: Programs of one head.
        heads: Pairs of a head and a batch entry that each of these stands for.
        loops: How many loops a program has that are not always empty.
        looked_up: Whether the mask reads a table for each pair.
        listed: Whether the tiles are listed by a kernel of their own.
        grows: Whether later query tiles see more keys.
    """

    full: Counts
    partial: Counts
    per_head: int
    heads: float
    loops: int
    looked_up: bool
    listed: bool
    grows: bool

    @cached_property
    def visited(self) -> int:
        """Tiles of all these programs."""
        return int(self.full.sum() + self.partial.sum())

    @cached_property
    def visited_partial(self) -> int:
        """The partial ones among them."""
        return int(self.partial.sum())


def tile_facts(
    job: Job, block_q: int, block_k: int, *, gather: bool = False
) -> tuple[PassFacts, ...]:
    """The passes of a call in tiles of one shape.

    Args:
        job: The call, with its tables.
        block_q, block_k: The tile shape.
        gather: Key tiles may be gathered.

    Raises:
        UnsupportedError: The pattern has a term that has no lowering.
    """
    return tuple(_facts(job, program) for program in job.passes(block_q, block_k, gather=gather))


def _facts(job: Job, program: BlockProgram) -> PassFacts:
    full: list[Counts] = []
    partial: list[Counts] = []
    for head in job.counted_heads:
        counts = [
            tile_counts(program, part.env) for part in row_classes(program, job.head_env(head))
        ]
        # Neighbouring programs are the classes of one tile.
        tile = np.concatenate([np.arange(len(one)) for one, _ in counts])
        order = np.argsort(tile, kind="stable")
        full.append(np.concatenate([one for one, _ in counts])[order])
        partial.append(np.concatenate([other for _, other in counts])[order])
    kinds = {sweep.kind for sweep in program.forward}
    return PassFacts(
        np.concatenate(full),
        np.concatenate(partial),
        len(full[0]),
        job.batch * job.heads / len(job.counted_heads),
        len(kinds),
        any(
            isinstance(node, Entry | Member) and {"q", "k"} <= variables(node)
            for node in walk(program.mask)
        ),
        bool(program.listed),
        tile_order(program) == "reverse",
    )
