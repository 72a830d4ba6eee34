"""Attention forward on GPUs: from the tensors of a call to the launches of its kernels.

Plans are remembered, so a call like the last one costs little more than its launches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from patterncc.codegen.gpu import launch
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.gpu.plan import Launch, Planner
from patterncc.codegen.problem import DType, Problem
from patterncc.dsl.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from patterncc.codegen.gpu.config import KernelConfig
    from patterncc.codegen.gpu.plan import Lowered
    from patterncc.codegen.gpu.table_source import Table, TableKind

_DTYPES: dict[torch.dtype, DType] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
}
_TABLE_DTYPES: Mapping[TableKind, tuple[torch.dtype, ...]] = {
    "int": (torch.int32,),
    "bool": (torch.bool, torch.uint8),
    "segments": (torch.int32,),
}
_NO_TABLES: Mapping[str, torch.Tensor] = MappingProxyType({})
_PLANS_KEPT = 1024

_Step: TypeAlias = tuple[Launch, Callable[..., None]]
"""A launch and what runs its kernel over its grid."""


class Forward:
    """Attention forward of one pattern on GPUs: compiles what a call needs once and launches it.

    Args:
        lower: Gives the pattern's passes for a tile shape, from the most special alternative to
            one that assumes nothing.
        config: Of every kernel; None takes the default for each problem and device, which loads by
            descriptors where the device has them and the tensors' layout allows them, else by
            pointers.
        folder: Where generated sources are written; the user's cache by default.

    Raises:
        UnsupportedError: Triton is missing.
    """

    def __init__(
        self, lower: Lowered, *, config: KernelConfig | None = None, folder: Path | None = None
    ) -> None:
        launch.require_triton()
        self.planner = Planner(lower, config)
        self._folder = folder
        self._plans: dict[tuple[Any, ...], tuple[_Step, ...]] = {}

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        env: Mapping[str, int],
        scale: float,
        tables: Mapping[str, torch.Tensor] = _NO_TABLES,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs the kernels of all passes on the current stream.

        Never waits for the device and allocates from torch alone, so a CUDA graph can capture it
        once a first call has compiled the kernels.

        Args:
            query: `[batch, heads, q_len, head_dim]`, any strides; the last axis is copied where it
                is not contiguous.
            key: `[batch, kv_heads, kv_len, head_dim]`; `kv_heads` divides `heads`.
            value: `[batch, kv_heads, kv_len, value_head_dim]`.
            env: `q_offset`, and the other scalars that the pattern reads, by name.
            scale: Of the scores; finite.
            tables: The tables that the pattern reads, by name, contiguous and on the query's
                device: int32 for numbers and for `segments` (`cu_seqlens`: from 0, never falling),
                bool or uint8 for truth values. What they hold is not looked at here.

        Returns:
            `out` `[batch, heads, q_len, value_head_dim]` of the query's dtype, and the natural
            logarithm of the sum of exponentials, float32 `[batch, heads, q_len]`.

        Raises:
            UnsupportedError: The device, dtype, a size or a number has no kernel.
            ConfigError: The config given at construction is illegal for these tensors or this
                device; a number or table is missing, or a table of another kind.
        """
        if scale < 0:  # the kernel takes the largest score before it scales
            query, scale = -query, -scale
        query, key, value = (t if t.stride(3) == 1 else t.contiguous() for t in (query, key, value))
        batch, heads, q_len, _ = query.shape
        out = query.new_empty((batch, heads, q_len, value.shape[3]))
        lse = query.new_empty((batch, heads, q_len), dtype=torch.float32)
        if out.numel() == 0 or key.shape[2] == 0:
            return out.zero_(), lse.fill_(-math.inf)
        steps = self._plan((query, key, value), out, env, scale, tables)
        # What passes hand on; float32 outputs can hold it themselves.
        state = out
        handed_on = any("state" in planned.pointers for planned, _ in steps)
        if handed_on and out.dtype != torch.float32:
            state = torch.empty_like(out, dtype=torch.float32)
        operands = {"query": query, "key": key, "value": value, "out": out}
        operands |= {"lse": lse, "state": state}
        if query.is_cuda and query.device.index != torch.cuda.current_device():
            with torch.cuda.device(query.device):
                _run(steps, operands, tables)
        else:
            _run(steps, operands, tables)
        return out, lse

    def _plan(
        self,
        tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        out: torch.Tensor,
        env: Mapping[str, int],
        scale: float,
        tables: Mapping[str, torch.Tensor],
    ) -> tuple[_Step, ...]:
        """All of a call that stays while shapes, strides, alignment and numbers do; remembered."""
        query, key, value = tensors
        signature = (
            query.dtype,
            query.device,
            *(part for tensor in tensors for part in (tensor.shape, tensor.stride())),
            (query.data_ptr() | key.data_ptr() | value.data_ptr()) & 15,
            scale,
            tuple(env.items()),
            *(
                (name, table.shape, table.dtype, table.device, table.is_contiguous())
                for name, table in tables.items()
            ),
        )
        steps = self._plans.get(signature)
        if steps is None:
            named = zip(("query", "key", "value", "out"), (*tensors, out), strict=True)
            launches = self.planner.plan(
                _problem(query, key, value),
                launch.target_of(query.device),
                [
                    Layout(name, t.data_ptr(), tuple(t.shape), t.stride(), t.element_size())
                    for name, t in named
                ],
                env,
                scale,
                {name: tuple(table.shape) for name, table in tables.items()},
            )
            for planned in launches:
                _check_tables(planned.source.tables, tables, query.device)
            if len(self._plans) >= _PLANS_KEPT:  # a growing cache gives every step new lengths
                self._plans.clear()
            steps = tuple((planned, self._runner(planned, query.device)) for planned in launches)
            self._plans[signature] = steps
        return steps

    def _runner(self, planned: Launch, device: torch.device) -> Callable[..., None]:
        return launch.runner(
            planned.source, planned.grid, device, aligned=planned.aligned, folder=self._folder
        )


