"""Block-sparse attention on the CPU, forward: runs the passes of a pattern on torch tensors.

Each call of a plan (`plan`) goes to aten's own CPU flash kernel, on strided views of the
tensors. Where this torch lacks that kernel, or it does not do as it should, calls go to a loop of
matrix products instead; `cpu_kernel_name` says which it is.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from patterncc.codegen.cpu import execute, kernels
from patterncc.codegen.cpu.execute import Operands, Whole
from patterncc.codegen.cpu.head_kinds import digest
from patterncc.codegen.cpu.heads import HeadPlan, PlanStore
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.ir import BlockProgram
from patterncc.dsl.errors import ArgumentError, UnsupportedError

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

plans = PlanStore()


def default_config() -> KernelConfig:
    """The tile shape to lower for; plans join tiles where taller ones are faster."""
    return KernelConfig(block_q=64, block_k=64)


def cpu_kernel_name() -> str:
    """Which kernel runs here: `aten flash` or `matmul`."""
    return "aten flash" if kernels.flash_works() else "matmul"


@torch.no_grad()
def attention(
    passes: Sequence[BlockProgram],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    env: Mapping[str, int] | None = None,
    tables: Mapping[str, Tensor] | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention under a lowered pattern, without a gradient.

    Args:
        passes: The pattern, lowered for any tile shape; `default_config` has a good one.
        query: `[batch, heads, q_len, head_dim]`, float16, bfloat16, float32 or float64, with any
            strides.
        key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
        value: `[batch, kv_heads, kv_len, value_head_dim]`.
        env: Run-time numbers by name, `layer` (0 unless given), `layers` where the pattern reads
            it, and `q_offset`, the position of row 0 (`kv_len - q_len` unless given). What the
            tensors tell is taken from them.
        tables: The tables that the pattern reads by name, integer or bool, of its rank, and
            `cu_seqlens` `[documents + 1]` for segments. They may change between calls.
        scale: Factor of the scores; `1 / sqrt(head_dim)` if not given.

    Returns:
        The output `[batch, heads, q_len, value_head_dim]` in the type of `query`, contiguous, and
        the natural log-sum-exp of the visible scores `[batch, heads, q_len]`, float32 (float64
        for float64). A row that sees nothing gets 0 and -inf.

    Raises:
        ArgumentError: A shape or type does not fit, or a scalar or table that the pattern reads is
            missing.
        UnsupportedError: The tensors are not on the CPU, or of another type.
    """
    _check(query, key, value)
    batch, heads, q_len, head_dim = query.shape
    _, kv_heads, kv_len, value_dim = value.shape
    scale = 1 / math.sqrt(head_dim) if scale is None else float(scale)
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    if 0 in (batch, heads, q_len, kv_len):
        return (
            query.new_zeros(batch, heads, q_len, value_dim),
            query.new_full((batch, heads, q_len), -math.inf, dtype=wide),
        )
    scalars: dict[str, Any] = {"layer": 0, "q_offset": kv_len - q_len, **(env or {})}
    scalars |= {"q_len": q_len, "kv_len": kv_len, "heads": heads, "kv_heads": kv_heads}
    work = [_jobs(program, scalars, tables or {}, batch) for program in passes]
    work = [each for each in work if each.jobs]

    merges = len(work) > 1 or any(part.plan.merges for each in work for part in each.plans)
    out_type = wide if merges else query.dtype  # merging in a narrow type would round the weights
    out = query.new_empty(batch, heads, q_len, value_dim, dtype=out_type)
    if not work or not work[0].whole:
        out.zero_()
    lse = query.new_full((batch, heads, q_len), -math.inf, dtype=wide)
    flash = kernels.flash_works()
    width = max(head_dim, value_dim) if flash else 0  # the flash kernel wants them equal
    query, key, value = (_readable(tensor, width) for tensor in (query, key, value))
    kernel = kernels.flash if flash else kernels.matmul
    bounds = Whole(query), Whole(key), Whole(value)
    for number, each in enumerate(work):
        whole = bounds if len(each.jobs) > 1 else (None, None, None)
        for part, on in each.operands(query, key, value, out, lse, whole):
            for call in part.plan.calls:
                mask = execute.additive_mask(part.plan, call, wide)
                for heads_of_class in on:
                    execute.run(call, mask, heads_of_class, kernel, scale, number == 0)
    return out.to(query.dtype), lse


