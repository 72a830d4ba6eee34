"""Score terms as Triton text: what is computed once per program, and what once per tile of scores.

In the text `q` and `k` are the positions of rows and keys as vectors that broadcast to the tile, in
the shape that the kernel gives them; `scores` is the bare product `query . key`. All real numbers
are float32. Logits come in units of `log 2`, for kernels compute powers of two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from typing_extensions import assert_never

from patterncc.codegen.gpu.edge_source import EDGES, corner_texts
from patterncc.codegen.gpu.kernel_terms import SCALE, SCALE_NUMBER, RealTable, spreads
from patterncc.codegen.gpu.mask_source import scalar_name
from patterncc.codegen.gpu.scalar_source import ExpressionWriter, Text
from patterncc.codegen.gpu.separate import separate
from patterncc.dsl.mask import Param, Q, Var, variables
from patterncc.dsl.score.build import plus, times
from patterncc.dsl.score.nodes import (
    Apply,
    Below,
    Choice,
    Constant,
    Function,
    Greatest,
    Least,
    Lifted,
    Lookup,
    Magnitude,
    Number,
    Over,
    Plus,
    Real,
    Score,
    Times,
    children,
    discrete,
    walk,
)

if TYPE_CHECKING:
    from patterncc.dsl.mask import Expr

_Place: TypeAlias = Literal["program", "tile"]

TANH = '''\
@triton.jit
def hyperbolic_tangent(x):
    """By a power of two; where that overflows, the quotient is 0."""
    return 1.0 - 2.0 / (1.0 + tl.exp2(x * 2.8853900817779268))
'''
"""Source of the function that written terms may call."""


class TermWriter:
    """Writes the terms of one kernel; equal parts are computed once.

    Args:
        exprs: All that will be written, as `in_classes` gives it.
        inner: The positions that change from tile to tile of a program.
        position: What the text calls the row's position, if not `q`.
        prefix: What its names begin with; those of two writers of a kernel must differ.
        corners: The shape of a tile of rows from `row_first` and keys from `k_first`, if entries
            may be looked up at its corners alone where they are the same in all of it.

    Attributes:
        program_lines: To run once, after `q` or `k`, whichever stays, is known.
        tile_lines: To run in each tile, after `scores` and both positions are known.
    """

    def __init__(
        self,
        exprs: Iterable[Real],
        inner: Literal["q", "k", "qk", ""],
        position: str = "q",
        prefix: str = "",
        corners: str = "",
    ) -> None:
        self.program_lines: list[str] = []
        self.tile_lines: list[str] = []
        self._inner = inner
        self._position = position
        self._prefix = prefix
        self._corners = corners
        self._uses = _uses(exprs)
        self._named: dict[Real, str] = {}
        self._integers = ExpressionWriter(self._integer_leaf)

    def write(self, expr: Real, place: _Place = "tile") -> str:
        """The text of an expression, an operand; the lines that it needs are added.

        Args:
            expr: The expression.
            place: Where it is used.

        Raises:
            UnsupportedError: It reads a cover, or an integer could leave 64 bits.
        """
        if expr in self._named:
            return self._named[expr]
        match expr:
            case Constant(value):
                return repr(value) if value >= 0 else f"({value!r})"
            case Number(name):
                return SCALE.name if expr == SCALE_NUMBER else f"real_{name}"
            case Score():
                return "scores"
        own = self._place(expr)
        text = self._composed(expr, own)
        if own == place and self._uses[expr] < 2 and not isinstance(expr, Lookup):
            return text
        lines = self.program_lines if own == "program" else self.tile_lines
        name = f"{self._prefix}{own}_real_{len(lines)}"
        if self._corners and own == "tile" and isinstance(expr, Lookup):
            lines += self._looked_up(expr, name, text)
        else:
            lines.append(f"{name} = {text}")
        self._named[expr] = name
        return name

    def _composed(self, expr: Real, own: _Place) -> str:
        def operand(part: Real) -> str:
            return self.write(part, own)

        match expr:
            case Lifted(value):
                return f"tl.cast({self._integers.integer(value).text}, tl.float32)"
            case Lookup():
                return self._lookup(expr)
            case Plus(terms):
                return self._sum(self._gathered(terms, plus, own), own)
            case Times(factors):
                return f"({' * '.join(map(operand, self._gathered(factors, times, own)))})"
            case Over(dividend, divisor):
                return f"({operand(dividend)} / {operand(divisor)})"
            case Least(args):
                return _nested("tl.minimum", [operand(arg) for arg in args])
            case Greatest(args):
                return _nested("tl.maximum", [operand(arg) for arg in args])
            case Magnitude(value):
                return f"tl.abs({operand(value)})"
            case Apply(function, value):
                return _applied(function, operand(value))
            case Choice(condition, then, otherwise):
                test = self._integers.predicate(separate(condition))
                return f"tl.where({test}, {operand(then)}, {operand(otherwise)})"
            case Below(left, right, then, otherwise):
                test = f"{operand(left)} < {operand(right)}"
                return f"tl.where({test}, {operand(then)}, {operand(otherwise)})"
            case Constant() | Number() | Score():
                raise AssertionError(expr)
            case _:
                assert_never(expr)

    def _gathered(self, parts: tuple[Real, ...], join: object, own: _Place) -> list[Real]:
        """The operands of a sum or product in a tile: what stays for the program as one."""
        stay = [part for part in parts if self._place(part) == "program"]
        if own == "program" or len(stay) < 2:
            return list(parts)
        moving = [part for part in parts if self._place(part) == "tile"]
        return [join(*stay), *moving]  # type: ignore[operator]

    def _sum(self, terms: list[Real], own: _Place) -> str:
        text = ""
        for term in terms:
            match term:
                case Constant(value) if value < 0 and text:
                    text += f" - {-value!r}"
                case Times((Constant(value), *rest)) if (
                    value < 0 and text and term not in self._named
                ):
                    text += f" - {self.write(times(Constant(-value), *rest), own)}"
                case _:
                    text += f" + {self.write(term, own)}" if text else self.write(term, own)
        return f"({text})"

    def _looked_up(self, expr: Lookup, name: str, text: str) -> Iterator[str]:
        """Gives a tile's entries a name; where one entry serves the whole tile, it is read once."""
        corners = corner_texts(expr, name)
        if corners is None:
            yield f"{name} = {text}"
            return
        if EDGES[0] not in self.tile_lines:
            yield from EDGES
        yield from corners.lines
        once = self._reading(expr, corners.indexes, "s" * len(corners.indexes))
        yield f"if {corners.same}:"
        yield f"    {name} = tl.zeros({self._corners}, tl.float32) + {once}"
        yield "else:"
        yield f"    {name} = {text}"

    def _lookup(self, expr: Lookup) -> str:
        indexes = [self._integers.integer(index).text for index in expr.indexes]
        return self._reading(expr, indexes, "".join("sv"[spreads(index)] for index in expr.indexes))

    def _reading(self, expr: Lookup, indexes: Sequence[str], kinds: str) -> str:
        """Reads an entry; `kinds` tells scalar indexes (s) from vectors (v)."""
        table = RealTable(expr.table, tuple(map(spreads, expr.indexes)))
        sizes = [size.name for size in table.sizes]
        arguments = ", ".join([table.pointer.name, *sizes, *indexes, "0.0"])
        return f"read_table_{kinds}({arguments})"

    def _place(self, expr: Real) -> _Place:
        """Where it can be computed at the earliest."""
        for node in walk(expr):
            if isinstance(node, Score):
                return "tile"
        moves = any(not variables(part).isdisjoint(self._inner) for part in discrete(expr))
        return "tile" if moves else "program"

    def _integer_leaf(self, expr: Expr) -> Text | None:
        if expr == Q:
            return Text(self._position, 32)
        return Text(scalar_name(expr), 32) if isinstance(expr, (Var, Param)) else None


def _uses(exprs: Iterable[Real]) -> Counter[Real]:
    """How often each part stands in another or by itself, equal parts counted as one."""
    uses: Counter[Real] = Counter()
    stack = list(exprs)
    while stack:
        expr = stack.pop()
        uses[expr] += 1
        if uses[expr] == 1:
            stack.extend(children(expr))
    return uses


def _nested(function: str, operands: list[str]) -> str:
    text = operands[-1]
    for operand in reversed(operands[:-1]):
        text = f"{function}({operand}, {text})"
    return text


def _applied(function: Function, operand: str) -> str:
    match function:
        case "tanh":
            return f"hyperbolic_tangent({operand})"
        case "sign":
            return f"tl.where({operand} > 0, 1.0, tl.where({operand} < 0, -1.0, 0.0))"
    return f"tl.{function}({operand})"
