"""Run-time tables and packed documents as Triton text: parameters, gathers, the search for a
position's document.

An integer table is int32, a table of truth values uint8, both contiguous; `segments` are the int32
bounds `cu_seqlens` `[documents + 1]`. Outside of its axes an integer table reads as `MISSING` and a
truth table as false, and a position outside of all documents is a document of its own: nothing is
ever read out of bounds, whatever the tables hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, TypeAlias

from patterncc.codegen.gpu.kernel_source import KernelParameter
from patterncc.dsl.mask import (
    MISSING,
    Const,
    Entry,
    Expr,
    IntExpr,
    Member,
    Product,
    Segment,
    SegmentKind,
    Sum,
    Var,
    variables,
    walk,
)

TableKind: TypeAlias = Literal["int", "bool", "segments"]

ANSWERS: tuple[SegmentKind, ...] = ("id", "start", "end")
"""What is found out of a position at once."""

_VECTORS = frozenset({"q", "k", "residue"})  # names that stand for tensors
_LANES = frozenset({"q_first", "q_last", "k_first", "k_last"})  # and those that do where tiles are
# looked at together: tables are then read by other means, bounds look documents up for one tile
_POINTERS: Mapping[TableKind, str] = {"int": "*i32", "bool": "*u8", "segments": "*i32"}


@dataclass(frozen=True, slots=True)
class Table:
    """A table that a kernel reads.

    Attributes:
        name: The pattern's name of it.
        kind: What it holds.
        spread: For each axis, whether a kernel looks up many of its indexes at once.
    """

    name: str
    kind: TableKind
    spread: tuple[bool, ...]

    @property
    def axes(self) -> int:
        """How many it has; 1 for `segments`."""
        return len(self.spread)

    @property
    def pointer(self) -> KernelParameter:
        """Where it lies."""
        return KernelParameter(f"table_{self.name}_ptr", _POINTERS[self.kind], 4)

    @property
    def sizes(self) -> tuple[KernelParameter, ...]:
        """Its sizes; of `segments` the number of documents."""
        if self.kind == "segments":
            return (KernelParameter(f"table_{self.name}_count", "i32"),)
        return tuple(
            KernelParameter(f"table_{self.name}_size_{axis}", "i32") for axis in range(self.axes)
        )

    @property
    def beyond(self) -> int:
        """How much longer its axes are than its `sizes` say: `segments` have a bound more than
        documents."""
        return int(self.kind == "segments")

    def size_values(self, shape: Sequence[int]) -> dict[str, int]:
        """The values of `sizes` for a table of a shape."""
        taken = (length - self.beyond for length in shape)
        return {size.name: value for size, value in zip(self.sizes, taken, strict=True)}

    def reach(self, shape: Sequence[int]) -> int:
        """How far apart in memory elements are that are looked up at once; kernels count that in
        32 bits."""
        steps = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return sum(
            (size - 1) * step
            for size, step, many in zip(shape, steps, self.spread, strict=True)
            if many
        )


def tables_read(exprs: Iterable[Expr]) -> tuple[Table, ...]:
    """The tables that expressions read, by name."""
    found: dict[str, Table] = {}
    for expr in exprs:
        for node in walk(expr):
            table = _table(node)
            if table is not None:
                known = found.get(table.name, table)
                spread = tuple(map(any, zip(known.spread, table.spread, strict=True)))
                found[table.name] = replace(table, spread=spread)
    return tuple(found[name] for name in sorted(found))


def _table(node: Expr) -> Table | None:
    match node:
        case Entry(name, indexes):
            return Table(name, "int", tuple(map(_many, indexes)))
        case Member(name, indexes):
            return Table(name, "bool", tuple(map(_many, indexes)))
        case Segment(_, name, _):
            return Table(name, "segments", (False,))
    return None


def _many(index: IntExpr) -> bool:
    return bool(variables(index) & (_VECTORS | _LANES))


def read_text(node: Entry | Member, indexes: Sequence[str]) -> str:
    """Reads an element of a table; a truth value comes as one byte, 0 or 1.

    Args:
        node: The element.
        indexes: Texts of its indexes: tensors, which broadcast together, where those of the node
            read a name that stands for one, and scalars elsewhere.
    """
    table = _table(node)
    assert table is not None
    missing = MISSING if table.kind == "int" else 0
    sizes = [size.name for size in table.sizes]
    arguments = [table.pointer.name, *sizes, *indexes, str(missing)]
    return f"read_table_{''.join('sv'[many] for many in table.spread)}({', '.join(arguments)})"


def find_document_text(node: Segment, position: str, between: Sequence[str] = ()) -> str:
    """Looks up the document of a position: its id, start and end, in the order of `ANSWERS`, and
    its number, from which further searches can start.

    Args:
        node: Any of the questions about the position.
        position: The text of it.
        between: The number of a document that no position lies before; of many positions after
            it one that none lies after. Nothing where they are not known.
    """
    table = _table(node)
    assert table is not None
    several = bool(variables(node.position) & _VECTORS)
    function = "find_document" + "s" * several + ("", "_from", "_between")[len(between)]
    arguments = [table.pointer.name, table.sizes[0].name, position, *between]
    return f"{function}({', '.join(arguments)})"


def rises_with(position: IntExpr, var: Var) -> bool:
    """Is it surely no less at a greater value of the variable?"""
    match position:
        case Var():
            return position == var
        case Product((Const(factor), inner)):
            return factor > 0 and rises_with(inner, var)
        case Sum(terms):
            moving = [term for term in terms if var in walk(term)]
            return len(moving) == 1 and rises_with(moving[0], var)
    return False


def helpers(body: str) -> Iterator[str]:
    """The functions that a kernel's text calls, each once."""
    for axes in sorted(set(re.findall(r"\bread_table_([sv]+)\(", body))):
        yield _reader(axes)
    if "find_document" in body:
        yield _FIND_DOCUMENT
    if "find_documents" in body:
        yield _FIND_DOCUMENTS


