"""The mask algebra evaluated element by element in torch: what a pattern means, taken literally.

Knows tables, segments and covers; knows no relation, no tile and no attention.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import product

import torch
from torch import Tensor
from typing_extensions import assert_never

from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.mask import (
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

_CHUNK = 1 << 21  # pairs of positions of a cover's blocks evaluated at a time


def allowed(
    body: Predicate,
    q: Tensor,
    k: Tensor,
    env: Mapping[str, int],
    tables: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Evaluates a mask at positions, element by element, in int64.

    An index outside a table is an error only where the answer depends on it, whatever the order of
    operands, so `q < n and keep[q]` may be asked beyond the table. A position outside all documents
    of a `segments` parameter has document -1, and starts and ends at itself; whatever is computed
    from that equals nothing, itself included (`==` is false and `!=` true).

    Args:
        body: The predicate.
        q: Query positions, int64, of any shape that broadcasts with `k`.
        k: Key positions, int64.
        env: Scalars by name: coordinates besides `q` and `k`, sizes, `q_offset`, run-time numbers.
        tables: Table parameters by name, and `cu_seqlens` int `[documents + 1]` for segments.

    Returns:
        bool, of the shape that `q` and `k` broadcast to. That a key exists is not looked at.

    Raises:
        ArgumentError: A scalar or table is missing, a table has a wrong shape or is read outside of
            itself, or a divisor is not positive.
    """
    evaluator = _Evaluator(q.long(), k.long(), env, tables or {})
    answer = evaluator.predicate(body)
    shape = torch.broadcast_shapes(q.shape, k.shape)  # type: ignore[no-untyped-call]
    if answer.unknown is not None and bool(answer.unknown.any()):
        raise ArgumentError(evaluator.faults[-1])
    return answer.data.broadcast_to(shape)


@dataclass(frozen=True, slots=True)
class _Integer:
    """Integers, where they are not known because a table ends, and which come from no document."""

    data: Tensor
    unknown: Tensor | None = None
    nowhere: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Logical:
    """Truth values and where they are not known; `data` is false there."""

    data: Tensor
    unknown: Tensor | None = None

    @property
    def false(self) -> Tensor:
        """Where it is known not to hold."""
        return ~self.data if self.unknown is None else ~(self.data | self.unknown)


