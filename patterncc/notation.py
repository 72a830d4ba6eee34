"""Masks as mathematics that a person reads: `⌊q / 64⌋ = ⌊k / 64⌋`. One way only: it does not parse.

The canonical text of a pattern is `patterncc.dsl.printer`'s; this is its translation for `explain`.
"""

from collections.abc import Iterable, Sequence

from typing_extensions import assert_never

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
from patterncc.dsl.pattern import Pattern

WIDTH = 92  # columns of a laid-out mask

_COMPARISONS = {"==": "=", "!=": "≠", "<": "<", "<=": "≤"}

# How tightly an operator binds. What binds looser than its place is put in brackets.
_CHOICE, _OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _ATOM = range(8)


def mathematics(expr: Expr) -> str:
    """An expression on one line."""
    return _show(expr, _CHOICE)


def display_text(pattern: Pattern) -> str:
    """The canonical text, with the name that the pattern goes by where it has one."""
    return pattern.text.replace("pattern _(", f"pattern {pattern.name or '_'}(", 1)


def percent(share: float) -> str:
    """A share with the digits that matter: `21.89%`, `0.0031%`."""
    if share in (0, 1):
        return f"{share:.0%}"
    digits = 2
    while digits < 8 and share * 100 < 10 ** (1 - digits):
        digits += 1
    return f"{100 * share:.{digits}f}%"


def layout(predicate: Predicate, width: int = WIDTH) -> list[str]:
    """A predicate on as few lines of `width` columns as show its structure; a long term stays."""
    line = mathematics(predicate)
    if len(line) <= width:
        return [line]
    match predicate:
        case And(args):
            return _stack("∧ ", _conjuncts(args), width)
        case Or(args):
            return _stack("∨ ", list(args), width)
        case Branch(condition, then, otherwise):
            lines = [f"if {mathematics(condition)}:"]
            lines += [f"    {inner}" for inner in layout(then, width - 4)]
            lines += ["otherwise:"]
            return lines + [f"    {inner}" for inner in layout(otherwise, width - 4)]
    return [line]


def _stack(operator: str, parts: Sequence[Predicate | str], width: int) -> list[str]:
    """Operands under each other, `  a` then `∧ b`; compound ones in brackets."""
    lines: list[str] = []
    for part in parts:
        if isinstance(part, str):
            block = [part]
        else:
            block = layout(part, width - 4)
            if isinstance(part, (And, Or, Branch)):
                block = [f"({block[0]}", *(f" {inner}" for inner in block[1:])]
                block[-1] += ")"
        lead = operator if lines else "  "
        lines += [lead + block[0], *(f"  {inner}" for inner in block[1:])]
    return lines


# ---------------------------------------------------------------------------------- one line


def _show(expr: Expr, place: int) -> str:
    text, binding = _render(expr)
    return text if binding >= place else f"({text})"


def _render(expr: Expr) -> tuple[str, int]:
    """The text of an expression, and how tightly its outermost operator binds."""
    match expr:
        case Const(value):
            return (str(value), _ATOM) if value >= 0 else (f"−{-value}", _SUM)
        case Truth(value):
            return ("true" if value else "false"), _ATOM
        case Var(name) | Param(name):
            return name, _ATOM
        case Sum(terms):
            return _sum(terms), _SUM
        case Product(factors):
            negative, text = _product(factors)
            return (f"−{text}", _SUM) if negative else (text, _PRODUCT)
        case FloorDiv(value, divisor):
            return f"⌊{_show(value, _PRODUCT)} / {_show(divisor, _ATOM)}⌋", _ATOM
        case Mod(value, divisor):
            return f"{_show(value, _ATOM)} mod {_show(divisor, _ATOM)}", _PRODUCT
        case Min(args):
            return f"min({_list(args)})", _ATOM
        case Max(args):
            return f"max({_list(args)})", _ATOM
        case Abs(value):
            return f"|{mathematics(value)}|", _ATOM
        case Select(condition, then, otherwise) | Branch(condition, then, otherwise):
            test, yes, no = (_show(part, _OR) for part in (condition, then, otherwise))
            return f"if {test} then {yes} else {no}", _CHOICE
        case Entry(table, indexes) | Member(table, indexes):
            return f"{table}[{_list(indexes)}]", _ATOM
        case Segment("id", segments, position):
            return f"{segments}[{mathematics(position)}]", _ATOM
        case Segment(kind, segments, position):
            return f"{kind}({segments}, {mathematics(position)})", _ATOM
        case Compare(op, left, right):
            return f"{_show(left, _SUM)} {_COMPARISONS[op]} {_show(right, _SUM)}", _COMPARISON
        case And(args):
            parts = _conjuncts(args)
            joined = " ∧ ".join(
                part if isinstance(part, str) else _show(part, _AND) for part in parts
            )
            return joined, _AND if len(parts) > 1 else _COMPARISON
        case Or(args):
            # A conjunction inside is put in brackets, as people do, though it binds tighter.
            return " ∨ ".join(_show(part, _NOT) for part in args), _OR
        case Not(arg):
            return f"¬{_show(arg, _ATOM)}", _NOT
        case Cover():
            return _cover(expr), _AND
    assert_never(expr)


def _list(args: Iterable[Expr]) -> str:
    return ", ".join(map(mathematics, args))


def _product(factors: Sequence[IntExpr]) -> tuple[bool, str]:
    """Whether a product has a minus sign, and its text without."""
    match factors:
        case (Const(factor), *rest) if factor < 0:
            parts = [] if factor == -1 else [str(-factor)]
            return True, " · ".join([*parts, *(_show(part, _PRODUCT) for part in rest)])
    return False, " · ".join(_show(part, _PRODUCT) for part in factors)


def _sum(terms: Sequence[IntExpr]) -> str:
    text = ""
    for term in terms:
        match term:
            case Const(value):
                negative, shown = value < 0, str(abs(value))
            case Product(factors):
                negative, shown = _product(factors)
            case _:
                negative, shown = False, _show(term, _PRODUCT)
        if text:
            text += f" {'−' if negative else '+'} {shown}"
        else:
            text = f"−{shown}" if negative else shown
    return text


def _conjuncts(args: Sequence[Predicate]) -> list[Predicate | str]:
    """The operands of a conjunction, `0 ≤ x` and `x < n` joined to `0 ≤ x < n`."""
    parts: list[Predicate | str] = []
    rest = list(args)
    while rest:
        first = rest.pop(0)
        joined = None
        if isinstance(first, Compare) and first.op in ("<", "<="):
            for other in rest:
                if isinstance(other, Compare) and other.op in ("<", "<="):
                    joined = _chain(first, other) or _chain(other, first)
                    if joined:
                        rest.remove(other)
                        break
        parts.append(joined or first)
    return parts


def _chain(low: Compare, high: Compare) -> str | None:
    if low.right != high.left:
        return None
    ends = [_show(end, _SUM) for end in (low.left, low.right, high.right)]
    return f"{ends[0]} {_COMPARISONS[low.op]} {ends[1]} {_COMPARISONS[high.op]} {ends[2]}"


def _cover(node: Cover) -> str:
    block = f"{node.block_q}×{node.block_k} block of ({mathematics(node.q)}, {mathematics(node.k)})"
    text = f"[the {block} holds a pair with {mathematics(node.body)}]"
    return f"{text} ∧ {_show(K, _SUM)} ≤ {_show(Q, _SUM)}" if node.causal else text
