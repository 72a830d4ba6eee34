"""The mask of partial tiles as Triton text: what is computed once per query tile, once per key tile
and per element.

In the text `q` is the column vector `[BLOCK_Q, 1]` of the rows' positions and `k` the row vector
`[1, BLOCK_K]` of the keys'; both are int32, and so is all arithmetic that interval analysis shows
to fit. A kernel that computes tiles of keys has them the other way around, `[1, BLOCK_Q]` and
`[BLOCK_K, 1]`, and runs the lines of the keys once and those of the rows in its loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from patterncc.codegen.gpu.interval import interval
from patterncc.codegen.gpu.scalar_source import ExpressionWriter, Text, is_predicate
from patterncc.codegen.gpu.separate import ROWS, Held, Side, separate
from patterncc.codegen.gpu.table_source import ANSWERS, find_document_text, rises_with
from patterncc.dsl.build import all_of, any_of, compare, maximum, minimum, substitute, subtract
from patterncc.dsl.mask import (
    TRUE,
    And,
    Branch,
    Compare,
    Const,
    Entry,
    Expr,
    IntExpr,
    K,
    Member,
    Or,
    Param,
    Predicate,
    Segment,
    Truth,
    Var,
    walk,
)


@dataclass(frozen=True, slots=True)
class MaskSource:
    """Lines to run once per query tile, lines to run once per key tile, and the element-wise
    expression."""

    row_lines: tuple[str, ...]
    key_lines: tuple[str, ...]
    expression: str


@dataclass(frozen=True, slots=True)
class Bound:
    """A comparison of what passes, a vector of int32 of which `k` (or `q`, where keys are held) is
    one, with a limit of what is held: `passing < limit`, `limit <= passing`, `passing == limit` or
    `passing != limit`."""

    op: Literal["<", "<=", "==", "!="]
    passing: str
    limit: str


def scalar_name(leaf: Var | Param) -> str:
    """What the kernel calls a scalar of the call; run-time numbers get a prefix, so that none hides
    a Python name."""
    return f"number_{leaf.name}" if isinstance(leaf, Param) else leaf.name


def emit_bounded_mask(
    mask: Predicate,
    documents: Mapping[tuple[str, IntExpr], str] = MappingProxyType({}),
    held: Held = ROWS,
) -> tuple[MaskSource, tuple[Bound, ...]]:
    """Writes the mask, and that the key exists, as comparisons that must all hold and an expression
    for the rest, which is empty where nothing is left.

    Args:
        mask: The predicate.
        documents: Numbers of documents that have been looked up, by segments and position.
        held: The side of a tile that the program keeps.

    Raises:
        UnsupportedError: The mask reads a cover.
    """
    exists = compare("<", K, Var("kv_len"))
    writer = _MaskWriter(documents, held)
    bounds, rest = writer.bounds(separate(all_of(mask, exists), held))
    expression = "" if rest == TRUE else writer.element(rest)
    return MaskSource(tuple(writer.row_lines), tuple(writer.key_lines), expression), bounds


def beyond_limits(mask: Predicate) -> tuple[Predicate, ...]:
    """What a mask asks of the keys of a tile besides limits that must all hold: the other
    comparisons and lookups, for a program that keeps rows."""
    exists = compare("<", K, Var("kv_len"))
    _, rest = _MaskWriter(MappingProxyType({}), ROWS).bounds(separate(all_of(mask, exists)))
    return tuple(
        node for node in walk(rest) if isinstance(node, (Compare, Member)) and ROWS.passes(node)
    )


def is_limit(node: Predicate) -> bool:
    """Is it a comparison of a key's side with a row's, or with a number?"""
    match node:
        case Compare(_, left, right):
            return ROWS.is_bound(left, right) or ROWS.is_bound(right, left)
    return False


def emit_mask(
    mask: Predicate,
    documents: Mapping[tuple[str, IntExpr], str] = MappingProxyType({}),
    held: Held = ROWS,
) -> MaskSource:
    """Writes the mask, and that the key exists, for one tile.

    Args:
        mask: The predicate.
        documents: Numbers of documents that have been looked up, by segments and position.
        held: The side of a tile that the program keeps.

    Raises:
        UnsupportedError: The mask reads a cover.
    """
    exists = compare("<", K, Var("kv_len"))
    writer = _MaskWriter(documents, held)
    expression = writer.element(separate(all_of(mask, exists), held))
    return MaskSource(tuple(writer.row_lines), tuple(writer.key_lines), expression)


class _MaskWriter:
    """Collects the lines of one mask; equal expressions are computed once."""

    def __init__(self, documents: Mapping[tuple[str, IntExpr], str], held: Held) -> None:
        self._documents = documents
        self._held = held
        self.row_lines: list[str] = []
        self.key_lines: list[str] = []
        self._named: dict[IntExpr | Predicate | tuple[IntExpr, int, int], Text] = {}
        self._vector = ExpressionWriter(self._computed)  # within a vector of rows or of keys
        self._tile = ExpressionWriter(self._hoisted)  # where both meet

    def element(self, mask: Predicate) -> str:
        """A predicate as one operand; what does not need both positions has been moved out of the
        tile."""
        if isinstance(mask, Truth):
            # Only a mask that is `false` ends here: a true one still asks whether the key exists.
            return "(k < 0)" if not mask.value else "(k >= 0)"
        if not self._held.passes(mask):
            return self._name_predicate(mask).text
        match mask:
            case Compare(op, passing, limit) if op != "<=" and self._held.is_bound(passing, limit):
                return f"({self._passing(passing)} {op} {self._limit(passing, limit)})"
            case Compare("<=", limit, passing) if self._held.is_bound(passing, limit):
                return f"({self._limit(passing, limit)} <= {self._passing(passing)})"
            case Compare():
                return self._tile.predicate(mask)
            case And(args):
                ranges, rest = self._ranges(args)
                parts = [*ranges, *self._grouped(rest, all_of)]
                return parts[0] if len(parts) == 1 else "(" + " & ".join(parts) + ")"
            case Or(args):
                return "(" + " | ".join(self._grouped(args, any_of)) + ")"
            case Branch(condition, then, otherwise):
                choices = (self.element(part) for part in (condition, then, otherwise))
                return f"tl.where({', '.join(choices)})"
        return self._tile.predicate(mask)  # refuses it by name

    def bounds(self, mask: Predicate) -> tuple[tuple[Bound, ...], Predicate]:
        """The comparisons with limits of a conjunction, and what it asks besides."""
        bounds: list[Bound] = []
        rest: list[Predicate] = []
        for arg in mask.args if isinstance(mask, And) else (mask,):
            match arg:
                case Compare("<" | "==" | "!=" as op, passing, limit) | Compare(
                    "<=" as op, limit, passing
                ) if self._held.is_bound(passing, limit) and _within_32_bits(passing):
                    bounds.append(Bound(op, self._passing(passing), self._limit(passing, limit)))
                case _:
                    rest.append(arg)
        return tuple(bounds), all_of(*rest)

    def _ranges(self, args: tuple[Predicate, ...]) -> tuple[list[str], tuple[Predicate, ...]]:
        """Pairs of bounds on the same term, one comparison each, and the other arguments.

        `low <= k and k < high` is `k - low < high - low` for unsigned integers: a difference and a
        comparison per element instead of two comparisons and what joins them.
        """
        lowers: dict[IntExpr, IntExpr] = {}
        uppers: dict[IntExpr, IntExpr] = {}
        for arg in args:
            match arg:
                case Compare("<", passing, limit) if self._held.is_bound(passing, limit):
                    uppers[passing] = limit
                case Compare("<=", limit, passing) if self._held.is_bound(passing, limit):
                    lowers[passing] = limit
        joined = [
            passing
            for passing in lowers
            if passing in uppers
            and _spans_31_bits(passing)
            # Of all that meets what passes one vector from memory changes its layout before the
            # loop; two would have the tile of truth values change its own, in every step.
            and self._looks_up(lowers[passing]) == self._looks_up(uppers[passing])
        ]
        texts = []
        for passing in joined:
            least, most = interval(passing).low, interval(passing).high + 1
            low = maximum(minimum(lowers[passing], Const(most)), Const(least))
            high = maximum(minimum(uppers[passing], Const(most)), low)
            first, width = self._hoist(low), self._hoist(subtract(high, low))
            sides = (f"({self._passing(passing)} - {first.operand()})", width.operand())
            texts.append(f"({' < '.join(f'{side}.to(tl.uint32, bitcast=True)' for side in sides)})")
        done = {Compare("<", passing, uppers[passing]) for passing in joined}
        done |= {Compare("<=", lowers[passing], passing) for passing in joined}
        return texts, tuple(arg for arg in args if arg not in done)

    def _grouped(self, args: tuple[Predicate, ...], connect: type | object) -> list[str]:
        """The arguments as operands: those of the side that is held as one, after those that read
        what passes."""
        kept = [arg for arg in args if not self._held.passes(arg)]
        parts = [self.element(arg) for arg in args if self._held.passes(arg)]
        if kept:
            parts.append(self._name_predicate(connect(*kept)).text)  # type: ignore[operator]
        return parts

    def _passing(self, expr: IntExpr) -> str:
        return self._hoist(expr).operand()

    def _limit(self, passing: IntExpr, limit: IntExpr) -> str:
        """A limit of what passes, clamped into 32 bits where that fits them: none of its values can
        tell the difference."""
        if isinstance(limit, Const):
            return self._vector.integer(limit).operand()
        values = interval(passing)
        low, high = values.low - 1, values.high + 1
        text = self._vector.integer(limit)
        if text.bits != 64 or not (values.fits(32) and low >= -(2**31) and high < 2**31):
            return self._hoist(limit).operand()
        key = (limit, low, high)
        if key not in self._named:
            clamped = f"tl.minimum(tl.maximum({text.text}, {low}), {high}).to(tl.int32)"
            self._named[key] = self._define(self._held.side, clamped, 32)
        return self._named[key].operand()

    def _computed(self, expr: Expr) -> Text | None:
        """The names for the vector writer: leaves, and what has been computed already."""
        if isinstance(expr, Segment):
            return self._document(expr)
        return self._named.get(expr) or _leaf(expr)

    def _hoisted(self, expr: Expr) -> Text | None:
        """The names for the tile writer: anything that reads only one of the two positions is
        computed outside."""
        if isinstance(expr, Segment):
            return self._document(expr)
        if self._held.stays(expr) and self._held.passes(expr):
            return None
        if is_predicate(expr):
            return self._name_predicate(expr)
        return self._hoist(expr)

    def _hoist(self, expr: IntExpr) -> Text:
        if isinstance(expr, Segment):
            return self._document(expr)
        leaf = _leaf(expr)
        if leaf is not None or isinstance(expr, Const):
            return leaf or self._vector.integer(expr)
        if expr not in self._named:
            text = self._vector.integer(expr)
            fits = text.bits == 64 and interval(expr).fits(32)
            text = text.widened(32) if fits else text
            self._named[expr] = self._define(self._place(expr), text.text, text.bits or 32)
        return self._named[expr]

    def _document(self, node: Segment) -> Text:
        """Looks a position's document up: one search answers all that is asked of it."""
        if node not in self._named:
            both = self._held.stays(node) and self._held.passes(node)
            writer = self._tile if both else self._vector
            place = self._place(node)
            lines = self.key_lines if place == "key" else self.row_lines
            bits = writer.document_bits(node.position)
            position = writer.integer(node.position).widened(bits).text
            search = find_document_text(node, position, self._between(node))
            # All have names of their own: one that is given before a loop and in it is carried.
            names = [f"{place}_term_{len(lines)}_{answer}" for answer in (*ANSWERS, "number")]
            lines.append(f"{', '.join(names)} = {search}")
            for answer, name in zip(ANSWERS, names[:-1], strict=True):
                self._named[replace(node, kind=answer)] = Text(name, bits)
        return self._named[node]

    def _between(self, node: Segment) -> tuple[str, ...]:
        """The documents of the first and last row or key that the program holds, where bounds have
        looked them up."""
        held = self._held
        if not rises_with(node.position, held.variable):
            return ()
        first, last = (
            self._documents.get((node.segments, substitute(node.position, {held.variable: end})))
            for end in (held.first, held.last)
        )
        if first is None:
            return ()
        return (first,) if last is None else (first, last)

    def _name_predicate(self, mask: Predicate) -> Text:
        if mask not in self._named:
            self._named[mask] = self._define(self._place(mask), self._vector.predicate(mask), 32)
        return self._named[mask]

    def _place(self, expr: Expr) -> Side:
        """The side whose lines compute it."""
        return self._held.other if self._held.passes(expr) else self._held.side

    def _define(self, place: Side, text: str, bits: int) -> Text:
        lines = self.key_lines if place == "key" else self.row_lines
        name = f"{place}_term_{len(lines)}"
        lines.append(f"{name} = {text}")
        return Text(name, 64 if bits == 64 else 32)

    def _looks_up(self, limit: IntExpr) -> bool:
        """Does a limit come from a table or a search, one for each row or key that is held?"""
        return any(
            isinstance(node, (Entry, Segment)) and self._held.stays(node) for node in walk(limit)
        )


def _within_32_bits(passing: IntExpr) -> bool:
    """Are its values int32, and the next ones beyond as well, which limits are clamped to?"""
    values = interval(passing)
    return values.low > -(2**31) and values.high < 2**31 - 1


def _spans_31_bits(passing: IntExpr) -> bool:
    """Does the distance of two of its values, or of one to the next beyond, fit an int32?"""
    values = interval(passing)
    return values.fits(32) and values.high + 1 - values.low < 2**31


def _leaf(expr: Expr) -> Text | None:
    """Positions and scalars of the call are int32 in a tile."""
    return Text(scalar_name(expr), 32) if isinstance(expr, (Var, Param)) else None
