"""What a phase of a call does in tiles of some shape, counted exactly from its block programs: the
input of the cost model. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from patterncc.autotune.job import Job
from patterncc.autotune.space import FORWARD, GRAD_KEY_VALUE, Phase
from patterncc.codegen.classes import row_classes
from patterncc.codegen.gpu.balance import split_tiles
from patterncc.codegen.gpu.config import tile_order
from patterncc.codegen.gpu.gluon.steady_writer import keeps_peak
from patterncc.codegen.ir import BlockProgram
from patterncc.codegen.schedule import tile_counts
from patterncc.dsl.mask import Entry, Member, variables, walk

Counts = npt.NDArray[np.float64]

_PROGRAMS_AT_ONCE = 264
"""That chunks of key tiles are made for: two on each multiprocessor of an H200."""


@dataclass(frozen=True)
class PassFacts:
    """One pass in tiles of one shape.

    Attributes:
        full, partial: Tiles that each program of the grid visits, float64 `[programs]`, by query
            tile and then by class of rows (by key tile, of all heads of the queries, where programs
            hold keys); of one head after the other where heads differ.
        per_head: Programs of one head.
        heads: Pairs of a head and a batch entry that each of these stands for.
        loops: How many loops a program has that are not always empty.
        looked_up: Whether the mask reads a table for each pair.
        listed: Whether the tiles are listed by a kernel of their own.
        grows: Whether later query tiles see more keys.
        keeps_peak: Whether full tiles can keep the peak, in a Gluon kernel.
    """

    full: Counts
    partial: Counts
    per_head: int
    heads: float
    loops: int
    looked_up: bool
    listed: bool
    grows: bool
    keeps_peak: bool

    @cached_property
    def visited(self) -> float:
        """Tiles of all these programs."""
        return float(self.full.sum() + self.partial.sum())

    @cached_property
    def visited_partial(self) -> float:
        """The partial ones among them."""
        return float(self.partial.sum())


def tile_facts(
    job: Job,
    block_q: int,
    block_k: int,
    phase: Phase = FORWARD,
    *,
    gather: bool = False,
    patches: bool = False,
) -> tuple[PassFacts, ...]:
    """The passes of a call in tiles of one shape.

    Args:
        job: The call, with its tables.
        block_q, block_k: The tile shape.
        phase: What is computed.
        gather: Key tiles may be gathered, but those of the gradients of key and value.
        patches: Tiles may be patches of a raster, as in `Job.passes`.

    Raises:
        UnsupportedError: The pattern has a term that has no lowering.
    """
    if phase == GRAD_KEY_VALUE:
        passes = job.passes(block_q, block_k, transposed=True, patches=patches)
        return tuple(_key_tile_facts(job, program) for program in passes)
    passes = job.passes(block_q, block_k, gather=gather, patches=patches)
    return tuple(_facts(job, program) for program in passes)


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
        full.append(np.concatenate([one for one, _ in counts])[order].astype(np.float64))
        partial.append(np.concatenate([other for _, other in counts])[order].astype(np.float64))
    kinds = {sweep.kind for sweep in program.forward}
    return PassFacts(
        np.concatenate(full),
        np.concatenate(partial),
        len(full[0]),
        job.batch * job.heads / len(job.counted_heads),
        len(kinds),
        _looks_up(program),
        bool(program.listed),
        tile_order(program) == "reverse",
        keeps_peak(program, job.problem),
    )


def _key_tile_facts(job: Job, program: BlockProgram) -> PassFacts:
    """Of programs that hold keys: each visits the tiles of queries of all heads that share them,
    and those with much to do are split."""
    group = job.heads // job.kv_heads
    full: list[Counts] = []
    partial: list[Counts] = []
    kv_heads = range(job.kv_heads) if job.differs_by_head else range(1)
    for kv_head in kv_heads:
        heads = range(kv_head * group, (kv_head + 1) * group) if job.differs_by_head else range(1)
        counted = [_key_tile_counts(job, program, head) for head in heads]
        share = group / len(heads)
        one = share * np.sum([each[0] for each in counted], axis=0)
        other = share * np.sum([each[1] for each in counted], axis=0)
        if not program.listed:
            one, other = _split(one, other, job.batch * job.kv_heads)
        full.append(one)
        partial.append(other)
    sweeps = program.sweeps("transposed")
    return PassFacts(
        np.concatenate(full),
        np.concatenate(partial),
        len(full[0]),
        job.batch * job.kv_heads / len(kv_heads),
        len({sweep.kind for sweep in sweeps}),
        _looks_up(program),
        bool(program.listed),
        grows=False,
        keeps_peak=False,
    )


def _key_tile_counts(job: Job, program: BlockProgram, head: int) -> tuple[Counts, Counts]:
    """Full and partial tiles of queries that each key tile sees, of one head of the queries: those
    of classes of keys one after another, those of classes of rows together."""
    parts = list(row_classes(program, job.head_env(head)))
    counts = [tile_counts(program, part.env, "transposed") for part in parts]
    if program.tiling.k_step > 1:
        one, other = (np.concatenate([each[side] for each in counts]) for side in (0, 1))
        return one.astype(np.float64), other.astype(np.float64)
    length = max(len(each[0]) for each in counts)
    sums = np.zeros((2, length))
    for each in counts:
        for side in (0, 1):
            sums[side, : len(each[side])] += each[side]
    return sums[0], sums[1]


def _split(full: Counts, partial: Counts, copies: int) -> tuple[Counts, Counts]:
    """The same with the chunks of key tiles that a launch splits in their places."""
    steps = np.rint(full + partial).astype(np.int64)
    chunks = np.ones(len(steps), np.int64)
    for run in split_tiles(steps, copies, _PROGRAMS_AT_ONCE):
        chunks[run.first : run.first + run.step * (run.count - 1) + 1 : run.step] = run.chunks
    return np.repeat(full / chunks, chunks), np.repeat(partial / chunks, chunks)


def _looks_up(program: BlockProgram) -> bool:
    return any(
        isinstance(node, Entry | Member) and {"q", "k"} <= variables(node)
        for node in walk(program.mask)
    )
