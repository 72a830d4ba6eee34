"""The values of a pattern's parameters at a call: put in order, and checked as it declares them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from patterncc.arguments import LIMIT, describe, dtype_text, integer, shape_text
from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.pattern import SegmentsType, TableType

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from patterncc.dsl.pattern import Parameter
    from patterncc.signatures import Signature

_INTEGERS = (torch.int32, torch.int64)

# A table's axis: its length. Any length will do for a free axis and for tokens, as an index outside
# has a meaning, too.
_SIZE_OF: dict[str | None, str] = {
    "head": "heads",
    "kv_head": "kv_heads",
    "layer": "layers",
    "batch": "batches",
}


def bind(signature: Signature, values: Mapping[str, object]) -> tuple[list[int], list[Tensor]]:
    """The values of a pattern's parameters at a call, in the order of its signature.

    Raises:
        ArgumentError: One is missing, unknown or of a wrong type.
    """
    bound = bind_numbers(signature, values)
    tables = []
    for name in signature.tables:
        table = values.get(name)
        if not isinstance(table, Tensor):
            raise ArgumentError(
                f"`{name}` is {describe(table)}; the pattern needs a tensor"
                if name in values
                else f"`{name}` was not given; the pattern needs a tensor at every call"
            )
        tables.append(table)
    return bound, tables


def bind_numbers(signature: Signature, values: Mapping[str, object]) -> list[int]:
    """The run-time numbers of a call, in the order of the signature; tables are passed over.

    Raises:
        ArgumentError: One is missing, unknown or no integer.
    """
    check_names(signature, values)
    bound = []
    for name, default in zip(signature.numbers, signature.defaults, strict=True):
        given = values.get(name, default)
        if given is None:
            raise ArgumentError(
                f"`{name}` was not given and has no default; the pattern needs it at every call"
            )
        bound.append(integer(name, given))
    return bound


def check_names(signature: Signature, names: Iterable[str]) -> None:
    """Checks that a pattern has parameters of some names that a call can give.

    Raises:
        ArgumentError: It has not.
    """
    for name in names:
        if name not in signature.numbers and name not in signature.tables:
            _refuse_name(signature, name)


def bind_on_host(
    signature: Signature,
    declared: Sequence[Parameter],
    values: Mapping[str, object],
    scalars: Mapping[str, int],
) -> tuple[list[int], list[Tensor]]:
    """As `bind`, for what looks at one head on the CPU; the tables and their entries are checked.

    Args:
        signature: Of the pattern.
        declared: Its tables and segments, in name order.
        values: Of its parameters by name.
        scalars: `q_len`, `kv_len`, `q_offset` and what else is known, as in `check_tables`.

    Raises:
        ArgumentError: One is missing, unknown or not as the pattern declares it.
    """
    numbers, tables = bind(signature, values)
    check_tables(declared, tables, scalars, torch.device("cpu"))
    positions = max(scalars["kv_len"], scalars["q_offset"] + scalars["q_len"])
    check_entries(declared, tables, positions)
    return numbers, tables


def bind_arrays(
    declared: Sequence[Parameter],
    values: Mapping[str, object],
    sizes: Mapping[str, int],
    positions: int,
) -> dict[str, npt.NDArray[Any]]:
    """The tables among the values of a call as arrays, int64 or bool; those not given are left out.

    Args:
        declared: The tables and segments of a pattern.
        values: Of its parameters; tables as tensors or as anything that an array can be made of.
        sizes: `heads`, `kv_heads`, `layers`.
        positions: As in `check_entries`.

    Raises:
        ArgumentError: One is not as the pattern declares it.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for parameter in declared:
        given = values.get(parameter.name)
        if given is None:
            continue
        table = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
        table = table.cpu()
        check_tables((parameter,), (table,), sizes, table.device)
        check_entries((parameter,), (table,), positions)
        arrays[parameter.name] = as_array(table)
    return arrays


def as_array(table: Tensor) -> npt.NDArray[Any]:
    """A table on the CPU as programs evaluate it: bool, or int64."""
    array: npt.NDArray[Any] = table.detach().numpy()
    return array if array.dtype == np.bool_ else array.astype(np.int64, copy=False)


def _refuse_name(signature: Signature, name: str) -> NoReturn:
    if name in signature.fixed:
        raise ArgumentError(
            f"`{name}` is fixed when the pattern is compiled, so a call cannot give it; "
            f"compile the pattern with {name}=..."
        )
    known = ", ".join(f"`{other}`" for other in (*signature.numbers, *signature.tables))
    raise ArgumentError(
        f"`{name}` is not a parameter of the pattern, which takes {known or 'none'}"
    )


# --------------------------------------------------------------------------------- kinds of tables


