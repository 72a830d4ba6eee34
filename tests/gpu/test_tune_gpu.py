"""Tuning on a GPU for real: every phase finds, keeps and uses configs that are right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import patterncc
from patterncc import autotuning, tuned
from patterncc.autotune.device import describe
from patterncc.autotune.job import Job
from patterncc.autotune.options import Options
from patterncc.autotune.search import Limits
from patterncc.autotune.space import PHASES
from patterncc.autotune.store import TunedStore
from patterncc.autotune.tuning import Tuner
from patterncc.autotune.worker import Maker, Worker
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.dsl import load

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TunedStore]:
    found = TunedStore(tmp_path / "cache", None)
    monkeypatch.setattr(tuned, "store", lambda: found)
    monkeypatch.setattr(autotuning, "_settled", set())
    tuned.forget()
    yield found
    tuned.forget()


@pytest.mark.parametrize("text", ["streaming(4, 300)", "window(100) or dilated(64, 4)"])
def test_every_phase(own_store: TunedStore, tmp_path: Path, text: str) -> None:
    pattern = load(text)
    numbers = {each.name: each.value for each in pattern.numbers if each.value is not None}
    problem = Problem("bfloat16", 64, 64, 2)
    job = Job(pattern.structure, problem, 2, 4, 2, 1000, 1000, numbers=numbers)
    options = Options(Limits(trials=6, timeout=60, gain=0.0), folder=tmp_path / "src")
    phases = tuple(PHASES.values())
    with Tuner("cuda:0", own_store, options=options) as tuner:
        for number, phase in enumerate(phases):
            then = (job, phases[number + 1]) if number + 1 < len(phases) else None
            result = tuner.tune(job, phase, then=then)
            states = {trial.state for trial in result.search.trials}
            assert states <= {"timed", "slow"}, [t.reason for t in result.search.trials]
            assert result.search.trials[0].config == result.default
            assert own_store.lookup(result.entry.key).exact


@pytest.mark.skipif(
    torch.cuda.get_device_capability() != (9, 0), reason="Gluon's kernels are Hopper's"
)
def test_kernels_of_both_emitters(own_store: TunedStore, tmp_path: Path) -> None:
    """Seeds are of both, all are right, and the default that is compared is the one of calls."""
    job = Job("k <= q", Problem("bfloat16", 128, 128), 1, 4, 4, 1500, 1500)
    options = Options(Limits(trials=12, timeout=90, gain=0.0), folder=tmp_path / "src")
    with Tuner("cuda:0", own_store, options=options) as tuner:
        result = tuner.tune(job, PHASES["forward"])
    trials = result.search.trials
    assert {trial.state for trial in trials} <= {"timed", "slow"}, [t.reason for t in trials]
    assert {trial.config.emitter for trial in trials} == {"triton", "gluon"}
    assert result.default.emitter == "gluon"
    assert result.entry.default_config == result.default
    assert result.entry.beats_default == (result.comparison.winner != result.default)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("text", ["causal", "streaming(4, 300)"])
def test_sixteen_rows_at_a_time_by_descriptors(text: str, num_stages: int, tmp_path: Path) -> None:
    """Their numbers are no box: those of three stages ended in a misaligned address."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("descriptors are Hopper's")
    pattern = load(text)
    numbers = {each.name: each.value for each in pattern.numbers if each.value is not None}
    job = Job(pattern.structure, Problem("bfloat16", 128, 128), 1, 2, 2, 777, 777, numbers=numbers)
    config = KernelConfig(16, 64, 4, num_stages, "descriptor", max_registers=255)
    with Worker(
        Maker("patterncc.autotune.measure", "DeviceMeasurer", ("cuda:0", tmp_path / "src"))
    ) as worker:
        worker.set_up("turn_to", job, "grad_key_value")
        found = worker.measure(config)
    assert found.state == "timed", found.reason


def test_calls_take_what_was_tuned(own_store: TunedStore) -> None:
    shape = (1, 2, 777, 64)
    query, key, value = (
        torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    attention = patterncc.compile("window(128)")
    expected = torch.autograd.grad(attention(query, key, value).sum(), (query, key, value))
    found = attention.tune(query, key, value, trials=4, seconds=60)
    assert list(found) == list(PHASES)
    assert all(own_store.lookup(entry.key).entry == entry for entry in found.values())
    assert {entry.key.device for entry in found.values()} == {describe("cuda:0").name}
    again = torch.autograd.grad(attention(query, key, value).sum(), (query, key, value))
    for one, other in zip(again, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)
