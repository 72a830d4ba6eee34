"""`ScoreTerms`: what a call does to its scores besides the pattern; texts in, a value out."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from patterncc.dsl.codes import error_for
from patterncc.dsl.errors import Diagnostic
from patterncc.dsl.parser import parse
from patterncc.dsl.score.check import TermChecker, table_ranks
from patterncc.dsl.score.derivative import derivative
from patterncc.dsl.score.nodes import SCORE, Lookup, Real, lookups, numbers_read
from patterncc.dsl.score.printer import real_text
from patterncc.dsl.source import Source
from patterncc.dsl.values import GiveUpError, Report


@dataclass(frozen=True, slots=True)
class ScoreTerms:
    """The logit of a pair, and that of one more key without a value.

    Attributes:
        logit: Of a visible pair, what enters the softmax in place of the score.
        sink: Of a row, the logit of a key with value 0 that every row sees besides its own; `None`
            where there is no such key. Reads neither `k` nor the score.
    """

    logit: Real = SCORE
    sink: Real | None = None

    @property
    def plain(self) -> bool:
        """Is it attention as usual?"""
        return self.logit == SCORE and self.sink is None

    @property
    def text(self) -> str:
        """Canonical text, its identity: the logit, and after a line end the sink."""
        sink = "" if self.sink is None else f"\n{real_text(self.sink)}"
        return f"{real_text(self.logit)}{sink}"

    @property
    def exprs(self) -> tuple[Real, ...]:
        """Its expressions."""
        return (self.logit,) if self.sink is None else (self.logit, self.sink)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers that a call must give, in name order."""
        return tuple(sorted(frozenset().union(*map(numbers_read, self.exprs))))

    @property
    def tables(self) -> dict[str, int]:
        """The tables that a call must give, in name order, with the number of their axes."""
        return table_ranks(self.exprs)

    @property
    def slope(self) -> Real:
        """The derivative of the logit by the score."""
        return derivative(self.logit, SCORE)

    def table_slopes(self) -> tuple[tuple[Lookup, Real], ...]:
        """Each entry of a table that the logit reads, with the derivative of the logit by it."""
        return tuple((entry, derivative(self.logit, entry)) for entry in lookups(self.logit))

    def sink_slopes(self) -> tuple[tuple[Lookup, Real], ...]:
        """Each entry of a table that the sink reads, with the derivative of the sink by it."""
        if self.sink is None:
            return ()
        return tuple((entry, derivative(self.sink, entry)) for entry in lookups(self.sink))


PLAIN = ScoreTerms()


def load_terms(score: str | None = None, sink: str | None = None) -> ScoreTerms:
    """The score terms that two texts mean.

    Args:
        score: The logit of a pair; the score itself if None.
        sink: The logit of the sink; no sink if None.

    Raises:
        PatternError: A text is wrong; holds every mistake that was found in both.
    """
    diagnostics: list[Diagnostic] = []
    logit = _load(score, "<score>", diagnostics) if score is not None else SCORE
    extra = _load(sink, "<sink>", diagnostics, sink=True) if sink is not None else None
    if diagnostics or logit is None:
        raise error_for(tuple(diagnostics))
    terms = ScoreTerms(logit, extra)
    mixed = set(terms.numbers) & set(terms.tables)
    ranks = [table_ranks([expr]) for expr in terms.exprs]
    mixed |= {
        name
        for name, rank in ranks[0].items()
        if any(other.get(name, rank) != rank for other in ranks)
    }
    if mixed:
        name = min(mixed)
        message = f"`{name}` is not used alike in `score` and `sink`"
        hint = "a name is a number, or a table with one count of axes"
        place = Source("<sink>", sink or "")
        raise error_for((Diagnostic("type-mismatch", message, hint=hint, source=place),))
    return terms


@lru_cache(maxsize=256)
def terms_of(text: str) -> ScoreTerms:
    """The score terms of a canonical text (`ScoreTerms.text`).

    Raises:
        PatternError: The text is wrong.
    """
    logit, line_end, sink = text.partition("\n")
    return load_terms(logit, sink if line_end else None)


def _load(
    text: str, name: str, diagnostics: list[Diagnostic], *, sink: bool = False
) -> Real | None:
    """The expression of a text; what is wrong with it is added to the diagnostics."""
    source = Source(name, text)
    parsed = parse(source, reals=True)
    if parsed.diagnostics:
        diagnostics += parsed.diagnostics
        return None
    report = Report(source)
    found: Real | None = None
    (definition, *more) = parsed.program.definitions
    if definition.name is not None or more:
        report.add(
            "syntax",
            "a score term is one expression, and this defines a pattern",
            definition.span,
            "patterns have a text of their own",
        )
    else:
        with suppress(GiveUpError):
            found = TermChecker(source, report, sink=sink).term(definition)
    diagnostics += report.diagnostics()
    return found
