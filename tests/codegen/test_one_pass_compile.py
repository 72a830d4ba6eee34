"""The kernel of all gradients compiled for Hopper without a GPU."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import shared_limit
from patterncc.codegen.gpu.delta_source import Cleared, emit_delta
from patterncc.codegen.gpu.gluon.gradient_source import emit_gluon_gradients
from patterncc.codegen.gpu.launch import CompiledKernel, compile_for
from patterncc.codegen.gpu.one_pass_choice import ONE_PASS
from patterncc.codegen.gpu.query_sum_source import emit_round_query
from patterncc.codegen.problem import Problem
from patterncc.codegen.turns import Turns
from patterncc.dsl import load
from tests.codegen.machine_code import disassemble, loop_bodies
from tests.codegen.machine_flow import unwritten_registers

SIZES = {"heads": 8, "kv_heads": 4, "layers": 4}

MOST_SPILLED = 232
"""Bytes of local memory: scalars of the loops and limits of rows, for both gradients fill half of
the registers."""

MOST_SPILLED_UNEVEN = 312
"""The same of six to eight loops in turn."""


def _compiled(text: str, folder: Path, group: int = 1, width: int = 128) -> CompiledKernel:
    (program,) = lower_passes(load(text), 64, 128, sizes=SIZES, within=True)
    problem = Problem("bfloat16", width, width, group)
    return compile_for(emit_gluon_gradients(program, problem, ONE_PASS), "cuda:90", folder=folder)


@pytest.mark.parametrize(
    ("width", "pairs"),
    [(128, 8), (64, 4)],
)
def test_what_it_is_made_of(width: int, pairs: int, tmp_path: Path) -> None:
    kernel = _compiled("causal", tmp_path, width=width)
    assert kernel.spilled <= MOST_SPILLED
    assert kernel.shared <= (shared_limit("cuda:90") or 0)
    ptx = str(kernel.stages["ptx"])
    # Of each of two warpgroups, in each of two loops: a product over the head dimension for scores
    # and one for their gradient, one over 128 keys for the query's, two over 64 rows; the first
    # scores before, and the query's gradient of the last tile after the loops.
    products = len(re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k16", ptx))
    assert products == 2 * (2 * (pairs + pairs + 8 + 4 + 4) + pairs + 8)
    # In a loop: for the gradient of scores, the query's, and all; outside for what is asked there.
    waits = re.findall(r"wgmma\.wait_group\.sync\.aligned (\d);", ptx)
    assert sorted(waits) == sorted(2 * (2 * ["1", "1", "0"] + ["0", "0"]))
    # The assembler has added none: it would where registers do not suffice for what is in flight.
    assert _machine_code(kernel, tmp_path).count("WARPGROUP.DEPBAR") == len(waits)
    # The copy engine adds, in each loop and after them, and nothing else does.
    added = re.findall(r"cp\.reduce\.async\.bulk\.tensor\.\S*|\b(?:red|atom)\.\S*", ptx)
    assert added == 6 * ["cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.bulk_group"]


@pytest.mark.parametrize(("width", "products"), [(128, 32), (64, 24)])
def test_full_tiles_read_nothing_back(width: int, products: int, tmp_path: Path) -> None:
    """A loop of full tiles keeps what it needs in registers, or nearly: with Triton 3.6 it loads
    two numbers of local memory at most, with 3.9 nine. Twenty have cost a tenth of the time."""
    code = _machine_code(_compiled("causal", tmp_path, width=width), tmp_path)
    inner = [body for body in loop_bodies(code) if "MUFU.EX2" in body]
    loops = [body for body in inner if body.count("HGMMA") == products]
    full = [body for body in loops if "-INF" not in body]
    assert len(loops) == 4
    assert len(full) == 2
    assert all(body.count("LDL") <= 9 and "STL" not in body for body in full)


@pytest.mark.parametrize(("text", "turns"), [("causal", "rising"), ("window(1024)", "falling")])
def test_in_turn(text: str, turns: Turns, tmp_path: Path) -> None:
    """Warps of their own add; the warpgroups' loops are as long as before."""
    (program,) = lower_passes(load(text), 64, 128, sizes=SIZES, within=True)
    problem = Problem("bfloat16", 128, 128)
    source = emit_gluon_gradients(program, problem, ONE_PASS, turns)
    kernel = compile_for(source, "cuda:90", folder=tmp_path)
    assert kernel.spilled <= MOST_SPILLED
    assert kernel.shared <= (shared_limit("cuda:90") or 0)
    ptx = str(kernel.stages["ptx"])
    counts = {
        name: len(re.findall(name, ptx))
        for name in (
            r"ld\.acquire\.gpu",
            r"red\.release\.gpu",
            r"wait_group 0;",
            r"fence\.proxy\.async\.global",
        )
    }
    passed = counts[r"red\.release\.gpu"]
    assert passed >= 4  # of two warps, in two loops
    assert counts == dict(zip(counts, (passed, passed, passed, 2 * passed), strict=True))
    assert ptx.count("cp.reduce.async.bulk.tensor") == 2 * passed
    assert _machine_code(kernel, tmp_path).count("WARPGROUP.DEPBAR") == ptx.count(
        "wgmma.wait_group"
    )


