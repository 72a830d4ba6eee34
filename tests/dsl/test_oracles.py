"""The two readings of the mask algebra, in plain Python and in torch, which share no code."""

import torch
from hypothesis import HealthCheck, given, settings

from patterncc.codegen.reference import allowed
from patterncc.dsl.evaluate import allows
from patterncc.dsl.mask import Predicate
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
TABLES = {"w": [3, 5, -1, 0]}


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(predicates(tables=False))
def test_both_agree(body: Predicate) -> None:
    q, k = torch.arange(-2, 9)[:, None], torch.arange(0, 9)[None, :]
    found = allowed(body, q, k, ENV, {name: torch.tensor(data) for name, data in TABLES.items()})
    expected = [[allows(body, a, b, ENV, TABLES) for b in range(9)] for a in range(-2, 9)]
    assert found.tolist() == expected
