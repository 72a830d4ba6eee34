"""Plans take the config that was tuned for a call, unless the caller gives one or the layout of the
tensors does not allow it."""

from __future__ import annotations

from dataclasses import astuple, replace

import pytest

from patterncc.codegen.gpu.backward_config import BackwardConfig
from patterncc.codegen.gpu.backward_plan import BackwardPlanner, TunedGradients
from patterncc.codegen.gpu.config import KernelConfig, default_config
from patterncc.codegen.gpu.forward_plan import Planner
from patterncc.codegen.gpu.kernel_source import KernelSource
from patterncc.codegen.gpu.launches import Call
from patterncc.codegen.gpu.layout import Layout
from patterncc.codegen.gpu.pass_plan import Tuned
from patterncc.codegen.problem import Problem
from patterncc.dsl import load
from patterncc.dsl.errors import ConfigError
from patterncc.dsl.score.terms import load_terms
from tests.codegen.attention import lowered

PROBLEM = Problem("bfloat16", 64, 64)
TUNED = KernelConfig(64, 128, 4, 1, "descriptor", "forward")


def layouts(row: int = 64) -> list[Layout]:
    """Of tensors `[1, 2, 256, 64]` whose rows are some elements apart."""
    return [
        Layout(name, 0, (1, 2, 256, 64), (2 * 256 * row, 256 * row, row, 1), 2)
        for name in ("query", "key", "value", "out")
    ]


def planned(
    tuned: Tuned, config: KernelConfig | None = None, row: int = 64
) -> tuple[KernelConfig, tuple[int, int, int]]:
    planner = Planner(lowered(load("causal")), config, tuned)
    (launch,) = planner.plan(PROBLEM, "cuda:90", layouts(row), {"q_offset": 0}, 1.0)
    return launch.source.config, launch.grid


def test_the_tuned_config_is_taken_as_it_is() -> None:
    asked: list[Call] = []

    def tuned(call: Call) -> KernelConfig:
        asked.append(call)
        return TUNED

    # The default of a causal pattern would start with the last tiles.
    assert planned(tuned) == (TUNED, (4, 2, 1))
    (call,) = asked
    assert (call.problem, call.target, call.q_len, call.heads) == (PROBLEM, "cuda:90", 256, 2)


def test_without_one_the_default_is_taken() -> None:
    found, _ = planned(lambda call: None)
    program = lowered(load("causal"))(64, 64)[0][0]
    assert found == default_config(PROBLEM, "cuda:90", program)


def test_what_gluon_cannot_do_is_not_tuned_by_it() -> None:
    """The same pattern was tuned without score terms."""
    gluon = KernelConfig(128, 128, 8, 2, "descriptor", emitter="gluon")
    planner = Planner(lowered(load("causal")), None, lambda call: gluon)
    assert plan(planner, PROBLEM).config == gluon
    assert plan(planner, replace(PROBLEM, isolates=True)).config == gluon
    terms = load_terms("sigmoid(score)")
    assert plan(planner, replace(PROBLEM, terms=terms)).config.emitter == "triton"


def plan(planner: Planner, problem: Problem) -> KernelSource:
    """The first kernel of a call."""
    return planner.plan(problem, "cuda:90", layouts(), {"q_offset": 0}, 1.0)[0].source


def test_the_callers_config_comes_first() -> None:
    given = KernelConfig(32, 32, 4, 2, "pointer")
    assert planned(lambda call: TUNED, given)[0] == given


def test_a_layout_without_descriptors() -> None:
    found, _ = planned(lambda call: TUNED, row=65)  # rows start at no multiple of 16 bytes
    assert found.load == "pointer"
    assert found.order == "reverse"  # the default
    by_pointers = KernelConfig(64, 128, 4, 1, "pointer")
    assert planned(lambda call: by_pointers, row=65)[0] == by_pointers


def test_an_illegal_tuned_config_is_refused() -> None:
    with pytest.raises(ConfigError, match="bytes of shared memory"):
        planned(lambda call: KernelConfig(128, 128, 8, 8, "descriptor"))


def gradient_configs(tuned: TunedGradients, config: BackwardConfig) -> dict[str, KernelConfig]:
    """The configs of the kernels of a backward."""
    planner = BackwardPlanner(lowered(load("causal")), config, tuned)
    named = [Layout("grad_out", *where[1:]) for where in map(astuple, layouts()[:1])]
    launches = planner.plan(PROBLEM, "cuda:90", [*named, *layouts()], {"q_offset": 0}, 1.0)
    return {launch.source.name: launch.source.config for launch in launches}


def test_each_gradient_takes_its_own() -> None:
    one, other = KernelConfig(32, 64, 4, 1, "pointer"), KernelConfig(64, 32, 4, 3, "descriptor")
    none = gradient_configs(TunedGradients(), BackwardConfig())
    both = gradient_configs(TunedGradients(lambda call: one, lambda call: other), BackwardConfig())
    assert (both["grad_query"], both["grad_key_value"]) == (one, other)
    half = gradient_configs(TunedGradients(lambda call: one, lambda call: None), BackwardConfig())
    assert half["grad_query"] == one
    assert half["grad_key_value"] == none["grad_key_value"]
    asked = BackwardConfig(grad_query=other)  # the caller's comes first
    given = gradient_configs(TunedGradients(lambda call: one, lambda call: one), asked)
    assert (given["grad_query"], given["grad_key_value"]) == (other, one)
