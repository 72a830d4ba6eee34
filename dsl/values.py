"""What names stand for while a program is checked, and the place that its mistakes are collected.

A `Value` is an expression of the mask algebra with bounds on its size; a `Frame` is one definition
being written out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from patterncc.dsl.errors import Diagnostic
from patterncc.dsl.limits import MAX_DIAGNOSTICS
from patterncc.dsl.mask import Expr, IntExpr
from patterncc.dsl.modules import Module
from patterncc.dsl.pattern import SegmentsType, TableType
from patterncc.dsl.source import Source, Span
from patterncc.dsl.syntax import Expression, Name

INTEGERS: tuple[type, ...] = get_args(IntExpr)


@dataclass(frozen=True, slots=True)
class Value:
    """An expression of the mask algebra, with upper bounds of its nodes and of their nesting."""

    expr: Expr
    size: int = 1
    depth: int = 1

    @property
    def is_integer(self) -> bool:
        return isinstance(self.expr, INTEGERS)


@dataclass(frozen=True, slots=True)
class TableValue:
    """A table or segments parameter of the pattern that is being checked, by name."""

    name: str
    type: TableType | SegmentsType


# `None` stands for something that is wrong and has been reported.
Binding: TypeAlias = Value | TableValue | None


@dataclass(slots=True)
class Frame:
    """One definition being written out.

    Attributes:
        module: Where the definition stands and which patterns it sees.
        name: What the definition is called; "" for a lone expression.
        bindings: Its parameters and lets so far.
        depth: How many calls deep it is; 0 for the pattern that is checked itself.
        site: The place to blame for a mistake in here: the call in the text that is checked. None
            at depth 0, where mistakes stand where they are.
        origins: The places of the arguments that parameters are bound to.
        used: The names that were read.
    """

    module: Module
    name: str
    bindings: dict[str, Binding] = field(default_factory=dict)
    depth: int = 0
    site: Span | None = None
    origins: Mapping[str, Span] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def place(self, node: Expression) -> Span:
        """The place in the checked text that a node is to be blamed on."""
        if self.site is None:
            return node.span
        if isinstance(node, Name) and node.text in self.origins:
            return self.origins[node.text]
        return self.site


class GiveUpError(Exception):
    """The program is too large to go on; it has been reported."""


class Report:
    """Mistakes in one text, or warnings of them, each once."""

    def __init__(self, source: Source, severity: Literal["error", "warning"] = "error") -> None:
        self.source = source
        self._severity: Literal["error", "warning"] = severity
        self._found: dict[tuple[str, Span, str], Diagnostic] = {}

    def add(
        self,
        code: str,
        message: str,
        span: Span,
        hint: str | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Adds a mistake.

        Raises:
            GiveUpError: There are so many that more are of no use.
        """
        diagnostic = Diagnostic(code, message, span, hint, notes, self.source, self._severity)
        self._found.setdefault((code, span, message), diagnostic)
        if len(self._found) >= MAX_DIAGNOSTICS:
            raise GiveUpError

    def __len__(self) -> int:
        return len(self._found)

    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All mistakes, in source order."""
        return tuple(self._found[key] for key in sorted(self._found, key=lambda key: key[1]))
