"""`patterncc tune` on the CPU for real, and `patterncc cache` on what it kept."""

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from patterncc import tuning
from patterncc.autotune.store import TunedStore
from patterncc.bench.request import Request
from patterncc.call import Call
from patterncc.codegen.problem import Problem
from patterncc.commands import cache
from patterncc.dsl import load
from patterncc.tuning_rival import FlexAttention
from tests.front.conftest import Run

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--q-len", "200", "--heads", "2", "--head-dim", "16", "--trials", "3", "--device", "cpu")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TunedStore:
    found = TunedStore(tmp_path / "cache", None)
    monkeypatch.setattr(tuning, "store", lambda: found)
    monkeypatch.setattr(cache, "store", lambda: found)
    return found


@pytest.mark.parametrize("argv", [["tune", "--help"], ["cache", "--help"], ["cache", "list"]])
def test_loads_no_torch(argv: list[str], tmp_path: Path) -> None:
    code = (
        f"import sys; from patterncc.cli import main; main({argv!r});"
        "print('loaded:', *sorted({'torch', 'optuna', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_tune_and_cache(run: Run, tmp_path: Path, own_store: TunedStore) -> None:
    first = run("tune", "examples/streaming.pat", *SMALL, "--json")
    assert first.code == 0
    (found,) = first.json
    assert found["pattern"] == "streaming"
    assert set(found["config"]) == {"block_q", "block_k"}
    assert len(found["trials"]) == 3
    assert {trial["state"] for trial in found["trials"]} <= {"timed", "slow"}
    assert found["trials"][0]["proposed_by"] == "seed"
    assert all(trial["predicted_seconds"] > 0 for trial in found["trials"])
    assert found["seconds"] <= found["default_seconds"]
    assert found["before"] == {"reason": "nothing has been tuned yet", "differences": []}
    assert set(found["importances"]) == {"block_q", "block_k"}
    assert found["stopped"] == "3 trials"
    assert Path(found["path"]).parent == own_store.folder

    second = run("tune", "causal", *SMALL)
    assert second.code == 0
    assert "causal, forward on " in second.out
    assert "of 25 legal configs" in second.out
    assert "the nearest tuned key (user)" in second.out

    listed = run("cache", "list")
    assert listed.code == 0
    assert "k <= q" in listed.out
    assert [each["origin"] for each in run("cache", "--json").json["entries"]] == ["user", "user"]
    (entry,) = run("cache", "show", "SINKS").json
    assert entry["config"] == found["config"]
    assert entry["call"] == {
        "batch": 1,
        "heads": 2,
        "kv_heads": 2,
        "q_len": 200,
        "kv_len": 200,
        "sinks": 4,
        "window": 4096,
    }
    file = tmp_path / "mine.json"
    assert run("cache", "export", str(file)).out == "exported 2 entries\n"
    assert run("cache", "clear", "--json").json == {"removed": 2, "other_files": 0}
    assert "nothing has been tuned" in run("cache").out
    assert run("cache", "import", str(file)).out == "imported 2 entries; 0 were there already\n"


def test_a_picture(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "search.png"
    assert run("tune", "window(64)", *SMALL, "--plot", str(path)).code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_target_that_is_not_here(run: Run, own_store: TunedStore) -> None:
    argv = ("tune", "window(256)", "--target", "cuda:90", "--trials", "3", "--head-dim", "64")
    found = run(*argv, "--json")
    assert found.code == 0
    (document,) = found.json
    rows = document["configs"]
    assert len(rows) == 3
    times = [row["predicted_seconds"] for row in rows if row["predicted_seconds"] is not None]
    assert times == sorted(times)
    assert times
    assert all(row["resources"]["registers"] > 0 for row in rows if row["resources"])
    assert own_store.entries() == ()
    text = run(*argv).out
    assert "window(256) on cuda:90" in text or "window on cuda:90" in text
    assert "registers" in text


@pytest.mark.slow
def test_calibrate(run: Run, own_store: TunedStore) -> None:
    found = run("tune", "--calibrate", "--device", "cpu", "--json")
    assert found.code == 0
    document = found.json
    assert len(document["after"]) == 3
    assert all(one["configs"] == 9 for one in document["after"].values())
    kept = own_store.constants(document["device"])
    assert kept is not None
    assert asdict(kept) == document["constants"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tune", "causal", "--target", "cpu"], "there is no target 'cpu'"),
        (["tune", "causal", "--target", "cuda:x"], "there is no target 'cuda:x'"),
        (["tune", "causal", "--calibrate"], "--calibrate takes no patterns"),
        (["tune"], "tune takes patterns, or --library"),
        (["tune", "causal", "--library"], "tune takes patterns, or --library"),
        (["tune", "causal", "full", "--plot", "x.png"], "--plot draws one search"),
        (["tune", "causal", *SMALL, "--phase", "backwards"], "there is no phase 'backwards'"),
        (["tune", "causal", *SMALL, "--plot", "x.bmp"], "no suffix of a picture"),
        (["tune", "causal", *SMALL, "--plot", "nowhere/x.png"], "a folder that is not there"),
        (["tune", "causal", "--target", "cuda:90", "--plot", "x.png"], "nothing is searched"),
        (["tune", "causal", *SMALL, "--timeout", "0"], "--timeout is 0 s"),
        (["tune", "causal", *SMALL, "--gain", "1"], "--gain is 1"),
        (["tune", "causal", *SMALL, "--storage", "nosuch://x/y"], "the study at nosuch://x/y"),
        (["tune", "causal", *SMALL, "--phase", "forward,grad_query"], "all gradients together"),
        (["tune", "causal", *SMALL, "--flex"], "--flex compares the forward on a GPU"),
        (["cache", "export"], "cache export takes a file"),
        (["cache", "clear", "x"], "cache clear takes no file"),
        (["cache", "show", "nothing"], "no entry's pattern or device has 'nothing' in it"),
    ],
)
def test_wrong_usage(run: Run, argv: list[str], message: str) -> None:
    found = run(*argv)
    assert found.code == 2
    assert message in found.err


def test_nothing_is_measured_that_could_not_be_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    store = TunedStore(tmp_path / "file", None)
    monkeypatch.setattr(tuning, "store", lambda: store)
    found = run("tune", "causal", *SMALL, "--storage", str(tmp_path / "study.journal"))
    assert found.code == 2
    assert f"results cannot be kept in {store.folder}: Not a directory" in found.err
    assert "PATTERNCC_CACHE_DIR" in found.err
    assert not (tmp_path / "study.journal").exists()


def test_what_is_wrong_with_a_file_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "tuned" / "v1"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text("{")
    (folder / "studies").mkdir()
    (folder / "studies" / "forward-1.journal").write_text("")
    argv = [sys.executable, "-m", "patterncc", "cache"]
    environment = {**os.environ, "PATTERNCC_CACHE_DIR": str(tmp_path)}

    def ran(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*argv, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )

    (line,) = ran("list").stderr.splitlines()
    assert line.startswith(f"warning: {folder / 'x.json'}: it is not JSON: ")
    assert "moved to " in line
    cleared = f"removed 0 entries from {folder}, and 2 files that were set aside or of searches"
    assert ran("clear").stdout.startswith(cleared)
    assert not list((folder / "studies").iterdir())


def test_all_phases_that_there_are(run: Run) -> None:
    (found,) = run("tune", "causal", *SMALL, "--phase", "all", "--json").json
    assert found["phase"] == "forward"


@pytest.mark.slow
def test_flex_attention_beside() -> None:
    """On a CPU, where it can be compiled, too; and where nobody waits for it."""
    call = Call.of(load("window(64)"), 256, None, None, heads=2)
    request = Request("window", call, Problem("float32", 16, 16), "cpu")
    with closing(FlexAttention(request, 0.0)) as flex:
        flex.settle()
        assert flex.seconds is None
        assert flex.words(1.0) == "FlexAttention: it was not compiled within 0 s"
    with closing(FlexAttention(request, 200.0)) as flex:
        assert "not ready yet" in flex.words(1.0)
        flex.settle()
        assert (flex.seconds is None) == bool(flex.why_not)
        if flex.seconds is not None:
            assert flex.words(flex.seconds / 2) == "2.00x FlexAttention"


def test_what_cannot_be_imported(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text("{}")
    found = run("cache", "import", str(file))
    assert found.code == 2
    assert "it was not written by patterncc" in found.err
    assert run("cache", "import", str(tmp_path / "none.json")).code == 2


def test_one_of_several_fails(run: Run) -> None:
    table = "pattern p(w: int[head]): window(w[head])"
    found = run("tune", "causal", table, *SMALL, "--json")
    assert found.code == 1
    good, bad = found.json
    assert "config" in good
    assert "no table was given for `w`" in bad["error"]
