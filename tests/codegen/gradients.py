"""What the gradients of attention must be, by float64 autograd over the dense mask, and the
backward kernels in the interpreter's worker."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.chunk_source import Progression
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import Predicate
from patterncc.dsl.pattern import Pattern
from tests.codegen.attention import allowed_pairs, lowered, poisoned
from tests.codegen.drawing import Shape, pattern_of
from tests.codegen.interpreter import Call, Prepared, prepared, random_tensors


@dataclass(frozen=True)
class Case:
    """A backward call.

    Attributes:
        call: The attention call; its config is the one of the query's gradient.
        with_lse: The lse has a gradient.
        expanded: One row's gradient of the output stands for all rows, as `.sum()` gives it.
        config: Of all kernels.
        split: How key tiles are split, instead of by what is counted.
    """

    call: Call
    with_lse: bool = True
    expanded: bool = False
    config: BackwardConfig | None = None
    split: tuple[Progression, ...] | None = None


@dataclass(frozen=True)
class Reference:
    """A call in float64: output, lse, and gradients of query, key and value.

    Attributes:
        alive: `[batch, heads, q_len]`, whether a row sees a key.
        seen: `[batch, kv_heads, kv_len]`, whether a key is seen.
    """

    out: torch.Tensor
    lse: torch.Tensor
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    alive: torch.Tensor
    seen: torch.Tensor


def reference(
    pattern: Pattern,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    scope: Mapping[str, int],
    scale: float,
    tables: Mapping[str, Sequence[Any]] | None = None,
) -> Reference:
    """Differentiates dense attention in float64, head by head.

    Args:
        pattern: What pairs are allowed.
        tensors: Query, key and value.
        grad_out, grad_lse: Gradients of output and lse.
        scope: What the pattern reads, with `q_offset`.
        scale: Of the scores.
        tables: What the pattern's tables hold.
    """
    query, key, value = (t.detach().double().requires_grad_() for t in tensors)
    group = query.shape[1] // key.shape[1]
    mask = allowed_pairs(pattern, query, key, scope, tables)
    alive = mask.any(3)
    scores = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scale
    # Rows without keys see all of them here and count for nothing: no NaN enters the graph.
    scores = scores.masked_fill(~(mask | ~alive[..., None]), -math.inf)
    weights = scores.softmax(3) * alive[..., None]
    out = weights @ value.repeat_interleave(group, 1)
    lse = torch.where(alive, scores.logsumexp(3), -math.inf)
    results, gradients = [out], [grad_out.double()]
    if grad_lse is not None:
        results.append(lse)
        gradients.append(grad_lse.double())
    of_query, of_key, of_value = torch.autograd.grad(results, [query, key, value], gradients)
    seen = mask.any(2).view(key.shape[0], key.shape[1], group, key.shape[2]).any(2)
    return Reference(out.detach(), lse.detach(), (of_query, of_key, of_value), alive, seen)


@dataclass(frozen=True)
class GradientErrors:
    """Largest differences from the reference, as shares of its largest entry (or of 1, where that
    is less); infinite where there is a NaN. `hidden`: are the gradients of rows that see no key,
    and of keys that no row sees, exactly 0?"""

    query: float
    key: float
    value: float
    hidden: bool


def gradient_errors(
    got: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None], wanted: Reference
) -> GradientErrors:
    """Compares gradients, those that are there."""
    of_query, of_key, of_value = (
        0.0 if one is None else _share(one, other)
        for one, other in zip(got, wanted.gradients, strict=True)
    )
    silent = zip(got, (~wanted.alive, ~wanted.seen, ~wanted.seen), strict=True)
    hidden = all(one is None or bool((one[places] == 0).all()) for one, places in silent)
    return GradientErrors(of_query, of_key, of_value, hidden)


def _share(got: torch.Tensor, wanted: torch.Tensor) -> float:
    difference = (got.double() - wanted).abs()
    if not difference.numel():
        return 0.0
    if not bool(difference.isfinite().all()):
        return math.inf
    return float(difference.max()) / max(1.0, float(wanted.abs().max()))


def grad_out_of(like: torch.Tensor, *, expanded: bool) -> torch.Tensor:
    """A gradient of the output `like`; memory past its rows is poisoned."""
    batch, heads, q_len, width = like.shape
    if expanded:
        return torch.randn(width, dtype=torch.float32).to(like).expand(like.shape)
    return poisoned((batch, heads, q_len, width), like)


def differentiate(case: Case) -> GradientErrors:
    """The errors of the query's gradient against float64; memory past all rows and that of results
    is poisoned."""
    return _differentiate(case, prepared(case.call), needs_query=True, needs_key_value=False)


def differentiate_key_value(case: Case) -> GradientErrors:
    """The same of the gradients of key and value."""
    if case.split is None:
        return _differentiate(case, prepared(case.call), needs_query=False, needs_key_value=True)
    with patch("patterncc.codegen.gpu.key_tile_plan.split_tiles", return_value=case.split):
        return _differentiate(case, prepared(case.call), needs_query=False, needs_key_value=True)


def differentiate_mask(
    mask: Predicate,
    shape: Shape,
    values: Mapping[str, int],
    heads: tuple[int, int],
    config: KernelConfig,
    split: tuple[Progression, ...],
) -> GradientErrors | None:
    """The same for a drawn mask; None where it has no lowering."""
    pattern = pattern_of(mask)
    call = Call("", shape.q_len, shape.kv_len, heads=heads)
    tensors = random_tensors(call)
    scope = {name: number for name, number in values.items() if name != "head"}
    scope |= {"q_offset": shape.q_offset}
    lower = lowered(pattern)
    it = Prepared(pattern, *tensors, scope, scope, {}, lower)
    case = Case(call, config=BackwardConfig(grad_key_value=config))
    with patch("patterncc.codegen.gpu.key_tile_plan.split_tiles", return_value=split):
        try:
            return _differentiate(case, it, needs_query=False, needs_key_value=True)
        except UnsupportedError:
            return None


def _differentiate(
    case: Case, it: Prepared, *, needs_query: bool, needs_key_value: bool
) -> GradientErrors:
    from patterncc.codegen.gpu.backward import Backward

    call = case.call
    tensors = (it.query, it.key, it.value)
    like = it.query.new_empty((*it.query.shape[:3], it.value.shape[3]))
    grad_out = grad_out_of(like, expanded=case.expanded)
    # Strides of its own: heads after rows.
    rows = like.shape[:3]
    grad_lse = torch.randn(rows[0], rows[2], rows[1]).transpose(1, 2) if case.with_lse else None
    wanted = reference(it.pattern, tensors, grad_out, grad_lse, it.scope, call.scale, call.tables)
    config = case.config or BackwardConfig(call.config)
    with tempfile.TemporaryDirectory() as folder:
        backward = Backward(it.lower, lower_rows=it.lower_rows, config=config, folder=Path(folder))
        got = backward(
            grad_out,
            grad_lse,
            *tensors,
            wanted.out.to(like.dtype),
            wanted.lse.float(),
            env=it.env,
            scale=call.scale,
            tables=it.tables,
            needs_query=needs_query,
            needs_key_value=needs_key_value,
        )
    return gradient_errors(got, wanted)


def stray() -> list[str]:
    """Where a NaN or an infinity of a tensor reaches gradients of rows that do not see it.

    The keys from 40 on see no row before 40, and tiles of 32 hold both kinds.
    """
    from patterncc.codegen.gpu.backward import Backward

    call = Call("k <= q and q // 40 == k // 40", 80, 80, heads=(1, 1))
    it = prepared(call)
    found = []
    for name in ("grad_out", "query", "value"):
        for number in (math.nan, math.inf):
            given = {"query": it.query.clone(), "key": it.key.clone(), "value": it.value.clone()}
            given["grad_out"] = torch.randn(it.query.shape)
            tensors = (it.query, it.key, it.value)
            rows = given["grad_out"]
            wanted = reference(it.pattern, tensors, rows, None, it.scope, call.scale)
            given[name][:, :, 40:] = number
            with tempfile.TemporaryDirectory() as folder:
                backward = Backward(it.lower, folder=Path(folder))
                grad_query, _, _ = backward(
                    given["grad_out"],
                    None,
                    given["query"],
                    given["key"],
                    given["value"],
                    wanted.out.float(),
                    wanted.lse.float(),
                    env=it.env,
                    scale=call.scale,
                    needs_key_value=False,
                )
            assert grad_query is not None
            difference = (grad_query - wanted.gradients[0])[:, :, :40].abs().max()
            if not difference < 1e-5:
                found.append(f"{name} {number}: {difference}")
    return found
