"""The study on a device that is a formula: it finds the best, stops, resumes, and is shared."""

import math
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from patterncc.autotune.measurement import Measurement
from patterncc.autotune.search import Limits, SearchResult, search
from patterncc.autotune.study import SAMPLERS, Place, Sampler, Trial
from patterncc.autotune.surrogate import Surrogate
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.dsl.errors import ConfigError
from tests.autotune.fake_device import BEST, SPACE, FakeTimer, predicted, seconds, share

ROOT = Path(__file__).resolve().parents[2]


def gap(result: SearchResult) -> float:
    """How much slower than the best of the space."""
    return result.ranked()[0].seconds / min(map(seconds, SPACE.configs)) - 1


def test_the_best_is_known() -> None:
    assert min(SPACE.configs, key=seconds) == BEST
    assert len(SPACE.configs) > 150


@pytest.mark.parametrize("sampler", ["model", "tpe", "random"])
def test_search(sampler: Sampler) -> None:
    timer = FakeTimer()
    limits = Limits(trials=60, timeout=1e9, gain=0.0)
    result = search(SPACE, timer, predicted(), limits=limits, sampler=sampler, clock=timer.clock)
    assert len(result.trials) == len(set(timer.asked)) == 60  # no config twice
    assert result.stopped == "60 trials"
    assert all(config in SPACE for config in timer.asked)
    assert gap(result) < {"model": 1e-9, "tpe": 0.25, "random": 0.25}[sampler]
    again = FakeTimer()
    search(SPACE, again, predicted(), limits=limits, sampler=sampler, clock=again.clock)
    assert again.asked == timer.asked


def test_a_model_that_is_far_off() -> None:
    timer = FakeTimer()
    limits = Limits(trials=60, timeout=1e9, gain=0.0)
    result = search(SPACE, timer, predicted(0.3), limits=limits, clock=timer.clock)
    assert gap(result) < 0.1


def test_seeds_come_first() -> None:
    timer = FakeTimer()
    seeds = [SPACE.configs[5], SPACE.configs[3], SPACE.configs[5], KernelConfig(16, 16)]
    result = search(SPACE, timer, predicted(), seeds=seeds, limits=Limits(4), clock=timer.clock)
    assert timer.asked[:2] == [SPACE.configs[5], SPACE.configs[3]]
    assert [trial.proposed_by for trial in result.trials] == ["seed", "seed", "model", "model"]


def test_early_stop() -> None:
    timer = FakeTimer()
    limits = Limits(trials=10**6, timeout=1e9)
    result = search(SPACE, timer, predicted(0.05), limits=limits, clock=timer.clock)
    assert "are expected to gain" in result.stopped
    assert 16 <= len(timer.asked) < len(SPACE.configs) / 2
    assert result.expected_gain < 0.01
    assert gap(result) < 0.01


def test_every_config() -> None:
    timer = FakeTimer()
    few = dict(list(predicted().items())[:12])
    limits = Limits(trials=100, gain=0.0)
    result = search(SPACE, timer, few, limits=limits, sampler="random", clock=timer.clock)
    assert result.stopped == "every config was tried"
    assert Counter(timer.asked) == Counter(list(few))


def test_timeout() -> None:
    timer = FakeTimer()
    limits = Limits(trials=100, timeout=7.0, gain=0.0)
    result = search(SPACE, timer, predicted(), limits=limits, clock=timer.clock)
    assert result.stopped == "7 s"
    assert len(timer.asked) == 7
    assert [trial.elapsed for trial in result.trials] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_bad_configs_cost_one_trial() -> None:
    bad = {
        BEST: Measurement("wrong", (), "3 times what is allowed"),
        SPACE.configs[0]: Measurement("crashed", (), "it died of SIGSEGV"),
        SPACE.configs[1]: Measurement("hung", (), "no answer"),
        SPACE.configs[2]: Measurement("out of memory", (), "of 3 TiB"),
    }
    timer = FakeTimer(bad)
    seeds = [BEST, *SPACE.configs[:3]]
    limits = Limits(trials=40, gain=0.0)
    result = search(SPACE, timer, predicted(), seeds=seeds, limits=limits, clock=timer.clock)
    assert len(timer.asked) == len(set(timer.asked)) == 40
    assert [trial.state for trial in result.trials[:4]] == [
        "wrong",
        "crashed",
        "hung",
        "out of memory",
    ]
    assert result.trials[0].reason == "3 times what is allowed"
    assert BEST not in [trial.config for trial in result.ranked()]
    assert len(result.ranked()) == 36


