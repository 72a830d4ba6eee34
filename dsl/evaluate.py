"""The meaning of the mask algebra, one pair of positions at a time, in plain Python integers.

The slowest and plainest reading of a pattern, to test everything else against. It shares nothing
with the lowering, and knows no tensor: a table is anything with a length and integer indexes.
"""

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from typing_extensions import assert_never

from patterncc.dsl.errors import ConfigError
from patterncc.dsl.mask import (
    MISSING,
    Abs,
    And,
    Branch,
    Compare,
    Const,
    Cover,
    Entry,
    FloorDiv,
    IntExpr,
    Max,
    Member,
    Min,
    Mod,
    Not,
    Or,
    Param,
    Predicate,
    Product,
    Segment,
    Select,
    Sum,
    Truth,
    Var,
    variables,
    walk,
)
from patterncc.dsl.pattern import Pattern


def allows(
    pattern: Pattern | Predicate,
    q: int,
    k: int,
    env: Mapping[str, int] | None = None,
    tables: Mapping[str, Any] | None = None,
) -> bool:
    """May the query at position `q` attend to the key at position `k`?

    Whether there are such positions is not asked: that is up to the lengths of a call.

    Args:
        pattern: A pattern, or a predicate such as its body.
        q, k: Positions, from 0.
        env: The other coordinates, the sizes and the run-time numbers that the pattern reads, by
            name. Numbers may be left out where the pattern has a default.
        tables: The tables that it reads, by name, as nested sequences; `segments` as `cu_seqlens`.

    Raises:
        ConfigError: Something that the pattern reads has no value, or a divisor is not positive.
    """
    values: dict[str, int] = {}
    body = pattern
    if isinstance(pattern, Pattern):
        body = pattern.body
        values = pattern.defaults
    scope = {**values, **(env or {}), "q": q, "k": k}
    return _holds(body, scope, tables or {})  # type: ignore[arg-type]


def integer(expr: IntExpr, env: Mapping[str, int], tables: Mapping[str, Any] | None = None) -> int:
    """The value of an integer expression, where `env` holds everything that it reads by name.

    Raises:
        ConfigError: Something that it reads has no value, or a divisor is not positive.
    """
    return _value(expr, env, tables or {})


def _value(expr: IntExpr, env: Mapping[str, int], tables: Mapping[str, Any]) -> int:
    match expr:
        case Const(value):
            return value
        case Var(name) | Param(name):
            return int(_look_up(name, env))
        case Sum(terms):
            return sum(_value(term, env, tables) for term in terms)
        case Product(factors):
            product = 1
            for factor in factors:
                product *= _value(factor, env, tables)
            return product
        case FloorDiv(value, divisor):
            return _value(value, env, tables) // _divisor(divisor, env, tables)
        case Mod(value, divisor):
            return _value(value, env, tables) % _divisor(divisor, env, tables)
        case Min(args):
            return min(_value(arg, env, tables) for arg in args)
        case Max(args):
            return max(_value(arg, env, tables) for arg in args)
        case Abs(value):
            return abs(_value(value, env, tables))
        case Select(condition, then, otherwise):
            return _value(then if _holds(condition, env, tables) else otherwise, env, tables)
        case Entry(table, indexes):
            entry = _entry(table, indexes, env, tables)
            return MISSING if entry is None else int(entry)
        case Segment(kind, segments, position):
            return _segment(kind, _look_up(segments, tables), _value(position, env, tables))
        case _:
            assert_never(expr)


def _holds(expr: Predicate, env: Mapping[str, int], tables: Mapping[str, Any]) -> bool:
    match expr:
        case Truth(value):
            return value
        case Compare(op, left, right):
            a, b = _value(left, env, tables), _value(right, env, tables)
            return {"==": a == b, "!=": a != b, "<": a < b, "<=": a <= b}[op]
        case And(args):
            return all(_holds(arg, env, tables) for arg in args)
        case Or(args):
            return any(_holds(arg, env, tables) for arg in args)
        case Not(arg):
            return not _holds(arg, env, tables)
        case Branch(condition, then, otherwise):
            return _holds(then if _holds(condition, env, tables) else otherwise, env, tables)
        case Member(table, indexes):
            return bool(_entry(table, indexes, env, tables))
        case Cover():
            return _covers(expr, env, tables)
        case _:
            assert_never(expr)


def _look_up(name: str, values: Mapping[str, Any]) -> Any:
    try:
        return values[name]
    except KeyError:
        raise ConfigError(f"`{name}` has no value") from None


def _divisor(expr: IntExpr, env: Mapping[str, int], tables: Mapping[str, Any]) -> int:
    value = _value(expr, env, tables)
    if value <= 0:
        raise ConfigError(f"a divisor of the pattern is {value}; it must be at least 1")
    return value


def _entry(
    table: str, indexes: tuple[IntExpr, ...], env: Mapping[str, int], tables: Mapping[str, Any]
) -> Any:
    """An entry of a table; None outside of it."""
    entry = _look_up(table, tables)
    for index in indexes:
        place = _value(index, env, tables)
        if not 0 <= place < len(entry):
            return None
        entry = entry[place]
    return entry


def _segment(kind: str, offsets: Any, position: int) -> int:
    """The id, start or end of the document of a position."""
    starts = [int(offset) for offset in offsets]
    documents, total = len(starts) - 1, starts[-1]
    if 0 <= position < total:
        document = bisect_right(starts, position) - 1
        return {"id": document, "start": starts[document], "end": starts[document + 1]}[kind]
    # A document of its own, with an id that no other has.
    own = position if position < 0 else documents + position - total
    return {"id": own, "start": position, "end": position + 1}[kind]


def _covers(cover: Cover, env: Mapping[str, int], tables: Mapping[str, Any]) -> bool:
    q, k = _value(cover.q, env, tables), _value(cover.k, env, tables)
    if cover.causal and k > q:
        return False
    stop = _existing(cover.body, tables)
    q_first = q // cover.block_q * cover.block_q
    k_first = k // cover.block_k * cover.block_k
    q_last, k_last = q_first + cover.block_q, k_first + cover.block_k
    if stop is not None:
        q_last, k_last = min(q_last, stop), min(k_last, stop)
    return any(
        _holds(cover.body, {**env, "q": a, "k": b}, tables)
        for a in range(max(q_first, 0), q_last)
        for b in range(max(k_first, 0), k_last)
    )


def _existing(body: Predicate, tables: Mapping[str, Any]) -> int | None:
    """How many positions the tables that a predicate reads by position have; None for no such."""
    lengths: list[int] = []
    for node in walk(body):
        if isinstance(node, Segment):
            lengths.append(int(_look_up(node.segments, tables)[-1]))
        elif isinstance(node, Entry) and variables(node) & {"q", "k"}:
            lengths.append(len(_look_up(node.table, tables)))
    return min(lengths, default=None)
