"""The kernel of all gradients compiled for Hopper without a GPU."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import shared_limit
from patterncc.codegen.gpu.delta_source import emit_delta
from patterncc.codegen.gpu.gluon.gradient_source import emit_gluon_gradients
from patterncc.codegen.gpu.launch import CompiledKernel, compile_for
from patterncc.codegen.gpu.one_pass_choice import ONE_PASS
from patterncc.codegen.gpu.query_sum_source import emit_round_query
from patterncc.codegen.problem import Problem
from patterncc.dsl import load

SIZES = {"heads": 8, "kv_heads": 4, "layers": 4}

MOST_SPILLED = 272
"""Bytes of local memory: scalars of the loops and limits of rows, for both gradients fill half of
the registers."""


def _compiled(text: str, folder: Path, group: int = 1, stages: int = 2) -> CompiledKernel:
    config = replace(ONE_PASS, num_stages=stages)
    (program,) = lower_passes(load(text), 64, 128, sizes=SIZES, within=True)
    problem = Problem("bfloat16", 128, 128, group)
    return compile_for(emit_gluon_gradients(program, problem, config), "cuda:90", folder=folder)


@pytest.mark.parametrize("stages", [2, 3])
def test_what_it_is_made_of(stages: int, tmp_path: Path) -> None:
    kernel = _compiled("causal", tmp_path, stages=stages)
    assert kernel.spilled <= MOST_SPILLED
    assert kernel.shared <= (shared_limit("cuda:90") or 0)
    ptx = str(kernel.stages["ptx"])
    # Of each of two warpgroups, in each of two loops: a product of 128 numbers for scores and one
    # for their gradient, two of 64 for the query's, two from registers; two more at the end.
    products = len(re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n(64|128)k16", ptx))
    assert products == 2 * (2 * (8 + 8 + 8 + 4 + 4) + 8)
    # In a loop: for the share of the query's gradient, scores and their gradient, and for all.
    waits = re.findall(r"wgmma\.wait_group\.sync\.aligned (\d);", ptx)
    assert sorted(waits) == sorted(2 * (2 * ["1", "1", "1", "0"] + ["0"]))
    # Sixteen bytes to a thread, and nothing but sums goes that way.
    added = re.findall(r"(?:red|atom)\.(?:global\.)?\S*add\S*", ptx)
    assert added
    assert all(".v4.f32" in one and "relaxed" in one for one in added)


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("streaming(64, 1024)", 2),
        ("local_strided(16, 4, 3)", 1),
        ("if head in {0, 3} then causal else streaming(4, 50)", 2),
    ],
)
def test_sweeps_and_heads(text: str, group: int, tmp_path: Path) -> None:
    kernel = _compiled(text, tmp_path, group)
    assert kernel.spilled <= MOST_SPILLED


def test_kernels_of_rows(tmp_path: Path) -> None:
    problem = Problem("bfloat16", 128, 128)
    for with_lse in (False, True):
        delta = emit_delta(problem, with_lse=with_lse, with_rows=True, with_sums=True)
        assert compile_for(delta, "cuda:90", folder=tmp_path).spilled == 0
    kernel = compile_for(emit_round_query(problem), "cuda:90", folder=tmp_path)
    assert kernel.spilled == 0
    assert "ld.global.v4" in str(kernel.stages["ptx"])
