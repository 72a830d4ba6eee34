"""The masks of a model's layers: heads joined, equal layers found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import lcm

from patterncc.dsl.build import any_of, substitute
from patterncc.dsl.mask import (
    Const,
    Expr,
    IntExpr,
    Mod,
    Param,
    Predicate,
    Product,
    Sum,
    Var,
    children,
    variables,
)
from patterncc.dsl.pattern import Pattern

Place = Mapping[str, int]  # `layer`, `head`, `kv_head`


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers of a model over one whole sequence, from layer 0 on.

    Attributes:
        masks: Different masks, those of all heads of a layer joined, as predicates of `q`, `k` and
            the length.
        heads: For each mask, heads of one layer of which the masks make it up.
        kinds: For each layer, the number of its mask.
        uniform: Whether the pattern does not read `layer`, so that all further layers are alike.
    """

    masks: tuple[Predicate, ...]
    heads: tuple[tuple[Place, ...], ...]
    kinds: tuple[int, ...]
    uniform: bool


def stack(
    pattern: Pattern, layers: int, sizes: Mapping[str, int], *, length: IntExpr, batch: int = 0
) -> Stack:
    """The masks of some layers.

    Args:
        pattern: Its run-time numbers have values.
        layers: How many layers.
        sizes: `heads`, `kv_heads`, `layers`.
        length: Tokens of the sequence, all of them queries and keys.
        batch: Index in the batch.
    """
    numbers = pattern.defaults
    put_in: dict[Expr, IntExpr] = {Var("q_len"): length, Var("kv_len"): length}
    put_in |= {Param(name): Const(value) for name, value in numbers.items()}
    put_in |= {Var(name): Const(value) for name, value in {**sizes, "batch": batch}.items()}
    body = substitute(pattern.body, put_in)
    reads = variables(body)
    share = sizes["heads"] // sizes["kv_heads"]
    heads = range(sizes["heads"]) if reads & {"head", "kv_head"} else range(1)
    period = layer_period(body)
    known: dict[Predicate, int] = {}
    members: list[tuple[Place, ...]] = []
    kinds: list[int] = []
    for layer in range(layers):
        if layer and "layer" not in reads:
            kinds.append(0)
            continue
        if period is not None and layer >= period:
            kinds.append(kinds[layer - period])
            continue
        own: dict[Predicate, Place] = {}
        for head in heads:
            place = {"layer": layer, "head": head, "kv_head": head // share}
            at: dict[Expr, IntExpr] = {Var(name): Const(value) for name, value in place.items()}
            own.setdefault(substitute(body, at), place)
        mask = any_of(*own)
        if mask not in known:
            known[mask] = len(known)
            members.append(tuple(own.values()))
        kinds.append(known[mask])
    return Stack(tuple(known), tuple(members), tuple(kinds), "layer" not in reads)


def layer_period(expr: Expr) -> int | None:
    """A number of layers after which they repeat, seen from structure; `None` where it shows none.

    They do where `layer` is read only as a linear term of what is taken modulo a constant.
    """
    match expr:
        case Var("layer"):
            return None
        case Mod(value, Const(divisor)):
            terms = value.terms if isinstance(value, Sum) else (value,)
            rest = [term for term in terms if not _is_linear(term)]
            periods = [layer_period(term) for term in rest]
            own = [divisor] if len(rest) < len(terms) else []
        case _:
            periods = [layer_period(child) for child in children(expr)]
            own = []
    known = [period for period in periods if period is not None]
    return lcm(1, *known, *own) if len(known) == len(periods) else None


def _is_linear(term: IntExpr) -> bool:
    match term:
        case Var("layer") | Product((Const(), Var("layer"))):
            return True
    return False