def _run(
    steps: tuple[_Step, ...],
    operands: dict[str, torch.Tensor],
    tables: Mapping[str, torch.Tensor],
) -> None:
    """Launches the kernels of a call one after another; `operands` grows by what they fill."""
    tensors = (operands["query"], operands["key"], operands["value"])
    numbers = not launch.interpreting()
    for planned, run in steps:
        for name, shape in planned.buffers:
            device = operands["query"].device
            operands[name] = torch.empty(shape, dtype=torch.int32, device=device)
        arguments: list[Any] = [
            launch.descriptor(tensors[which], *view) for which, *view in planned.described
        ]
        for name in planned.pointers:
            tensor = operands.get(name)
            if tensor is None:
                tensor = tables[name.removeprefix("table_")]
            # An address as a number saves the launcher a question to the driver for each tensor.
            arguments.append(tensor.data_ptr() if numbers else _plain(tensor))
        run(*arguments, *planned.rest)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """What the interpreter takes: it knows no pointer to truth values."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def _check_tables(
    read: Iterable[Table], tables: Mapping[str, torch.Tensor], device: torch.device
) -> None:
    """Refuses tables that a kernel would misread.

    Raises:
        ConfigError: Names the table, what it is and what it must be.
    """
    for table in read:
        given = tables[table.name]
        if given.dtype not in _TABLE_DTYPES[table.kind]:
            wanted = tuple(str(dtype) for dtype in _TABLE_DTYPES[table.kind])
            raise ConfigError(f"the table {table.name} is {given.dtype}", wanted)
        if given.device != device or not given.is_contiguous():
            raise ConfigError(
                f"the table {table.name} is on {given.device} with strides {given.stride()}",
                (f"a contiguous tensor on {device}",),
            )


def _problem(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Problem:
    if query.dtype not in _DTYPES:
        raise UnsupportedError(
            f"no kernel computes in {query.dtype}", "use float16, bfloat16 or float32"
        )
    if launch.interpreting() and query.dtype == torch.bfloat16:
        raise UnsupportedError(
            "Triton's interpreter multiplies the bits of bfloat16, not its values",
            "use float16 or float32 there",
        )
    group = query.shape[1] // key.shape[1]
    return Problem(_DTYPES[query.dtype], query.shape[3], value.shape[3], group)
