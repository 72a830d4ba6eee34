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

from patterncc import programs, signatures
from patterncc.arguments import check_tensors, integer, scale_factor
from patterncc.codegen.backward_tensors import BackwardTensors
from patterncc.codegen.gpu.signature import table_kind
from patterncc.codegen.score.values import NO_VALUES, ScoreValues
from patterncc.dsl.errors import ArgumentError, UnsupportedError
from patterncc.dsl.score.nodes import coordinates_read
from patterncc.dsl.score.terms import PLAIN, terms_of
from patterncc.parameters import check_entries, check_tables
from patterncc.settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patterncc.codegen.gpu.signature import Signature
    from patterncc.dsl.pattern import Parameter
    from patterncc.dsl.score.terms import ScoreTerms


INPUTS = 3
"""Tensors that come first among the arguments of a forward: query, key and value."""

BACKWARD = len(BackwardTensors._fields)
"""Tensors that come first among the arguments of a backward."""


class Options(NamedTuple):
    """What an operator takes after its tensors, in the order of its schema and with its defaults.

    Attributes:
        pattern: Canonical text without the run-time defaults.
        tables: The pattern's tables and segments, in name order, then those that the score terms
            read, in name order.
        numbers: The pattern's run-time numbers, in name order.
        scale: Factor of the scores; `head_dim ** -0.5` if not given.
        q_offset: Position of row 0; `kv_len - q_len` if not given.
        layer, layers: Number of the layer, and of layers.
        score: Canonical text of the score terms; None where there are none.
        score_numbers: The numbers that they read, in name order.
        deterministic: Must repeated calls give gradients of the same bits?
        isolate: Must numbers that are not finite reach only rows and keys that see them, on GPUs,
            too? None: rows, where that takes no launch.
        needs: Of `attn_bwd` only: whether the gradients of query, key, value and each table are
            asked for; None asks for all that there are.
    """

    pattern: str
    tables: Sequence[Tensor]
    numbers: Sequence[int] = ()
    scale: float | None = None
    q_offset: int | None = None
    layer: int = 0
    layers: int | None = None
    score: str | None = None
    score_numbers: Sequence[float] = ()
    deterministic: bool = True
    isolate: bool | None = None
    needs: Sequence[bool] | None = None

    @property
    def signature(self) -> Signature:
        """All of it that checks and plans depend on."""
        return (
            self.pattern,
            *map(table_kind, self.tables),
            *self.numbers,
            *self[3:8],
            *self.score_numbers,
            self.deterministic,
            self.isolate,
            None if self.needs is None else tuple(self.needs),
        )


class Prepared(NamedTuple):
    """A checked call, with everything that was left open filled in. Shared: not to be changed.

    Attributes:
        sizes: The values of the sizes that the pattern divides by.
        within: Whether the rows end within the keys, and begin where programs that are lowered so
            take it for granted.
        env: Every scalar of the call by name.
        scale: Factor of the scores.
        declared: The tables of the pattern, in the order in which they travel.
        terms: Which logits enter the softmax.
        score_numbers, score_tables: What they read by name, in the order in which it travels.
    """

    sizes: tuple[tuple[str, int], ...]
    within: bool
    env: Mapping[str, int]
    scale: float
    declared: tuple[Parameter, ...]
    terms: ScoreTerms
    score_numbers: tuple[str, ...]
    score_tables: tuple[str, ...]

    def named(self, options: Options) -> dict[str, Tensor]:
        """The tables of the pattern by name."""
        return {
            parameter.name: table
            for parameter, table in zip(self.declared, options.tables, strict=False)
        }

    def score_values(self, options: Options) -> ScoreValues:
        """What the score terms read, by name."""
        if self.terms is PLAIN:
            return NO_VALUES
        return ScoreValues(
            dict(zip(self.score_numbers, options.score_numbers, strict=True)),
            dict(zip(self.score_tables, options.tables[len(self.declared) :], strict=True)),
        )

    def wanted_tables(self, options: Options) -> tuple[str, ...]:
        """The tables of the score terms whose gradients are asked for, in the order in which they
        travel.

        Raises:
            ArgumentError: As from `wanted_gradients`.
        """
        asked = wanted_gradients(options, len(self.declared))[3 + len(self.declared) :]
        return tuple(name for name, yes in zip(self.score_tables, asked, strict=True) if yes)


def wanted_gradients(options: Options, declared: int) -> Sequence[bool]:
    """Whether the gradients of query, key, value and each table are asked for.

    Args:
        options: Of a backward call.
        declared: How many of the tables are the pattern's, which have no gradient.

    Raises:
        ArgumentError: `needs` has not a value for each, or asks for one that there is not.
    """
    count = 3 + len(options.tables)
    if options.needs is None:
        return (True, True, True, *(place >= declared for place in range(count - 3)))
    if len(options.needs) != count or any(options.needs[3 : 3 + declared]):
        raise ArgumentError(
            f"`needs` is {list(options.needs)}; it must have {count} values, those of the "
            f"pattern's {declared} tables false"
        )
    return options.needs


