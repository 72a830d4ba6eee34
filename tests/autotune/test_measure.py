"""Candidates are checked before they are timed: right ones pass, wrong ones are named."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patterncc.autotune import measure
from patterncc.autotune.job import Job
from patterncc.autotune.measure import BENCHES, FORWARD_RUNNERS, DeviceMeasurer
from patterncc.autotune.oracle import ForwardOracle, Run
from patterncc.autotune.space import PHASES
from patterncc.autotune.worker import Maker, Worker
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.dsl.errors import ConfigError, TuningError
from tests.autotune.jobs import job


def measurer_of(one: Job) -> DeviceMeasurer:
    """What measures the forward of a call on the CPU."""
    measurer = DeviceMeasurer("cpu")
    measurer.turn_to(one, "forward")
    return measurer


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("causal", {}),
        ("streaming(4, 64)", {"q_len": 100, "kv_len": 300, "q_offset": 200}),
        ("causal and q - k < 20 and q > 30", {}),  # rows that see nothing
        ("dilated(16, 4)", {"problem": Problem("bfloat16", 24, 8, 2)}),
        ("causal and (k // 16 + head) % 4 == 0", {"problem": Problem("float64", 16, 16, 2)}),
        (
            "pattern p(doc: segments): causal and doc[q] == doc[k]",
            {"tables": {"doc": np.array([0, 7, 120, 300])}},
        ),
        (
            "pattern p(keep: bool[head, *]): causal and keep[head, k // 16]",
            {"tables": {"keep": np.arange(80).reshape(4, 20) % 3 == 0}},
        ),
    ],
)
def test_right_outputs_are_timed(text: str, fields: dict[str, Any]) -> None:
    measurer = measurer_of(job(text, **fields))
    for config in (KernelConfig(64, 64), KernelConfig(16, 128)):
        found = measurer.measure(config, float("inf"))
        assert (found.state, found.reason) == ("timed", "")
        assert len(found.seconds) >= 3
        assert 0 <= found.error <= 1
        assert found.median > 0
    race = measurer.race((KernelConfig(64, 64), KernelConfig(16, 128)))
    assert all(len(each.seconds) >= 3 for each in race)


def test_a_slow_config_is_given_up() -> None:
    measurer = measurer_of(job())
    found = measurer.measure(KernelConfig(64, 64), 1e-9)
    assert found.state == "slow"
    assert len(found.seconds) == 2
    assert found.usable


def spoil(monkeypatch: pytest.MonkeyPatch, spoilt: Any) -> None:
    """Lets every config of 32 rows give a spoilt result."""

    def runner(
        job: Job, tensors: dict[str, Tensor], config: KernelConfig, folder: Path | None
    ) -> Run:
        run = FORWARD_RUNNERS["cpu"](job, tensors, config, folder)

        def wrapped(*, checked: bool = False) -> tuple[Tensor, ...]:
            out, lse = run()
            return spoilt(out.clone(), lse.clone()) if config.block_q == 32 else (out, lse)

        return wrapped

    monkeypatch.setattr(measure, "FORWARD_RUNNERS", {"cpu": runner})


def off_by_little(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    out[0, 3, 150, 2] += 1e-3
    return out, lse


def not_a_number(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    out[0, 0, 299, 0] = torch.nan
    return out, lse


def a_dead_row(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    lse[0, 1, 17] = -torch.inf
    return out, lse


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [(off_by_little, "output is 0.001"), (not_a_number, "output is inf"), (a_dead_row, "lse is")],
)
def test_wrong_outputs_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, spoilt: Any, words: str
) -> None:
    spoil(monkeypatch, spoilt)
    measurer = measurer_of(job())
    found = measurer.measure(KernelConfig(32, 64), float("inf"))
    assert (found.state, found.seconds) == ("wrong", ())
    assert words in found.reason
    assert measurer.measure(KernelConfig(64, 64), float("inf")).state == "timed"


def test_rows_outside_of_the_sample_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patterncc.autotune.oracle._MOST_PAIRS", {"cpu": 1})
    spoil(monkeypatch, off_by_little)
    measurer = measurer_of(job())
    assert measurer._bench is not None
    oracle = measurer._bench.oracle
    assert isinstance(oracle, ForwardOracle)
    assert 150 not in oracle._rows
    assert measurer.measure(KernelConfig(64, 64), float("inf")).state == "timed"
    found = measurer.measure(KernelConfig(32, 64), float("inf"))
    assert found.state == "wrong"
    assert "from that of the first right result" in found.reason


def test_a_result_that_changes_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []

    def sometimes(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(None)
        return off_by_little(out, lse) if len(calls) > 1 else (out, lse)

    spoil(monkeypatch, sometimes)
    found = measurer_of(job()).measure(KernelConfig(32, 32), float("inf"))
    assert found.state == "wrong"
    assert found.reason.startswith("after ")


def test_in_a_child_process() -> None:
    maker = Maker("patterncc.autotune.measure", "DeviceMeasurer", ("cpu",))
    with Worker(maker) as worker:
        with pytest.raises(TuningError, match="nothing was made ready"):
            worker.race([KernelConfig(64, 64)])
        worker.set_up("turn_to", job(), "forward")
        found = worker.measure(KernelConfig(64, 64))
        assert found.state == "timed"
        assert len(worker.race([KernelConfig(64, 64), KernelConfig(32, 64)])) == 2


def test_no_such_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="there is no cuda:0 here"):
        DeviceMeasurer("cuda:0")


def test_jobs_travel() -> None:
    one = job("causal", seed=3)
    one.passes(64, 64)
    other = pickle.loads(pickle.dumps(one))
    assert other == one
    assert "pattern" not in other.__dict__
    assert abs(one.density - 301 / 600) < 1e-12


def test_every_phase_can_be_run() -> None:
    for phase in PHASES.values():
        kinds = {kind for kind, knobs in (("cpu", phase.cpu), ("cuda", phase.gpu)) if knobs}
        assert {kind for name, kind in BENCHES if name == phase.name} == kinds