@pytest.mark.parametrize(("width", "products"), [(128, 32), (64, 24)])
@pytest.mark.parametrize(
    ("text", "turns", "split"),
    [
        ("streaming(64, 1024)", "falling", True),
        ("streaming(64, 4096)", "rising", False),
        ("ladder(64, 1024, 128, 8)", "rising", False),
    ],
)
def test_uneven_key_tiles_in_turn(
    text: str, turns: Turns, split: bool, width: int, products: int, tmp_path: Path
) -> None:
    """More loops, whose bounds are in local memory, but loops of full tiles read none of it; places
    of chunks cost none of what products wait for."""
    (program,) = lower_passes(load(text), 64, 128, sizes=SIZES, within=True)
    problem, config = Problem("bfloat16", width, width), replace(ONE_PASS, neighbours="heads")
    source = emit_gluon_gradients(program, problem, config, turns, split=split)
    kernel = compile_for(source, "cuda:90", folder=tmp_path)
    assert kernel.spilled <= MOST_SPILLED_UNEVEN
    assert kernel.shared <= (shared_limit("cuda:90") or 0)
    code = _machine_code(kernel, tmp_path)
    assert code.count("WARPGROUP.DEPBAR") == str(kernel.stages["ptx"]).count("wgmma.wait_group")
    assert not unwritten_registers(code)
    inner = [body for body in loop_bodies(code) if "MUFU.EX2" in body]
    loops = [body for body in inner if body.count("HGMMA") == products]
    full = [body for body in loops if "-INF" not in body]
    assert len(full) >= 4
    assert all(body.count("LDL") <= 2 and "STL" not in body for body in full)


@pytest.mark.parametrize("turns", ["rising", "falling"])
def test_the_first_turn_stores(turns: Turns, tmp_path: Path) -> None:
    """As many copies store as add, and nothing else changes in what warps wait for."""
    (program,) = lower_passes(load("window(1024)"), 64, 128, sizes=SIZES, within=True)
    problem = Problem("bfloat16", 128, 128)
    found = []
    for stores in (False, True):
        source = emit_gluon_gradients(program, problem, ONE_PASS, turns, first_stores=stores)
        kernel = compile_for(source, "cuda:90", folder=tmp_path)
        assert kernel.spilled <= MOST_SPILLED
        ptx = str(kernel.stages["ptx"])
        waits = [ptx.count(name) for name in ("red.release.gpu", "wait_group", "fence.proxy.async")]
        found.append((waits, ptx.count("cp.reduce.async.bulk.tensor")))
        stored = ptx.count("cp.async.bulk.tensor.4d.global.shared::cta")
        assert stored == (found[0][1] if stores else 0)
    assert found[0] == found[1]


def _machine_code(kernel: CompiledKernel, folder: Path) -> str:
    return disassemble(kernel.stages["cubin"], folder)


@pytest.mark.parametrize("width", [128, 64])
@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("streaming(64, 1024)", 2),
        ("local_strided(16, 4, 3)", 1),
        ("if head in {0, 3} then causal else streaming(4, 50)", 2),
    ],
)
def test_sweeps_and_heads(text: str, group: int, width: int, tmp_path: Path) -> None:
    kernel = _compiled(text, tmp_path, group, width)
    assert kernel.spilled <= MOST_SPILLED


@pytest.mark.parametrize("width", [128, 64])
def test_kernels_of_rows(width: int, tmp_path: Path) -> None:
    problem = Problem("bfloat16", width, width)
    every: tuple[Cleared, ...] = ("sums", "counts")
    for with_lse in (False, True):
        for clears in every:
            delta = emit_delta(problem, with_lse=with_lse, with_rows=True, clears=clears)
            assert compile_for(delta, "cuda:90", folder=tmp_path).spilled == 0
    for counted in (False, True):
        rounds = emit_round_query(problem, counted=counted)
        kernel = compile_for(rounds, "cuda:90", folder=tmp_path)
        assert kernel.spilled == 0
        assert "ld.global.v4" in str(kernel.stages["ptx"])
