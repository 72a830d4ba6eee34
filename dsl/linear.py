"""What an expression depends on, and the few facts that the language needs before isl sees it.

Looks at structure only: it may say no of an expression whose meaning says yes.
"""

from patterncc.dsl.mask import (
    And,
    Branch,
    Compare,
    Const,
    Entry,
    Expr,
    IntExpr,
    Max,
    Member,
    Min,
    Or,
    Predicate,
    Product,
    Segment,
    Sum,
    Truth,
    Var,
    variables,
    walk,
)

POSITIONS = frozenset({"q", "k"})
LENGTHS = frozenset({"q_len", "kv_len", "q_offset"})
SPECIALISED = frozenset({"heads", "kv_heads", "layers"})  # sizes that a kernel is compiled for

_MARK = "@"  # no name of the language holds one


def outer_position(name: str, depth: int) -> Var:
    """The position `name` as it was outside of a call at some depth (see `Elaborator.call`)."""
    return Var(f"{name}{_MARK}{depth}")


def is_position(name: str) -> bool:
    """Is this the name of a query or key position, of here or of outside a call?"""
    return name.partition(_MARK)[0] in POSITIONS


def reads_outer_position(expr: Expr) -> bool:
    """Does it read a position of outside a call?"""
    return any(_MARK in name for name in variables(expr))


def reads_position(expr: Expr) -> bool:
    """Does it read a query or key position?"""
    return any(is_position(name) for name in variables(expr))


def reads_table(expr: Expr) -> bool:
    """Does it read a table or segments?"""
    return any(isinstance(node, (Entry, Segment, Member)) for node in walk(expr))


def is_specialised(expr: Expr) -> bool:
    """Is it made of constants, parameters and sizes that a kernel is compiled for?"""
    return variables(expr) <= SPECIALISED and not reads_table(expr)


def folded_constants(expr: Expr) -> list[int]:
    """The constants that building this node may have folded, not those inside its operands."""
    match expr:
        case Const(value):
            return [value]
        case Product((Const(value), *_)):
            return [value]
        case Sum(terms):
            return [value for term in terms for value in folded_constants(term)]
        case Min(args) | Max(args):
            return [arg.value for arg in args if isinstance(arg, Const)]
        case Compare(_, left, right):
            return folded_constants(left) + folded_constants(right)
    return []


def implies_causal(predicate: Predicate) -> bool:
    """Does the structure of a predicate show that it holds only for `k <= q`?

    It does for `false`; a comparison of linear forms that leaves only `a * (q - k) + constant` and
    bounds the distance from below; an `and` with such an arm; an `or` or `if` all of whose arms are
    such.
    """
    match predicate:
        case Truth(value):
            return not value
        case Compare(op, left, right):
            return _bounds_distance(op, left, right)
        case And(args):
            return any(implies_causal(arg) for arg in args)
        case Or(args):
            return all(implies_causal(arg) for arg in args)
        case Branch(_, then, otherwise):
            return implies_causal(then) and implies_causal(otherwise)
    return False


def _bounds_distance(op: str, left: IntExpr, right: IntExpr) -> bool:
    """Does `left op right` say `a * (q - k) + constant >= 0` in a way that implies `q >= k`?"""
    form: dict[str, int] = {}
    if not (_collect(right, 1, form) and _collect(left, -1, form)):
        return False
    constant = form.pop("", 0)
    factor = form.get("q", 0)
    if factor == 0 or form.get("k", 0) != -factor or set(form) - POSITIONS:
        return False
    match op:
        case "<=":  # factor * (q - k) + constant >= 0
            return factor > 0 and constant < factor
        case "<":
            return factor > 0 and constant - 1 < factor
        case "==":  # q - k == -constant / factor, or nothing where that is no integer
            return constant % factor != 0 or -constant // factor >= 0
    return False


def _collect(expr: IntExpr, factor: int, form: dict[str, int]) -> bool:
    """Adds `factor * expr` to a linear form in `q`, `k` and 1 (as ""); False if it is not one."""
    match expr:
        case Const(value):
            form[""] = form.get("", 0) + factor * value
        case Var("q" | "k" as name):
            form[name] = form.get(name, 0) + factor
        case Product((Const(value), Var("q" | "k" as name))):
            form[name] = form.get(name, 0) + factor * value
        case Sum(terms):
            return all(_collect(term, factor, form) for term in terms)
        case _:
            return False
    return True
