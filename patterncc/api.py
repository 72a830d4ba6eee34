"""The functions of the public interface: `compile` and `attention`. Loads no torch to compile."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

from patterncc import pipeline
from patterncc.compiled import Attention
from patterncc.dsl import load
from patterncc.dsl.pattern import Pattern
from patterncc.pipeline import Signature

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Attention", "Source", "attention", "compile"]

Source: TypeAlias = "str | os.PathLike[str] | Pattern"


def compile(
    source: Source, *, name: str | None = None, file: str | None = None, **values: int
) -> Attention:
    """Reads a pattern and returns what computes attention under it.

    Kernels are generated when a call needs them and kept; they serve every length, offset and
    run-time number.

    Args:
        source: The pattern's text, the name of a library pattern, a path (a string that ends in
            `.pat` or a path object), or a `Pattern`.
        name: Which pattern of a text, if not the last.
        file: What messages call the text; the path if there is one.
        **values: Parameters by name. One that is fixed when compiled becomes a constant, a run-time
            one gets this default.

    Raises:
        PatternError: The text or a value is wrong; holds every mistake with its place.
        ArgumentError: `source` is of a wrong type, or a file of it is no text.
        OSError: The file cannot be read.
    """
    if isinstance(source, Pattern):
        if not values:
            return Attention(source)
        return Attention(
            replace(load(source.text, name=None, file=None, **values), name=source.name)
        )
    text, path = pipeline.read_source(source)
    return Attention(load(text, name=name, file=file or path, **values))


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source: Source,
    *,
    return_lse: Literal[False] = False,
    layer: int = 0,
    layers: int | None = None,
    q_offset: int | None = None,
    scale: float | None = None,
    **values: int | Tensor,
) -> Tensor: ...
@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source: Source,
    *,
    return_lse: Literal[True],
    layer: int = 0,
    layers: int | None = None,
    q_offset: int | None = None,
    scale: float | None = None,
    **values: int | Tensor,
) -> tuple[Tensor, Tensor]: ...
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    source: Source,
    *,
    return_lse: bool = False,
    layer: int = 0,
    layers: int | None = None,
    q_offset: int | None = None,
    scale: float | None = None,
    **values: int | Tensor,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention in one call: `compile(source)(query, key, value, ...)`, where texts used lately are
    read only once.

    A file is read at every call, and parsed again when its text has changed. See
    `Attention.__call__` for the arguments.
    """
    from patterncc import ops

    if isinstance(source, Pattern):
        signature = Signature.of(source)
    else:
        signature = ops.signature_of(os.fspath(source))
    results = ops.attend(
        signature,
        query,
        key,
        value,
        scale=scale,
        q_offset=q_offset,
        layer=layer,
        layers=layers,
        values=values,
    )
    return results if return_lse else results[0]
