"""The CPU executor with numbers that are not finite, or huge: only rows that see them change."""

import math

import pytest
import torch

from patterncc.codegen import cpu
from tests.codegen.cpu_calls import (
    check,
    mask_of,
    program_of,
    random,
)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("where", ["key", "value", "both"])
@pytest.mark.parametrize("text", ["window(20)", "causal", "causal and (sinks(4) or window(20))"])
def test_unseen_keys_cannot_reach_a_row(text: str, where: str, poison: float, kernel: str) -> None:
    query, key, value = (random(2, 4, 150, 16, seed=seed) for seed in (1, 2, 3))
    program = program_of(text)
    clean, clean_lse = cpu.attention((program,), query, key, value)
    for tensor, name in ((key, "key"), (value, "value")):
        if where in (name, "both"):
            tensor[:, :, 60] = poison
    out, lse = cpu.attention((program,), query, key, value)
    blind = ~mask_of(program.mask, query, key, {})[..., 60]
    torch.testing.assert_close(out[blind], clean[blind], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse[blind], clean_lse[blind], rtol=1e-5, atol=1e-5)
    if math.isnan(poison):
        assert bool(out[~blind].isnan().all())


@pytest.mark.parametrize("poison", [math.nan, 1e200, 1e308])
def test_unseen_keys_cannot_reach_a_row_in_float64(poison: float) -> None:
    query, key, value = (random(1, 2, 150, 16, seed=s, dtype=torch.float64) for s in (1, 2, 3))
    query *= 1e150
    key *= 1e-150
    program = program_of("window(20)")
    clean, _ = cpu.attention((program,), query, key, value)
    key[:, :, 60] = value[:, :, 60] = poison
    out, _ = cpu.attention((program,), query, key, value)
    blind = ~mask_of(program.mask, query, key, {})[..., 60]
    torch.testing.assert_close(out[blind], clean[blind])


def test_a_poisoned_row_reaches_no_other(kernel: str) -> None:
    query, key, value = (random(1, 2, 150, 16, seed=seed) for seed in (1, 2, 3))
    program = program_of("window(20)")
    clean, _ = cpu.attention((program,), query, key, value)
    query[:, :, 40] = math.nan
    out, _ = cpu.attention((program,), query, key, value)
    others = torch.arange(150) != 40
    torch.testing.assert_close(out[:, :, others], clean[:, :, others], rtol=1e-5, atol=1e-5)
    assert bool(out[:, :, 40].isnan().all())


def test_large_scores_do_not_overflow_the_softmax(kernel: str) -> None:
    query, key, value = (random(1, 2, 150, 16, seed=seed) for seed in (1, 2, 3))
    check(program_of("window(20)"), 100 * query, 100 * key, value)


@pytest.mark.parametrize("kv_len", [1, 5, 15, 16, 33])
@pytest.mark.parametrize("name", ["query", "key"])
def test_scores_that_are_nan_are_not_lost(name: str, kv_len: int, kernel: str) -> None:
    """Of few keys torch's kernel takes a row of NaN for one that sees nothing."""
    tensors = {n: random(1, 2, kv_len, 16, seed=s) for n, s in (("key", 2), ("value", 3))}
    tensors["query"] = random(1, 2, 150, 16, seed=1)
    tensors[name][:] = math.nan
    out, lse = cpu.attention(
        (program_of("full"),), tensors["query"], tensors["key"], tensors["value"]
    )
    assert bool(out.isnan().all()) and bool(lse.isnan().all())


def test_a_document_that_begins_with_nan(kernel: str) -> None:
    """The last key of a tile is the only one that the rows of others see there."""
    query, key, value = (random(1, 2, 200, 16, seed=seed) for seed in (1, 2, 3))
    program = program_of("pattern p(doc: segments): causal and doc[q] == doc[k]")
    key[:, :, 63] = math.nan
    tables = {"doc": torch.tensor([0, 63, 170, 200], dtype=torch.int32)}
    out, _ = cpu.attention((program,), query, key, value, tables=tables)
    seen = torch.zeros(200, dtype=torch.bool)
    seen[63:170] = True
    assert bool(out[:, :, seen].isnan().all()) and bool(out[:, :, ~seen].isfinite().all())
