"""The mask algebra evaluated element by element in torch: what a pattern means, taken literally.

Knows tables, segments and covers; knows no relation, no tile and no attention.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import product

import torch
from torch import Tensor
from typing_extensions import assert_never

from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.mask import (
    MISSING,
    Abs,
    And,
    Branch,
    Compare,
    CompareOp,
    Const,
    Cover,
    Entry,
    FloorDiv,
    IntExpr,
    Max,
    Member,
    Min,
    Mod,
    Not,
    Or,
    Param,
    Predicate,
    Product,
    Segment,
    SegmentKind,
    Select,
    Sum,
    Truth,
    Var,
    variables,
    walk,
)

_COMPARISONS: dict[CompareOp, Callable[[Tensor, Tensor], Tensor]] = {
    "==": torch.eq,
    "!=": torch.ne,
    "<": torch.lt,
    "<=": torch.le,
}
_CHUNK = 1 << 21  # pairs of positions of a cover's blocks evaluated at a time


def allowed(
    body: Predicate,
    q: Tensor,
    k: Tensor,
    env: Mapping[str, int],
    tables: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Evaluates a mask at positions, element by element, in int64.

    An index outside of a table reads `MISSING` from one of numbers and false from one of truth
    values. A position outside of all documents of a `segments` parameter is a document of its own.

    Args:
        body: The predicate.
        q: Query positions, int64, of any shape that broadcasts with `k`.
        k: Key positions, int64.
        env: Scalars by name: coordinates besides `q` and `k`, sizes, `q_offset`, run-time numbers.
        tables: Table parameters by name, and `cu_seqlens` int `[documents + 1]` for segments.

    Returns:
        bool, of the shape that `q` and `k` broadcast to. That a key exists is not looked at.

    Raises:
        ArgumentError: A scalar or table is missing, a table has a wrong shape, or a divisor is not
            positive.
    """
    answer = _Evaluator(q.long(), k.long(), env, tables or {}).predicate(body)
    return answer.broadcast_to(torch.broadcast_shapes(q.shape, k.shape))  # type: ignore[no-untyped-call]