def test_nothing_works() -> None:
    timer = FakeTimer({config: Measurement("refused", (), "no") for config in SPACE.configs})
    result = search(SPACE, timer, predicted(), limits=Limits(12), clock=timer.clock)
    assert result.ranked() == []
    assert len(result.trials) == 12
    assert math.isinf(result.expected_gain)


def test_reports() -> None:
    told: list[tuple[Trial, int]] = []
    timer = FakeTimer()
    search(
        SPACE,
        timer,
        predicted(),
        limits=Limits(5),
        clock=timer.clock,
        report=lambda trial, so_far: told.append((trial, len(so_far.trials))),
    )
    assert [count for _, count in told] == [1, 2, 3, 4, 5]
    assert [trial.config for trial, _ in told] == timer.asked


def test_interrupted(tmp_path: Path) -> None:
    place = Place("s", str(tmp_path / "study.journal"))

    def measure(config: KernelConfig, best: float) -> Measurement:
        if len(timer.asked) == 3:
            raise KeyboardInterrupt
        return timer(config, best)

    timer = FakeTimer()
    result = search(SPACE, measure, predicted(), place=place, clock=timer.clock)
    assert result.stopped == "interrupted"
    assert len(result.trials) == 3
    more = FakeTimer()
    limits = Limits(6, gain=0.0)
    result = search(SPACE, more, predicted(), place=place, limits=limits, clock=more.clock)
    assert len(result.trials) == 6
    assert len(more.asked) == 3


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="no sampler 'annealing'"):
        search(SPACE, FakeTimer(), predicted(), sampler="annealing")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no legal config"):
        search(SPACE, FakeTimer(), {})
    assert SAMPLERS[0] == "model"


# ------------------------------------------------------------------------------- many processes


def test_resume_after_a_kill(tmp_path: Path) -> None:
    storage = str(tmp_path / "study.journal")
    command = [sys.executable, "-m", "tests.autotune.fake_device", storage, "12", "5"]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    result = share(storage, 12)
    assert len(result.trials) == 12
    configs = [trial.config for trial in result.trials]
    assert len(set(configs)) == 12  # the five are not repeated; the one in flight is tried again
    timer = FakeTimer()
    straight = search(SPACE, timer, predicted(), limits=Limits(12, gain=0.0), clock=timer.clock)
    assert configs == [trial.config for trial in straight.trials]


def test_a_shared_study(tmp_path: Path) -> None:
    storage = str(tmp_path / "study.journal")
    command = [sys.executable, "-m", "tests.autotune.fake_device", storage, "24"]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    result = share(storage, 24)
    assert 24 <= len(result.trials) <= 26  # what was in flight when the last one was told
    assert len({trial.config for trial in result.trials}) == len(result.trials)


# ------------------------------------------------------------------------------------ surrogate


def test_surrogate() -> None:
    model = predicted(0.0)
    surrogate = Surrogate(SPACE.knobs, [*model], [*model.values()])
    mean, deviation = surrogate.posterior({})
    assert deviation.min() == deviation.max() == 0.15
    assert abs(mean[0] - math.log(model[SPACE.configs[0]])) < 1e-12
    # A device that is twice as slow as the model says, throughout: one shift explains it.
    measured = {config: 2 * model[config] for config in SPACE.configs[::11]}
    mean, deviation = surrogate.posterior(measured)
    expected = [math.log(2 * model[config]) for config in SPACE.configs]
    assert max(abs(mean - expected)) < 1e-3
    gains = surrogate.expected_gains(measured)
    assert gains.min() >= 0
    assert all(gains[SPACE.configs.index(config)] == 0 for config in measured)
    assert SPACE.configs[int(gains.argmax())] == BEST


def test_surrogate_learns_what_a_knob_does() -> None:
    # The model does not know that pointers are slow here.
    real = {c: v * (1.5 if c.load == "pointer" else 1) for c, v in predicted(0.0).items()}
    model = predicted(0.0)
    surrogate = Surrogate(SPACE.knobs, [*model], [*model.values()])
    mean, _ = surrogate.posterior({config: real[config] for config in SPACE.configs[::7]})
    errors = [abs(m - math.log(real[c])) for m, c in zip(mean, SPACE.configs, strict=True)]
    assert sum(errors) / len(errors) < 0.06