@dataclass(frozen=True, slots=True)
class _Job:
    """Plans for one class of rows, and where its rows and keys lie."""

    rows: slice
    keys: slice
    plans: tuple[HeadPlan, ...]


@dataclass(frozen=True, slots=True)
class _Jobs:
    """What one pass does.

    Attributes:
        jobs: Those of its classes of rows that see anything.
        whole: Whether every row is written.
    """

    jobs: tuple[_Job, ...]
    whole: bool

    @property
    def plans(self) -> Iterator[HeadPlan]:
        return (part for job in self.jobs for part in job.plans)

    def operands(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        whole: tuple[Whole | None, Whole | None, Whole | None],
    ) -> Iterator[tuple[HeadPlan, list[Operands]]]:
        """Each plan with the views of all heads and classes that it is for."""
        shared: dict[int, tuple[HeadPlan, list[Operands]]] = {}
        for job in self.jobs:
            rows, keys = job.rows, job.keys
            for part in job.plans:
                _, on = shared.setdefault(id(part), (part, []))
                on += execute.operands(
                    part,
                    query[:, :, rows],
                    key[:, :, keys],
                    value[:, :, keys],
                    out[:, :, rows],
                    lse[:, :, rows],
                    whole,
                )
        yield from shared.values()


def _jobs(
    program: BlockProgram, scalars: Mapping[str, Any], tables: Mapping[str, Tensor], batch: int
) -> _Jobs:
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
            jobs.append(_Job(*at, found))
    return _Jobs(tuple(jobs), whole)


def _array(name: str, tables: Mapping[str, Tensor]) -> npt.NDArray[Any]:
    """A table in numpy: bool, or int64."""
    if name not in tables:
        raise ArgumentError(f"the pattern reads the table `{name}`, which was not given")
    table = tables[name].detach()
    if table.device.type != "cpu":
        raise UnsupportedError(f"`{name}` is on {table.device}; this executor is for the CPU")
    found: npt.NDArray[Any] = table.numpy()
    return found if found.dtype == np.bool_ else found.astype(np.int64, copy=False)


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        if tensor.ndim != 4:
            raise ArgumentError(
                f"`{name}` has {tensor.ndim} axes; it needs 4: batch, heads, length, dimension"
            )
        if tensor.device.type != "cpu":
            raise UnsupportedError(f"`{name}` is on {tensor.device}; this executor is for the CPU")
        if tensor.dtype != query.dtype:
            raise ArgumentError(f"`{name}` is {tensor.dtype}; it must be {query.dtype}, as `query`")
        if tensor.shape[0] != query.shape[0]:
            raise ArgumentError(
                f"`{name}` has a batch of {tensor.shape[0]}; `query` has {query.shape[0]}"
            )
    if query.dtype not in _DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise UnsupportedError(f"attention on the CPU cannot be done in {query.dtype}", names)
    if key.shape[1:3] != value.shape[1:3]:
        raise ArgumentError(
            f"`key` has {key.shape[1]} heads and {key.shape[2]} keys; `value` has "
            f"{value.shape[1]} and {value.shape[2]}"
        )
    if key.shape[3] != query.shape[3] or query.shape[3] == 0 or value.shape[3] == 0:
        raise ArgumentError(
            f"the head dimensions of `query`, `key` and `value` are {query.shape[3]}, "
            f"{key.shape[3]} and {value.shape[3]}; they must be positive, the first two equal"
        )
    if key.shape[1] == 0 or query.shape[1] % key.shape[1] != 0:
        raise ArgumentError(
            f"`query` has {query.shape[1]} heads, which {key.shape[1]} key heads do not divide"
        )


def _readable(tensor: Tensor, width: int) -> Tensor:
    """The tensor as the kernels can read it: rows apart in memory, of neighbouring numbers.

    It gets zeros up to `width` numbers a row.
    """
    missing = width - tensor.shape[3]
    if missing > 0:
        return torch.nn.functional.pad(tensor, (0, missing))
    if tensor.stride(3) != 1 or tensor.stride(2) < tensor.shape[3]:
        # Not `contiguous`, which leaves odd strides of axes of size 1 as they are.
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor
