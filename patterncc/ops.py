"""The torch operators: `torch.ops.patterncc.attn_fwd` and what stands around it in a call.

Importing this module registers them. The pattern travels as its canonical text, so an operator
keeps no state: a graph that holds one runs in any process that has imported this module, such as
one that loads a program of `torch.export`.
"""

from __future__ import annotations

import functools
import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from patterncc import pipeline
from patterncc.arguments import check_tensors, integer, refuse_types, scale_factor
from patterncc.codegen import cpu
from patterncc.dsl.errors import ArgumentError, UnsupportedError
from patterncc.parameters import bind, check_entries, check_tables
from patterncc.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from patterncc.dsl.pattern import Parameter
    from patterncc.pipeline import Signature

DEVICES = ("cpu", "cuda")
_CPU_TILE = (cpu.default_config().block_q, cpu.default_config().block_k)

_torch: Any = torch  # the parts of torch that have no types
_LIBRARY = _torch.library.Library("patterncc", "DEF")  # the operators live as long as this does

_LIBRARY.define(
    "attn_fwd(Tensor query, Tensor key, Tensor value, str pattern, float? scale, SymInt? q_offset, "
    "SymInt layer, SymInt? layers, SymInt[] numbers, Tensor[] tables) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define("refuse_grad(Tensor query) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


# ------------------------------------------------------------------------------------------- calls


def attend(
    signature: Signature,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    q_offset: int | None = None,
    layer: int = 0,
    layers: int | None = None,
    values: Mapping[str, object],
) -> tuple[Tensor, Tensor]:
    """Attention under a pattern: everything of a call that is not the operator itself.

    Args:
        signature: Of the pattern.
        query: `[batch, heads, q_len, head_dim]`.
        key: `[batch, kv_heads, kv_len, head_dim]`.
        value: `[batch, kv_heads, kv_len, value_head_dim]`.
        scale: Factor of the scores; `head_dim ** -0.5` if not given.
        q_offset: Position of row 0; `kv_len - q_len` if not given.
        layer: Layer number.
        layers: Number of layers, where the pattern reads it.
        values: Run-time numbers and tables by name.

    Returns:
        The output `[batch, heads, q_len, value_head_dim]`, of the dtype of `query`, and the natural
        log-sum-exp of the visible scores `[batch, heads, q_len]`, float32 (float64 for float64).

    Raises:
        ArgumentError: An argument is wrong.
        UnsupportedError: It cannot be done on this device, or with this dtype, or needs a backward.
    """
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        refuse_types(query, key, value)
    if scale is not None:
        scale = scale_factor(scale)
    if q_offset is not None:
        q_offset = integer("q_offset", q_offset)
    layer = integer("layer", layer, least=0)
    if layers is not None:
        layers = integer("layers", layers, least=1)
    numbers, tables = bind(signature, values)
    device = query.device.type
    if device in DEVICES and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (_autocast(tensor, dtype) for tensor in (query, key, value))
    if torch.is_grad_enabled() and (
        query.requires_grad or key.requires_grad or value.requires_grad
    ):
        query, key, value = _refuse_grad(query.detach()), key.detach(), value.detach()
    out: Tensor
    lse: Tensor
    out, lse = _attn_fwd(
        query, key, value, signature.structure, scale, q_offset, layer, layers, numbers, tables
    )
    return out, lse


# Of a text, a library name or a path. torch.compile calls it once, while it traces.
signature_of: Callable[[str], Signature] = _torch.compiler.assume_constant_result(
    pipeline.signature_of
)


def _autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """What autocast does to the arguments of scaled_dot_product_attention."""
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        return tensor.to(dtype)
    return tensor


# ---------------------------------------------------------------------------------------- operators


class _Call(NamedTuple):
    """A checked call, with everything that was left open filled in. Shared: not to be changed."""

    sizes: tuple[tuple[str, int], ...]
    within: bool
    env: Mapping[str, int]
    scale: float
    declared: tuple[Parameter, ...]


def _prepare(
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
) -> _Call:
    """Checks the arguments of an operator: a graph may call it with anything."""
    check_tensors(query, key, value)
    batch, heads, q_len, head_dim = query.shape
    _, kv_heads, kv_len, _ = key.shape
    if scale is None:
        scale = head_dim**-0.5
    call = _resolve(
        pattern, heads, kv_heads, q_len, kv_len, scale, q_offset, layer, layers, tuple(numbers)
    )
    if tables or call.declared:
        _check_count(call.declared, tables)
        check_tables(call.declared, tables, {**call.env, "batches": batch}, query.device)
        _look_into(call, tables)
    return call


def _check_count(declared: Sequence[Parameter], tables: Sequence[Tensor]) -> None:
    if len(tables) != len(declared):
        names = ", ".join(parameter.name for parameter in declared)
        raise ArgumentError(
            f"`tables` has {len(tables)} tensors; the pattern takes {len(declared)}: "
            f"{names or 'none'}"
        )


# Tables on other devices whose entries were looked at: their version, and up to which position.
_looked_into: Any = WeakIdKeyDictionary()


def _look_into(call: _Call, tables: Sequence[Tensor]) -> None:
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
def _resolve(
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
) -> _Call:
    """What the numbers of a call mean; kept, because a model repeats its calls."""
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
    return _Call(
        sizes=tuple((name, env[name]) for name in resolved.sizes),
        within=q_offset >= 0 and q_offset + q_len <= kv_len,
        env=MappingProxyType(env),
        scale=scale_factor(scale),
        declared=resolved.pattern.tables,
    )


def _like(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the results of a call."""
    out = query.new_empty((*query.shape[:3], value.shape[3]))
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return out, query.new_empty(query.shape[:3], dtype=wide)


def _attn_fwd_fake(
    query: Tensor, key: Tensor, value: Tensor, pattern: str, *rest: Any
) -> tuple[Tensor, Tensor]:
    check_tensors(query, key, value)
    tables: list[Tensor] = rest[-1]
    if tables:
        declared = pipeline.resolve(pattern).pattern.tables
        _check_count(declared, tables)
        check_tables(declared, tables, {}, query.device)  # sizes may be symbols: no guards on them
    return _like(query, value)


def _attn_fwd_cpu(
    query: Tensor, key: Tensor, value: Tensor, pattern: str, *rest: Any
) -> tuple[Tensor, Tensor]:
    call = _prepare(query, key, value, pattern, *rest)
    if query.numel() == 0 or key.numel() == 0:
        return _nothing(query, value)
    passes = pipeline.passes(pattern, *_CPU_TILE, call.sizes, call.within)
    tables = _named(call, rest[-1])
    return cpu.attention(passes, query, key, value, env=call.env, tables=tables, scale=call.scale)


def _attn_fwd_cuda(
    query: Tensor, key: Tensor, value: Tensor, pattern: str, *rest: Any
) -> tuple[Tensor, Tensor]:
    call = _prepare(query, key, value, pattern, *rest)
    if query.numel() == 0 or key.numel() == 0:
        return _nothing(query, value)
    forward = pipeline.launcher(pattern, call.sizes)
    tables = {name: _narrow(table) for name, table in _named(call, rest[-1]).items()}
    return forward(query, key, value, env=call.env, scale=call.scale, tables=tables)


def _named(call: _Call, tables: Sequence[Tensor]) -> dict[str, Tensor]:
    return {parameter.name: table for parameter, table in zip(call.declared, tables, strict=True)}


def _narrow(table: Tensor) -> Tensor:
    """What kernels read: contiguous, numbers as int32. It is made anew at each call, as what a
    table holds may change between calls, or between replays of a graph."""
    return (table.int() if table.dtype == torch.int64 else table).contiguous()


def _attn_fwd_elsewhere(
    query: Tensor, key: Tensor, value: Tensor, pattern: str, *rest: Any
) -> tuple[Tensor, Tensor]:
    check_tensors(query, key, value)
    raise UnsupportedError(
        f"`query` is on {query.device}, which has no executor",
        f"move query, key and value to one of: {', '.join(DEVICES)}",
    )


def _nothing(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The result where there is no row, or no key to see."""
    out, lse = _like(query, value)
    return out.zero_(), lse.fill_(-math.inf)


def _refuse_grad_here(query: Tensor) -> Tensor:
    raise UnsupportedError(
        "backward is not there yet, and query, key or value requires grad",
        "call under torch.no_grad() or torch.inference_mode(), or detach the inputs",
    )


def _refuse_grad_fake(query: Tensor) -> Tensor:
    return torch.empty_like(query)


def _attn_fwd_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: str,
    *rest: Any,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """vmap puts the new axis in front of the batch: one call of the operator, unless the pattern
    reads `batch` or a table has the axis, too."""
    size = info.batch_size
    *others, tables = rest
    table_dims: list[int | None] = in_dims[-1] or [None] * len(tables)
    tensors = [
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip((query, key, value), in_dims, strict=False)
    ]
    if "batch" in pipeline.resolve(pattern).reads or any(dim is not None for dim in table_dims):
        slices = []
        for index, parts in enumerate(zip(*tensors, strict=True)):
            own = [
                table if dim is None else table.select(dim, index)
                for table, dim in zip(tables, table_dims, strict=True)
            ]
            slices.append(_attn_fwd(*parts, pattern, *others, own))
        outs, lses = zip(*slices, strict=True)
        return (torch.stack(outs), torch.stack(lses)), (0, 0)
    out, lse = _attn_fwd(*(tensor.flatten(0, 1) for tensor in tensors), pattern, *rest)
    return (
        out.unflatten(0, (size, tensors[0].shape[1])),
        lse.unflatten(0, (size, tensors[0].shape[1])),
    ), (0, 0)


_LIBRARY.impl("attn_fwd", _attn_fwd_cpu, "CPU")
_LIBRARY.impl("attn_fwd", _attn_fwd_cuda, "CUDA")
_LIBRARY.impl("attn_fwd", _attn_fwd_elsewhere, "CompositeExplicitAutograd")
torch.library.register_fake("patterncc::attn_fwd", _attn_fwd_fake, lib=_LIBRARY)
torch.library.register_vmap("patterncc::attn_fwd", _attn_fwd_vmap, lib=_LIBRARY)
_LIBRARY.impl("refuse_grad", _refuse_grad_here, "CompositeExplicitAutograd")
torch.library.register_fake("patterncc::refuse_grad", _refuse_grad_fake, lib=_LIBRARY)

# Bound once: looking an operator up costs more than calling it.
_attn_fwd = torch.ops.patterncc.attn_fwd.default
_refuse_grad = torch.ops.patterncc.refuse_grad.default
