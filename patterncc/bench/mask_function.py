"""A pattern as a mask function of FlexAttention: Python text, as a person would write it.

The run-time numbers of the call are constants of the text, which is the best case for whoever
compiles it. Tables are read as tensors; of packed documents the function reads an id for each
token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from typing_extensions import assert_never

from patterncc.bench.band import known_numbers
from patterncc.bench.request import Request
from patterncc.codegen.elementwise import discrete
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import (
    MISSING,
    Abs,
    And,
    Branch,
    Compare,
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
    Select,
    Sum,
    Truth,
    Var,
)

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_NAME = "allowed"
_ARGUMENTS = "batch, head, row, k"


@dataclass(frozen=True, slots=True)
class MaskText:
    """A mask function as text.

    Attributes:
        text: A function of batch, head, row and key.
        segments: Of each tensor that it reads for segments: its name, and what it holds.
    """

    text: str
    segments: Mapping[str, Segment]

    def function(self, tensors: dict[str, Tensor]) -> MaskFunction:
        """The function, reading tables and what `segment_tensors` makes from a mapping.

        It stays one function when these change, so that nobody has to compile it again.
        """
        names: dict[str, Any] = cast(dict[str, Any], tensors)
        names["torch"] = torch
        exec(compile(self.text, "<mask function>", "exec"), names)
        made: MaskFunction = names[_NAME]
        return made


def mask_text(request: Request) -> MaskText | None:
    """The mask of a request; `None` where everything is visible, so that no function is needed.

    Raises:
        UnsupportedError: The pattern has a term that such a function cannot have.
    """
    call = request.call
    body = known_numbers(call, request.layer)
    if body == Truth(True):
        return None
    extents = {
        "q": (call.q_offset, call.q_offset + call.q_len),
        "k": (0, call.kv_len),
        "head": (0, call.heads),
        "kv_head": (0, call.kv_heads),
        "batch": (0, request.batch),
    }
    shapes = {name: table.shape for name, table in call.tables.items()}
    writer = _Writer(call.heads // call.kv_heads, call.q_offset, extents, shapes)
    mask = writer.predicate(body)
    text = f"def {_NAME}({_ARGUMENTS}):\n    return {mask}\n"
    return MaskText(text, writer.segments)


def segment_tensors(
    segments: Mapping[str, Segment], request: Request, tables: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """For each token what a mask function reads of its document, int64 `[tokens]`."""
    call = request.call
    tokens = max(call.kv_len, call.q_offset + call.q_len)
    found = {}
    for name, segment in segments.items():
        bounds = tables[segment.segments].long()
        places = torch.arange(tokens, device=bounds.device)
        if segment.kind == "id" and int(call.tables[segment.segments][-1]) == tokens:
            found[name] = torch.searchsorted(bounds, places, right=True)
        else:
            at = Segment(segment.kind, segment.segments, Var("q"))
            with bounds.device:
                found[name] = discrete(at, places, places, {}, tables)
    return found


@dataclass(slots=True)
class _Writer:
    """Writes expressions; collects what they read of segments.

    Attributes:
        group: Query heads of a key/value head.
        q_offset: Position of row 0.
        extents: Half-open ranges of the coordinates.
        shapes: Of the tables.
    """

    group: int
    q_offset: int
    extents: Mapping[str, tuple[int, int]]
    shapes: Mapping[str, tuple[int, ...]]
    segments: dict[str, Segment] = field(default_factory=dict)

    def integer(self, expr: IntExpr) -> str:
        match expr:
            case Const(value):
                return str(value)
            case Var("q"):
                return f"(row + {self.q_offset})" if self.q_offset else "row"
            case Var("kv_head"):
                return f"(head // {self.group})" if self.group > 1 else "head"
            case Var("k" | "head" | "batch" as name):
                return name
            case Var(name) | Param(name):
                raise UnsupportedError(f"its mask function has no `{name}`")
            case Sum(terms):
                return self._sum(terms)
            case Product(factors):
                return f"({' * '.join(map(self.integer, factors))})"
            case FloorDiv(value, divisor):
                return f"({self.integer(value)} // {self.integer(divisor)})"
            case Mod(value, divisor):
                return f"({self.integer(value)} % {self.integer(divisor)})"
            case Min(args):
                return self._fold(args, "<")
            case Max(args):
                return self._fold(args, ">")
            case Abs(value):
                return f"abs({self.integer(value)})"
            case Select(condition, then, otherwise):
                chosen = self.predicate(condition), self.integer(then), self.integer(otherwise)
                return f"torch.where({', '.join(chosen)})"
            case Entry(table, indexes):
                return self._read(table, indexes, str(MISSING))
            case Segment():
                return self._segment(expr)
            case _:
                assert_never(expr)

    def predicate(self, expr: Predicate) -> str:
        match expr:
            case Truth(value):
                return "(k >= 0)" if value else "(k < 0)"
            case Compare(op, left, right):
                return f"({self.integer(left)} {op} {self.integer(right)})"
            case And(args):
                return f"({' & '.join(map(self.predicate, args))})"
            case Or(args):
                return f"({' | '.join(map(self.predicate, args))})"
            case Not(arg):
                return f"~{self.predicate(arg)}"
            case Branch(condition, then, otherwise):
                parts = map(self.predicate, (condition, then, otherwise))
                return f"torch.where({', '.join(parts)})"
            case Member(table, indexes):
                return self._read(table, indexes, "False")
            case Cover():
                raise UnsupportedError("a mask function looks at one pair, `cover` at a block")
            case _:
                assert_never(expr)

    def _sum(self, terms: tuple[IntExpr, ...]) -> str:
        """Differences as such: what `Product((Const(-1), x))` means to a reader."""
        text = ""
        for term in sorted(terms, key=_is_negative):
            match term:
                case Product((Const(-1), *factors)):
                    text += " - " + self.integer(
                        factors[0] if len(factors) == 1 else Product(tuple(factors))
                    )
                case Const(value) if value < 0 and text:
                    text += f" - {-value}"
                case _:
                    text += (" + " if text else "") + self.integer(term)
        return f"({text.removeprefix(' ') if text.startswith(' -') else text})"

    def _fold(self, args: tuple[IntExpr, ...], sign: str) -> str:
        first, *others = map(self.integer, args)
        for other in others:
            first = f"torch.where({first} {sign} {other}, {first}, {other})"
        return first

    def _read(self, table: str, indexes: tuple[IntExpr, ...], outside: str) -> str:
        """An element of a table; its bounds are looked at only where an index can leave them."""
        places, inside = [], []
        for index, size in zip(indexes, self.shapes[table], strict=True):
            place = self.integer(index)
            low, high = self._extent(index)
            if low is not None and high is not None and low >= 0 and high <= size:
                places.append(place)
                continue
            inside.append(f"({place} >= 0) & ({place} < {size})")
            places.append(f"torch.clamp({place}, 0, {size - 1})")
        element = f"{table}[{', '.join(places)}]"
        return f"torch.where({' & '.join(inside)}, {element}, {outside})" if inside else element

    def _extent(self, expr: IntExpr) -> tuple[int | None, int | None]:
        """A half-open range that holds an index, where that is plain."""
        match expr:
            case Var(name) if name in self.extents:
                return self.extents[name]
            case Const(value):
                return value, value + 1
            case FloorDiv(value, Const(divisor)):
                low, high = self._extent(value)
                if low is not None and high is not None:
                    return low // divisor, (high - 1) // divisor + 1
        return None, None

    def _segment(self, segment: Segment) -> str:
        low, _ = self._extent(segment.position)
        if low is None or low < 0:
            raise UnsupportedError("its documents are looked up at positions before the text")
        name = f"{segment.segments}_{segment.kind}"
        self.segments[name] = segment
        return f"{name}[{self.integer(segment.position)}]"


def _is_negative(term: IntExpr) -> bool:
    match term:
        case Product((Const(-1), *_)):
            return True
        case Const(value):
            return value < 0
    return False
