"""What an operator does before it runs anything: its arguments checked, what was left open filled
in.

A graph may call an operator with anything, so nothing is taken for granted. What numbers alone
decide is kept, because a model repeats its calls.
"""

from __future__ import annotations

import functools
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from patterncc import pipeline
from patterncc.arguments import check_tensors, integer, scale_factor
from patterncc.dsl.errors import ArgumentError
from patterncc.parameters import check_entries, check_tables
from patterncc.settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patterncc.dsl.pattern import Parameter


class Prepared(NamedTuple):
    """A checked call, with everything that was left open filled in. Shared: not to be changed.

    Attributes:
        sizes: The values of the sizes that the pattern divides by.
        within: Whether the rows end within the keys.
        env: Every scalar of the call by name.
        scale: Factor of the scores.
        declared: The tables of the pattern, in the order in which they travel.
    """

    sizes: tuple[tuple[str, int], ...]
    within: bool
    env: Mapping[str, int]
    scale: float
    declared: tuple[Parameter, ...]

    def named(self, tables: Sequence[Tensor]) -> dict[str, Tensor]:
        """The tables of the call by name."""
        names = (parameter.name for parameter in self.declared)
        return dict(zip(names, tables, strict=True))


def prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: str,
    scale: float | None,
    q_offset: int | None,
    layer: int,
    layers: int | None,
    numbers: Sequence[int],
    tables: Sequence[Tensor],
) -> Prepared:
    """Checks the arguments that all operators share.

    Raises:
        ArgumentError: One is wrong.
        UnsupportedError: The dtype has no kernel.
        PatternError: `pattern` is none.
    """
    check_tensors(query, key, value)
    batch, heads, q_len, head_dim = query.shape
    _, kv_heads, kv_len, _ = key.shape
    if scale is None:
        scale = head_dim**-0.5
    call = resolve(
        pattern, heads, kv_heads, q_len, kv_len, scale, q_offset, layer, layers, tuple(numbers)
    )
    if tables or call.declared:
        check_count(call.declared, tables)
        check_tables(call.declared, tables, {**call.env, "batches": batch}, query.device)
        look_into(call, tables)
    return call


def check_count(declared: Sequence[Parameter], tables: Sequence[Tensor]) -> None:
    """Checks that there are as many tables as the pattern takes.

    Raises:
        ArgumentError: There are not.
    """
    if len(tables) != len(declared):
        names = ", ".join(parameter.name for parameter in declared)
        raise ArgumentError(
            f"`tables` has {len(tables)} tensors; the pattern takes {len(declared)}: "
            f"{names or 'none'}"
        )


# Tables on other devices whose entries were looked at: their version, and up to which position.
_looked_into: Any = WeakIdKeyDictionary()


def look_into(call: Prepared, tables: Sequence[Tensor]) -> None:
    """Checks the entries of tables: on the CPU at every call; elsewhere, as the host has to wait
    for them, only where `PATTERNCC_VERIFY` is set, and each tensor once."""
    positions = max(call.env["kv_len"], call.env["q_offset"] + call.env["q_len"])
    if not tables or tables[0].device.type == "cpu":
        check_entries(call.declared, tables, positions)
    elif settings().verify and not torch.cuda.is_current_stream_capturing():
        for parameter, table in zip(call.declared, tables, strict=True):
            state = (None if table.is_inference() else table._version, positions)
            if _looked_into.get(table) != state:
                check_entries((parameter,), (table,), positions)
                _looked_into[table] = state


@functools.lru_cache(maxsize=1024)
def resolve(
    pattern: str,
    heads: int,
    kv_heads: int,
    q_len: int,
    kv_len: int,
    scale: float,
    q_offset: int | None,
    layer: int,
    layers: int | None,
    numbers: tuple[int, ...],
) -> Prepared:
    """What the numbers of a call mean.

    Raises:
        ArgumentError: One is missing or wrong.
        PatternError: `pattern` is none.
    """
    resolved = pipeline.resolve(pattern)
    if len(numbers) != len(resolved.numbers):
        raise ArgumentError(
            f"`numbers` has {len(numbers)} values; the pattern takes {len(resolved.numbers)}: "
            f"{', '.join(resolved.numbers) or 'none'}"
        )
    q_offset = kv_len - q_len if q_offset is None else integer("q_offset", q_offset)
    env = {
        "q_len": q_len,
        "kv_len": kv_len,
        "q_offset": q_offset,
        "heads": heads,
        "kv_heads": kv_heads,
        "layer": integer("layer", layer, least=0),
    }
    for name, number in zip(resolved.numbers, numbers, strict=True):
        env[name] = integer(name, number)
    if layers is not None:
        env["layers"] = integer("layers", layers, least=1)
        if layer >= layers:
            raise ArgumentError(f"`layer` is {layer}; it must be below `layers`, which is {layers}")
    elif "layers" in resolved.reads:
        raise ArgumentError("`layers` was not given; the pattern reads the number of layers")
    return Prepared(
        sizes=tuple((name, env[name]) for name in resolved.sizes),
        within=q_offset >= 0 and q_offset + q_len <= kv_len,
        env=MappingProxyType(env),
        scale=scale_factor(scale),
        declared=resolved.pattern.tables,
    )
