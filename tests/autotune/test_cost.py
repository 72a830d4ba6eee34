"""The cost model: what it counts, what follows from its form, and how it does on recorded times."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from patterncc.autotune.calibrate import Observation, fit, quality, rank_correlation
from patterncc.autotune.cost import (
    H200,
    USUAL_CPU,
    CostModel,
    constants_from,
    resident_programs,
)
from patterncc.autotune.space import CPU, FORWARD, SearchSpace
from patterncc.autotune.tile_facts import tile_facts
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.codegen.schedule import block_map
from patterncc.dsl.errors import ConfigError
from tests.autotune.jobs import job

ROOT = Path(__file__).resolve().parents[2]
D128 = Problem("bfloat16", 128, 128)
SMALL = KernelConfig(64, 64, 4, 3, "descriptor", "reverse")


def model(text: str = "causal", target: str = "cuda:90", **fields: Any) -> CostModel:
    usual: dict[str, Any] = {"problem": D128, "heads": 16, "kv_heads": 16, "q_len": 4096}
    constants = USUAL_CPU if target == CPU else H200
    return CostModel(job(text, **{**usual, **fields}), target, constants)


@pytest.mark.parametrize("text", ["causal", "streaming(4, 500)", "causal and q - k < 7 and q > 9"])
def test_facts_are_exact(text: str) -> None:
    one = job(text, q_len=1000)
    (facts,) = tile_facts(one, 64, 32)
    (program,) = one.passes(64, 32)
    tiles = block_map(program, one.head_env(0))
    assert np.array_equal(facts.full, (tiles == 2).sum(axis=1))
    assert np.array_equal(facts.partial, (tiles == 1).sum(axis=1))
    assert facts.heads == one.batch * one.heads
    assert facts.per_head == len(tiles)


def test_facts_by_head_and_by_class() -> None:
    by_head = job("causal and (k // 64 + head) % 4 == 0", q_len=1000)
    (facts,) = tile_facts(by_head, 64, 64)
    assert len(facts.full) == by_head.heads * facts.per_head == 4 * 16
    assert facts.heads == 1
    (facts,) = tile_facts(job("dilated(128, 8)", q_len=1000), 64, 64)
    assert facts.per_head == 8 * 2  # 125 rows of each of 8 classes
    listed = tile_facts(
        job(
            "pattern p(keep: bool[*, *]): causal and keep[q // 64, k // 64]",
            tables={"keep": np.eye(5, dtype=bool)},
        ),
        64,
        64,
    )
    assert [each.listed for each in listed] == [True]
    assert int((listed[0].full + listed[0].partial).sum()) == 5


def test_predictions() -> None:
    cost = model()
    space = SearchSpace(
        FORWARD, D128, "cuda:90", {"order": "reverse", "neighbours": "tiles", "max_registers": None}
    )
    ranked = cost.ranked(space.configs)
    assert len(ranked) == len(space.configs)
    assert all(0 < seconds < 1 for seconds, _ in ranked)
    assert [seconds for seconds, _ in ranked] == sorted(seconds for seconds, _ in ranked)
    found = cost.predict(SMALL)
    assert math.isclose(sum(found.parts.values()), found.seconds)
    assert found.programs == resident_programs(SMALL, FORWARD, D128, "cuda:90") == 2


def test_what_follows_from_the_form() -> None:
    def seconds(text: str, config: KernelConfig = SMALL, **fields: Any) -> float:
        return model(text, **fields).predict(config).seconds

    assert seconds("window(256)") < seconds("window(1024)") < seconds("causal") < seconds("full")
    assert 1.8 < seconds("causal", heads=64, kv_heads=64) / seconds("causal", heads=32) < 2.1
    assert seconds("causal", SMALL) < seconds("causal", replace(SMALL, order="forward"))
    assert seconds("causal", SMALL) < seconds("causal", replace(SMALL, load="pointer"))
    # Narrow windows want small tiles, wide masks do not mind large ones.
    large = KernelConfig(128, 128, 8, 3, "descriptor", "reverse")
    full, narrow = (
        seconds(text, large, q_len=16384) / seconds(text, q_len=16384)
        for text in ("full", "window(256)")
    )
    assert full < 1.1
    assert narrow > full + 0.1


def test_cpu() -> None:
    cost = model("window(256)", CPU)
    space = SearchSpace(FORWARD, D128, CPU)
    seconds = {config: cost.predict(config).seconds for config in space.configs}
    assert min(seconds.values()) > 0
    assert seconds[KernelConfig(64, 64)] < seconds[KernelConfig(16, 16)]


def test_constants_as_json() -> None:
    for constants in (H200, USUAL_CPU):
        assert constants_from(json.loads(json.dumps(asdict(constants)))) == constants
    with pytest.raises(ConfigError, match="'fma' is missing or unknown"):
        constants_from({**asdict(H200), "fma": 1.0})
    with pytest.raises(ConfigError, match="mask is -1"):
        constants_from({**asdict(H200), "mask": -1})


def test_rank_correlation() -> None:
    rising = np.arange(5, dtype=np.float64)
    assert math.isclose(rank_correlation(rising, rising**3), 1.0)
    assert math.isclose(rank_correlation(rising, -rising), -1.0)
    assert rank_correlation(rising, np.ones(5)) == 0.0
    # Ties share a rank: 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    tied = rank_correlation(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4]))
    assert math.isclose(tied, 4.5 / math.sqrt(4.5 * 5))


def test_fit_finds_constants_again() -> None:
    true = replace(H200, products=3e12, softmax=5e10, start=5e-6, hidden_two=0.4)
    cost = model("window(512)")
    fixed = {"order": "reverse", "neighbours": "tiles"}
    space = SearchSpace(FORWARD, D128, "cuda:90", fixed)
    configs = [config for config in space.configs if config.num_stages <= 5][::60]
    cost.constants = true
    seen = [Observation(cost, config, cost.predict(config).seconds) for config in configs]
    found = fit(seen, H200)
    cost.constants = found
    assert quality(seen).error < 0.01
    assert quality(seen).rank_correlation > 0.99
    assert found == fit(seen, H200)


def test_recorded_times() -> None:
    runs = json.loads((ROOT / "benchmarks/results/gpu_sweep_h200.json").read_text())
    correlations = []
    for text in ("window(1024)", "window(256)", "local_strided(64,16,8)"):
        for head_dim in (64, 128):
            cost = model(text, q_len=16384, problem=Problem("bfloat16", head_dim, head_dim))
            seen = [
                Observation(cost, KernelConfig(**run["config"]), run["ms"] / 1000)
                for run in runs
                if (run["pattern"], run["D"]) == (text, head_dim)
            ]
            assert len(seen) >= 12
            found = quality(seen)
            correlations.append(found.rank_correlation)
            assert found.error < 0.15
            assert found.first_eight < 1.05
    assert sum(correlations) / len(correlations) > 0.7


def test_recorded_times_of_gluon() -> None:
    """Of kernels of both emitters the first pick is as good as the best."""
    document = json.loads((ROOT / "benchmarks/results/gpu_gluon_h200.json").read_text())
    patterns = {"causal": "causal", "w1024": "window(1024)", "w256": "window(256)"}
    triton = KernelConfig(64, 64, 4, 3, "descriptor", "reverse")
    gluon = replace(triton, emitter="gluon")
    configs = {
        "T64": triton,
        "G64": gluon,
        "G128": replace(gluon, block_q=128, block_k=128, num_warps=8, num_stages=2),
        "G64k128": replace(gluon, block_k=128, num_stages=2),
    }
    rows = [row for row in document["runs"][2]["rows"] if row["pattern"] in patterns]
    rows = [row for row in rows if row["length"] == 16384]
    assert len(rows) == 6
    for row in rows:
        problem = Problem("bfloat16", row["head_dim"], row["head_dim"])
        cost = model(patterns[row["pattern"]], q_len=16384, problem=problem)
        seen = [
            Observation(cost, config, median(row["ms"][name]) / 1000)
            for name, config in configs.items()
            if name in row["ms"]
        ]
        found = quality(seen)
        assert found.first < 1.05
        assert found.error < 0.12


def test_a_gluon_program_has_a_warp_group_that_loads() -> None:
    """It takes registers of its own, whatever room shared memory leaves: two programs of 64 rows,
    one of 128."""
    problem = Problem("bfloat16", 64, 64)
    small = KernelConfig(64, 64, 4, 2, "descriptor", emitter="gluon")
    assert resident_programs(small, FORWARD, problem, "cuda:90") == 2
    assert resident_programs(replace(small, emitter="triton"), FORWARD, problem, "cuda:90") > 2
    capped = replace(small, max_registers=128)
    assert resident_programs(capped, FORWARD, problem, "cuda:90") == 3
    tall = replace(small, block_q=128, num_warps=8)
    assert resident_programs(tall, FORWARD, problem, "cuda:90") == 1