def check_tables(
    declared: Sequence[Parameter],
    tables: Sequence[Tensor],
    sizes: Mapping[str, int],
    device: torch.device,
) -> None:
    """Checks that tables have the element types, axes and device that a pattern declares.

    Looks at no element, so it waits for no device; serves fake tensors, too.

    Args:
        declared: The tables and segments of a pattern, in name order.
        tables: One tensor for each.
        sizes: What is known of the call: `heads`, `kv_heads`, `layers` and `batches`, which are
            lengths of axes, or else `head`, `kv_head`, `layer` and `batch`, which they hold.
        device: Where the tables must be.

    Raises:
        ArgumentError: They have not.
    """
    for parameter, table in zip(declared, tables, strict=True):
        if table.device != device:
            raise ArgumentError(
                f"`{parameter.name}` is on {table.device}; this call needs it on {device}"
            )
        match parameter.type:
            case TableType(element, axes):
                _check_table(parameter.name, element, axes, table, sizes)
            case SegmentsType():
                _check_segments(parameter.name, table)


def _check_table(
    name: str,
    element: str,
    axes: tuple[str | None, ...],
    table: Tensor,
    sizes: Mapping[str, int],
) -> None:
    wanted = (torch.bool,) if element == "bool" else _INTEGERS
    if table.dtype not in wanted:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in wanted)
        raise ArgumentError(
            f"`{name}` is {dtype_text(table)}; the pattern needs a table of {element}, {names}"
        )
    if table.dim() != len(axes):
        names = ", ".join(axis or "*" for axis in axes)
        raise ArgumentError(
            f"`{name}` has {table.dim()} axes, {shape_text(table)}; "
            f"the pattern needs {len(axes)}, [{names}]"
        )
    for axis, what in enumerate(axes):
        if what not in _SIZE_OF:
            continue
        size, index = sizes.get(_SIZE_OF[what]), sizes.get(what or "")
        if size is not None and table.shape[axis] != size:
            raise ArgumentError(
                f"`{name}` has {table.shape[axis]} entries on axis {axis}, [{what}]; "
                f"it needs {size}"
            )
        if index is not None and table.shape[axis] <= index:
            raise ArgumentError(
                f"`{name}` has {table.shape[axis]} entries on axis {axis}, [{what}]; "
                f"`{what}` is {index}"
            )


def _check_segments(name: str, table: Tensor) -> None:
    if table.dtype not in _INTEGERS:
        raise ArgumentError(f"`{name}` is {dtype_text(table)}; `cu_seqlens` must be int32 or int64")
    if table.dim() != 1 or table.shape[0] == 0:
        raise ArgumentError(
            f"`{name}` has shape {shape_text(table)}; "
            "`cu_seqlens` must have one axis, [documents + 1]"
        )


# ------------------------------------------------------------------------------ entries of tables


def check_entries(declared: Sequence[Parameter], tables: Sequence[Tensor], positions: int) -> None:
    """Checks what tables hold, which reads them back from their device.

    Args:
        declared: The tables and segments of a pattern, in name order.
        tables: One tensor for each, as `check_tables` wants them.
        positions: Queries and keys of the call stand before this position.

    Raises:
        ArgumentError: A number is so large that arithmetic with it could overflow; `cu_seqlens` do
            not start at 0, fall somewhere, or end beyond the positions of the call.
    """
    for parameter, table in zip(declared, tables, strict=True):
        match parameter.type:
            case TableType("int"):
                _check_numbers(parameter.name, table)
            case SegmentsType():
                _check_documents(parameter.name, table, positions)


def _check_numbers(name: str, table: Tensor) -> None:
    if table.numel() == 0:
        return
    least, most = (int(bound) for bound in torch.aminmax(table))
    if least < -LIMIT or most > LIMIT:
        beyond = ((table < -LIMIT) | (table > LIMIT)).nonzero()[0].tolist()
        place = ", ".join(map(str, beyond))
        raise ArgumentError(
            f"`{name}[{place}]` is {int(table[tuple(beyond)])}; "
            f"entries must be in {-LIMIT} .. {LIMIT}"
        )


def _check_documents(name: str, bounds: Tensor, positions: int) -> None:
    if int(bounds[0]) != 0:
        raise ArgumentError(f"`{name}[0]` is {int(bounds[0])}; `cu_seqlens` start at 0")
    falls = (bounds[1:] < bounds[:-1]).nonzero()
    if len(falls):
        last = int(falls[0])
        raise ArgumentError(
            f"`{name}[{last + 1}]` is {int(bounds[last + 1])}, less than `{name}[{last}]`, "
            f"{int(bounds[last])}; `cu_seqlens` never fall"
        )
    if int(bounds[-1]) > positions:
        first = int((bounds > positions).nonzero()[0])
        raise ArgumentError(
            f"`{name}[{first}]` is {int(bounds[first])}; "
            f"this call has only {positions} positions for documents to end at"
        )
