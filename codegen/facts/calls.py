"""What holds of every call, as predicates: for questions about all lengths, heads and layers at
once.
"""

from __future__ import annotations

from collections.abc import Set

from patterncc.dsl.build import add, all_of, compare, floordiv, multiply
from patterncc.dsl.mask import Const, IntExpr, K, Predicate, Q, Var

Q_OFFSET, Q_LEN, KV_LEN = Var("q_offset"), Var("q_len"), Var("kv_len")
LAYER, LAYERS = Var("layer"), Var("layers")
HEAD, HEADS, KV_HEAD, KV_HEADS = Var("head"), Var("heads"), Var("kv_head"), Var("kv_heads")

_HEADS = frozenset({"head", "heads", "kv_head", "kv_heads"})


def at_least(value: IntExpr, least: IntExpr | int) -> Predicate:
    """`least <= value`."""
    return compare("<=", Const(least) if isinstance(least, int) else least, value)


def pair_exists() -> Predicate:
    """The query is a row of the call and the key one of its keys; the call has both."""
    return all_of(
        compare("<=", Q_OFFSET, Q),
        compare("<", Q, add(Q_OFFSET, Q_LEN)),
        compare("<=", Const(0), K),
        compare("<", K, KV_LEN),
        at_least(Q_LEN, 1),
        at_least(KV_LEN, 1),
    )


def coordinates_exist(reads: Set[str], group: int | None = None) -> Predicate:
    """The heads, layer and sequence of a call are among those that it has.

    Args:
        reads: Names of the coordinates and sizes that are asked about; of others nothing is said.
        group: Query heads of a key/value head, where that is known. Where it is not, the heads are
            only known to be in order: that `kv_head` is `head // (heads // kv_heads)` is not said.
    """
    facts = []
    if "batch" in reads:
        facts.append(at_least(Var("batch"), 0))
    if reads & {"layer", "layers"}:
        facts += [at_least(LAYER, 0), compare("<", LAYER, LAYERS)]
    if reads & _HEADS:
        facts += [at_least(HEAD, 0), compare("<", HEAD, HEADS)]
    if reads & {"kv_head", "kv_heads"}:
        facts += [
            at_least(KV_HEAD, 0),
            compare("<", KV_HEAD, KV_HEADS),
            compare("<=", KV_HEADS, HEADS),
            compare("<=", KV_HEAD, HEAD),
        ]
        if group is not None:
            facts.append(compare("==", KV_HEAD, floordiv(HEAD, Const(group))))
            facts.append(compare("==", HEADS, multiply(Const(group), KV_HEADS)))
    return all_of(*facts)


def heads_are_related(reads: Set[str]) -> bool:
    """Whether what is asked about hangs on how query heads share key/value heads."""
    return {"head", "kv_head"} <= reads or {"heads", "kv_heads"} <= reads


# Calls from the plainest to any: the first in which something happens is the one to show.
WHOLE_SEQUENCE = all_of(compare("==", Q_OFFSET, Const(0)), compare("==", Q_LEN, KV_LEN))
ROWS_WITHIN_KEYS = all_of(at_least(Q_OFFSET, 0), compare("<=", add(Q_OFFSET, Q_LEN), KV_LEN))
