"""What a call of a pattern does on the CPU: passes, classes of rows, plans, and the heads of each.

Tensors come in through views alone: of a class of rows, and of the heads that share a plan.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from patterncc.codegen.cpu.head_kinds import digest
from patterncc.codegen.cpu.heads import HeadPlan, PlanStore
from patterncc.codegen.ir import BlockProgram
from patterncc.dsl.errors import ArgumentError, UnsupportedError

plans = PlanStore()


@dataclass(frozen=True, slots=True)
class Job:
    """Plans for one class of rows.

    Attributes:
        rows, keys: Where its rows and keys lie in those of the call; start and step are given.
        plans: For its heads.
        q_offset: Position of row 0 of the call.
    """

    rows: slice
    keys: slice
    plans: tuple[HeadPlan, ...]
    q_offset: int


@dataclass(frozen=True, slots=True)
class PassJobs:
    """What one pass does.

    Attributes:
        jobs: Those of its classes of rows that see anything.
        whole: Whether every row is in some call.
    """

    jobs: tuple[Job, ...]
    whole: bool

    @property
    def plans(self) -> Iterator[HeadPlan]:
        return (part for job in self.jobs for part in job.plans)

    @property
    def places(self) -> Iterator[tuple[HeadPlan, list[Job]]]:
        """Each plan, once, with the jobs that have it."""
        shared: dict[int, tuple[HeadPlan, list[Job]]] = {}
        for job in self.jobs:
            for part in job.plans:
                shared.setdefault(id(part), (part, []))[1].append(job)
        yield from shared.values()


def call_jobs(
    passes: Sequence[BlockProgram],
    query: Tensor,
    key: Tensor,
    env: Mapping[str, int] | None,
    tables: Mapping[str, Tensor] | None,
) -> list[PassJobs]:
    """Plans a call; passes that have nothing to do are left out.

    Args:
        passes: A lowered pattern.
        query: `[batch, heads, q_len, head_dim]`.
        key: `[batch, kv_heads, kv_len, head_dim]`.
        env: `layer` (0 unless given), `q_offset` (`kv_len - q_len` unless given), and what other
            scalars the pattern reads.
        tables: The tables that the pattern reads, by name.

    Raises:
        ArgumentError: A scalar or table that the pattern reads is missing.
        ConfigError: The call breaks what a pass takes for granted.
        UnsupportedError: A table is not on the CPU.
    """
    batch, heads, q_len, _ = query.shape
    _, kv_heads, kv_len, _ = key.shape
    scalars: dict[str, Any] = {"layer": 0, "q_offset": kv_len - q_len, **(env or {})}
    scalars |= {"q_len": q_len, "kv_len": kv_len, "heads": heads, "kv_heads": kv_heads}
    found = [_pass_jobs(program, scalars, tables or {}, batch) for program in passes]
    return [each for each in found if each.jobs]


def _pass_jobs(
    program: BlockProgram, scalars: Mapping[str, Any], tables: Mapping[str, Tensor], batch: int
) -> PassJobs:
    """Plans one pass of a call, class by class."""
    arrays = {name: _array(name, tables) for name in plans.tables(program)}
    digests = {name: digest(array) for name, array in arrays.items()}
    step, k_step = program.tiling.q_step, program.tiling.k_step
    jobs = []
    whole = True
    for rows, places in plans.classes(program, {**scalars, **arrays}, batch):
        found: tuple[HeadPlan, ...] = ()
        if rows.env["kv_len"] > 0:
            found = plans.find(program, rows.env, batch, digests=digests, places=places)
        whole = whole and bool(found) and not any(part.plan.untouched for part in found)
        found = tuple(part for part in found if part.plan.calls)
        if found:
            at = slice(rows.first_row, None, step), slice(rows.first_key, None, k_step)
            jobs.append(Job(*at, found, scalars["q_offset"]))
    return PassJobs(tuple(jobs), whole)


@lru_cache(maxsize=64)
def head_numbers(batch: int, heads: int) -> Tensor:
    """Which head is where: index in the batch and number, int64 `[batch, heads, 2]`."""
    pairs = torch.cartesian_prod(torch.arange(batch), torch.arange(heads))
    return pairs.view(batch, heads, 2)


def head_views(
    part: HeadPlan, of_rows: Sequence[Tensor], of_keys: Sequence[Tensor]
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Views of the heads of a plan, in as few pieces as strides and grouping allow.

    Args:
        part: The plan and its heads.
        of_rows: Tensors `[batch, heads, ...]`.
        of_keys: Tensors `[batch, kv_heads, ...]`.

    Yields:
        The same with batch and heads as one axis. The key heads of a piece are as many as its
        heads, or serve as many neighbouring heads each.
    """
    batch, heads = of_rows[0].shape[:2]
    group = heads // of_keys[0].shape[1]
    by_batch: dict[int | None, list[int]] = {}
    for index, head in part.places:
        by_batch.setdefault(index, []).extend(range(heads) if head is None else [head])
    if list(by_batch) == [None] and len(by_batch[None]) == heads:
        both = (*of_rows, *of_keys)
        if batch == 1 or all(x.stride(0) == x.shape[1] * x.stride(1) for x in both):
            yield [x.flatten(0, 1) for x in of_rows], [x.flatten(0, 1) for x in of_keys]
            return
    for index, members in by_batch.items():
        for b in range(batch) if index is None else [index]:
            for own, shared in _head_ranges(members, group):
                yield [x[b, own] for x in of_rows], [x[b, shared] for x in of_keys]


def _array(name: str, tables: Mapping[str, Tensor]) -> npt.NDArray[Any]:
    """A table in numpy: bool, or int64."""
    if name not in tables:
        raise ArgumentError(f"the pattern reads the table `{name}`, which was not given")
    table = tables[name].detach()
    if table.device.type != "cpu":
        raise UnsupportedError(f"`{name}` is on {table.device}; this executor is for the CPU")
    found: npt.NDArray[Any] = table.numpy()
    return found if found.dtype == np.bool_ else found.astype(np.int64, copy=False)


def _head_ranges(heads: list[int], group: int) -> Iterator[tuple[slice, slice]]:
    """Ranges of ascending query heads that hold whole groups, or lie within one; with key heads."""
    at = 0
    while at < len(heads):
        first = heads[at]
        stop = at + 1
        while stop < len(heads) and heads[stop] == first + stop - at:
            stop += 1
        length = stop - at
        if first % group == 0 and length >= group:
            length -= length % group
        else:
            length = min(length, group - first % group)
        yield (
            slice(first, first + length),
            slice(first // group, (first + length - 1) // group + 1),
        )
        at += length
