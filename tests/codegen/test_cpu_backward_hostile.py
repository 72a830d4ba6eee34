"""The CPU executor's backward on numbers that are not finite, little memory, and bad arguments."""

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patterncc.codegen import cpu
from patterncc.codegen.cpu import backward_kernels
from patterncc.codegen.cpu.accumulate import Block
from patterncc.codegen.ir import Passes
from patterncc.dsl import load
from patterncc.dsl.errors import ArgumentError, UnsupportedError
from tests.codegen.cpu_calls import program_of, random
from tests.codegen.cpu_gradients import Gradients, gradients, grads_of_results
from tests.codegen.test_cpu_passes import inputs, mask_of, passes_of

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (
    "window(20)",
    "causal and (sinks(4) or window(20))",
    "causal and (window(20) or (q - k) % 16 == 0)",
    "local_strided(32, 2, 3)",
)
POISONS = (math.nan, math.inf, -math.inf, 3e38)
AT = 60  # the position that is poisoned


@pytest.fixture(params=["aten flash", "matmul"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on each kernel."""
    if request.param == "matmul":
        monkeypatch.setattr(backward_kernels, "flash_works", lambda: False)
    return str(request.param)


def masked(text: str, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The mask `[batch, heads, q_len, kv_len]`, and with heads that share keys as more rows."""
    mask = mask_of(load(text).body, query, key, {}, {})
    batch, kv_heads, kv_len, _ = key.shape
    return mask, mask.view(batch, kv_heads, -1, kv_len)


def untouched_are_equal(found: Gradients, clean: Gradients, rows: Tensor, keys: Tensor) -> None:
    """Compares the gradients of rows and keys, bool `[batch, heads, length]`, with those before."""
    for one, other, some in zip(found, clean, (rows, keys, keys), strict=True):
        assert bool(some.any())
        torch.testing.assert_close(one[some], other[some], rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------ not finite


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("where", ["query", "grad_out", "grad_lse"])
def test_a_row_reaches_the_keys_that_it_sees(
    text: str, where: str, poison: float, kernel: str
) -> None:
    passes = passes_of(text, "auto")
    query, key, value = inputs()
    grad_out, grad_lse = grads_of_results(query, value)
    clean = gradients(passes, query, key, value, grad_out, grad_lse)
    mask, _ = masked(text, query, key)
    {"query": query, "grad_out": grad_out, "grad_lse": grad_lse}[where][:, :, AT] = poison
    found = gradients(passes, query, key, value, grad_out, grad_lse)
    rows = torch.ones(mask.shape[:3], dtype=torch.bool)
    rows[:, :, AT] = False
    keys = ~mask[:, :, AT].view(*key.shape[:2], -1, key.shape[2]).any(2)
    untouched_are_equal(found, clean, rows, keys)
    if math.isnan(poison):
        assert bool(found.query[~rows].isnan().all())
        assert bool(found.key[~keys].isnan().all())


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("where", ["key", "value"])
def test_a_key_reaches_the_rows_that_see_it(
    text: str, where: str, poison: float, kernel: str
) -> None:
    """And through their outputs the other keys that these see."""
    passes = passes_of(text, "auto")
    query, key, value = inputs()
    grads = grads_of_results(query, value)
    clean = gradients(passes, query, key, value, *grads)
    mask, by_key = masked(text, query, key)
    {"key": key, "value": value}[where][:, :, AT] = poison
    found = gradients(passes, query, key, value, *grads)
    rows = ~mask[..., AT]
    keys = ~(by_key & by_key[..., AT, None]).any(2)
    untouched_are_equal(found, clean, rows, keys)
    if math.isnan(poison):
        assert bool(found.query[~rows].isnan().all())


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_rows_that_see_nothing_pass_nothing_on(poison: float, kernel: str) -> None:
    passes = passes_of("q >= 100 and k < 3", "auto")
    query, key, value = inputs()
    grad_out, grad_lse = grads_of_results(query, value)
    clean = gradients(passes, query, key, value, grad_out, grad_lse)
    query[:, :, 7] = grad_out[:, :, 8] = grad_lse[:, :, 9] = poison
    key[:, :, 50] = value[:, :, 51] = poison
    found = gradients(passes, query, key, value, grad_out, grad_lse)
    for one, other in zip(found, clean, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert not found.query[:, :, :100].any()


@pytest.mark.parametrize("size", [1e150, 1e200, 1e308])
def test_large_numbers_in_float64(size: float, kernel: str) -> None:
    """Scores of hidden pairs may overflow where those of visible ones do not."""
    passes = passes_of("window(20)", "auto")
    query, key, value = inputs(dtype=torch.float64)
    query *= 1e150
    key *= 1e-150
    grads = grads_of_results(query, value)
    clean = gradients(passes, query, key, value, *grads)
    mask, by_key = masked("window(20)", query, key)
    key[:, :, AT] = value[:, :, AT] = size
    found = gradients(passes, query, key, value, *grads)
    keys = ~(by_key & by_key[..., AT, None]).any(2)
    for one, other, some in zip(found, clean, (~mask[..., AT], keys, keys), strict=True):
        torch.testing.assert_close(one[some], other[some])


def test_large_scores_do_not_overflow(kernel: str) -> None:
    passes: Passes = (program_of("window(20)"),)
    query, key, value = inputs()
    found = gradients(passes, 100 * query, 100 * key, value, *grads_of_results(query, value))
    assert all(bool(grad.isfinite().all()) for grad in found)


# ------------------------------------------------------------------------------------------ trial


def test_the_trial_notices_a_kernel_that_is_missing_or_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = backward_kernels.flash_works.__wrapped__

    def refuses(block: Block, scale: float) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        raise RuntimeError("expected as many key heads as query heads")

    def takes_no_mask(block: Block, scale: float) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        plain = Block(block.rows, block.keys, None, block.places)
        return backward_kernels.matmul(plain, scale)

    def wrong(block: Block, scale: float) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        for_rows, (for_key, for_value) = backward_kernels.matmul(block, scale)
        return for_rows, [for_key, 2 * for_value]

    for broken in (refuses, takes_no_mask, wrong):
        monkeypatch.setattr(backward_kernels, "flash", broken)
        assert not trial()


# ----------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("works", [True, False])
def test_memory_grows_with_the_tokens_and_not_their_square(works: bool) -> None:
    # One mask of this length is 1 GB as float32; in a fresh process, as the peak never falls.
    script = f"""
import torch
from patterncc.codegen import cpu
from patterncc.codegen.cpu import backward_kernels
from patterncc.codegen.lower import lower
from patterncc.dsl import load

if not {works}:
    backward_kernels.flash_works = lambda: False
program = lower(load("causal and (sinks(4) or window(64))"), 64, 64)

def peak(length):
    query = torch.ones(1, 1, length, 8)
    out, lse = cpu.attention((program,), query, query, query)
    saved = (query, query, query, out, lse)
    cpu.attention_backward((program,), query, lse, *saved)
    cpu.attention_double_backward((program,), (query, query, query), query, lse, *saved)
    # Not ru_maxrss, which a process inherits from the one that starts it.
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1])

print(peak(1024), peak(16384))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    before, after = map(int, done.stdout.split())
    assert after - before < 96 << 10  # KiB on Linux


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("grad_out", (2, 4, 5, 8), r"`grad_out` has the shape \(2, 4, 5, 8\); it must be \(2, 4"),
        ("grad_lse", (2, 4, 5, 1), r"`grad_lse` has the shape \(2, 4, 5, 1\); it must be"),
        ("out", (2, 4, 6, 3), r"`out` has the shape \(2, 4, 6, 3\); it must be \(2, 4, 5, 3\)"),
        ("lse", (2, 2, 5), r"`lse` has the shape \(2, 2, 5\); it must be \(2, 4, 5\)"),
        ("value", (2, 2, 6, 3), r"`key` has 2 heads and 5 keys; `value` has 2 and 6"),
    ],
)
def test_shapes_that_do_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    tensors = fitting() | {name: random(*shape)}
    with pytest.raises(ArgumentError, match=message):
        cpu.attention_backward((program_of("causal"),), **tensors)


def test_types_that_do_not_fit() -> None:
    program = program_of("causal")
    with pytest.raises(ArgumentError, match=r"`grad_out` is torch.float16; it must be torch.float"):
        cpu.attention_backward((program,), **fitting() | {"grad_out": random(2, 4, 5, 3).half()})
    with pytest.raises(ArgumentError, match=r"`lse` is torch.float64; it must be torch.float32"):
        cpu.attention_backward((program,), **fitting() | {"lse": random(2, 4, 5).double()})
    with pytest.raises(UnsupportedError, match="`out` is on meta; this executor is for the CPU"):
        cpu.attention_backward((program,), **fitting() | {"out": random(2, 4, 5, 3).to("meta")})


def test_cotangents_that_do_not_fit() -> None:
    program = program_of("causal")
    query, key = random(2, 4, 5, 8), random(2, 2, 5, 8)
    with pytest.raises(ArgumentError, match=r"the gradient of grad_value has the shape \(2, 2, 5"):
        cpu.attention_double_backward((program,), (query, key, key), **fitting())


def fitting() -> dict[str, Any]:
    """Arguments of a backward that are as they must be."""
    rows = (2, 4, 5)
    return {
        "grad_out": random(*rows, 3),
        "grad_lse": random(*rows),
        "query": random(*rows, 8),
        "key": random(2, 2, 5, 8),
        "value": random(2, 2, 5, 3),
        "out": random(*rows, 3),
        "lse": random(*rows),
    }
