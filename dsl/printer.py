"""Mask algebra → canonical text, which parses back to an equal expression.

Comments and names of lets are gone by then. Parentheses stand only where the grammar needs them.
"""

from collections.abc import Iterable, Sequence

from typing_extensions import assert_never

from patterncc.dsl.declare import ANONYMOUS
from patterncc.dsl.functions import describe_type
from patterncc.dsl.mask import (
    Abs,
    And,
    Branch,
    Compare,
    Const,
    Cover,
    Entry,
    Expr,
    FloorDiv,
    IntExpr,
    K,
    Max,
    Member,
    Min,
    Mod,
    Not,
    Or,
    Param,
    Predicate,
    Product,
    Q,
    Segment,
    Select,
    Sum,
    Truth,
    Var,
)
from patterncc.dsl.pattern import IntType, Parameter

# How tightly an expression binds: the rules of the grammar from loose to tight.
_CHOICE, _OR, _AND, _NOT, _COMPARISON, _SUM, _TERM, _FACTOR = range(8)


def expression_text(expr: Expr) -> str:
    """The canonical text of an expression."""
    return _text(expr, _CHOICE)


def pattern_text(parameters: Sequence[Parameter], body: Predicate, defaults: bool = True) -> str:
    """The canonical text of a pattern: its open parameters in name order, then its body.

    Args:
        parameters: Those that are still open.
        body: The body.
        defaults: Are default values part of the text?
    """
    text = expression_text(body)
    if not parameters:
        return text
    declared = []
    for parameter in sorted(parameters, key=lambda parameter: parameter.name):
        declaration = parameter.name
        if not isinstance(parameter.type, IntType):
            declaration += f": {describe_type(parameter.type)}"
        if defaults and parameter.value is not None:
            declaration += f" = {parameter.value}"
        declared.append(declaration)
    return f"pattern {ANONYMOUS}({', '.join(declared)}): {text}"


def _text(expr: Expr, level: int) -> str:
    """The text of an expression where one must stand that binds at least as tightly as `level`."""
    text, own = _written(expr)
    return text if own >= level else f"({text})"


def _written(expr: Expr) -> tuple[str, int]:
    """The text of an expression and how tightly it binds."""
    match expr:
        case Const(value):
            return str(value), _FACTOR
        case Var(name) | Param(name):
            return name, _FACTOR
        case Truth(value):
            return ("true" if value else "false"), _FACTOR
        case Sum(terms):
            return _sum(terms), _SUM
        case Product(factors):
            return _product(factors)
        case FloorDiv(value, divisor):
            return f"{_text(value, _TERM)} // {_text(divisor, _FACTOR)}", _TERM
        case Mod(value, divisor):
            return f"{_text(value, _TERM)} % {_text(divisor, _FACTOR)}", _TERM
        case Min(args):
            return _call("min", args), _FACTOR
        case Max(args):
            return _call("max", args), _FACTOR
        case Abs(value):
            return _call("abs", [value]), _FACTOR
        case Entry(table, indexes) | Member(table, indexes):
            return f"{table}[{_list(indexes)}]", _FACTOR
        case Segment("id", segments, position):
            return f"{segments}[{_text(position, _CHOICE)}]", _FACTOR
        case Segment(kind, segments, position):
            return f"{kind}({segments}, {_text(position, _CHOICE)})", _FACTOR
        case Select(condition, then, otherwise) | Branch(condition, then, otherwise):
            # The grammar takes an `if` as condition and after `then`; a reader takes it wrong.
            parts = [_text(condition, _OR), _text(then, _OR), _text(otherwise, _CHOICE)]
            return "if {} then {} else {}".format(*parts), _CHOICE
        case Compare(op, left, right):
            return f"{_text(left, _SUM)} {op} {_text(right, _SUM)}", _COMPARISON
        case And(args):
            return _and(args)
        case Or(args):
            return _or(args)
        case Not(arg):
            return f"not {_text(arg, _NOT)}", _NOT
        case Cover(block_q, block_k, body, _, q, k):
            text = f"cover({block_q}, {block_k}, {_text(body, _CHOICE)})"
            return (text if (q, k) == (Q, K) else f"{text} at ({_list((q, k))})"), _FACTOR
        case _:
            assert_never(expr)


def _list(exprs: Iterable[Expr]) -> str:
    return ", ".join(_text(expr, _CHOICE) for expr in exprs)


def _call(name: str, args: Iterable[Expr]) -> str:
    return f"{name}({_list(args)})"


def _sum(terms: Sequence[IntExpr]) -> str:
    text = _text(terms[0], _TERM)
    for term in terms[1:]:
        match term:
            case Const(value) if value < 0:
                text += f" - {-value}"
            case Product((Const(-1), factor)):
                text += f" - {_text(factor, _TERM)}"
            case Product((Const(-1), *factors)):
                text += f" - {_text(Product(tuple(factors)), _TERM)}"
            case Product((Const(value), *factors)) if value < 0:
                text += f" - {_text(Product((Const(-value), *factors)), _TERM)}"
            case _:
                text += f" + {_text(term, _TERM)}"
    return text


def _product(factors: Sequence[IntExpr]) -> tuple[str, int]:
    match factors:
        case (Const(-1), factor):
            return f"-{_text(factor, _FACTOR)}", _FACTOR
        case (Const(-1), first, *rest):
            # The sign belongs to the first factor.
            texts = [f"-{_text(first, _FACTOR)}", *(_text(factor, _FACTOR) for factor in rest)]
        case _:
            first, *rest = factors
            texts = [_text(first, _TERM), *(_text(factor, _FACTOR) for factor in rest)]
    return " * ".join(texts), _TERM


def _and(args: Sequence[Predicate]) -> tuple[str, int]:
    """Conjuncts; `0 <= x` and `x < 8` as `0 <= x < 8`."""
    lower = {
        arg.right: arg
        for arg in args
        if isinstance(arg, Compare) and arg.op in ("<", "<=") and isinstance(arg.left, Const)
    }
    texts: list[str] = []
    chained: set[Predicate] = set()
    for arg in args:
        if isinstance(arg, Compare) and arg.op in ("<", "<=") and arg.left in lower:
            below = lower.pop(arg.left)
            chained.add(below)
            texts.append(
                f"{_text(below.left, _SUM)} {below.op} {_text(arg.left, _SUM)} "
                f"{arg.op} {_text(arg.right, _SUM)}"
            )
        else:
            texts.append("" if arg in chained else _text(arg, _NOT))
    # A lower bound that comes before its upper bound was written before it was known to be one.
    texts = [text for text, arg in zip(texts, args, strict=True) if arg not in chained]
    return (texts[0], _COMPARISON) if len(texts) == 1 else (" and ".join(texts), _AND)


def _or(args: Sequence[Predicate]) -> tuple[str, int]:
    """Disjuncts; `x == 1` and `x == 5` as `x in {1, 5}`."""
    members: dict[IntExpr, list[IntExpr]] = {}
    for arg in args:
        if isinstance(arg, Compare) and arg.op == "==":
            members.setdefault(arg.left, []).append(arg.right)
    texts = []
    for arg in args:
        if isinstance(arg, Compare) and arg.op == "==" and len(members[arg.left]) > 1:
            if arg.right == members[arg.left][0]:
                texts.append(f"{_text(arg.left, _SUM)} in {{{_list(members[arg.left])}}}")
        else:
            texts.append(_text(arg, _AND))
    return (texts[0], _COMPARISON) if len(texts) == 1 else (" or ".join(texts), _OR)
