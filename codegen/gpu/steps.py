"""Planned launches as they run, given their tensors.

What forward and backward calls share on the host; plans are made in `plan` and `backward_plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from patterncc.codegen.dtypes import DTYPE_NAMES
from patterncc.codegen.gpu import launch
from patterncc.codegen.gpu.bound_launch import BoundLaunch, bind
from patterncc.codegen.gpu.launches import serves
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from patterncc.codegen.gpu.launches import Launch
    from patterncc.codegen.gpu.table_source import Table, TableKind
    from patterncc.codegen.score.values import ScoreValues
    from patterncc.dsl.score.terms import ScoreTerms

NO_TABLES: Mapping[str, torch.Tensor] = MappingProxyType({})

_TABLE_DTYPES: Mapping[TableKind, tuple[torch.dtype, ...]] = {
    "int": (torch.int32,),
    "bool": (torch.bool, torch.uint8),
    "segments": (torch.int32,),
}

_torch: Any = torch  # the parts of torch that have no types
current_device: Callable[[], int] = getattr(_torch._C, "_cuda_getDevice", lambda: -1)
current_stream: Callable[[int], int] = getattr(_torch._C, "_cuda_getCurrentRawStream", lambda _: 0)


def bind_all(
    launches: Sequence[Launch],
    tables: Mapping[str, torch.Tensor],
    device: torch.device,
    folder: Path | None,
) -> tuple[BoundLaunch, ...]:
    """The launches of a call, as they run.

    Args:
        launches: As planned.
        tables: The pattern's tables, by name.
        device: Where all of that is.
        folder: Where generated sources are written; the user's cache by default.

    Raises:
        UnsupportedError: Kernels do not run there.
        ConfigError: A table is of another kind than the pattern reads, or the device has too little
            shared memory.
    """
    for planned in launches:
        _check_tables(planned.source.tables, tables, device)
    return tuple(bind(planned, device, folder) for planned in launches)


def all_serve(steps: Iterable[BoundLaunch] | None, tables: Mapping[str, torch.Tensor]) -> bool:
    """Are the launches of a call, if it has any, right for tables of other shapes, too?

    Raises:
        UnsupportedError: A table is too large to look up in.
    """
    shapes = shapes_of(tables)
    return all(serves(step.planned, shapes) for step in steps or ())


def run(
    steps: Iterable[BoundLaunch], operands: dict[str, torch.Tensor], device: torch.device
) -> None:
    """Launches the kernels of a call one after another on the current stream.

    Args:
        steps: Of the call.
        operands: What pointers and descriptors point to, by name, tables as `table_NAME`; it grows
            by the buffers.
        device: Where all of that is.
    """
    index = index_of(device)
    if index >= 0 and index != current_device():
        with torch.cuda.device(device):
            run_here(steps, operands, index)
    else:
        run_here(steps, operands, index)


def run_here(steps: Iterable[BoundLaunch], operands: dict[str, torch.Tensor], index: int) -> None:
    """As `run`, on the current device if it is a GPU; `index` as from `index_of`."""
    stream = current_stream(index) if index >= 0 else 0
    for step in steps:
        if step.rooms:
            for name, room in step.rooms:
                operands[name] = room()
        step(operands, stream)


def index_of(device: torch.device) -> int:
    """The number of a GPU; -1 for what is none."""
    return -1 if device.type != "cuda" or device.index is None else device.index


def named_operands(tables: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The pattern's tables, as kernels call them."""
    return {f"table_{name}": table for name, table in tables.items()}


def layout_of(name: str, tensor: torch.Tensor) -> Layout:
    """Where a tensor `[batch, heads, length, head_dim]` lies."""
    return Layout(
        name, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.element_size()
    )


def shapes_of(tables: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes of tables, by name."""
    return {name: tuple(table.shape) for name, table in tables.items()}


def problem_of(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    terms: ScoreTerms,
    *,
    isolates: bool | None,
) -> Problem:
    """The shape class of a call with score terms; `isolates` as of `Problem`.

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
    dims = (query.shape[3], value.shape[3])
    return Problem(DTYPE_NAMES[query.dtype], *dims, group, terms, isolates)


def term_values(terms: ScoreTerms, values: ScoreValues, device: torch.device) -> dict[str, float]:
    """The values of the parameters that score terms add to kernels, by name.

    Raises:
        ArgumentError: As from `ScoreValues.check`.
        UnsupportedError: A table has so many entries that kernels cannot count them.
    """
    values.check(terms, device)
    found: dict[str, float] = {f"real_{name}": values.numbers[name] for name in terms.numbers}
    for name in terms.tables:
        table = values.tables[name]
        if table.numel() >= 2**31:
            raise UnsupportedError(
                f"the table {name} of {tuple(table.shape)} has 2^31 entries or more",
                "split the call, so that each part reads a smaller table",
            )
        found |= {f"real_table_{name}_size_{axis}": size for axis, size in enumerate(table.shape)}
    return found


def term_operands(values: ScoreValues) -> dict[str, torch.Tensor]:
    """The tables of score terms, as kernels call them; copied where they are not float32 and
    contiguous."""
    found = {}
    for name, table in values.tables.items():
        if table.dtype != torch.float32 or table.requires_grad or not table.is_contiguous():
            table = table.detach().float().contiguous()
        found[f"real_table_{name}"] = table
    return found


def with_contiguous_rows(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors, copied where the last axis has steps: kernels read it as it lies."""
    for tensor in tensors:
        yield tensor if tensor.stride(3) == 1 else tensor.contiguous()


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