def refuse_double_backward(terms: ScoreTerms) -> None:
    """Refuses second derivatives with score terms.

    Raises:
        UnsupportedError: There are terms.
    """
    if not terms.plain:
        raise UnsupportedError(
            "attention with score terms has first derivatives only, and a second was asked for",
            "take it from dense attention under `mask(...)`",
        )


def prepare(query: Tensor, key: Tensor, value: Tensor, options: Options) -> Prepared:
    """Checks the arguments that all operators share.

    Raises:
        ArgumentError: One is wrong.
        UnsupportedError: The dtype has no kernel.
        PatternError: `pattern` is none, or `score` are no terms.
    """
    check_tensors(query, key, value)
    batch, heads, q_len, head_dim = query.shape
    _, kv_heads, kv_len, _ = key.shape
    pattern, tables, numbers, scale, q_offset, layer, layers, score = options[:8]
    call = resolve(
        pattern,
        heads,
        kv_heads,
        q_len,
        kv_len,
        head_dim**-0.5 if scale is None else scale,
        q_offset,
        layer,
        layers,
        tuple(numbers),
        score,
    )
    check_count(call.declared, call.score_numbers, call.score_tables, options)
    if call.declared:
        own = tables[: len(call.declared)]
        check_tables(call.declared, own, {**call.env, "batches": batch}, query.device)
        look_into(call, own)
    if score is not None:
        call.score_values(options).check(call.terms, query.device)
    return call


def check_fakes(query: Tensor, key: Tensor, value: Tensor, options: Options) -> ScoreTerms:
    """Checks what can be known of the arguments of a call without its numbers, which may be
    symbols; returns the score terms.

    Raises:
        ArgumentError, UnsupportedError, PatternError: As from `prepare`.
    """
    check_tensors(query, key, value)
    terms = PLAIN if options.score is None else terms_of(options.score)
    if options.tables or options.score_numbers:
        declared = signatures.resolve(options.pattern).pattern.tables
        names = tuple(terms.tables)
        check_count(declared, terms.numbers, names, options)
        own, others = options.tables[: len(declared)], options.tables[len(declared) :]
        check_tables(declared, own, {}, query.device)  # no guards on symbols
        numbers = dict(zip(terms.numbers, options.score_numbers, strict=True))
        values = ScoreValues(numbers, dict(zip(names, others, strict=True)))
        values.check(terms, query.device)
    return terms


def check_count(
    declared: Sequence[Parameter],
    score_numbers: Sequence[str],
    score_tables: Sequence[str],
    options: Options,
) -> None:
    """Checks that there are as many tables as a pattern and score terms take, and as many numbers
    as the terms do.

    Raises:
        ArgumentError: There are not.
    """
    names = (*(parameter.name for parameter in declared), *score_tables)
    who = "the pattern takes" if options.score is None else "the pattern and the score take"
    if len(options.tables) != len(names):
        raise ArgumentError(
            f"`tables` has {len(options.tables)} tensors; {who} {len(names)}: "
            f"{', '.join(names) or 'none'}"
        )
    if len(options.score_numbers) != len(score_numbers):
        raise ArgumentError(
            f"`score_numbers` has {len(options.score_numbers)} values; the score takes "
            f"{len(score_numbers)}: {', '.join(score_numbers) or 'none'}"
        )


# Tables on other devices whose entries were looked at: their version, and up to which position.
_looked_into: Any = WeakIdKeyDictionary()


def look_into(call: Prepared, tables: Sequence[Tensor]) -> None:
    """Checks the entries of tables: on the CPU at every call; elsewhere, as the host has to wait
    for them, only where `PATTERNCC_VERIFY` is set, and each tensor once."""
    if not tables:
        return
    on_host = tables[0].device.type == "cpu"
    if not on_host and not settings().verify:
        return
    positions = max(call.env["kv_len"], call.env["q_offset"] + call.env["q_len"])
    if on_host:
        check_entries(call.declared, tables, positions)
    elif not torch.cuda.is_current_stream_capturing():
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
    score: str | None = None,
) -> Prepared:
    """What the numbers of a call mean.

    Raises:
        ArgumentError: One is missing or wrong.
        PatternError: `pattern` is none, or `score` are no terms.
    """
    resolved = signatures.resolve(pattern)
    terms = PLAIN if score is None else terms_of(score)
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
    elif any("layers" in coordinates_read(expr) for expr in terms.exprs):
        raise ArgumentError("`layers` was not given; the score reads the number of layers")
    sizes = tuple((name, env[name]) for name in resolved.sizes)
    within = q_offset >= 0 and q_offset + q_len <= kv_len
    if within and q_offset:
        within = q_offset % programs.first_row_step_of(pattern, sizes) == 0
    return Prepared(
        sizes=sizes,
        within=within,
        env=MappingProxyType(env),
        scale=scale_factor(scale),
        declared=resolved.pattern.tables,
        terms=terms,
        score_numbers=terms.numbers,
        score_tables=tuple(terms.tables),
    )
