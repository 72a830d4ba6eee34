"""What a call takes for the score terms of an `Attention`: which of its values are theirs."""

from __future__ import annotations

import functools
import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from patterncc.dsl.errors import ArgumentError
from patterncc.dsl.score.terms import load_terms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from patterncc.dsl.score.terms import ScoreTerms
    from patterncc.signatures import Signature


@dataclass(frozen=True, slots=True)
class ScoreSignature:
    """What a call takes for score terms, in the order in which values travel (name order).

    Attributes:
        text: Canonical text of the terms.
        numbers: Names of the numbers.
        tables: Names of the tables.
    """

    text: str
    numbers: tuple[str, ...]
    tables: tuple[str, ...]

    @staticmethod
    def of(terms: ScoreTerms) -> ScoreSignature:
        """The signature of terms."""
        return ScoreSignature(terms.text, terms.numbers, tuple(terms.tables))

    def check_apart(self, signature: Signature) -> None:
        """Checks that no parameter of a pattern is called like what the terms read.

        Raises:
            ArgumentError: One is.
        """
        own = (*self.numbers, *self.tables)
        for group in (signature.numbers, signature.tables, signature.fixed):
            for name in group:
                if name in own:
                    raise ArgumentError(
                        f"`{name}` is a parameter of the pattern and a name in the score; give one "
                        "of them another name"
                    )

    def split(
        self, values: Mapping[str, object]
    ) -> tuple[list[float], list[Tensor], dict[str, object]]:
        """The numbers and the tables of the terms, and the other values of a call.

        Raises:
            ArgumentError: One is missing, or not of its type.
        """
        from torch import SymFloat, SymInt, Tensor  # a signature is read without torch

        found = []
        for name in self.numbers:
            if name not in values:
                raise ArgumentError(f"`{name}` was not given; the score needs a number")
            given: Any = values[name]
            symbol = isinstance(given, (SymFloat, SymInt))
            if isinstance(given, bool) or not (symbol or isinstance(given, numbers.Real)):
                what = "a tensor" if isinstance(given, Tensor) else repr(given)
                raise ArgumentError(f"`{name}` is {what}; the score needs a number")
            number = given if symbol else float(given)
            if not symbol and not math.isfinite(number):
                raise ArgumentError(f"`{name}` is {number}; the score needs a finite number")
            found.append(number)
        tables = []
        for name in self.tables:
            table = values.get(name)
            if not isinstance(table, Tensor):
                raise ArgumentError(
                    f"`{name}` is {table!r}; the score needs a tensor"
                    if name in values
                    else f"`{name}` was not given; the score needs a tensor at every call"
                )
            tables.append(table)
        own = {*self.numbers, *self.tables}
        return found, tables, {name: v for name, v in values.items() if name not in own}


@functools.lru_cache(maxsize=256)
def signature_of_terms(score: str | None, sink: str | None) -> ScoreSignature | None:
    """The signature of two texts; None where they say nothing.

    Raises:
        PatternError: A text is wrong.
    """
    terms = load_terms(score, sink)
    return None if terms.plain else ScoreSignature.of(terms)
