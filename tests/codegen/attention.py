"""What attention must give, in float64 and pair by pair, for the tests of kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from patterncc.codegen.gpu.pass_plan import Lowered
from patterncc.codegen.ir import BlockProgram, Passes, Sweep, Tiling
from patterncc.codegen.lower import lower
from patterncc.dsl.build import add, floordiv
from patterncc.dsl.evaluate import allows
from patterncc.dsl.mask import Const, Predicate, Var, variables
from patterncc.dsl.pattern import Pattern
from tests.codegen.drawing import dense


def lowered(pattern: Pattern, sizes: Mapping[str, int] | None = None) -> Lowered:
    """The alternatives that a caller of the kernels prepares for each tile shape, one pass each."""

    def both(block_q: int, block_k: int) -> tuple[Passes, Passes]:
        special = lower(pattern, block_q, block_k, sizes=sizes, within=True)
        return (special,), (lower(pattern, block_q, block_k, sizes=sizes),)

    return both


def in_passes(
    parts: Sequence[tuple[Pattern, Tiling]], sizes: Mapping[str, int] | None = None
) -> Lowered:
    """The same, a pass for each pattern in its variables; their pairs must be disjoint."""

    def both(block_q: int, block_k: int) -> tuple[Passes, Passes]:
        def passes(within: bool) -> Passes:
            return tuple(
                lower(pattern, block_q, block_k, sizes=sizes, within=within, tiling=tiling)
                for pattern, tiling in parts
            )

        return passes(True), passes(False)

    return both


def all_partial(mask: Predicate) -> Lowered:
    """A program that applies the mask in every tile, for masks that are hard to lower."""

    def masked(block_q: int, block_k: int) -> tuple[Passes]:
        tiles = floordiv(add(Var("kv_len"), Const(block_k - 1)), Const(block_k))
        sweeps = (Sweep("partial", Const(0), tiles),)
        return ((BlockProgram(repr(mask), block_q, block_k, mask, sweeps, ()),),)

    return masked


def expected(
    pattern: Pattern,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    env: Mapping[str, int],
    scale: float,
    tables: Mapping[str, Sequence[Any]] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output `[batch, heads, q_len, value_head_dim]` and lse `[batch, heads, q_len]` in float64."""
    batch, heads, q_len, _ = query.shape
    group = heads // key.shape[1]
    out = query.new_zeros((batch, heads, q_len, value.shape[3]), dtype=torch.float64)
    lse = query.new_zeros((batch, heads, q_len), dtype=torch.float64)
    masks = allowed_pairs(pattern, query, key, env, tables)
    for b in range(batch):
        for h in range(heads):
            scores = query[b, h].double() @ key[b, h // group].double().T * scale
            scores = scores.masked_fill(~masks[b, h], -math.inf)
            lse[b, h] = scores.logsumexp(1)
            weights = scores.softmax(1).nan_to_num(0.0)  # rows without keys
            out[b, h] = weights @ value[b, h // group].double()
    return out, lse


def allowed_pairs(
    pattern: Pattern,
    query: torch.Tensor,
    key: torch.Tensor,
    env: Mapping[str, int],
    tables: Mapping[str, Sequence[Any]] | None = None,
) -> torch.Tensor:
    """The mask `[batch, heads, q_len, kv_len]`, on the query's device."""
    batch, heads, q_len, _ = query.shape
    kv_heads, kv_len = key.shape[1:3]
    group = heads // kv_heads
    mask = torch.zeros((batch, heads, q_len, kv_len), dtype=torch.bool)
    sizes = {"q_len": q_len, "kv_len": kv_len, "heads": heads, "kv_heads": kv_heads}
    reads = variables(pattern.body)
    known: dict[tuple[int, ...], torch.Tensor] = {}  # by those of the coordinates that it reads
    for b in range(batch):
        for h in range(heads):
            own = {"batch": b, "head": h, "kv_head": h // group}
            place = tuple(number for name, number in own.items() if name in reads)
            if place not in known:
                scope = {**env, **sizes, **own}
                known[place] = (
                    _pair_by_pair(pattern, scope, tables)
                    if tables
                    else torch.from_numpy(dense(pattern.body, scope).copy())
                )
            mask[b, h] = known[place]
    return mask.to(query.device)


def _pair_by_pair(
    pattern: Pattern, env: Mapping[str, int], tables: Mapping[str, Sequence[Any]]
) -> torch.Tensor:
    """The mask `[q_len, kv_len]`, where it reads tables."""
    rows = range(env["q_offset"], env["q_offset"] + env["q_len"])
    keys = range(env["kv_len"])
    return torch.tensor([[allows(pattern, q, k, env, tables) for k in keys] for q in rows])


@dataclass(frozen=True)
class Errors:
    """Largest differences from what is expected; `empty`: do the same rows have no keys?"""

    out: float
    lse: float
    empty: bool


def errors(
    got: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]
) -> Errors:
    """Compares a result with the expected one; NaN anywhere is an infinite error."""
    (out, lse), (wanted_out, wanted_lse) = got, wanted
    alive = wanted_lse.isfinite()
    difference = (lse.double() - wanted_lse)[alive].abs()
    empty = torch.equal(lse.isneginf(), ~alive) and bool((out[~alive] == 0).all())
    return Errors(
        _largest((out.double() - wanted_out).abs()),
        _largest(difference),
        empty,
    )


def _largest(values: torch.Tensor) -> float:
    if not values.numel():
        return 0.0
    return math.inf if bool(values.isnan().any()) else float(values.max())


def poisoned(shape: tuple[int, int, int, int], like: torch.Tensor, rows: int = 37) -> torch.Tensor:
    """Random numbers of a shape, a view into memory that holds NaN after each head's last row."""
    batch, heads, length, width = shape
    whole = torch.full(
        (batch, heads, length + rows, width), math.nan, dtype=like.dtype, device=like.device
    )
    whole[:, :, :length] = torch.randn(shape, device=like.device).to(like.dtype)
    return whole[:, :, :length]
