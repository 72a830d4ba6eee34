"""The functions of the public interface: `compile` and `attention`. Loads no torch to compile."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

from patterncc import signatures
from patterncc.compiled import Attention
from patterncc.dsl import load
from patterncc.dsl.pattern import Pattern
from patterncc.dsl.score.terms import load_terms
from patterncc.signatures import Signature

if TYPE_CHECKING:
    from torch import Tensor

    from patterncc.codegen.facts.compare import Comparison

__all__ = ["Attention", "Source", "attention", "compile", "diff"]

Source: TypeAlias = "str | os.PathLike[str] | Pattern"


def compile(
    source: Source,
    *,
    name: str | None = None,
    file: str | None = None,
    score: str | None = None,
    sink: str | None = None,
    autotune: bool = False,
    deterministic: bool = True,
    isolate: bool | None = None,
    **values: int,
) -> Attention:
    """Reads a pattern and returns what computes attention under it.

    Kernels are generated when a call needs them and kept; they serve every length, offset and
    run-time number.

    Args:
        source: The pattern's text, the name of a library pattern, a path (a string that ends in
            `.pat` or a path object), or a `Pattern`.
        name: Which pattern of a text, if not the last.
        file: What messages call the text; the path if there is one.
        score: The logit of a pair that enters the softmax, in the language of score terms, such as
            `softcap(score, 50) + alibi(slopes)`; the score itself if not given.
        sink: The logit of one more key, of value 0, that every row sees, such as `sinks[head]`.
        autotune: Whether the first call of each kind (device, types, lengths up to a factor of two)
            may stop for minutes to look for the fastest kernel configuration, where none is kept
            for it; later calls and processes take it. Else nothing is ever tuned inside of a call.
            Under `torch.compile` and while a graph is captured nothing is tuned either: call it
            once before. In a job of several ranks they must make these calls together.
        deterministic: Whether repeated calls give gradients of the same bits, for which kernels
            wait for each other or take seven matrix products where five would do. Without it they
            are faster on some GPUs (docs/training.md); the output is the same.
        isolate: Whether NaN and infinities in query, key, value and their gradients reach only
            the rows and keys that see them on GPUs, too, as they do on the CPU: garbage in keys
            that the pattern hides then changes nothing. With True that holds for output and
            gradients, and takes a further launch for most kernels; with False nothing is done for
            it. If not given, `PATTERNCC_ISOLATE` decides; where that is not set, it holds for the
            output of kernels that see to it by themselves, which are those that Gluon writes, and
            not for gradients (docs/kernels.md; `explain` says which a pattern has).
        **values: Parameters by name. One that is fixed when compiled becomes a constant, a run-time
            one gets this default.

    Raises:
        PatternError: A text or a value is wrong; holds every mistake with its place.
        ArgumentError: `source` is of a wrong type, or a file of it is no text, or a name means one
            thing in the pattern and another in the score terms.
        UnsupportedError: `autotune` is asked for with score terms.
        OSError: The file cannot be read.
    """
    terms = load_terms(score, sink)
    if not isinstance(source, Pattern):
        text, path = signatures.read_source(source)
        pattern = load(text, name=name, file=file or path, **values)
    elif values:
        pattern = replace(load(source.text, name=None, file=None, **values), name=source.name)
    else:
        pattern = source
    return Attention(
        pattern, terms, autotune=autotune, deterministic=deterministic, isolate=isolate
    )


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
    score: str | None = None,
    sink: str | None = None,
    isolate: bool | None = None,
    **values: float | Tensor,
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
    score: str | None = None,
    sink: str | None = None,
    isolate: bool | None = None,
    **values: float | Tensor,
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
    score: str | None = None,
    sink: str | None = None,
    isolate: bool | None = None,
    **values: float | Tensor,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention in one call: `compile(source, ...)(query, key, value, ...)`, where texts used
    lately are read only once.

    A file is read at every call, and parsed again when its text has changed. See `compile` for
    `score`, `sink` and `isolate`, and `Attention.__call__` for the other arguments.
    """
    from patterncc import ops

    if isinstance(source, Pattern):
        signature = Signature.of(source)
    else:
        signature = ops.signature_of(os.fspath(source))
    terms = None
    if score is not None or sink is not None:
        terms = ops.signature_of_terms(score, sink)
        if terms is not None:
            terms.check_apart(signature)
    results = ops.attend(
        signature,
        query,
        key,
        value,
        scale,
        q_offset,
        layer,
        layers,
        values,
        terms,
        isolate=ops.isolates(isolate),
    )
    return results if return_lse else results[0]


def diff(
    left: Source | Attention,
    right: Source | Attention,
    *,
    defaults: bool = False,
    heads: int | None = None,
    kv_heads: int | None = None,
    layers: int | None = None,
    **values: int,
) -> Comparison:
    """Compares two patterns in all calls at once: all lengths, offsets, heads and layers.

    Run-time numbers of one name are one symbol that stands for every value. A claim is proved; a
    denial comes with the smallest pair of positions that shows it.

    Args:
        left, right: What `compile` takes, or a compiled pattern.
        defaults: Whether run-time numbers with a default have that value instead.
        heads, kv_heads, layers: Sizes that are known.
        **values: Parameters by name, bound in each of the two patterns that has them.

    Raises:
        PatternError: A text or a value is wrong.
        ConfigError: A size cannot be, or no pattern has a parameter of that name.
        UnsupportedError: A pattern reads a table, or the question is beyond integer sets or their
            budget; the message names the term.
        OSError: A file cannot be read.
    """
    from patterncc.codegen.facts.compare import compare_patterns
    from patterncc.pairing import known_sizes, load_pair

    texts = [
        (source.text, None)
        if isinstance(source, (Attention, Pattern))
        else signatures.read_source(source)
        for source in (left, right)
    ]
    first, second = load_pair(texts[0], texts[1], (None, None), values)
    sizes = known_sizes(heads, kv_heads, layers)
    return compare_patterns(first, second, sizes=sizes, defaults=defaults)
