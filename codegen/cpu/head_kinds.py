"""Which heads of a call see the same, told from the numbers they read instead of from their masks.

A head, its key/value head and its index in the batch enter a program through few values: whether
`head in {0, 5}`, the number `w[head]`, the slice `keep[head]`. Heads for which all of these are
equal have equal masks at every length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy.typing as npt

from patterncc.codegen.ir import Q_FIRST, Q_LAST, RESIDUE
from patterncc.codegen.schedule import evaluate
from patterncc.dsl.mask import Entry, Expr, IntExpr, K, Member, Q, Var, children

PER_HEAD = frozenset({"head", "kv_head", "batch"})
_MOVING = frozenset(var.name for var in (Q, K, Q_FIRST, Q_LAST, RESIDUE))  # within one head


@dataclass(frozen=True, slots=True)
class _Slice:
    """A part of a table; `None` stands for the whole of an axis."""

    table: str
    indexes: tuple[IntExpr | None, ...]


Trait: TypeAlias = Expr | _Slice


def traits(exprs: Iterable[Expr], *moving: Var) -> tuple[Trait, ...]:
    """What expressions read of a head, each once; what is equal for all heads is left out.

    Args:
        exprs: Any.
        moving: What besides positions and tile symbols takes several values for one head.
    """
    within = _MOVING.union(var.name for var in moving)
    found = (trait for expr in exprs for trait in _traits(expr, within))
    return tuple(dict.fromkeys(found))


def kind(traits: Iterable[Trait], env: Mapping[str, Any]) -> tuple[object, ...]:
    """The values of traits, equal for heads that see the same.

    Args:
        traits: Of all expressions of a program.
        env: `head`, `kv_head`, `batch`, the scalars of the call, and its tables as arrays.
    """
    return tuple(
        _content(trait, env) if isinstance(trait, _Slice) else int(evaluate(trait, env))
        for trait in traits
    )


def _traits(expr: Expr, moving: frozenset[str]) -> Iterator[Trait]:
    names = _variables(expr)
    if names.isdisjoint(PER_HEAD):
        return
    if names.isdisjoint(moving):
        yield expr
        return
    inner: Iterable[Expr] = children(expr)
    if isinstance(expr, Entry | Member):
        fixed = [_variables(index).isdisjoint(moving) for index in expr.indexes]
        yield _Slice(
            expr.table,
            tuple(i if still else None for i, still in zip(expr.indexes, fixed, strict=True)),
        )
        inner = [i for i, still in zip(expr.indexes, fixed, strict=True) if not still]
    for part in inner:
        yield from _traits(part, moving)


def _variables(expr: Expr) -> frozenset[str]:
    if isinstance(expr, Var):
        return frozenset({expr.name})
    return frozenset().union(*map(_variables, children(expr)))


def _content(part: _Slice, env: Mapping[str, Any]) -> bytes:
    """A digest of a slice; a slice outside of its table has no elements."""
    table: npt.NDArray[Any] = env[part.table]
    places: list[int | slice] = []
    for axis, index in enumerate(part.indexes):
        place = slice(None) if index is None else int(evaluate(index, env))
        if isinstance(place, int) and not 0 <= place < table.shape[axis]:
            return b""
        places.append(place)
    return digest(table[tuple(places)])


def digest(array: npt.NDArray[Any]) -> bytes:
    """Equal for arrays of equal type, shape and elements, and only for those."""
    found = blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=16)
    found.update(array.tobytes())
    return found.digest()
