"""How wide key tiles start out, by counted work."""

from __future__ import annotations

import pytest

import patterncc
from patterncc import launchers, programs, signatures
from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.config import KernelConfig, narrowed
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.ir import Passes
from patterncc.codegen.key_width import key_width
from patterncc.codegen.problem import Problem
from patterncc.compilation import Compilation
from patterncc.dsl import load
from tests.compile_counts import compile_counts

RUNS = "causal and (window(512) or k // {} % 8 == 3)"


def width(text: str, block_k: int = 64) -> int:
    pattern = load(text)

    def lower(keys: int) -> Passes:
        return lower_passes(pattern, 64, keys, within=True, transposed=False)

    return key_width(pattern, lower, block_k)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("causal", 64),
        ("window(1024)", 64),
        ("around(63)", 64),  # all partial, and no better in narrow tiles
        ("dilated(512, 8)", 64),
        (RUNS.format(64), 64),
        (RUNS.format(32), 32),
        (RUNS.format(16), 16),
        ("sparse_fixed", 32),
        ("pattern p(keep: bool[head, *]): causal and keep[head, k // 16]", 64),
    ],
)
def test_runs_of_keys_fill_their_tiles(text: str, expected: int) -> None:
    assert width(text) == expected


def test_other_widths_are_kept() -> None:
    assert width(RUNS.format(32), 128) == 128
    assert width(RUNS.format(16), 32) == 16


def test_a_call_and_what_is_printed_agree() -> None:
    structure = signatures.signature_of("sparse_fixed").structure
    compilation = Compilation("sparse_fixed")
    assert compilation.config.block_k == programs.starting_width(structure, 64, 64, (), False) == 32
    assert "config: tile 64x32," in compilation.text("triton")


def test_calls_on_a_gpu_start_so() -> None:
    """Through the launcher that an operator asks for, with sizes as of an H100."""
    layouts = [
        Layout(name, 0, (1, 8, 512, 128), (8 * 512 * 128, 512 * 128, 128, 1), 2)
        for name in ("query", "key", "value", "out")
    ]
    structure = signatures.signature_of("sparse_fixed").structure
    planner = launchers.launcher(structure, ()).planner
    env = {"q_offset": 0, "head": 0}
    (launch,) = planner.plan(Problem("bfloat16", 128, 128), "cuda:90", layouts, env, 1.0)
    config = launch.source.config
    assert (config.block_q, config.block_k, config.num_stages) == (64, 32, 3)


def test_a_config_that_was_given_is_kept() -> None:
    config = KernelConfig(64, 64, 4, 3)
    assert Compilation("sparse_fixed", config=config).config == config
    assert narrowed(config, 64) == config
    assert narrowed(config, 32) == KernelConfig(64, 32, 4, 3)
    assert narrowed(config, 16) == KernelConfig(64, 16, 4, 6)


def test_no_call_lowers_twice() -> None:
    attn = patterncc.compile(RUNS.format(32))
    structure = attn.pattern.structure
    assert programs.starting_width(structure, 64, 64, (), False) == 32
    before = compile_counts()
    # As launchers do.
    programs.passes(structure, 64, 32, (), True, False, gather=True, patches=False)
    programs.starting_width(structure, 64, 64, (), False)
    assert compile_counts() == before
