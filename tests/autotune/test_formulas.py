"""The formulas that `explain --cost` prints are what the model computes."""

import math

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


@pytest.mark.parametrize("phase", PHASES.values(), ids=list(PHASES))
@pytest.mark.parametrize("text", ["causal", "window(300) or dilated(64, 4)"])
def test_gpu(text: str, phase: Phase) -> None:
    one = job(text, problem=D128, q_len=2048, heads=8, kv_heads=4)
    model = CostModel(one, "cuda:90", H200, phase)
    configs = SearchSpace(phase, D128, "cuda:90", {"neighbours": "tiles"}).configs[::97]
    seen = set()
    for config in configs:
        resident = resident_programs(config, phase, D128, "cuda:90")
        total = 0.0
        for facts in model.facts(config.block_q, config.block_k):
            formulas = gpu_formulas(facts, config, phase, D128, resident, H200)
            parts = predict_gpu((facts,), config, phase, D128, resident, H200).parts
            assert [formula.part for formula in formulas] == list(parts)
            for formula in formulas:
                assert math.isclose(
                    value(formula), parts[formula.part], rel_tol=1e-9, abs_tol=1e-15
                )
                seen |= set(formula.values)
                total += value(formula)
        assert math.isclose(total, model.predict(config).seconds, rel_tol=1e-9)
    assert {"V", "P", "N", "R", "products", "start"} <= seen
    assert {name for name in seen if len(name) == 1} <= set(MEANINGS)


def test_cpu() -> None:
    one = job("window(64)", q_len=1000)
    model = CostModel(one, CPU, USUAL_CPU)
    for config in SearchSpace(PHASES["forward"], one.problem, CPU).configs:
        (facts,) = model.facts(config.block_q, config.block_k)
        parts = predict_cpu((facts,), config, one.problem, USUAL_CPU).parts
        for formula in cpu_formulas(facts, config, one.problem, USUAL_CPU):
            assert math.isclose(value(formula), parts[formula.part], rel_tol=1e-9)
