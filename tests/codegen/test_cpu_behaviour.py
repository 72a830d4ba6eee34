"""What the CPU executor leaves as it is, repeats and needs of memory; its two kernels compared."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from patterncc.codegen import cpu
from patterncc.codegen.cpu import execute, kernels
from tests.codegen.cpu_calls import program_of, random

ROOT = Path(__file__).resolve().parents[2]


def test_repeated_runs_are_equal_bit_by_bit() -> None:
    query, key, value = (random(2, 4, 500, 32, seed=seed) for seed in (1, 2, 3))
    program = program_of("causal and (sinks(4) or window(100))")
    runs = [cpu.attention((program,), query, key, value) for _ in range(4)]
    cpu.plans.clear()
    runs.append(cpu.attention((program,), query, key, value))
    for out, lse in runs[1:]:
        assert torch.equal(out, runs[0][0])
        assert torch.equal(lse, runs[0][1])


def test_inputs_stay_as_they_are(kernel: str) -> None:
    tensors = [random(1, 2, 100, 8, seed=seed) for seed in (1, 2, 3)]
    before = [tensor.clone() for tensor in tensors]
    out, lse = cpu.attention((program_of("window(20)"),), *tensors)
    assert all(torch.equal(*pair) for pair in zip(tensors, before, strict=True))
    assert not {x.data_ptr() for x in tensors} & {out.data_ptr(), lse.data_ptr()}


def test_no_gradient_is_recorded() -> None:
    query = random(1, 2, 100, 8).requires_grad_()
    out, lse = cpu.attention((program_of("causal"),), query, query, query)
    assert not out.requires_grad
    assert not lse.requires_grad


def test_both_kernels_agree_on_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (random(1, 4, 1000, 16, seed=seed) for seed in (1, 2, 3))
    program = program_of("causal and (sinks(4) or window(100))")
    whole, whole_lse = cpu.attention((program,), query, key, value)
    monkeypatch.setattr(execute, "_MAX_NUMBERS", 1 << 14)  # calls in parts
    parts, parts_lse = cpu.attention((program,), query, key, value)
    assert torch.equal(whole, parts)
    assert torch.equal(whole_lse, parts_lse)
    monkeypatch.setattr(kernels, "flash_works", lambda: False)
    monkeypatch.setattr(kernels, "_MAX_SCORES", 1 << 15)
    products, products_lse = cpu.attention((program,), query, key, value)
    torch.testing.assert_close(products, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products_lse, whole_lse, rtol=1e-5, atol=1e-5)


def test_the_trial_notices_a_kernel_that_is_missing_or_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: object) -> tuple[Tensor, Tensor]:
        raise RuntimeError("expected as many key heads as query heads")

    def wrong(*arguments: object) -> tuple[Tensor, Tensor]:
        out, lse = kernels.matmul(*arguments)  # type: ignore[arg-type]
        return out, lse + 1

    trial = kernels.flash_works.__wrapped__
    for broken in (refuses, wrong):
        monkeypatch.setattr(kernels, "flash", broken)
        assert not trial()


def test_memory_grows_with_the_tokens_and_not_their_square() -> None:
    # One mask of this length is 1 GB as float32; in a fresh process, as the peak never falls.
    script = """
import torch
from patterncc.codegen import cpu
from patterncc.codegen.lower import lower
from patterncc.dsl import load

program = lower(load("causal and (sinks(4) or window(64))"), 64, 64)

def peak(length):
    query = torch.ones(1, 1, length, 8)
    cpu.attention((program,), query, query, query)
    # Not ru_maxrss, which a process inherits from the one that starts it.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1])

print(peak(1024), peak(16384), cpu.plans.nbytes)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    before, after, kept = map(int, done.stdout.split())
    assert after - before < 64 << 10  # KiB on Linux
    assert kept < 64 << 10
