"""Tuning that was asked for from Python; and the ranks of a job, which agree on its results."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import patterncc
from patterncc import autotuning, tuned
from patterncc.autotune.device import describe
from patterncc.autotune.entries import Entry
from patterncc.autotune.key import key_of
from patterncc.autotune.store import TunedStore
from patterncc.dsl.errors import ArgumentError, ConfigError, UnsupportedError
from tests.front.ranks import RANKS, run_ranks


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TunedStore]:
    found = TunedStore(tmp_path / "cache", None)
    monkeypatch.setattr(tuned, "store", lambda: found)
    monkeypatch.setattr(autotuning, "_settled", set())
    tuned.forget()
    yield found
    tuned.forget()


def tensors(q_len: int = 200) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 2, q_len, 16, generator=generator) for _ in range(3))


def test_tune(own_store: TunedStore) -> None:
    attention = patterncc.compile("window(64)")
    query, key, value = tensors()
    expected = attention(query, key, value)
    found = attention.tune(query, key, value, trials=3, seconds=60)
    assert list(found) == ["forward"]
    assert found["forward"].trials == 3
    assert found["forward"].call["q_len"] == 200
    assert own_store.lookup(found["forward"].key).entry == found["forward"]
    torch.testing.assert_close(attention(query, key, value), expected, atol=1e-5, rtol=1e-5)


def test_tables_travel(own_store: TunedStore) -> None:
    attention = patterncc.compile("pattern p(w: int[head]): window(w[head])")
    query, key, value = tensors()
    found = attention.tune(query, key, value, trials=2, seconds=60, w=torch.tensor([4, 100]))
    assert found["forward"].key.density is None
    with pytest.raises(ArgumentError, match="`w` was not given"):
        attention.tune(query, key, value)


def test_what_cannot_be_tuned() -> None:
    query, key, value = tensors()
    with pytest.raises(ConfigError, match="nothing to tune on cpu"):
        patterncc.compile("causal").tune(query, key, value, phases=["grad_query"])
    with pytest.raises(ConfigError, match="no phase"):
        patterncc.compile("causal").tune(query, key, value, phases=["backward"])
    with pytest.raises(ArgumentError, match="without rows or keys"):
        patterncc.compile("causal").tune(query[:, :, :0], key, value)
    scored = patterncc.compile("causal", score="softcap(score, 50)")
    with pytest.raises(UnsupportedError, match="score terms are not tuned"):
        scored.tune(query, key, value)
    with pytest.raises(UnsupportedError, match="score terms are not tuned"):
        patterncc.compile("causal", score="softcap(score, 50)", autotune=True)


def count_tunings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The phases that are tuned from now on; nothing is measured."""
    found: list[str] = []

    def tune(job: Any, phase: Any, device: Any, options: Any) -> Entry:
        found.append(phase.name)
        here = describe(str(device))
        key = key_of(job.subject(phase.name), here)
        entry = Entry(key, {"block_q": 32, "block_k": 128}, 1e-3, 2e-3, 5, 25)
        tuned.store().put(entry)
        return entry

    monkeypatch.setattr(autotuning, "_tuned", tune)
    return found


def test_nothing_is_tuned_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    tunings = count_tunings(monkeypatch)
    query, key, value = (each.requires_grad_() for each in tensors())
    torch.autograd.backward(patterncc.compile("causal")(query, key, value).sum())
    patterncc.attention(query, key, value, "causal")
    assert tunings == []


def test_autotune(monkeypatch: pytest.MonkeyPatch, own_store: TunedStore) -> None:
    """Once for each kind of call in a process, and not where it is kept already."""
    tunings = count_tunings(monkeypatch)
    attention = patterncc.compile("causal", autotune=True)
    assert attention == patterncc.compile("causal")
    query, key, value = tensors()
    expected = patterncc.compile("causal")(query, key, value)
    for _ in range(3):
        torch.testing.assert_close(attention(query, key, value), expected, atol=1e-5, rtol=1e-5)
    assert tunings == ["forward"]
    again = pickle.loads(pickle.dumps(attention))
    again(*tensors(210))  # of the same bucket
    assert tunings == ["forward"]
    again(*tensors(900))
    assert tunings == ["forward"] * 2
    monkeypatch.setattr(autotuning, "_settled", set())  # as in another process
    attention(query, key, value)
    assert tunings == ["forward"] * 2


def test_not_while_a_graph_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    tunings = count_tunings(monkeypatch)
    attention = patterncc.compile("window(16)", autotune=True)
    query, key, value = tensors()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    compiled(query, key, value)
    assert tunings == []
    attention(query, key, value)
    assert tunings == ["forward"]


def work(rank: int, folder: Path) -> None:
    """What each rank does, with a cache of its own."""
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    torch.distributed.init_process_group("gloo", meeting, rank=rank, world_size=RANKS)
    store = TunedStore(folder / str(rank), None)
    setattr(tuned, "store", lambda: store)  # noqa: B010
    query, key, value = tensors()
    attention = patterncc.compile("window(64)")
    assert patterncc.share_tuned() == 0
    found = attention.tune(query, key, value, trials=2 + rank, seconds=60)["forward"]
    print("tuned", found.trials, found.date, found.seconds, dict(found.config))
    monkey = pytest.MonkeyPatch()
    tunings = count_tunings(monkey)
    patterncc.compile("causal", autotune=True)(query, key, value)
    print("here", len(tunings))
    shared = patterncc.share_tuned()
    print("shared", shared, [entry.key.pattern for entry, _ in store.entries()])
    print("files", len(list((folder / str(rank)).rglob("forward-*.json"))))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_agree(tmp_path: Path) -> None:
    printed = run_ranks("tests.front.test_autotune", tmp_path, timeout=150)
    first, second = map(str.splitlines, printed)
    assert first[0] == second[0]  # the very measurement of the first rank
    assert first[0].startswith("tuned 2 ")
    assert (first[1], second[1]) == ("here 1", "here 0")  # one tunes, both take it
    assert first[2] == second[2] == "shared 2 ['0 <= q - k < 64', 'k <= q']"
    assert (first[3], second[3]) == ("files 2", "files 0")


def test_a_process_of_its_own() -> None:
    assert patterncc.share_tuned() == 0
