"""Which entries of tables rows read: known readings against places computed at each call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from patterncc.codegen.gpu.table_gradients import TableGradients
from patterncc.codegen.score import readings
from patterncc.codegen.score.readings import known_reading, reading_at
from patterncc.codegen.score.values import Rows, ScoreValues, add_at, add_sink_gradients
from patterncc.dsl.score.nodes import Lookup
from patterncc.dsl.score.terms import load_terms

ROWS = Rows(2, 6, 3, 10, 12, {"q_offset": 2, "layer": 1})
CPU = torch.device("cpu")

# The entry, the shape of its table, and what is known of it: whole, all inside, all distinct.
CASES: dict[str, tuple[tuple[int, ...], tuple[bool, bool, bool]]] = {
    "t[head]": ((6,), (True, True, True)),
    "t[batch]": ((2,), (True, True, True)),
    "t[0]": ((1,), (True, True, True)),
    "t[q - 2]": ((10,), (True, True, True)),
    "t[head, q - 2]": ((6, 10), (True, True, True)),
    "t[kv_head]": ((3,), (False, True, False)),
    "t[head % 4]": ((4,), (False, True, False)),
    "t[layer, head]": ((4, 6), (False, True, True)),
    "t[5 - head]": ((6,), (False, True, True)),
    "t[head + 3]": ((6,), (False, False, True)),
    "t[q - 20]": ((4,), (False, False, True)),
    "t[batch, q // 3]": ((2, 4), (False, True, False)),
    "t[q, head]": ((12, 6), (False, True, True)),
    "t[head] ": ((0,), (False, False, True)),
}


def entry_of(text: str) -> Lookup:
    terms = load_terms(f"score + {text}")
    ((entry, _),) = terms.table_slopes()
    return entry


@pytest.mark.parametrize("text", CASES)
def test_known_readings(text: str) -> None:
    shape, (whole, inside, distinct) = CASES[text]
    entry = entry_of(text)
    values = ScoreValues({}, {"t": torch.randn(shape)})
    known = known_reading(ROWS, values, entry, CPU)
    assert known is not None
    assert (known.flat is None, known.inside, known.distinct) == (whole, inside, distinct)
    like = torch.empty(0)
    evaluate = ROWS.evaluator(values, like)
    torch.testing.assert_close(known.read(values.tables["t"]), evaluate(entry))
    with_it = ROWS.evaluator(values, like, readings={entry: known})
    torch.testing.assert_close(with_it(entry), evaluate(entry))
    shares = torch.randn(ROWS.shape)
    wanted = torch.zeros(shape)
    add_at(wanted, *evaluate.places(entry), shares)
    torch.testing.assert_close(known.sums(shares), wanted)
    torch.testing.assert_close(reading_at(evaluate, entry, shape).sums(shares), wanted)
    assert torch.equal(known.sums(shares), known.sums(shares))


def test_shares_outside_of_a_table_are_dropped_whatever_they_are() -> None:
    entry = entry_of("t[head + 3]")
    values = ScoreValues({}, {"t": torch.zeros(6)})
    shares = torch.ones(ROWS.shape)
    shares[:, 3:] = torch.nan
    known = known_reading(ROWS, values, entry, CPU)
    assert known is not None
    assert known.sums(shares).tolist() == [0, 0, 0, 20, 20, 20]


def test_sums_are_no_part_of_the_shares() -> None:
    entry = entry_of("t[head, q - 2]")
    rows = Rows(1, 6, 3, 10, 12, ROWS.env)
    known = known_reading(rows, ScoreValues({}, {"t": torch.zeros(6, 10)}), entry, CPU)
    shares = torch.randn(1, 6, 10)
    assert known is not None and known.flat is None
    before = shares.clone()
    known.sums(shares).zero_()
    assert torch.equal(shares, before)


def test_many_places_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    values = ScoreValues({}, {"t": torch.zeros(6, 10)})
    monkeypatch.setattr(readings, "MOST_PLACES", 59)
    assert known_reading(ROWS, values, entry_of("t[head, q - 2]"), CPU) is None
    assert known_reading(ROWS, values, entry_of("t[head, head]"), CPU) is not None


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the names of the operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_tables_of_heads_take_sums_alone() -> None:
    # Each operation is a launch, and what waits for the device is worse.
    terms = load_terms("score + slopes[head] * (k - q)", "sinks[head]")
    tables = {"slopes": torch.randn(6), "sinks": torch.randn(6)}
    values = ScoreValues({}, tables)
    plan = TableGradients.of(("slopes", "sinks"), terms, ROWS, values, {}, CPU)
    (entry,) = plan.wanted.rows
    lse, delta, shares = (torch.randn(ROWS.shape) for _ in range(3))
    operands = {"lse": lse, "delta": delta, entry.name: shares}
    with Counted() as counted:
        found = plan(values, operands)
    views = {"view", "_unsafe_view", "alias"}
    assert [name for name in counted.names if name not in views] == (
        ["sum", "clamp_min", "sub", "exp_", "mul_", "neg_", "sum"]
    )
    torch.testing.assert_close(found["slopes"], shares.sum((0, 2)))
    wanted = {"sinks": torch.zeros(6)}
    add_sink_gradients(wanted, terms, values, ROWS, lse, delta)
    torch.testing.assert_close(found["sinks"], wanted["sinks"])


def test_a_row_without_keys_hands_nothing_to_a_sink_that_is_off() -> None:
    terms = load_terms(None, "sinks[head]")
    values = ScoreValues({}, {"sinks": torch.full((6,), -torch.inf)})
    plan = TableGradients.of(("sinks",), terms, ROWS, values, {}, CPU)
    lse = torch.full(ROWS.shape, -torch.inf)
    assert plan(values, {"lse": lse, "delta": torch.ones(ROWS.shape)})["sinks"].tolist() == [0] * 6