def discrete(
    expr: IntExpr | Predicate,
    q: Tensor,
    k: Tensor,
    env: Mapping[str, int],
    tables: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """An integer (int64) or a predicate (bool) at positions; arguments and errors as `allowed`.

    Scalars may also be tensors that broadcast with the positions.

    Returns:
        A tensor that broadcasts with the shape of `q` and `k`.
    """
    evaluator = _Evaluator(q.long(), k.long(), env, tables or {})
    if isinstance(expr, (Truth, Compare, And, Or, Not, Branch, Member, Cover)):
        return evaluator.predicate(expr)
    return evaluator.integer(expr)


@dataclass(frozen=True, slots=True)
class _Evaluator:
    """Evaluates expressions at fixed positions."""

    q: Tensor
    k: Tensor
    env: Mapping[str, int]
    tables: Mapping[str, Tensor]

    def integer(self, expr: IntExpr) -> Tensor:
        match expr:
            case Const(value):
                return torch.tensor(value)
            case Var("q"):
                return self.q
            case Var("k"):
                return self.k
            case Var(name) | Param(name):
                return self._scalar(name)
            case Sum(terms):
                return reduce(torch.add, map(self.integer, terms))
            case Product(factors):
                return reduce(torch.mul, map(self.integer, factors))
            case FloorDiv(value, divisor):
                return torch.floor_divide(self.integer(value), self._divisor(divisor))
            case Mod(value, divisor):
                return torch.remainder(self.integer(value), self._divisor(divisor))
            case Min(args):
                return reduce(torch.minimum, map(self.integer, args))
            case Max(args):
                return reduce(torch.maximum, map(self.integer, args))
            case Abs(value):
                return self.integer(value).abs()
            case Select(condition, then, otherwise):
                return torch.where(
                    self.predicate(condition), self.integer(then), self.integer(otherwise)
                )
            case Entry(table, indexes):
                return self._read(table, indexes, MISSING).long()
            case Segment(kind, segments, position):
                return self._segment(kind, segments, self.integer(position))
            case _:
                assert_never(expr)

    def predicate(self, expr: Predicate) -> Tensor:
        match expr:
            case Truth(value):
                return torch.tensor(value)
            case Compare(op, left, right):
                return _COMPARISONS[op](self.integer(left), self.integer(right))
            case And(args):
                return reduce(torch.logical_and, map(self.predicate, args))
            case Or(args):
                return reduce(torch.logical_or, map(self.predicate, args))
            case Not(arg):
                return ~self.predicate(arg)
            case Branch(condition, then, otherwise):
                return torch.where(
                    self.predicate(condition), self.predicate(then), self.predicate(otherwise)
                )
            case Member(table, indexes):
                return self._read(table, indexes, False).bool()
            case Cover():
                return self._cover(expr)
            case _:
                assert_never(expr)

    def _scalar(self, name: str) -> Tensor:
        if name not in self.env:
            raise ArgumentError(f"the pattern reads `{name}`, which was not given")
        value: object = self.env[name]
        return value if isinstance(value, Tensor) else torch.tensor(int(self.env[name]))

    def _divisor(self, expr: IntExpr) -> Tensor:
        divisor = self.integer(expr)
        if bool((divisor <= 0).any()):
            raise ArgumentError(f"a divisor of the pattern is not positive: {expr}")
        return divisor

    def _table(self, name: str) -> Tensor:
        if name not in self.tables:
            raise ArgumentError(f"the pattern reads the table `{name}`, which was not given")
        return self.tables[name]

    def _read(self, name: str, indexes: tuple[IntExpr, ...], outside: int) -> Tensor:
        """Elements of a table, and `outside` where an index is outside of it."""
        table = self._table(name)
        if table.ndim != len(indexes):
            raise ArgumentError(
                f"the table `{name}` has {table.ndim} axes; it needs {len(indexes)}"
            )
        places = [self.integer(expr) for expr in indexes]
        inside = reduce(
            torch.logical_and,
            [(at >= 0) & (at < size) for at, size in zip(places, table.shape, strict=True)],
        )
        if table.numel() == 0:
            return torch.full_like(inside, outside, dtype=torch.int64)
        found = table[tuple(torch.where(inside, at, 0) for at in places)]
        return torch.where(inside, found.long(), outside)

    def _segment(self, kind: SegmentKind, name: str, position: Tensor) -> Tensor:
        bounds = self._table(name).long()
        if bounds.ndim != 1 or len(bounds) == 0 or bounds[0] != 0 or (bounds.diff() < 0).any():
            raise ArgumentError(f"`{name}` must be `cu_seqlens`: from 0, never falling")
        documents, total = len(bounds) - 1, bounds[-1]
        inside = (position >= 0) & (position < total)
        document = torch.searchsorted(bounds, position.contiguous(), right=True) - 1
        known = document.clamp(0, max(0, documents - 1))
        match kind:
            case "id":
                own = torch.where(position < 0, position, documents + position - total)
                return torch.where(inside, document, own)
            case "start":
                return torch.where(inside, bounds[known], position)
            case "end":
                return torch.where(inside, bounds[(known + 1).clamp(max=documents)], position + 1)
            case _:
                assert_never(kind)

    def _cover(self, cover: Cover) -> Tensor:
        """The blocks that hold an allowed pair, found once per pair of blocks.

        Blocks are whole whatever the lengths of the call, but for positions before 0, and but for
        those that the tables and segments which the body reads by position do not have.
        """
        q, k = self.integer(cover.q), self.integer(cover.k)
        q_blocks, q_place = torch.unique(q // cover.block_q, return_inverse=True)
        k_blocks, k_place = torch.unique(k // cover.block_k, return_inverse=True)
        q_body = (q_blocks[:, None] * cover.block_q + torch.arange(cover.block_q))[:, :, None, None]
        k_body = k_blocks[:, None] * cover.block_k + torch.arange(cover.block_k)
        end = self._existing(cover.body)

        held = torch.zeros(len(q_blocks), len(k_blocks), dtype=torch.bool)
        k_step = max(1, _CHUNK // (cover.block_q * cover.block_k))
        q_step = max(1, k_step // max(1, len(k_blocks)))
        for q_first, k_first in product(
            range(0, len(q_blocks), q_step), range(0, len(k_blocks), k_step)
        ):
            some = slice(q_first, q_first + q_step), slice(k_first, k_first + k_step)
            at_q, at_k = q_body[some[0]], k_body[some[1]]
            exists = (at_q >= 0) & (at_k >= 0)
            if end is not None:
                exists = exists & (at_q < end) & (at_k < end)
            inner = _Evaluator(at_q, at_k, self.env, self.tables)
            held[some] = (exists & inner.predicate(cover.body)).any(-1).any(1)
        found = held[q_place, k_place]
        return found & (k <= q) if cover.causal else found

    def _existing(self, body: Predicate) -> int | None:
        """How many positions the tables that a predicate reads by position have; None: no such."""
        lengths = []
        for node in walk(body):
            if isinstance(node, Segment):
                lengths.append(int(self._table(node.segments)[-1]))
            elif isinstance(node, Entry) and variables(node) & {"q", "k"}:
                lengths.append(len(self._table(node.table)))
        return min(lengths, default=None)
