"""A call from tensors and values to the operators: `attend`.

Importing this module defines the operators `torch.ops.patterncc.*` with their derivatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patterncc import autograd, eager, gpu_calls, score_call, settings, signatures
from patterncc.arguments import integer, refuse_types, scale_factor
from patterncc.operators import DEVICES
from patterncc.parameters import bind
from patterncc.recent import RecentCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from patterncc.score_call import ScoreSignature
    from patterncc.signatures import Signature

_torch: Any = torch  # the parts of torch that have no types


def attend(
    signature: Signature,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    q_offset: int | None,
    layer: int,
    layers: int | None,
    values: Mapping[str, object],
    score: ScoreSignature | None,
    recent: RecentCalls | None = None,
    deterministic: bool = True,
    isolate: bool | None = None,
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
        values: Run-time numbers and tables by name, those of the score terms among them.
        score: Of the score terms, if there are any.
        recent: Where calls are remembered that are found to be known.
        deterministic: Must repeated calls give gradients of the same bits?
        isolate: Must numbers that are not finite reach only rows and keys that see them, on GPUs,
            too? None: rows, where that takes no launch.

    Returns:
        The output `[batch, heads, q_len, value_head_dim]`, of the dtype of `query`, and the natural
        log-sum-exp of the visible logits, that of a sink among them, `[batch, heads, q_len]`,
        float32 (float64 for float64).

    Raises:
        ArgumentError: An argument is wrong.
        UnsupportedError: It cannot be done on this device, or with this dtype.
    """
    place = None
    if not torch.compiler.is_compiling() and eager.bare(query, key, value):
        given = (scale, q_offset, layer, layers)
        place = eager.call_signature(signature, score, query, key, value, given, values, isolate)
        known = None if place is None else eager.calls.get(place)
        if known is not None:
            if recent is not None:
                recent.add(known, query, key, value, given, values)
            if known.tabled:
                return eager.run_with_tables(known, query, key, value, values)
            return known.ready(query, key, value, gpu_calls.NO_TABLES, known.values)
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        refuse_types(query, key, value)
    if scale is not None:
        scale = scale_factor(scale)
    if q_offset is not None:
        q_offset = integer("q_offset", q_offset)
    layer = integer("layer", layer, least=0)
    if layers is not None:
        layers = integer("layers", layers, least=1)
    terms: tuple[Any, ...] = ()
    of_pattern = values
    score_tables: list[Tensor] = []
    if score is not None:
        score_numbers, score_tables, of_pattern = score.split(values)
        terms = (score.text, score_numbers)
    if isolate is not None:
        terms = (*(terms or (None, ())), deterministic, isolate)
    elif not deterministic:
        terms = (*(terms or (None, ())), False)
    numbers, tables = bind(signature, of_pattern)
    tables += score_tables
    options = (signature.structure, tables, numbers, scale, q_offset, layer, layers, *terms)
    if place is not None:
        eager.calls.keep(place, gpu_calls.planned(query, key, value, options))
        return gpu_calls.attn_fwd(query, key, value, *options)
    if query.device.type in DEVICES and eager.casts(query, key, value):
        recent = None  # the next call like this one is given what has yet to be cast, too
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (_autocast(tensor, dtype) for tensor in (query, key, value))
    out: Tensor
    lse: Tensor
    out, lse = autograd.attend(query, key, value, *options)
    if recent is not None and query.is_cuda and out.requires_grad:
        _remember(recent, query, key, value, (scale, q_offset, layer, layers), values, options)
    return out, lse


def _remember(
    recent: RecentCalls,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    numbers: tuple[Any, ...],
    values: Mapping[str, object],
    options: tuple[Any, ...],
) -> None:
    """Lets the next call like one that was recorded go the short way, if it may."""
    if not all(isinstance(x, Tensor) or type(x) in (int, float) for x in values.values()):
        return
    if autograd.transforming() or not eager.unattended((query, key, value, *options[1])):
        return
    pattern, tables, *rest = autograd.short((query, key, value, *options), 3)[3:]
    planned = gpu_calls.already_planned(query, key, value, (pattern, tables, *rest))
    if planned is not None:
        recent.add(planned, query, key, value, numbers, values, (pattern, *rest))


# Of a text, a library name or a path. torch.compile calls these once, while it traces.
signature_of: Callable[[str], Signature] = _torch.compiler.assume_constant_result(
    signatures.signature_of
)
signature_of_terms: Callable[[str | None, str | None], ScoreSignature | None] = (
    _torch.compiler.assume_constant_result(score_call.signature_of_terms)
)
isolates: Callable[[bool | None], bool | None] = _torch.compiler.assume_constant_result(
    settings.isolates
)


def _autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """What autocast does to the arguments of scaled_dot_product_attention."""
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        return tensor.to(dtype)
    return tensor