def _reader(axes: str) -> str:
    """Reads by a scalar (s) or many indexes (v) on each axis.

    Scalars move the pointer, in 64 bits; the offsets of a tensor are 32 bits wide, for they take a
    register each.
    """
    sizes = [f"size_{axis}" for axis in range(len(axes))]
    indexes = [f"index_{axis}" for axis in range(len(axes))]
    lines = [
        "@triton.jit",
        f"def read_table_{axes}(table, {', '.join(sizes)}, {', '.join(indexes)}, missing):",
        '    """An element of a table, `missing` outside of it."""',
        "    step = tl.cast(1, tl.int64)",
        "    offset = tl.cast(0, tl.int32)",
        "    inside = tl.cast(1, tl.int1)",
    ]
    for axis in reversed(range(len(axes))):
        size, index = sizes[axis], indexes[axis]
        if axes[axis] == "s":
            lines += [
                f"    {index} = tl.cast({index}, tl.int64)",
                f"    inside = inside & ({index} >= 0) & ({index} < {size})",
                f"    table += {index} * step",
            ]
        else:
            lines += [
                f"    exists = ({index} >= 0) & ({index} < {size})",
                f"    {index} = tl.where(exists, {index}, 0).to(tl.int32)",
                "    inside = inside & exists",
                f"    offset = offset + {index} * step.to(tl.int32)",
            ]
        lines.append(f"    step = step * {size}")
    lines.append("    return tl.load(table + offset, mask=inside, other=missing)")
    return "\n".join(lines) + "\n"


_FIND_DOCUMENT = '''\
@triton.jit
def find_document(bounds, documents, position):
    """Id, start and end of the document of a position, and its number: how many documents end at
    or before it."""
    number = document_between(bounds, position, tl.cast(0, tl.int32), documents)
    return describe_document(bounds, documents, position, number)


@triton.jit
def find_document_from(bounds, documents, position, first):
    """The same where the number is at least `first`: sought there first, in steps that double."""
    low = first
    high = first
    step = 1
    while (high < documents) & (
        tl.load(bounds + high + 1, mask=high < documents, other=0) <= position
    ):
        low = high + 1
        high = tl.minimum(high + step, documents)
        step = step * 2
    number = document_between(bounds, position, low, high)
    return describe_document(bounds, documents, position, number)


@triton.jit
def document_between(bounds, position, low, high):
    """The number of the document, of those from `low` to `high`."""
    while low < high:
        middle = low + (high - low) // 2
        ended = tl.load(bounds + middle + 1) <= position
        low = tl.where(ended, middle + 1, low)
        high = tl.where(ended, high, middle)
    return low


@triton.jit
def describe_document(bounds, documents, position, document):
    """Outside of all documents a position is one alone."""
    inside = (position >= 0) & (document < documents)
    start = tl.load(bounds + document, mask=inside, other=0)
    end = tl.load(bounds + document + 1, mask=inside, other=0)
    beyond = position - tl.load(bounds + documents) + documents
    alone = tl.where(position < 0, position, beyond)
    return (
        tl.where(inside, document, alone),
        tl.where(inside, start, position),
        tl.where(inside, end, position + 1),
        document,
    )
'''

_FIND_DOCUMENTS = '''\
@triton.jit
def find_documents(bounds, documents, positions):
    """Ids, starts, ends and numbers of the documents of a tensor of positions."""
    least = find_document(bounds, documents, tl.min(positions))
    return find_documents_from(bounds, documents, positions, least[3])


@triton.jit
def find_documents_from(bounds, documents, positions, first):
    """The same where no position lies before the document of number `first`."""
    most = find_document_from(bounds, documents, tl.max(positions), first)
    return find_documents_between(bounds, documents, positions, first, most[3])


@triton.jit
def find_documents_between(bounds, documents, positions, first, last):
    """The same, of positions in the documents from number `first` to `last`."""
    span = last - first
    low = first + tl.zeros_like(positions)
    high = low + span
    while span > 0:
        undecided = low < high
        middle = low + (high - low) // 2
        ended = tl.load(bounds + middle + 1, mask=undecided, other=0) <= positions
        low = tl.where(undecided & ended, middle + 1, low)
        high = tl.where(undecided & ~ended, middle, high)
        span = span // 2
    return describe_document(bounds, documents, positions, low)
'''
