"""Ready score terms, written in the score algebra itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

from patterncc.dsl.errors import InternalError
from patterncc.dsl.parser import parse
from patterncc.dsl.source import Source
from patterncc.dsl.syntax import Definition

ParameterKind: TypeAlias = Literal["real", "integer", "table"]


@dataclass(frozen=True, slots=True)
class ReadyTerm:
    """A term with a name.

    Attributes:
        name: As it is called.
        parameters: Their names, and what each stands for.
        text: What it means.
        about: What it is for, and where it was published.
    """

    name: str
    parameters: tuple[tuple[str, ParameterKind], ...]
    text: str
    about: str

    @property
    def signature(self) -> str:
        """As in `softcap(x, c)`."""
        return f"{self.name}({', '.join(name for name, _ in self.parameters)})"


_TERMS = (
    ReadyTerm(
        "softcap",
        (("x", "real"), ("c", "real")),
        "c * tanh(x / c)",
        "Keeps a logit between -c and c: Gemma 2 (arXiv 2408.00118, section 2), with c = 50.",
    ),
    ReadyTerm(
        "alibi",
        (("slopes", "table"),),
        "-slopes[head] * abs(q - k)",
        "A penalty in proportion to the distance: ALiBi (arXiv 2108.12409, section 3); add it to "
        "the score. For keys after the query, which the paper does not have, it is symmetric.",
    ),
    ReadyTerm(
        "relative_bias",
        (("bias", "table"), ("n", "integer")),
        "bias[head, clamp(q - k, -n, n) + n]",
        "A learned number for each head and distance from -n to n, further ones clamped "
        "(arXiv 1803.02155 clamps so; arXiv 1910.10683, T5, adds to the logits so); table "
        "`[heads, 2 * n + 1]`; add it to the score.",
    ),
)

READY: Mapping[str, ReadyTerm] = {term.name: term for term in _TERMS}


@cache
def ready_program(name: str) -> Definition:
    """The syntax of a ready term, which `name` is known to be.

    Raises:
        InternalError: Its text does not parse.
    """
    parsed = parse(Source(f"<{name}>", READY[name].text), reals=True)
    if parsed.diagnostics:
        raise InternalError(f"the ready term `{name}` does not parse")
    return parsed.program.definitions[0]
