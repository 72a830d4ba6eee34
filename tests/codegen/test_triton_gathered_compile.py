"""Kernels that gather keys, compiled for devices that are not here."""

from __future__ import annotations

from pathlib import Path

import pytest

from patterncc.codegen.choice import lower_passes
from patterncc.codegen.gpu.backward_config import default_grad_query_config, suited_grad_query
from patterncc.codegen.gpu.config import default_config, suited
from patterncc.codegen.gpu.forward_source import emit_forward
from patterncc.codegen.gpu.grad_query_source import emit_grad_query
from patterncc.codegen.gpu.launch import compile_for
from patterncc.codegen.gpu.run_list_source import emit_listing
from patterncc.codegen.gpu.table_sum_source import emit_table_sums, summed_tables
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.library import source
from tests.codegen.crossing import each_with_one
from tests.codegen.library_programs import TARGETS


@pytest.mark.parametrize(
    ("name", "target"),
    each_with_one(
        ["eviction", "h2o", "minference", "vertical_slash"],
        TARGETS,
        always=["cuda:90"],
    ),
)
def test_every_target(name: str, target: str, tmp_path: Path) -> None:
    problem = Problem("bfloat16", 128, 128)
    config = default_config(problem, target)
    passes = lower_passes(
        load(source(name).text), config.block_q, config.block_k, within=True, transposed=False
    )
    program = passes[-1]
    config = suited(config, problem, target, program)
    assert compile_for(emit_listing(program, problem, config), target, folder=tmp_path).spilled == 0
    kernel = emit_forward(program, problem, config, resumes=len(passes) > 1)
    compiled = compile_for(kernel, target, folder=tmp_path)
    if target != "cuda:90" or name == "eviction":  # what the mask reads for keys is copied, too
        return
    layouts = str(compiled.stages["ttgir"])
    loops = layouts[layouts.index("scf.for") :]
    count = len({sweep.kind for sweep in program.forward})
    assert "local_load" not in loops  # keys go from shared memory into the products
    assert loops.count("isAsync = true") == 2 * count
    # Keys and values of each loop, in the loop and ahead of it: the numbers of the next tile's runs
    # are there early enough to load at full depth.
    copies = layouts.count("ttg.async_copy_global_to_local")
    assert copies == 2 * count * config.num_stages
    assert compiled.spilled == 0
    # Two programs fit on a multiprocessor.
    assert compiled.shared <= (232448 + 1024) // 2 - 1024 or name == "vertical_slash"


@pytest.mark.parametrize("target", TARGETS)
def test_gradient_of_the_query(target: str, tmp_path: Path) -> None:
    problem = Problem("bfloat16", 128, 128)
    config = default_grad_query_config(problem, target)
    program = lower_passes(
        load("h2o"), config.block_q, config.block_k, within=True, transposed=False
    )[-1]
    assert program.gathered > 1
    config = suited_grad_query(config, problem, target, program)
    kernel = emit_grad_query(program, problem, config, resumes=True)
    # Addresses of eight rows of keys and of values fill the registers beside four tiles.
    most = 64 if target == "cuda:90" else 0
    assert compile_for(kernel, target, folder=tmp_path).spilled <= most


@pytest.mark.parametrize("target", TARGETS)
def test_counts_of_entries(target: str, tmp_path: Path) -> None:
    problem = Problem("bfloat16", 128, 128)
    config = default_config(problem, target)
    program = lower_passes(
        load("vertical_slash"), config.block_q, config.block_k, within=True, transposed=False
    )[0]
    assert summed_tables(program) == ("slashes",)
    kernel = emit_table_sums(program, problem, config, name="slashes")
    assert compile_for(kernel, target, folder=tmp_path).spilled == 0
