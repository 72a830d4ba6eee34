"""The torch operators of attention with score terms: schemas, what runs on each device, fakes.

`scored_fwd` is attention, `scored_bwd` its gradients, those of tables that the terms read among
them. Beside the pattern, the terms travel as their canonical text; their tables come before all
that has no gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from patterncc import pipeline
from patterncc.arguments import check_backward_tensors, check_tensors
from patterncc.codegen import cpu
from patterncc.codegen.score.values import ScoreValues
from patterncc.dsl.errors import ArgumentError, UnsupportedError
from patterncc.dsl.score.nodes import coordinates_read
from patterncc.dsl.score.terms import terms_of
from patterncc.operators import (
    CALL_SCHEMA,
    LIBRARY,
    as_typed,
    check_fakes,
    cpu_passes,
    elsewhere,
    like,
    narrow_all,
)
from patterncc.prepared import Prepared, prepare

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patterncc.dsl.score.terms import ScoreTerms

_INPUTS = "Tensor query, Tensor key, Tensor value"
_TERMS = f"str score, float[] score_numbers, {CALL_SCHEMA}"
SCHEMAS = (
    f"scored_fwd({_INPUTS}, Tensor[] score_tables, {_TERMS}) -> (Tensor, Tensor)",
    f"scored_bwd(Tensor grad_out, Tensor? grad_lse, {_INPUTS}, Tensor out, Tensor lse, "
    f"Tensor[] score_tables, bool[] wanted, {_TERMS}) -> (Tensor, Tensor, Tensor, Tensor[])",
)
for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

# Bound once: looking an operator up costs more than calling it.
scored_fwd = torch.ops.patterncc.scored_fwd.default
scored_bwd = torch.ops.patterncc.scored_bwd.default


# ----------------------------------------------------------------------------------------- forward


def _fwd_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_tables: Sequence[Tensor],
    score: str,
    score_numbers: Sequence[float],
    pattern: str,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    call, terms, values = _prepared(
        (query, key, value), score_tables, score, score_numbers, pattern, *rest
    )
    with as_typed():
        return cpu.scored_attention(
            cpu_passes(pattern, call),
            query,
            key,
            value,
            terms,
            values,
            env=call.env,
            tables=call.named(rest[-1]),
            scale=call.scale,
        )


def _fwd_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_tables: Sequence[Tensor],
    score: str,
    score_numbers: Sequence[float],
    pattern: str,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    call, _, values = _prepared(
        (query, key, value), score_tables, score, score_numbers, pattern, *rest
    )
    forward = pipeline.launcher(pattern, call.sizes, score)
    return forward(
        query,
        key,
        value,
        env=call.env,
        scale=call.scale,
        tables=narrow_all(call, rest[-1]),
        score_values=values,
    )


def _fwd_fake(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_tables: Sequence[Tensor],
    score: str,
    score_numbers: Sequence[float],
    pattern: str,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    check_fakes(query, key, value, pattern, rest[-1])
    _bound(query, score_tables, score, score_numbers)
    return like(query, value)


# ---------------------------------------------------------------------------------------- backward


def _bwd_cpu(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    score_tables: Sequence[Tensor],
    wanted: Sequence[bool],
    score: str,
    score_numbers: Sequence[float],
    pattern: str,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    call, terms, values = _prepared(
        (query, key, value), score_tables, score, score_numbers, pattern, *rest
    )
    check_backward_tensors(query, value, grad_out, grad_lse, out, lse)
    names = _wanted(terms, wanted)
    with as_typed():
        grad_query, grad_key, grad_value, grads = cpu.scored_attention_backward(
            cpu_passes(pattern, call),
            grad_out,
            grad_lse,
            query,
            key,
            value,
            out,
            lse,
            terms,
            values,
            env=call.env,
            tables=call.named(rest[-1]),
            scale=call.scale,
            wanted=names,
        )
    return grad_query, grad_key, grad_value, [grads[name] for name in names]


def _bwd_cuda(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    score_tables: Sequence[Tensor],
    wanted: Sequence[bool],
    score: str,
    score_numbers: Sequence[float],
    pattern: str,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    call, terms, values = _prepared(
        (query, key, value), score_tables, score, score_numbers, pattern, *rest
    )
    check_backward_tensors(query, value, grad_out, grad_lse, out, lse)
    names = _wanted(terms, wanted)
    sums = {
        name: torch.zeros(values.tables[name].shape, dtype=torch.float32, device=query.device)
        for name in names
    }
    backward = pipeline.backward_launcher(pattern, call.sizes, score)
    grad_query, grad_key, grad_value = backward(
        grad_out,
        grad_lse,
        query,
        key,
        value,
        out,
        lse,
        env=call.env,
        scale=call.scale,
        tables=narrow_all(call, rest[-1]),
        score_values=values,
        table_gradients=sums,
    )
    assert grad_query is not None and grad_key is not None and grad_value is not None, "all wanted"
    grads = [sums[name].to(values.tables[name].dtype) for name in names]
    return grad_query, grad_key, grad_value, grads


def _bwd_fake(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    score_tables: Sequence[Tensor],
    wanted: Sequence[bool],
    score: str,
    score_numbers: Sequence[float],
    pattern: str,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    check_fakes(query, key, value, pattern, rest[-1])
    check_backward_tensors(query, value, grad_out, grad_lse, out, lse)
    terms, values = _bound(query, score_tables, score, score_numbers)
    grads = [values.tables[name] for name in _wanted(terms, wanted)]
    room = [tensor.new_empty(tensor.shape) for tensor in (query, key, value, *grads)]
    return room[0], room[1], room[2], room[3:]


# ---------------------------------------------------------------------------------- what they share


def _prepared(
    tensors: tuple[Tensor, Tensor, Tensor],
    score_tables: Sequence[Tensor],
    score: str,
    score_numbers: Sequence[float],
    pattern: str,
    *rest: Any,
) -> tuple[Prepared, ScoreTerms, ScoreValues]:
    """Checks the arguments of an operator: a graph may call it with anything."""
    check_tensors(*tensors)
    call = prepare(*tensors, pattern, *rest)
    terms, values = _bound(tensors[0], score_tables, score, score_numbers)
    if "layers" not in call.env and any("layers" in coordinates_read(e) for e in terms.exprs):
        raise ArgumentError("`layers` was not given; the score reads the number of layers")
    return call, terms, values


def _bound(
    query: Tensor, score_tables: Sequence[Tensor], score: str, score_numbers: Sequence[float]
) -> tuple[ScoreTerms, ScoreValues]:
    """The terms of a text, and what they read by name; looks at no number of a table."""
    terms = terms_of(score)
    for what, given, names in (
        ("score_numbers", score_numbers, terms.numbers),
        ("score_tables", score_tables, tuple(terms.tables)),
    ):
        if len(given) != len(names):
            raise ArgumentError(
                f"`{what}` has {len(given)} values; the score takes {len(names)}: "
                f"{', '.join(names) or 'none'}"
            )
    values = ScoreValues(
        dict(zip(terms.numbers, score_numbers, strict=True)),
        dict(zip(terms.tables, score_tables, strict=True)),
    )
    values.check(terms, query.device)
    return terms, values


def _wanted(terms: ScoreTerms, wanted: Sequence[bool]) -> list[str]:
    """The tables whose gradients are asked for, in the order in which they travel."""
    if len(wanted) != len(terms.tables):
        raise ArgumentError(
            f"`wanted` has {len(wanted)} values; the score has {len(terms.tables)} tables"
        )
    return [name for name, yes in zip(terms.tables, wanted, strict=True) if yes]


def _refuse_vmap(*_: Any) -> NoReturn:
    raise UnsupportedError(
        "attention with score terms has no rule for torch.func.vmap",
        "make the mapped axis part of the batch",
    )


for _name, _on_cpu, _on_cuda, _fake in (
    ("patterncc::scored_fwd", _fwd_cpu, _fwd_cuda, _fwd_fake),
    ("patterncc::scored_bwd", _bwd_cpu, _bwd_cuda, _bwd_fake),
):
    LIBRARY.impl(_name, _on_cpu, "CPU")
    LIBRARY.impl(_name, _on_cuda, "CUDA")
    LIBRARY.impl(_name, elsewhere, "CompositeExplicitAutograd")
    torch.library.register_fake(_name, _fake, lib=LIBRARY)
    torch.library.register_vmap(_name, _refuse_vmap, lib=LIBRARY)
