"""Candidates for gradients are checked before they are timed; kernels run in the interpreter."""

from __future__ import annotations

import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patterncc.autotune.job import Job
from patterncc.autotune.oracle import GradientOracle
from patterncc.autotune.phase_launches import planned, untuned_config
from patterncc.autotune.space import GRAD_KEY_VALUE, GRAD_QUERY, PHASES
from patterncc.autotune.tensors import random_like_output, random_tensors
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from tests.autotune.jobs import job

HALF = Problem("float16", 16, 16, 2)
CONFIGS = (KernelConfig(32, 32, 4, 1, "descriptor"), KernelConfig(16, 64, 4, 2, "pointer"))


def judged(one: Job, phase: str) -> list[tuple[float, str]]:
    """What the oracle says of some configs; in the interpreter's process."""
    from patterncc.autotune.gradient_bench import gradient_bench

    with tempfile.TemporaryDirectory() as folder:
        ready, oracle, _ = gradient_bench(one, phase, torch.device("cpu"), Path(folder))
        with torch.inference_mode():
            return [oracle.judge(ready(config)) for config in CONFIGS]


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["grad_query", "grad_key_value"])
@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("causal and q - k < 20 and q > 30", {}),  # rows and keys that see nothing
        ("streaming(4, 32)", {"q_len": 50, "kv_len": 90, "q_offset": 40}),
        ("window(32) or dilated(16, 8)", {}),  # two passes
        (
            "pattern p(doc: segments): causal and doc[q] == doc[k]",
            {"tables": {"doc": np.array([0, 7, 70, 90])}},
        ),
    ],
)
def test_right_gradients(
    worker: ProcessPoolExecutor, text: str, fields: dict[str, Any], phase: str
) -> None:
    one = job(text, **{"problem": HALF, "q_len": 90, **fields})  # ragged in tiles of 16 to 64
    for error, wrong in worker.submit(judged, one, phase).result():
        assert wrong == ""
        assert 0 < error < 1


class Gradients:
    """A candidate that has the right gradients by autograd, spoilt where it is told."""

    def __init__(self, one: Job, tensors: dict[str, Tensor], oracle: GradientOracle) -> None:
        self._job, self._tensors, self._oracle = one, tensors, oracle
        self.spoil: dict[bool, tuple[int, ...]] = {}  # by `checked`: of the key's gradient

    def __call__(self, *, checked: bool = False) -> tuple[Tensor, ...]:
        from patterncc.codegen import reference
        from patterncc.dsl import load

        grad_out = self._oracle.checked_grad_out if checked else self._tensors["grad_out"]
        query, key, value = leaves = [
            self._tensors[name].double().requires_grad_() for name in ("query", "key", "value")
        ]
        mask = reference.mask(
            load(self._job.structure), q_len=self._job.q_len, values=self._job.numbers
        )
        out, _ = reference.dense_attention(query, key, value, mask, self._job.scale)
        _, key, value = torch.autograd.grad(out, leaves, grad_out.double())
        key, value = key.to(torch.float16), value.to(torch.float16)
        if checked in self.spoil:
            key[self.spoil[checked]] += 0.5 * key.abs().max()
        return key, value


def oracle_of(one: Job) -> tuple[GradientOracle, Gradients]:
    device = torch.device("cpu")
    tensors = random_tensors(one, device)
    tensors["grad_out"] = random_like_output(one, device)
    oracle = GradientOracle(one, tensors, ("grad_key", "grad_value"))
    return oracle, Gradients(one, tensors, oracle)


def test_wrong_gradients_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patterncc.autotune.oracle._MOST_PAIRS", {"cpu": 1})
    oracle, run = oracle_of(job("causal", problem=HALF, q_len=100))
    assert 0 < int((oracle.checked_grad_out != 0).any(-1).any(0).any(0).sum()) < 100
    run.spoil = {True: (0, 1, 3, 5)}
    error, wrong = oracle.judge(run)
    assert error > 1
    assert wrong.startswith("its grad_key is 0.")
    assert "dense attention in float64" in wrong
    run.spoil = {}
    assert oracle.judge(run)[1] == ""
    run.spoil = {False: (0, 0, 97, 1)}  # where no row is checked
    error, wrong = oracle.judge(run)
    assert error > 1
    assert "from that of the first right result" in wrong


def test_gradients_that_are_no_numbers() -> None:
    oracle, run = oracle_of(job("causal", problem=HALF, q_len=40))

    def broken(*, checked: bool = False) -> tuple[Tensor, ...]:
        key, value = run(checked=checked)
        if not checked:
            value[0, 0, 7] = torch.nan
        return key, value

    assert "no numbers" in oracle.judge(broken)[1]
    assert oracle.judge(run)[1] == ""


@pytest.mark.parametrize("phase", PHASES.values(), ids=list(PHASES))
@pytest.mark.parametrize("head_dim", [64, 128, 192, 256])
def test_plans(head_dim: int, phase: Any) -> None:
    """A phase's kernels alone, in the config that is asked for; the default is a legal one."""
    one = job("window(64)", problem=Problem("bfloat16", head_dim, head_dim, 2), q_len=512)
    default = untuned_config(one, phase, "cuda:90", 132)
    names = {each.source.name for each in planned(one, phase, "cuda:90", multiprocessors=132)}
    others = {"delta"} if phase in (GRAD_QUERY, GRAD_KEY_VALUE) else set()
    assert names - {"sum_chunks"} == {phase.name} | others
    given = KernelConfig(32, 32, 4, 2, "pointer")
    launches = planned(one, phase, "cuda:90", given, multiprocessors=132)
    assert {each.source.config for each in launches if each.source.name == phase.name} == {given}
    assert default != given
