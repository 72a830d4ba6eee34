"""Calls take the configs that were tuned for them, once, and say why."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import patterncc
from patterncc import programs, tuned, tuning
from patterncc.autotune.device import describe
from patterncc.autotune.entries import Entry
from patterncc.autotune.key import ConfigKey, Device, Subject, key_of
from patterncc.autotune.store import Found, Origin, TunedStore
from patterncc.codegen.gpu.config import KernelConfig
from patterncc.codegen.problem import Problem
from patterncc.settings import Settings, settings
from tests.front.conftest import Run

ROOT = Path(__file__).resolve().parents[2]
STRUCTURE = patterncc.compile("window(64)").pattern.structure
PROBLEM = Problem("float32", 16, 16)
H200 = Device("NVIDIA H200", "cuda:90", "triton 3.6.0", 132)


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TunedStore]:
    found = TunedStore(tmp_path / "cache", None)
    monkeypatch.setattr(tuned, "store", lambda: found)
    monkeypatch.setattr(tuning, "store", lambda: found)
    tuned.forget()
    yield found
    tuned.forget()


def key(device: Device, problem: Problem = PROBLEM, q_len: int = 256, **fields: Any) -> ConfigKey:
    subject = Subject(STRUCTURE, problem, "forward", (("n", 64),), q_len, q_len, 2, 2)
    found = key_of(subject, device)
    return replace(found, **fields)


def entry(wanted: ConfigKey, **config: Any) -> Entry:
    return Entry(wanted, config, 1e-3, 2e-3, 5, 25)


def attend(q_len: int = 256) -> torch.Tensor:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, q_len, 16) for _ in range(3))
    out = patterncc.attention(query, key, value, "window(64)")
    assert isinstance(out, torch.Tensor)
    return out


def tiles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The tile shapes that calls lower for, from now on."""
    found: list[tuple[int, int]] = []
    real = programs.passes

    def passes(structure: str, block_q: int, block_k: int, *rest: Any) -> Any:
        found.append((block_q, block_k))
        return real(structure, block_q, block_k, *rest)

    monkeypatch.setattr(programs, "passes", passes)
    return found