@dataclass(slots=True)
class _Evaluator:
    """Evaluates expressions at fixed positions. `faults` collects what was read outside a table."""

    q: Tensor
    k: Tensor
    env: Mapping[str, int]
    tables: Mapping[str, Tensor]
    faults: list[str] = field(default_factory=list)

    def integer(self, expr: IntExpr) -> _Integer:
        match expr:
            case Const(value):
                return _Integer(torch.tensor(value))
            case Var("q"):
                return _Integer(self.q)
            case Var("k"):
                return _Integer(self.k)
            case Var(name) | Param(name):
                return _Integer(torch.tensor(self._scalar(name)))
            case Sum(terms):
                return self._fold(torch.add, terms)
            case Product(factors):
                return self._fold(torch.mul, factors)
            case FloorDiv(value, divisor):
                self._check_divisor(divisor)
                return self._fold(torch.floor_divide, (value, divisor))
            case Mod(value, divisor):
                self._check_divisor(divisor)
                return self._fold(torch.remainder, (value, divisor))
            case Min(args):
                return self._fold(torch.minimum, args)
            case Max(args):
                return self._fold(torch.maximum, args)
            case Abs(value):
                inner = self.integer(value)
                return _Integer(inner.data.abs(), inner.unknown, inner.nowhere)
            case Select(condition, then, otherwise):
                chosen = self.predicate(condition)
                yes, no = self.integer(then), self.integer(otherwise)
                return _Integer(
                    torch.where(chosen.data, yes.data, no.data),
                    _any((chosen.unknown, _choose(chosen.data, yes.unknown, no.unknown))),
                    _choose(chosen.data, yes.nowhere, no.nowhere),
                )
            case Entry(table, indexes):
                data, unknown = self._read(table, indexes)
                return _Integer(data.long(), unknown)
            case Segment(kind, segments, position):
                return self._segment(kind, segments, self.integer(position))
            case _:
                assert_never(expr)

    def predicate(self, expr: Predicate) -> _Logical:
        match expr:
            case Truth(value):
                return _Logical(torch.tensor(value))
            case Compare(op, left, right):
                return self._compare(op, self.integer(left), self.integer(right))
            case And(args):
                parts = [self.predicate(arg) for arg in args]
                data = _reduce(torch.logical_and, [part.data for part in parts])
                unknown = _any([part.unknown for part in parts])
                if unknown is not None:
                    unknown = unknown & ~_reduce(torch.logical_or, [part.false for part in parts])
                return _Logical(data, unknown)
            case Or(args):
                parts = [self.predicate(arg) for arg in args]
                data = _reduce(torch.logical_or, [part.data for part in parts])
                unknown = _any([part.unknown for part in parts])
                return _Logical(data, None if unknown is None else unknown & ~data)
            case Not(arg):
                inner = self.predicate(arg)
                return _Logical(inner.false, inner.unknown)
            case Branch(condition, then, otherwise):
                chosen = self.predicate(condition)
                both = self.predicate(then), self.predicate(otherwise)
                data = torch.where(chosen.data, both[0].data, both[1].data)
                branches = _choose(chosen.data, both[0].unknown, both[1].unknown)
                unknown = _any((chosen.unknown, branches))
                return _Logical(_known(data, unknown), unknown)
            case Member(table, indexes):
                data, unknown = self._read(table, indexes)
                data = data.bool()
                return _Logical(_known(data, unknown), unknown)
            case Cover():
                return self._cover(expr)
            case _:
                assert_never(expr)

    def _scalar(self, name: str) -> int:
        if name not in self.env:
            raise ArgumentError(f"the pattern reads `{name}`, which was not given")
        return int(self.env[name])

    def _fold(
        self, operation: Callable[[Tensor, Tensor], Tensor], exprs: tuple[IntExpr, ...]
    ) -> _Integer:
        parts = [self.integer(expr) for expr in exprs]
        return _Integer(
            _reduce(operation, [part.data for part in parts]),
            _any([part.unknown for part in parts]),
            _any([part.nowhere for part in parts]),
        )

    def _compare(self, op: CompareOp, left: _Integer, right: _Integer) -> _Logical:
        match op:
            case "==":
                data = left.data == right.data
            case "!=":
                data = left.data != right.data
            case "<":
                data = left.data < right.data
            case "<=":
                data = left.data <= right.data
            case _:
                assert_never(op)
        nowhere = _any((left.nowhere, right.nowhere))
        if nowhere is not None and op == "==":
            data = data & ~nowhere
        if nowhere is not None and op == "!=":
            data = data | nowhere
        unknown = _any((left.unknown, right.unknown))
        return _Logical(_known(data, unknown), unknown)

    def _check_divisor(self, divisor: IntExpr) -> None:
        if bool((self.integer(divisor).data <= 0).any()):
            raise ArgumentError(f"a divisor of the pattern is not positive: {divisor}")

    def _table(self, name: str) -> Tensor:
        if name not in self.tables:
            raise ArgumentError(f"the pattern reads the table `{name}`, which was not given")
        return self.tables[name]

    def _read(self, name: str, indexes: tuple[IntExpr, ...]) -> tuple[Tensor, Tensor | None]:
        """Elements of a table, and where they are not known because an index is outside of it."""
        table = self._table(name)
        if table.ndim != len(indexes):
            raise ArgumentError(
                f"the table `{name}` has {table.ndim} axes; it needs {len(indexes)}"
            )
        unknown: Tensor | None = None
        safe = []
        for axis, (expr, size) in enumerate(zip(indexes, table.shape, strict=True)):
            index = self.integer(expr)
            outside = (index.data < 0) | (index.data >= size)
            if bool(outside.any()):
                first = int(index.data.masked_select(outside)[0])
                self.faults.append(
                    f"the table `{name}` is read at {first} on axis {axis}, whose size is {size}"
                )
                unknown = _any((unknown, outside))
            unknown = _any((unknown, index.unknown))
            safe.append(index.data.clamp(0, max(0, size - 1)))
        if table.numel() == 0:
            return torch.zeros_like(_reduce(torch.add, safe)), unknown
        return table[tuple(safe)], unknown

    def _segment(self, kind: SegmentKind, name: str, position: _Integer) -> _Integer:
        bounds = self._table(name).long()
        if bounds.ndim != 1 or len(bounds) == 0 or bounds[0] != 0 or (bounds.diff() < 0).any():
            raise ArgumentError(f"`{name}` must be `cu_seqlens`: from 0, never falling")
        at = position.data
        outside = (at < 0) | (at >= bounds[-1])
        document = torch.searchsorted(bounds, at.contiguous(), right=True) - 1
        match kind:
            case "id":
                data = torch.where(outside, -1, document)
            case "start":
                data = torch.where(outside, at, bounds[document.clamp(0, len(bounds) - 1)])
            case "end":
                data = torch.where(outside, at, bounds[(document + 1).clamp(0, len(bounds) - 1)])
            case _:
                assert_never(kind)
        return _Integer(data, position.unknown, _any((outside, position.nowhere)))

    def _cover(self, cover: Cover) -> _Logical:
        """The blocks that hold an allowed pair, found once per pair of blocks.

        Blocks are whole whatever the lengths of the call, but for positions before 0, and but for
        positions past the last one where the body looks positions up in tables or segments.
        """
        q, k = self.integer(cover.q), self.integer(cover.k)
        q_blocks, q_place = _distinct(q.data // cover.block_q)
        k_blocks, k_place = _distinct(k.data // cover.block_k)
        q_body = (q_blocks[:, None] * cover.block_q + torch.arange(cover.block_q))[:, :, None, None]
        k_body = k_blocks[:, None] * cover.block_k + torch.arange(cover.block_k)
        end = None
        if _looks_up_positions(cover.body):
            end = max(self._scalar("kv_len"), self._scalar("q_offset") + self._scalar("q_len"))

        held = torch.zeros(len(q_blocks), len(k_blocks), dtype=torch.bool)
        unknown = torch.zeros_like(held)
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
            inner = _Evaluator(at_q, at_k, self.env, self.tables, self.faults)
            answer = inner.predicate(cover.body)
            held[some] = (exists & answer.data).any(-1).any(1)
            if answer.unknown is not None:
                unknown[some] = (exists & answer.unknown).any(-1).any(1) & ~held[some]
        data = held[q_place, k_place]
        unsure = unknown[q_place, k_place] if bool(unknown.any()) else None
        if cover.causal:
            before = k.data <= q.data
            data = data & before
            unsure = None if unsure is None else unsure & before
        unsure = _any((unsure, q.unknown, k.unknown))
        return _Logical(_known(data, unsure), unsure)


def _distinct(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values in ascending order, and where each element's is among them."""
    values, places = torch.unique(blocks, return_inverse=True)
    return values, places


def _reduce(operation: Callable[[Tensor, Tensor], Tensor], parts: Sequence[Tensor]) -> Tensor:
    return reduce(operation, parts)


def _any(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Where any holds; `None` is nowhere."""
    present = [part for part in parts if part is not None]
    return _reduce(torch.logical_or, present) if present else None


def _known(data: Tensor, unknown: Tensor | None) -> Tensor:
    """Truth values made false where they are not known."""
    return data if unknown is None else data & ~unknown


def _choose(condition: Tensor, then: Tensor | None, otherwise: Tensor | None) -> Tensor | None:
    """`then` where the condition holds, `otherwise` elsewhere; `None` is nowhere."""
    if then is None and otherwise is None:
        return None
    nowhere = torch.tensor(False)
    return torch.where(
        condition,
        nowhere if then is None else then,
        nowhere if otherwise is None else otherwise,
    )


def _looks_up_positions(body: Predicate) -> bool:
    """Whether it reads a table or segments at a place that depends on `q` or `k`."""
    return any(
        isinstance(node, Entry | Member | Segment) and not {"q", "k"}.isdisjoint(variables(node))
        for node in walk(body)
    )
