"""The store: round trips, what is not usable, many processes at once, and the cost of a lookup."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patterncc.autotune import records
from patterncc.autotune.entries import Entry, read_collection, write_collection
from patterncc.autotune.key import FARTHEST, ConfigKey, distance
from patterncc.autotune.records import StoreWarning
from patterncc.autotune.store import SHIPPED, TunedStore
from patterncc.dsl.errors import ConfigError
from tests.autotune.entries import CONFIG, KEY, entry

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> TunedStore:
    return TunedStore(tmp_path, None)


def test_round_trip(store: TunedStore) -> None:
    path = store.put(entry())
    again = TunedStore(store.folder.parents[1], None)
    found = again.lookup(KEY)
    assert found.entry == entry()
    assert found.exact
    assert found.origin == "user"
    assert found.entry.kernel_config.block_q == 64
    assert found.entry.speedup == 2.0
    text = path.read_text(encoding="utf-8")
    assert '"pattern": "causal"' in text  # a person can read it
    assert json.loads(text)["schema"] == 1


def test_a_second_entry_replaces_the_first(store: TunedStore) -> None:
    first = store.put(entry(seconds=2e-3))
    assert store.lookup(KEY).entry == entry(seconds=2e-3)
    assert store.put(entry(seconds=1e-3)) == first
    assert store.lookup(KEY).entry == entry(seconds=1e-3)
    assert len(store.entries()) == 1


def test_what_another_process_writes_is_seen(store: TunedStore) -> None:
    other = TunedStore(store.folder.parents[1], None)
    assert store.lookup(KEY).entry is None
    other.put(entry())
    assert store.lookup(KEY).entry == entry()
    other.clear()
    assert store.lookup(KEY).entry is None


# ------------------------------------------------------------------------------------- neighbours


def test_nothing_tuned(store: TunedStore) -> None:
    found = store.lookup(KEY)
    assert found.entry is None
    assert found.reason == "nothing has been tuned yet"


def test_nearest_neighbour(store: TunedStore) -> None:
    store.put(entry(q_len=4096, kv_len=4096))
    store.put(entry({"block_q": 128}, q_len=8192, kv_len=8192))
    store.put(entry({"block_k": 32}, pattern="window(w)", density=0.0625))
    found = store.lookup(KEY)
    assert found.entry is not None
    assert found.entry.config["block_q"] == 128
    assert not found.exact
    assert found.reason == "the nearest tuned key (user), 1.5 away"
    assert found.differences == (
        "q_len: 16384 wanted, 8192 tuned",
        "kv_len: 16384 wanted, 8192 tuned",
    )


def test_too_far(store: TunedStore) -> None:
    store.put(entry(pattern="x", pattern_class="residue 8, even", density=2.0**-9, device="A"))
    found = store.lookup(KEY)
    assert found.entry is None
    assert f"farther than {FARTHEST:g}" in found.reason
    assert "density: 1/2 wanted, 1/512 tuned" in found.differences


def test_a_miss_names_the_field(store: TunedStore) -> None:
    store.put(entry(head_dim=64, value_head_dim=64))
    store.put(entry(dtype="float16"))
    found = store.lookup(KEY)
    assert found.entry is None
    assert found.reason == "no tuned key agrees in dtype"
    assert found.differences == ("dtype: bfloat16 wanted, float16 tuned",)


def test_a_miss_names_what_was_tuned_here_before_what_was_not(store: TunedStore) -> None:
    """A closer key of another target says less to whoever tuned for this one."""
    store.put(entry(dtype="float16", head_dim=64, value_head_dim=64))
    store.put(entry(target="cuda:100"))
    assert store.lookup(KEY).reason == "no tuned key agrees in dtype, head_dim, value_head_dim"


def test_distance() -> None:
    assert distance(KEY, KEY) == 0
    assert distance(KEY, replace(KEY, density=None)) == 4.0
    assert distance(KEY, replace(KEY, density=None)) == distance(replace(KEY, density=None), KEY)
    assert distance(KEY, replace(KEY, phase="other")) == float("inf")
    near = distance(KEY, replace(KEY, compiler="triton 3.9.0"))
    assert near < distance(KEY, replace(KEY, device="NVIDIA H100")) < FARTHEST


# ------------------------------------------------------------------------------- unusable files


def damaged(text: str) -> dict[str, bytes]:
    document = json.loads(text)
    changed: dict[str, Any] = json.loads(text)
    changed["content"]["seconds"] = 5e-4
    illegal = entry().as_json() | {"config": {"block_q": 48}}
    unknown = entry().as_json() | {"colour": "red"}
    return {
        "empty": b"",
        "half": text[: len(text) // 2].encode(),
        "bytes": b"\xff\xfe" + text.encode()[2:],
        "another program's": b'{"best_config": 3}',
        "not an object": b"[1, 2]",
        "a newer schema": json.dumps(document | {"schema": 2}).encode(),
        "another kind": json.dumps(document | {"patterncc": "study"}).encode(),
        "changed by hand": json.dumps(changed).encode(),
        "an illegal config": records.encode("tuned config", illegal).encode(),
        "an unknown field": records.encode("tuned config", unknown).encode(),
    }


@pytest.mark.parametrize("what", list(damaged(records.encode("tuned config", entry().as_json()))))
def test_unusable_files_are_set_aside(store: TunedStore, what: str) -> None:
    good = store.put(entry(q_len=1024))
    path = store.put(entry())
    path.write_bytes(damaged(path.read_text(encoding="utf-8"))[what])
    with pytest.warns(StoreWarning, match=path.name):
        found = store.lookup(KEY)
    assert found.entry == entry(q_len=1024)  # the neighbour
    assert not path.exists()
    assert good.exists()
    assert [aside.name.startswith(path.name) for aside in store.aside()] == [True]
    store.put(entry())
    assert store.lookup(KEY).exact


def test_a_file_under_another_name(store: TunedStore) -> None:
    path = store.put(entry())
    path.rename(path.with_name("mine.json"))
    with pytest.warns(StoreWarning, match="its name is that of another key"):
        assert store.lookup(KEY).entry is None


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tuned").write_text("a file in the way")
    store = TunedStore(tmp_path, None)
    with pytest.raises(OSError, match="tuned"):
        store.put(entry())
    assert store.lookup(KEY).entry is None  # and a call goes on without


def test_a_file_that_cannot_be_read(store: TunedStore) -> None:
    store.put(entry(q_len=1024))
    (store.folder / "folder.json").mkdir()
    with pytest.warns(StoreWarning, match=r"folder\.json: it cannot be read"):
        assert store.lookup(KEY).entry == entry(q_len=1024)


# ------------------------------------------------------------------------------- many processes


def test_eight_writers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.autotune.entries", str(tmp_path)]
    writers = [subprocess.Popen([*command, str(number), "6"], cwd=ROOT) for number in range(8)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 8
    store = TunedStore(tmp_path, None)
    assert len(store.entries()) == 6
    assert store.aside() == ()
    assert not list(store.folder.glob(".*.tmp"))


def test_a_writer_killed_in_the_middle(tmp_path: Path) -> None:
    store = TunedStore(tmp_path, None)
    store.put(entry())
    code = (
        "import os, sys, signal; from pathlib import Path\n"
        "from patterncc.autotune.store import TunedStore\n"
        "from tests.autotune.entries import entry\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "TunedStore(Path(sys.argv[1]), None).put(entry(seconds=9.0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    (left,) = store.folder.glob(".*.tmp")
    assert TunedStore(tmp_path, None).lookup(KEY).entry == entry()
    old = time.time() - 7200
    os.utime(left, (old, old))
    store.put(entry(q_len=512))
    assert not left.exists()


# ------------------------------------------------------------------------------ taking them along


def test_export_and_import(store: TunedStore, tmp_path: Path) -> None:
    store.put(entry())
    store.put(entry(q_len=1024))
    file = tmp_path / "mine.json"
    assert store.export(file) == 2
    other = TunedStore(tmp_path / "other", None)
    other.put(entry(seconds=1.0))
    assert other.import_(file) == (1, 1)
    assert other.lookup(KEY).entry == entry(seconds=1.0)  # its own measurement stays
    assert other.lookup(replace(KEY, q_len=1024)).exact
    assert read_collection(file) == tuple(
        sorted((entry(), entry(q_len=1024)), key=lambda one: json.dumps(one.key.as_json()))
    )


def test_import_of_something_else(store: TunedStore, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"patterncc": "tuned configs", "schema": 7}')
    with pytest.raises(ConfigError, match="its schema is 7, this version reads 1"):
        store.import_(file)
    good = entry().as_json()
    documents = [good, good | {"config": {**CONFIG, "block_q": 3}}]
    records.write(file, "tuned configs", {"entries": documents})
    with pytest.raises(ConfigError, match="entry 1: block_q=3 is no choice"):
        store.import_(file)
    assert store.entries() == ()


def test_shipped_entries(tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    write_collection(shipped / "h200.json", [entry(seconds=3.0), entry(q_len=1024)])
    store = TunedStore(tmp_path / "user", shipped)
    assert store.lookup(KEY).origin == "shipped"
    store.put(entry(seconds=2.0))
    assert store.lookup(KEY).origin == "user"
    assert store.clear() == (1, 0)
    assert store.lookup(KEY).origin == "shipped"
    (shipped / "broken.json").write_text("{")
    with pytest.warns(StoreWarning, match=r"broken\.json: it is not JSON"):
        assert TunedStore(tmp_path / "user", shipped).lookup(KEY).exact
    assert (shipped / "broken.json").exists()  # not ours to move


def test_what_is_shipped_is_usable() -> None:
    for path in SHIPPED.glob("*.json"):
        assert read_collection(path), path


def test_lookup_is_fast(store: TunedStore) -> None:
    names = [f"pattern{number}" for number in range(300)]
    for name in names:
        store.put(entry(pattern=name))
    keys = [replace(KEY, pattern=name) for name in names] + [KEY]
    for key in keys:
        store.lookup(key)
    time.sleep(0.05)
    store.lookup(KEY)
    best = min(_microseconds(store, keys) for _ in range(5))
    assert best < 50, best


def _microseconds(store: TunedStore, keys: list[ConfigKey]) -> float:
    start = time.perf_counter()
    for key in keys:
        store.lookup(key)
    return (time.perf_counter() - start) / len(keys) * 1e6


def test_keys_of_another_version_are_refused() -> None:
    document = KEY.as_json()
    assert ConfigKey.from_json(document) == KEY
    with pytest.raises(ConfigError, match="'clusters'"):
        ConfigKey.from_json(document | {"clusters": 2})
    with pytest.raises(ConfigError, match="head_dim of a key is '128'"):
        ConfigKey.from_json(document | {"head_dim": "128"})
    with pytest.raises(ConfigError, match="the field 'seconds'"):
        Entry.from_json({k: v for k, v in entry().as_json().items() if k != "seconds"})


def test_entries_given_to_a_process(tmp_path: Path) -> None:
    """They come before those of files; alone, files are not looked at any more."""
    store = TunedStore(tmp_path, None)
    store.put(entry(seconds=1.0))
    store.put(entry(q_len=1024))
    store.give([(entry(seconds=5.0), "user")])
    assert store.lookup(KEY).entry == entry(seconds=5.0)
    assert len(store.entries()) == 2
    assert TunedStore(tmp_path, None).lookup(KEY).entry == entry(seconds=1.0)
    store.give([(entry(seconds=6.0), "shipped")], alone=True)
    assert [(e.seconds, origin) for e, origin in store.entries()] == [(6.0, "shipped")]
    TunedStore(tmp_path, None).put(entry(seconds=2.0))
    assert store.lookup(KEY).entry == entry(seconds=6.0)
    assert not store.lookup(replace(KEY, q_len=1024)).exact
    store.put(entry(seconds=3.0))  # what this process itself finds
    assert store.lookup(KEY).entry == entry(seconds=3.0)


def test_an_entry_from_before_a_knob(tmp_path: Path) -> None:
    """Its config may be worse than today's default, so it is named and not used."""
    store = TunedStore(tmp_path, None)
    old = entry()
    store.put(replace(old, config={k: v for k, v in old.config.items() if k != "emitter"}))
    with pytest.warns(StoreWarning, match="a version that had no choice of emitter"):
        assert store.lookup(KEY).entry is None
