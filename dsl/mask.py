"""The mask algebra: typed, frozen integer and predicate expressions over token positions.

A pattern's meaning is one `Predicate` here; everything after the language front reads only these
nodes. Nothing here parses, checks types or knows tensors. Build nodes through
`patterncc.dsl.build`, whose constructors fold constants and put operands in one canonical order, so
that spellings which differ only in those are equal values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias, Union

COORDINATES = ("q", "k", "head", "kv_head", "layer", "batch")
SIZES = ("q_len", "kv_len", "heads", "kv_heads", "layers")
MISSING = -(1 << 31)  # what an integer table reads as outside of its axes; no table holds it

CompareOp: TypeAlias = Literal["==", "!=", "<", "<="]
SegmentKind: TypeAlias = Literal["id", "start", "end"]


# ----------------------------------------------------------------------------------- integers


@dataclass(frozen=True, slots=True)
class Const:
    """An integer constant."""

    value: int


@dataclass(frozen=True, slots=True)
class Var:
    """A coordinate or size of the call (`COORDINATES`, `SIZES`); the block IR adds tile symbols."""

    name: str


@dataclass(frozen=True, slots=True)
class Param:
    """An `int` parameter of the pattern, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class Sum:
    """`terms[0] + terms[1] + ...`; a difference is a term `Product((Const(-1), x))`."""

    terms: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """`factors[0] * factors[1] * ...`, a constant factor first."""

    factors: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class FloorDiv:
    """`floor(value / divisor)`, as Python's `//`; the divisor is positive."""

    value: IntExpr
    divisor: IntExpr


@dataclass(frozen=True, slots=True)
class Mod:
    """`value - divisor * floor(value / divisor)`, as Python's `%`; the divisor is positive."""

    value: IntExpr
    divisor: IntExpr


@dataclass(frozen=True, slots=True)
class Min:
    """The least of two or more integers."""

    args: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Max:
    """The greatest of two or more integers."""

    args: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Abs:
    """The absolute value."""

    value: IntExpr


@dataclass(frozen=True, slots=True)
class Select:
    """`then` where the condition holds, `otherwise` elsewhere (an integer)."""

    condition: Predicate
    then: IntExpr
    otherwise: IntExpr


@dataclass(frozen=True, slots=True)
class Entry:
    """An element of an integer table parameter: `w[head]`, `image[q]`; `MISSING` outside of it."""

    table: str
    indexes: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """What a `segments` parameter says of a position: its document's id, start or end.

    The end is one past the last token. Documents are numbered from 0. A position before or after
    all of them is a document of its own, with an id that no other position has.
    """

    kind: SegmentKind
    segments: str
    position: IntExpr


# ----------------------------------------------------------------------------------- predicates


class _Logic:
    """A refusal to be used as a Python truth value: `if p and r` would silently drop `p`."""

    __slots__ = ()

    def __bool__(self) -> bool:
        raise TypeError("a predicate has no truth value; combine with all_of, any_of, negate")


@dataclass(frozen=True, slots=True)
class Truth(_Logic):
    """`true` or `false`."""

    value: bool


@dataclass(frozen=True, slots=True)
class Compare(_Logic):
    """`left op right`; `>` and `>=` are written with the sides exchanged."""

    op: CompareOp
    left: IntExpr
    right: IntExpr


@dataclass(frozen=True, slots=True)
class And(_Logic):
    """All of two or more predicates."""

    args: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Or(_Logic):
    """Any of two or more predicates."""

    args: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Not(_Logic):
    """The negation."""

    arg: Predicate


@dataclass(frozen=True, slots=True)
class Branch(_Logic):
    """`if condition then ... else ...` for predicates."""

    condition: Predicate
    then: Predicate
    otherwise: Predicate


@dataclass(frozen=True, slots=True)
class Member(_Logic):
    """An element of a `bool` table: `keep[head, q // 64, k // 64]`; false outside of it."""

    table: str
    indexes: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Cover(_Logic):
    """The block-aligned superset of `body`, seen from positions `q` and `k`.

    Holds where some `q'` in the `block_q`-block of `q` and some `k'` in the `block_k`-block of `k`
    satisfy `body(q', k')`; where `causal`, only for `k <= q` besides. Both range over positions
    from 0 on, whatever the lengths of the call, and only over those that exist in every `segments`
    and `int[token]` parameter that `body` reads. `body` is written in its own `Var("q")` and
    `Var("k")`, which the node binds; `q` and `k` say where it is looked at (`cover(...) at (a, b)`
    replaces them).
    """

    block_q: int
    block_k: int
    body: Predicate
    causal: bool
    q: IntExpr = Var("q")
    k: IntExpr = Var("k")


IntExpr: TypeAlias = Union[  # noqa: UP007  (a string-free union that also works at run time)
    Const, Var, Param, Sum, Product, FloorDiv, Mod, Min, Max, Abs, Select, Entry, Segment
]
Predicate: TypeAlias = Union[  # noqa: UP007
    Truth, Compare, And, Or, Not, Branch, Member, Cover
]
Expr: TypeAlias = Union[IntExpr, Predicate]  # noqa: UP007

TRUE = Truth(True)
FALSE = Truth(False)
Q = Var("q")
K = Var("k")


# ----------------------------------------------------------------------------------- traversal


def children(expr: Expr) -> Iterator[Expr]:
    """The direct subexpressions, in field order."""
    for name in expr.__match_args__:
        value = getattr(expr, name)
        if isinstance(value, tuple):
            yield from value
        elif not isinstance(value, (int, str)):
            yield value


def walk(expr: Expr) -> Iterator[Expr]:
    """The expression and all its subexpressions, parents first, bodies of `Cover` included."""
    stack: list[Expr] = [expr]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(children(node))


def variables(expr: Expr) -> frozenset[str]:
    """Names of the coordinates and sizes it reads."""
    return frozenset(node.name for node in walk(expr) if isinstance(node, Var))


def parameters(expr: Expr) -> frozenset[str]:
    """Names of the `int` parameters it reads."""
    return frozenset(node.name for node in walk(expr) if isinstance(node, Param))
