"""Is a pattern one that dense kernels know: a band around the diagonal, perhaps of each document?

Decided by integer sets, not by names: `causal and q - k < 512` is a window however it is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from patterncc.call import Call
from patterncc.codegen.facts.compare import compare_patterns
from patterncc.codegen.judging import mask_rows
from patterncc.dsl import load
from patterncc.dsl.build import all_of, substitute
from patterncc.dsl.errors import UnsupportedError
from patterncc.dsl.mask import (
    And,
    Compare,
    Const,
    Cover,
    Entry,
    Expr,
    K,
    Member,
    Param,
    Predicate,
    Q,
    Segment,
    Var,
    walk,
)
from patterncc.dsl.pattern import Pattern


@dataclass(frozen=True, slots=True)
class Band:
    """`-right <= q - k <= left`, within each document where there are any.

    Attributes:
        left: How far back a query sees; `None` for all keys before it.
        right: How far ahead; `None` for all keys after it.
        documents: Name of the table with their `cu_seqlens`; "" for one text.
    """

    left: int | None
    right: int | None
    documents: str = ""

    @property
    def full(self) -> bool:
        """Whether every pair is visible."""
        return (self.left, self.right, self.documents) == (None, None, "")

    @property
    def causal(self) -> bool:
        """Whether it is all keys up to the query, in one text."""
        return (self.left, self.right, self.documents) == (None, 0, "")


def known_numbers(call: Call, layer: int) -> Predicate:
    """The mask of a call with its run-time numbers, sizes and layer written in."""
    numbers: dict[Expr, Expr] = {
        Var(name): Const(size)
        for name, size in {
            **call.sizes,
            "layer": layer,
            "q_len": call.q_len,
            "kv_len": call.kv_len,
        }.items()
    }
    for name, value in call.pattern.defaults.items():  # of all numbers: `Call.of` checks it
        numbers[Param(name)] = Const(value)
    return substitute(call.pattern.body, numbers)


def band_of(call: Call, layer: int) -> Band | None:
    """The band that the mask of a call is, proved for every pair of positions; `None` if it is
    none, or that cannot be proved."""
    body = known_numbers(call, layer)
    documents, rest = _documents(body)
    if any(isinstance(node, (Cover, Entry, Member, Segment)) for node in walk(rest)):
        return None  # what tables say is not known
    band = _guess(rest, call)
    if band is None:
        return None
    try:
        same = compare_patterns(_pattern(rest), load(_text(band))).equal
    except UnsupportedError:  # it is too intricate to prove
        return None
    return replace(band, documents=documents) if same else None


def _documents(body: Predicate) -> tuple[str, Predicate]:
    """The table of `doc[q] == doc[k]`, if that is one of the conditions, and the others."""
    conditions = body.args if isinstance(body, And) else (body,)
    for index, condition in enumerate(conditions):
        match condition:
            case Compare("==", Segment("id", one, left), Segment("id", other, right)) if (
                one == other and {left, right} == {Q, K}
            ):
                others = conditions[:index] + conditions[index + 1 :]
                return one, all_of(*others)
    return "", body


def _guess(body: Predicate, call: Call) -> Band | None:
    """A band that agrees with the first and the last row of a long call; `None` if one sees no
    key."""
    last = max(call.kv_len, 1 << 15) - 1
    scalars = dict.fromkeys(("head", "kv_head", "batch"), 0)
    rows = mask_rows(body, torch.tensor([0, last]), last + 1, 0, scalars, {})
    first_row, last_row = (row.nonzero().flatten() for row in rows)
    if len(first_row) == 0 or len(last_row) == 0:
        return None
    right, left = int(first_row[-1]), last - int(last_row[0])
    return Band(None if left == last else left, None if right == last else right)


def _text(band: Band) -> str:
    sides = []
    if band.left is not None:
        sides.append(f"q - k <= {band.left}")
    if band.right is not None:
        sides.append(f"k - q <= {band.right}")
    return " and ".join(sides) or "full"


def _pattern(body: Predicate) -> Pattern:
    return Pattern("", (), (), body, "", "")
