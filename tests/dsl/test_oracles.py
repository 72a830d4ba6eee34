"""The readings of the mask algebra agree: plain Python, torch, and numpy, which share no code.

Also where indexes leave their table and positions their documents, whose values are defined.
"""

from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from patterncc.codegen.reference import allowed
from patterncc.codegen.schedule import evaluate
from patterncc.dsl.build import compare
from patterncc.dsl.evaluate import allows
from patterncc.dsl.mask import Const, Cover, Entry, K, Member, Predicate, Q, Segment, Var, walk
from tests.strategies import predicates

ENV = {
    "head": 1,
    "kv_head": 0,
    "layer": 2,
    "batch": 0,
    "q_len": 9,
    "kv_len": 12,
    "q_offset": 3,
    "heads": 4,
    "kv_heads": 2,
    "layers": 6,
    "n": 3,
    "width": 5,
    "zero_based": 0,
}
FIRST, STOP = -3, 9  # positions that are looked at


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Tables as `tests.strategies` declares them, some of them empty, most of them too short."""
    lengths = draw(st.lists(st.integers(0, 4), max_size=4))
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    row = st.lists(st.booleans(), min_size=columns, max_size=columns)
    block = st.lists(row, min_size=rows, max_size=rows)
    return {
        "w": draw(st.lists(st.integers(-9, 9), max_size=4)),
        "image": draw(st.lists(st.integers(-2, 5), max_size=8)),
        "keep": draw(st.lists(block, min_size=1, max_size=3)),
        "doc": [0, *np.cumsum(lengths).tolist()],
    }


def as_tensors(given_tables: dict[str, Any]) -> dict[str, torch.Tensor]:
    types = {"keep": torch.bool}
    return {
        name: torch.tensor(table, dtype=types.get(name, torch.int64))
        for name, table in given_tables.items()
    }


SAME_DOCUMENT = compare("==", Segment("id", "doc", Q), Segment("id", "doc", K))
SHORT = {"w": [], "image": [7], "keep": [[[True]]], "doc": [0, 2, 2, 3]}
NONE = SHORT | {"doc": [0]}


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(predicates(), tables())
@example(SAME_DOCUMENT, SHORT)
@example(SAME_DOCUMENT, NONE)
@example(compare("==", Segment("start", "doc", K), K), NONE)
@example(compare("<", Segment("end", "doc", Q), K), SHORT)
@example(compare("==", Entry("image", (Q,)), Entry("image", (K,))), SHORT)
@example(compare("<", Entry("w", (Var("head"),)), Const(0)), SHORT)
@example(Member("keep", (Var("head"), Q, K)), SHORT)
@example(Member("keep", (Var("kv_head"), Q, K)), SHORT)
def test_all_agree(body: Predicate, given_tables: dict[str, Any]) -> None:
    positions = range(FIRST, STOP)
    expected = [[allows(body, q, k, ENV, given_tables) for k in positions] for q in positions]
    tensors = as_tensors(given_tables)
    q = torch.arange(FIRST, STOP)[:, None]
    k = torch.arange(FIRST, STOP)[None, :]
    assert allowed(body, q, k, ENV, tensors).tolist() == expected
    if not any(isinstance(node, Cover) for node in walk(body)):
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        found = evaluate(body, {**ENV, **arrays, "q": q.numpy(), "k": k.numpy()})
        shape = (len(positions), len(positions))
        assert np.broadcast_to(found, shape).tolist() == expected
