"""Bounds of sweeps as Triton text: the scalars that they read, in 64 bits, what several of them
share, and the documents that they look up.

Bounds are computed once per program, before its loops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from patterncc.codegen.gpu.mask_source import scalar_name
from patterncc.codegen.gpu.scalar_source import ExpressionWriter, Text
from patterncc.codegen.gpu.separate import Held, separate
from patterncc.codegen.gpu.table_source import ANSWERS, find_document_text, rises_with
from patterncc.codegen.ir import RESIDUE, Sweep
from patterncc.dsl.build import substitute
from patterncc.dsl.mask import Const, Expr, IntExpr, Param, Product, Segment, Var, children, walk


def expressions(sweeps: Sequence[Sweep]) -> Iterator[Expr]:
    """What the text computes of the sweeps."""
    for sweep in sweeps:
        yield from _parts(sweep)


def scalars_read(sweeps: Sequence[Sweep]) -> tuple[Var | Param, ...]:
    """The scalars that the bounds of the sweeps read, by name; residues are not among them."""
    found = {
        leaf
        for part in expressions(sweeps)
        for leaf in walk(part)
        if isinstance(leaf, (Var, Param)) and leaf != RESIDUE
    }
    return tuple(sorted(found, key=lambda leaf: leaf.name))


def wide_name(leaf: Var | Param) -> str:
    """The name of a scalar's 64-bit copy, which bounds are computed from."""
    return f"{scalar_name(leaf)}_wide"


def widened(leaf: Var | Param) -> str:
    """What that copy is computed from."""
    match leaf:
        case Var("q_first"):
            return "q_offset.to(tl.int64) + row_first"
        case Var("q_last"):
            return "q_offset.to(tl.int64) + tl.minimum(row_first + BLOCK_Q, q_len) - 1"
        case Var("k_last"):
            return "tl.minimum(k_first + BLOCK_K, kv_len).to(tl.int64) - 1"
    return f"{scalar_name(leaf)}.to(tl.int64)"


def _parts(sweep: Sweep) -> tuple[Expr, ...]:
    ends = (end for repeat in sweep.repeats for end in (repeat.lo, repeat.hi))
    return (sweep.lo, sweep.hi, separate(sweep.guard), sweep.phase, *ends)


@dataclass(frozen=True, slots=True)
class SharedBounds:
    """What several bounds read: lines, a writer that knows their names, documents looked up."""

    lines: list[str]
    writer: ExpressionWriter
    documents: dict[tuple[str, IntExpr], str]


def share_bounds(sweeps: Sequence[Sweep], held: Held) -> SharedBounds:
    """Names the expressions that several bounds contain."""
    uses: Counter[Expr] = Counter()
    order: list[Expr] = []

    def count(expr: Expr) -> None:
        uses[expr] += 1
        if uses[expr] == 1:
            for child in children(expr):
                count(child)
            order.append(expr)  # parts before what contains them

    for sweep in sweeps:
        for part in _parts(sweep):
            count(part)
    named: dict[Expr, Text] = {}
    writer = ExpressionWriter(lambda expr: named.get(expr) or _scalar(expr), least_bits=64)
    shared = SharedBounds([], writer, {})
    looked_up = [e for e in order if isinstance(e, Segment) and RESIDUE not in walk(e)]
    for node in sorted(looked_up, key=lambda node: held.last in walk(node)):
        if node not in named:
            _look_up(shared, node, named, held)
    for expr in order:
        if expr not in named and uses[expr] > 1 and _worth_a_name(expr):
            text = writer.any(expr)
            name = f"bound_{len(named)}"
            named[expr] = Text(name, text.bits)
            shared.lines.append(f"{name} = {text.text}")
    return shared


def _look_up(shared: SharedBounds, node: Segment, named: dict[Expr, Text], held: Held) -> None:
    """Looks a position's document up, that of the last row or key that is held from the first one's
    on, and names all that can be asked of it."""
    position, bits = node.position, shared.writer.document_bits(node.position)
    text = shared.writer.integer(position).widened(bits).text
    before = (node.segments, substitute(position, {held.last: held.first}))
    known = rises_with(position, held.last) and before in shared.documents
    search = find_document_text(node, text, [shared.documents[before]] if known else ())
    names = [f"document_{len(shared.documents)}_{answer}" for answer in (*ANSWERS, "number")]
    shared.lines.append(f"{', '.join(names)} = {search}")
    shared.documents[node.segments, position] = names.pop()
    named |= {
        replace(node, kind=answer): Text(name, bits)
        for answer, name in zip(ANSWERS, names, strict=True)
    }


def _worth_a_name(expr: Expr) -> bool:
    """Not for leaves, for what differs between lanes, and for negative terms, which sums write as
    differences."""
    if (
        isinstance(expr, Product)
        and isinstance(expr.factors[0], Const)
        and expr.factors[0].value < 0
    ):
        return False
    return any(True for _ in children(expr)) and RESIDUE not in walk(expr)


def _scalar(expr: Expr) -> Text | None:
    """Scalars of the call are widened once, under names of their own."""
    return Text(wide_name(expr), 64) if isinstance(expr, (Var, Param)) else None


def integer_text(writer: ExpressionWriter, expr: IntExpr) -> str:
    """An expression of 64 bits; literals have no width of their own."""
    text = writer.integer(expr)
    return f"tl.cast({text.text}, tl.int64)" if text.bits is None else text.text
