"""What comes with patterncc: every file is whole, legal, and found by the calls it is for."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from patterncc.autotune.entries import Entry, read_collection
from patterncc.autotune.job import Job
from patterncc.autotune.key import Device, Subject, key_of
from patterncc.autotune.phase_launches import untuned_config
from patterncc.autotune.space import phase_named
from patterncc.autotune.store import SHIPPED, TunedStore
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.tuned import config_of, why_not

FILES = sorted(SHIPPED.glob("*.json"))
PHASES = ("grad_query", "grad_key_value")
H100 = Device("NVIDIA H100 80GB HBM3", "cuda:90", "triton 3.6.0", 132)


def subject_of(entry: Entry) -> Subject:
    """The call that an entry was measured at."""
    key, call = entry.key, entry.call
    sizes = ("batch", "heads", "kv_heads", "q_len", "kv_len")
    numbers = tuple(sorted((name, n) for name, n in call.items() if name not in sizes))
    assert key.dtype == "bfloat16"
    problem = Problem("bfloat16", key.head_dim, key.value_head_dim, key.group)
    lengths = (call["q_len"], call["kv_len"], call["heads"], call["kv_heads"])
    return Subject(key.pattern, problem, key.phase, numbers, *lengths)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files(path: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        entries = read_collection(path)
    store = TunedStore(tmp_path)
    for entry in entries:
        key = entry.key
        device = Device(key.device, key.target, key.compiler, 0)
        # As a call would ask for it today: no class or count has changed since.
        assert key_of(subject_of(entry), device) == key
        found = store.lookup(key)
        assert (found.origin, found.entry, found.exact) == ("shipped", entry, True)
        assert entry.default_seconds is not None
        assert entry.seconds <= entry.default_seconds
        assert entry.written_by


LEAST_GAIN = 0.02
"""`benchmarks/tune_store.py` ships nothing that gains less."""


def job_of(entry: Entry) -> Job:
    """The call that an entry was measured at, to plan it."""
    subject, call = subject_of(entry), entry.call
    return Job(
        entry.key.pattern,
        subject.problem,
        call["batch"],
        subject.heads,
        subject.kv_heads,
        subject.q_len,
        subject.kv_len,
        numbers=dict(subject.numbers),
    )


def untuned(entry: Entry) -> KernelConfig:
    """What that call takes where nothing is tuned."""
    return untuned_config(job_of(entry), phase_named(entry.key.phase), entry.key.target, 132)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_kept_beats_the_default(path: Path) -> None:
    """By more than noise, and the default of today; other entries say that nothing did."""
    kept = 0
    for entry in read_collection(path):
        assert entry.default is not None
        assert entry.speedup is not None
        if not entry.beats_default:
            assert entry.speedup == 1.0
            continue
        kept += 1
        assert entry.speedup > 1 + LEAST_GAIN
        assert entry.default_config == untuned(entry)
    assert kept


def test_calls_stay_with_the_default_where_nothing_beat_it(tmp_path: Path) -> None:
    store = TunedStore(tmp_path)
    for entry, _ in store.entries():
        default = untuned(entry)
        gluon = default if default.emitter == "gluon" else None
        for device in (replace(H100, name=entry.key.device), H100):
            found = store.lookup(key_of(subject_of(entry), device))
            assert found.entry == entry
            assert (config_of(found, gluon) is None) == (not entry.beats_default)
            if not entry.beats_default:
                assert why_not(found, gluon) == "nothing beat the default there"


def test_an_h200_has_its_own(tmp_path: Path) -> None:
    entries = [entry for entry, _ in TunedStore(tmp_path).entries()]
    here = [entry for entry in entries if entry.key.device == "NVIDIA H200"]
    assert {entry.key.phase for entry in here} >= set(PHASES)
    for phase in PHASES:
        patterns = {entry.key.pattern for entry in here if entry.key.phase == phase}
        assert {"true", "k <= q", "0 <= q - k < 1024", "0 <= q - k < 4096"} <= patterns
        assert len(patterns) >= 7


@pytest.mark.parametrize("phase", PHASES)
def test_an_h100_takes_its_neighbours(tmp_path: Path, phase: str) -> None:
    subject = Subject("k <= q", Problem("bfloat16", 128, 128), phase, (), 16384, 16384, 16, 16)
    found = TunedStore(tmp_path).lookup(key_of(subject, H100))
    assert found.entry is not None
    assert found.entry.key.device == "NVIDIA H200"
    assert found.reason == "the nearest tuned key (shipped), 4 away"
    assert found.differences == ("device: NVIDIA H100 80GB HBM3 wanted, NVIDIA H200 tuned",)
    other = replace(key_of(subject, H100), target="cuda:80", device="NVIDIA A100")
    miss = TunedStore(tmp_path).lookup(other)
    assert miss.entry is None
    assert miss.reason == "nothing has been tuned for cuda:80 yet"
    half = TunedStore(tmp_path).lookup(replace(key_of(subject, H100), dtype="float16"))
    assert half.reason == "no tuned key agrees in dtype"
    assert half.differences == ("dtype: float16 wanted, bfloat16 tuned",)


def test_this_users_come_first(tmp_path: Path) -> None:
    store = TunedStore(tmp_path)
    shipped = next(entry for entry, _ in store.entries() if entry.key.pattern == "k <= q")
    own = replace(shipped, seconds=1e-3)
    store.put(own)
    assert store.lookup(shipped.key).entry == own
    # Of two that are equally near, too: one factor of two longer, and one shorter.
    far = replace(shipped.key, compiler="triton 9")
    near = replace(own, key=replace(shipped.key, compiler="triton 8"))
    store.put(near)
    found = store.lookup(far)
    assert found.origin == "user"
