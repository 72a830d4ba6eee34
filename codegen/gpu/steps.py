"""Planned launches as they run: remembered by what they depend on, given their tensors.

What forward and backward calls share on the host; plans are made in `plan` and `backward_plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from patterncc.codegen.dtypes import DTYPE_NAMES
from patterncc.codegen.gpu import launch
from patterncc.codegen.gpu.launches import Launch
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from patterncc.codegen.gpu.table_source import Table, TableKind
    from patterncc.codegen.score.values import ScoreValues
    from patterncc.dsl.score.terms import ScoreTerms

NO_TABLES: Mapping[str, torch.Tensor] = MappingProxyType({})

_TABLE_DTYPES: Mapping[TableKind, tuple[torch.dtype, ...]] = {
    "int": (torch.int32,),
    "bool": (torch.bool, torch.uint8),
    "segments": (torch.int32,),
}
_BUFFER_DTYPES = {"int32": torch.int32, "float32": torch.float32}
_PLANS_KEPT = 1024

Step: TypeAlias = tuple[Launch, Callable[..., None]]
"""A launch and what runs its kernel over its grid."""

Signature: TypeAlias = tuple[Any, ...]
"""All that the plan of a call depends on."""


class Steps:
    """The plans of one pattern's calls, and what runs them.

    Args:
        folder: Where generated sources are written; the user's cache by default.

    Raises:
        UnsupportedError: Triton is missing.
    """

    def __init__(self, folder: Path | None) -> None:
        launch.require_triton()
        self._folder = folder
        self._kept: dict[Signature, tuple[Step, ...]] = {}

    def of(
        self,
        signature: Signature,
        plan: Callable[[], Sequence[Launch]],
        tables: Mapping[str, torch.Tensor],
        device: torch.device,
    ) -> tuple[Step, ...]:
        """The steps of a call, planned unless they are remembered.

        Raises:
            UnsupportedError: From planning.
            ConfigError: From planning, or a table is of another kind than the pattern reads.
        """
        steps = self._kept.get(signature)
        if steps is None:
            launches = plan()
            for planned in launches:
                _check_tables(planned.source.tables, tables, device)
            if len(self._kept) >= _PLANS_KEPT:  # a growing cache gives every step new lengths
                self._kept.clear()
            steps = tuple((planned, self._runner(planned, device)) for planned in launches)
            self._kept[signature] = steps
        return steps

    def _runner(self, planned: Launch, device: torch.device) -> Callable[..., None]:
        return launch.runner(
            planned.source, planned.grid, device, aligned=planned.aligned, folder=self._folder
        )


def run(
    steps: Iterable[Step],
    operands: dict[str, torch.Tensor],
    tables: Mapping[str, torch.Tensor],
    device: torch.device,
) -> None:
    """Launches the kernels of a call one after another on the current stream.

    Args:
        steps: Of the call.
        operands: What pointers and descriptors point to, by name; it grows by the buffers.
        tables: The pattern's tables, by name.
        device: Where all of that is.
    """
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            run(steps, operands, tables, device)
        return
    numbers = not launch.interpreting()
    for planned, launched in steps:
        for name, shape, dtype in planned.buffers:
            operands[name] = torch.empty(shape, dtype=_BUFFER_DTYPES[dtype], device=device)
        arguments: list[Any] = [
            launch.descriptor(operands[name], *view) for name, *view in planned.described
        ]
        for name in planned.pointers:
            tensor = operands.get(name)
            if tensor is None:
                tensor = tables[name.removeprefix("table_")]
            # An address as a number saves the launcher a question to the driver for each tensor.
            arguments.append(tensor.data_ptr() if numbers else _plain(tensor))
        launched(*arguments, *planned.rest)


def call_signature(
    tensors: Sequence[torch.Tensor],
    env: Mapping[str, int],
    scale: float,
    tables: Mapping[str, torch.Tensor],
) -> Signature:
    """What stays while shapes, strides, alignment and numbers do; the first tensor's dtype and
    device are all tensors'."""
    addresses = 0
    for tensor in tensors:
        addresses |= tensor.data_ptr()
    return (
        tensors[0].dtype,
        tensors[0].device,
        *(part for tensor in tensors for part in (tensor.shape, tensor.stride())),
        addresses & 15,
        scale,
        tuple(env.items()),
        *(
            (name, table.shape, table.dtype, table.device, table.is_contiguous())
            for name, table in tables.items()
        ),
    )


def layout_of(name: str, tensor: torch.Tensor) -> Layout:
    """Where a tensor `[batch, heads, length, head_dim]` lies."""
    return Layout(
        name, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.element_size()
    )


def shapes_of(tables: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of tables, by name."""
    return {name: tuple(table.shape) for name, table in tables.items()}


def problem_of(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, terms: ScoreTerms
) -> Problem:
    """The shape class of a call with score terms.

    Raises:
        UnsupportedError: No kernel computes in its dtype.
    """
    if query.dtype not in DTYPE_NAMES:
        raise UnsupportedError(
            f"no kernel computes in {query.dtype}", "use float16, bfloat16 or float32"
        )
    if launch.interpreting() and query.dtype == torch.bfloat16:
        raise UnsupportedError(
            "Triton's interpreter multiplies the bits of bfloat16, not its values",
            "use float16 or float32 there",
        )
    group = query.shape[1] // key.shape[1]
    return Problem(DTYPE_NAMES[query.dtype], query.shape[3], value.shape[3], group, terms)


class TermArguments(NamedTuple):
    """What kernels with score terms are given.

    Attributes:
        values: Of the parameters that terms add, by name.
        tensors: What their pointers point to, by name.
    """

    values: Mapping[str, float]
    tensors: Mapping[str, torch.Tensor]


def term_arguments(terms: ScoreTerms, values: ScoreValues, device: torch.device) -> TermArguments:
    """The arguments of score terms; tables are copied where they are not float32 and contiguous.

    Raises:
        ArgumentError: As from `ScoreValues.check`.
        UnsupportedError: A table has so many entries that kernels cannot count them.
    """
    values.check(terms, device)
    found: dict[str, float] = {f"real_{name}": values.numbers[name] for name in terms.numbers}
    tensors = {}
    for name in terms.tables:
        table = values.tables[name].detach().float().contiguous()
        if table.numel() >= 2**31:
            raise UnsupportedError(
                f"the table {name} of {tuple(table.shape)} has 2^31 entries or more",
                "split the call, so that each part reads a smaller table",
            )
        tensors[f"real_table_{name}"] = table
        found |= {f"real_table_{name}_size_{axis}": size for axis, size in enumerate(table.shape)}
    return TermArguments(found, tensors)


def with_contiguous_rows(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors, copied where the last axis has steps: kernels read it as it lies."""
    for tensor in tensors:
        yield tensor if tensor.stride(3) == 1 else tensor.contiguous()


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