def test_a_call_on_the_cpu(own_store: TunedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = attend()
    own_store.put(entry(key(describe("cpu")), block_q=32, block_k=128))
    lowered = tiles(monkeypatch)
    attend()
    assert lowered == [(64, 64)]  # the process keeps its answer: no other kernel in mid-training
    tuned.forget()
    torch.testing.assert_close(attend(), expected, atol=1e-5, rtol=1e-5)
    attend(600)  # a neighbour by length
    assert lowered[1:] == [(32, 128), (32, 128)]


def test_gradients_use_the_same_tiles(
    own_store: TunedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_store.put(entry(key(describe("cpu")), block_q=32, block_k=32))
    lowered = tiles(monkeypatch)
    query = torch.randn(1, 2, 256, 16, requires_grad=True)
    out = patterncc.attention(query, query, query, "window(64)")
    assert isinstance(out, torch.Tensor)
    torch.autograd.backward(out.sum())
    assert set(lowered) == {(32, 32)}


def test_settings_can_switch_it_off(own_store: TunedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    own_store.put(entry(key(describe("cpu")), block_q=32, block_k=128))
    off = replace(settings(), tuned=False)
    assert Settings.read({"PATTERNCC_TUNED": "0"}).tuned is False
    assert Settings.read({}).tuned is True
    monkeypatch.setattr(tuned, "settings", lambda: off)
    lowered = tiles(monkeypatch)
    attend()
    assert lowered == [(64, 64)]


def test_a_call_on_a_gpu(own_store: TunedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which config the launcher is told, by the lookup that it uses."""
    monkeypatch.setattr(tuned, "_device_here", lambda target: H200)
    problem = Problem("bfloat16", 128, 128)
    config = {
        "block_q": 64,
        "block_k": 128,
        "num_warps": 4,
        "num_stages": 1,
        "load": "descriptor",
        "order": "forward",
        "neighbours": "tiles",
        "max_registers": None,
        "emitter": "triton",
        "peaks": "each",
    }
    own_store.put(entry(key(H200, problem, q_len=16384), **config))
    env = {"q_len": 16000, "kv_len": 16000, "heads": 2, "kv_heads": 2, "n": 64}

    def found(structure: str, **numbers: int) -> Any:
        wanted = {**env, **numbers}
        subject = tuned.subject_of(structure, problem, "forward", wanted, ("n",))
        return tuned.config_for(subject, "cuda:90")

    exact = found(STRUCTURE)
    assert exact is not None
    assert (exact.block_k, exact.num_stages, exact.order) == (128, 1, "forward")
    assert found(STRUCTURE, q_len=8192, kv_len=8192) == exact  # a neighbour by length
    assert found(STRUCTURE, q_len=1, kv_len=2**20) is None  # too far
    other = patterncc.compile("pattern p(n = 64): abs(q - k) < n").pattern.structure
    assert found(other) == exact  # another pattern of the class and the density
    assert found(patterncc.compile("pattern p(n = 0): causal and k >= n").pattern.structure) is None
    half = replace(problem, dtype="float16")
    subject = tuned.subject_of(STRUCTURE, half, "forward", env, ("n",))
    assert tuned.config_for(subject, "cuda:90") is None


VALUES: dict[str, Any] = {
    "block_q": 64,
    "block_k": 64,
    "num_warps": 4,
    "num_stages": 3,
    "load": "descriptor",
    "order": "forward",
    "neighbours": "tiles",
    "max_registers": None,
    "emitter": "triton",
    "peaks": "each",
}
GLUON = KernelConfig(128, 128, 8, 2, "descriptor", "reverse", emitter="gluon")


@pytest.mark.parametrize("exact", [True, False], ids=["the very key", "a neighbour"])
@pytest.mark.parametrize("origin", ["user", "shipped"])
def test_what_was_tuned_counts_where_the_default_is_the_same(exact: bool, origin: Origin) -> None:
    """A gain over one default says nothing of another: a call whose kernels Gluon writes starts
    elsewhere than the neighbour did for which Triton did, or Gluon in other tiles."""
    wanted = key(H200, Problem("bfloat16", 128, 128), q_len=16384)
    known = wanted if exact else replace(wanted, pattern="another")
    tuned_to = {**VALUES, "num_stages": 1}
    deepened = asdict(replace(GLUON, num_stages=3))
    asked_for = exact and origin == "user"

    def used(
        config: dict[str, Any], default: dict[str, Any] | None, gluon: KernelConfig | None
    ) -> bool:
        tuned_entry = replace(entry(known, **config), default=default)
        differing = () if exact else ("pattern",)
        found = Found(wanted, tuned_entry, origin, 0.0 if exact else 3.0, "", differing)
        config_found = tuned.config_of(found, gluon)
        assert (config_found is None) == bool(tuned.why_not(found, gluon))
        return config_found is not None

    assert used(tuned_to, VALUES, None)
    assert used(tuned_to, None, None)  # an older entry, among Triton's kernels
    assert used(tuned_to, VALUES, GLUON) == asked_for
    assert used(tuned_to, None, GLUON) == asked_for
    assert used(deepened, asdict(GLUON), GLUON)
    assert used(deepened, asdict(replace(GLUON, order="forward")), GLUON)  # the pattern's own
    assert used(deepened, asdict(replace(GLUON, block_k=64)), GLUON) == asked_for
    kept = replace(GLUON, peaks="kept")
    assert used(deepened, asdict(GLUON), kept) == asked_for
    assert used({**deepened, "peaks": "kept"}, asdict(kept), kept)
    assert used(deepened, asdict(GLUON), None) == asked_for
    assert used(deepened, VALUES, None) == asked_for  # its mask may take too many registers
    assert not used(VALUES, VALUES, None)  # nothing beat the default


def test_order_of_another_pattern() -> None:
    """The order of tiles is the pattern's own, whatever its neighbour's was."""
    wanted = key(H200, Problem("bfloat16", 128, 128), pattern_class="dense, growing")
    known = replace(wanted, pattern="causal")
    values = {"block_q": 64, "block_k": 64, "num_warps": 4, "num_stages": 3, "order": "forward"}
    found = Found(wanted, entry(known, **values), "user", 3.0, "")
    config = tuned.config_of(found)
    assert config is not None
    assert config.order == "reverse"
    assert tuned.config_of(replace(found, distance=7.0)) is None


def test_lookups_are_fast(own_store: TunedStore) -> None:
    own_store.put(entry(key(describe("cpu")), block_q=32, block_k=128))
    env = {"q_len": 256, "kv_len": 256, "heads": 2, "kv_heads": 2, "n": 64}

    def microseconds() -> float:
        start = time.perf_counter()
        for _ in range(200):
            subject = tuned.subject_of(STRUCTURE, PROBLEM, "forward", env, ("n",))
            tuned.config_for(subject, "cpu")
        return (time.perf_counter() - start) / 200 * 1e6

    microseconds()
    assert min(microseconds() for _ in range(5)) < 50


def test_why_config(run: Run, own_store: TunedStore) -> None:
    size = ("--q-len", "256", "--heads", "2", "--head-dim", "16", "--dtype", "float32")
    argv = ("explain", "window(64)", *size, "--why-config", "--device", "cpu")
    first = run(*argv)
    assert first.code == 0
    assert first.out.startswith("default config on ")
    assert "64x64\nfor: forward, float32, 256 rows, 256 keys, 2 heads, head_dim 16\n" in first.out
    assert "\nwhy: nothing has been tuned yet" in first.out
    own_store.put(entry(key(describe("cpu"), q_len=512), block_q=32, block_k=128))
    second = run(*argv)
    assert "tuned config on " in second.out
    assert "32x128\n" in second.out
    assert "\nwhy: the nearest tuned key (user), 3.5 away" in second.out
    assert "  q_len: 256 wanted, 512 tuned" in second.out
    assert run(*argv, "--json").json["config"] == {"block_q": 32, "block_k": 128}


def test_cost(run: Run, own_store: TunedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patterncc.cost_text.store", lambda: own_store)
    argv = ("explain", "window(64)", "--heads", "2", "--q-len", "4096", "--cost")
    found = run(*argv, "--target", "cuda:90")
    assert found.code == 0
    assert found.out.startswith("forward on cuda:90, default config: ")
    assert "constants: usual ones, not calibrated here" in found.out
    assert "F*V*gluon_products/(M*products)" in found.out or "F*V/(M*products)" in found.out
    assert "M =          132  multiprocessors" in found.out
    document = run(*argv, "--target", "cuda:90", "--phase", "grad_key_value", "--json").json
    assert document["phase"] == "grad_key_value"
    (one,) = document["passes"]
    assert sum(part["seconds"] for part in one["parts"]) == pytest.approx(document["seconds"])
    here = run(*argv, "--device", "cpu", "--dtype", "float32")
    assert "H*V*row" in here.out
    wrong = run(*argv, "--device", "cpu", "--target", "cuda:90")
    assert wrong.code == 2
    assert "leave out --device" in wrong.err
    assert "there is no target" in run(*argv, "--target", "h200").err
    gradients = run(*argv, "--device", "cpu", "--phase", "grad_query")
    assert gradients.code == 2
    assert "computes all gradients together" in gradients.err


def test_looking_at_tuned_configs_loads_no_optuna() -> None:
    code = (
        "import sys, torch, patterncc; query = torch.ones(1, 1, 8, 8);"
        "patterncc.attention(query, query, query, 'causal');"
        "print(*sorted({'optuna', 'matplotlib', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
