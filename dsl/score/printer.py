"""Score algebra → canonical text, which parses back to an equal expression.

Derivatives are written in the same way; `sign` and `below` in them are no words of the language.
"""

from collections.abc import Sequence

from typing_extensions import assert_never

from patterncc.dsl.mask import Abs, Const, Max, Min, Predicate, Var
from patterncc.dsl.printer import expression_text
from patterncc.dsl.score.nodes import (
    Apply,
    Below,
    Choice,
    Constant,
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
)

# How tightly an expression binds: the rules of the grammar from loose to tight.
_CHOICE, _SUM, _TERM, _FACTOR = range(4)

_WORDS = (Const, Var, Abs, Min, Max)  # integers that need no brackets


def real_text(expr: Real) -> str:
    """The canonical text of an expression."""
    return _text(expr, _CHOICE)


def _text(expr: Real, level: int) -> str:
    """The text of an expression where one must stand that binds at least as tightly as `level`."""
    text, own = _written(expr)
    return text if own >= level else f"({text})"


def _written(expr: Real) -> tuple[str, int]:
    """The text of an expression and how tightly it binds."""
    match expr:
        case Constant(value):
            return repr(value), _FACTOR
        case Score():
            return "score", _FACTOR
        case Number(name):
            return name, _FACTOR
        case Lifted(value):
            return expression_text(value), _FACTOR if isinstance(value, _WORDS) else _CHOICE
        case Lookup(table, indexes):
            return f"{table}[{', '.join(map(expression_text, indexes))}]", _FACTOR
        case Plus(terms):
            return _sum(terms), _SUM
        case Times(factors):
            return _product(factors)
        case Over(dividend, divisor):
            return f"{_text(dividend, _TERM)} / {_text(divisor, _FACTOR)}", _TERM
        case Least(args):
            return _call("min", args), _FACTOR
        case Greatest(args):
            return _call("max", args), _FACTOR
        case Magnitude(value):
            return _call("abs", (value,)), _FACTOR
        case Apply(function, value):
            return _call(function, (value,)), _FACTOR
        case Choice(condition, then, otherwise):
            texts = [_text(then, _SUM), _text(otherwise, _CHOICE)]
            return f"if {_condition(condition)} then {' else '.join(texts)}", _CHOICE
        case Below():
            return _call("below", (expr.left, expr.right, expr.then, expr.otherwise)), _FACTOR
        case _:
            assert_never(expr)


def _condition(condition: Predicate) -> str:
    text = expression_text(condition)
    return f"({text})" if text.startswith("if ") else text


def _call(name: str, args: Sequence[Real]) -> str:
    return f"{name}({', '.join(_text(arg, _CHOICE) for arg in args)})"


def _sum(terms: Sequence[Real]) -> str:
    text = _text(terms[0], _TERM)
    for term in terms[1:]:
        match term:
            case Constant(value) if value < 0:
                text += f" - {-value!r}"
            case Times((Constant(-1.0), factor)):
                text += f" - {_text(factor, _TERM)}"
            case Times((Constant(-1.0), *factors)):
                text += f" - {_text(Times(tuple(factors)), _TERM)}"
            case Times((Constant(value), *factors)) if value < 0:
                text += f" - {_text(Times((Constant(-value), *factors)), _TERM)}"
            case _:
                text += f" + {_text(term, _TERM)}"
    return text


def _product(factors: Sequence[Real]) -> tuple[str, int]:
    match factors:
        case (Constant(-1.0), factor):
            return f"-{_text(factor, _FACTOR)}", _FACTOR
        case (Constant(-1.0), first, *rest) if not isinstance(first, Lifted):
            # The sign belongs to the first factor.
            texts = [f"-{_text(first, _FACTOR)}"]
        case (Lifted(), *rest):
            # Alone in front, integers would be multiplied as such.
            texts, rest = ["1.0"], list(factors)
        case _:
            first, *rest = factors
            texts = [_text(first, _TERM)]
    return " * ".join([*texts, *(_text(factor, _FACTOR) for factor in rest)]), _TERM
