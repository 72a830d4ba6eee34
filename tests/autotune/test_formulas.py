"""The formulas that `explain --cost` prints are what the model computes."""

import math
from dataclasses import asdict

import pytest

from patterncc.autotune.cost import (
    H200,
    USUAL_CPU,
    CostModel,
    predict_cpu,
    predict_gpu,
    resident_programs,
)
from patterncc.autotune.formulas import MEANINGS, Formula, cpu_formulas, gpu_formulas
from patterncc.autotune.space import CPU, PHASES, Phase, SearchSpace
from patterncc.codegen.problem import Problem
from tests.autotune.jobs import job

D128 = Problem("bfloat16", 128, 64, 2)


def value(formula: Formula) -> float:
    """Of the expression; what has none counts as it is."""
    if formula.expression is None:
        return formula.seconds
    return float(formula.expression.subs(dict(formula.values)))


def symbols_of(text: str, problem: Problem, phase: Phase, fixed: dict[str, str]) -> set[str]:
    """The symbols of the formulas of some configs, which come to what the model predicts."""
    one = job(text, problem=problem, q_len=2048, heads=8, kv_heads=4)
    model = CostModel(one, "cuda:90", H200, phase)
    space = SearchSpace(phase, problem, "cuda:90", {"neighbours": "tiles", **fixed})
    seen: set[str] = set()
    for config in space.configs[:: max(1, len(space.configs) // 16)]:
        resident = resident_programs(config, phase, problem, "cuda:90")
        total = 0.0
        for facts in model.facts(config):
            formulas = gpu_formulas(facts, config, phase, problem, resident, H200)
            parts = predict_gpu((facts,), config, phase, problem, resident, H200).parts
            assert [formula.part for formula in formulas] == list(parts)
            for formula in formulas:
                assert math.isclose(
                    value(formula), parts[formula.part], rel_tol=1e-9, abs_tol=1e-15
                )
                seen |= set(formula.values)
                total += value(formula)
        assert math.isclose(total, model.predict(config).seconds, rel_tol=1e-9)
    assert {name for name in seen if len(name) == 1} <= set(MEANINGS)
    return seen


TEXTS = ("causal", "window(300) or dilated(64, 4)")


@pytest.mark.parametrize("phase", PHASES.values(), ids=list(PHASES))
@pytest.mark.parametrize("text", TEXTS)
def test_gpu(text: str, phase: Phase) -> None:
    seen = symbols_of(text, D128, phase, {})
    assert {"V", "P", "N", "R", "products", "start"} <= seen


@pytest.mark.parametrize("text", TEXTS)
def test_gluon(text: str) -> None:
    problem = Problem("bfloat16", 128, 128, 2)
    seen = symbols_of(text, problem, PHASES["forward"], {"emitter": "gluon"})
    assert {name for name in asdict(H200) if name.startswith("gluon_")} <= seen
    assert {"G", "softmax"} <= seen  # the latter where one warp group is alone
    assert not {"start", "load", "mask"} & seen


def test_cpu() -> None:
    one = job("window(64)", q_len=1000)
    model = CostModel(one, CPU, USUAL_CPU)
    for config in SearchSpace(PHASES["forward"], one.problem, CPU).configs:
        (facts,) = model.facts(config)
        parts = predict_cpu((facts,), config, one.problem, USUAL_CPU).parts
        for formula in cpu_formulas(facts, config, one.problem, USUAL_CPU):
            assert math.isclose(value(formula), parts[formula.part], rel_tol=1e-9)
