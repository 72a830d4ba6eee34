"""`patterncc reach` and `Attention.reach`: words, JSON, pictures, exit codes, errors."""

import json
from pathlib import Path

import numpy as np
import pytest

import patterncc
from patterncc import cli, reach_plot
from patterncc.codegen.facts.reach import reach
from patterncc.dsl import load
from patterncc.dsl.errors import ArgumentError, ConfigError
from patterncc.reach_text import format_reach

SIZES = {"heads": 1, "kv_heads": 1, "layers": 12}


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(["reach", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "streaming", "--q-len", "64K")
    assert code == cli.OK
    assert "through 12 layers, token k can influence position q where" in out
    assert "  k ≤ q ∧ k ≤ 3, or q − 49140 ≤ k ≤ q\n" in out
    assert "after 17 layers, and no fewer, every earlier token can influence the last" in out
    assert "computed by composing the layers' relations" in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "window(64)", "--q-len", "1000", "--layers", "3", "--json")
    document = json.loads(out)
    assert code == cli.OK and document["enough"] == 16
    assert [state["reached"] for state in document["states"]] == [1, 64, 127, 190]
    assert document["form"] == "q − 189 ≤ k ≤ q"
    assert document["path"][0] == 999


def test_many_layers_are_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "window(8)", "--layers", "100", "--q-len", "4096")
    assert code == cli.OK and "…" in out and out.count("\n  layer ") == 24


def test_other_ends() -> None:
    never = format_reach(reach(load("chunked(64)"), 500, 2, SIZES), "chunked")
    assert "never influence the last, after any number of layers" in never
    text = "if layer % 2 == 0 then chunked(64) else window(1)"
    periodic = format_reach(reach(load(text), 300, 3, SIZES), "")
    assert "after 64 layers there are still earlier tokens" in periodic
    assert "pattern: 300 tokens, 3 layers" in periodic


def test_python(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    attn = patterncc.compile("streaming")
    found = attn.reach(3, 4096, window=100, plot=tmp_path / "reach.png")
    assert found.states[-1].reached == 4 + 3 * 99 + 1
    assert (tmp_path / "reach.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArgumentError, match="`windw`"):
        attn.reach(3, 4096, windw=3)
    with pytest.raises(ConfigError, match="layers is 0"):
        attn.reach(0, 4096)
    with pytest.raises(ConfigError, match="what picture to make"):
        attn.reach(1, 64, plot="reach.gif")


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"reach.{form}"
    code, out, _ = run(capsys, "ladder", "--q-len", "2048", "--layers", "4", "-o", str(path))
    assert code == cli.OK and f"wrote {path}" in out
    first = path.read_bytes()
    run(capsys, "ladder", "--q-len", "2048", "--layers", "4", "-o", str(path))
    assert len(first) > 1000 and (form != "png" or path.read_bytes() == first)


def test_cells_of_a_picture() -> None:
    found = reach(load("streaming(sinks = 1, window = 100)"), 4096, 2, SIZES)
    cells = reach_plot.shares(found, 1024)
    assert cells.shape == (3, 1024)
    np.testing.assert_allclose(cells.sum(axis=1) * 4, [state.reached for state in found.states])
    assert cells[1, 0] == 0.25 and cells[1, 1] == 0 and cells[1, -1] == 1


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["casual"], cli.FAILED, "did you mean `causal`?"),
        (["document"], cli.FAILED, "`doc["),
        (["causal", "--layers", "5000"], cli.USAGE, "layers is 5000"),
        (["causal", "--q-len", "2M"], cli.USAGE, "q_len is 2097152"),
        (["causal", "-o", "reach.gif"], cli.USAGE, "what picture to make"),
        (["causal", "--heads", "8", "--kv-heads", "3"], cli.USAGE, "multiple of kv_heads"),
        (["prefix"], cli.USAGE, "`n`"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str
) -> None:
    found, out, err = run(capsys, *argv)
    assert found == code and message in err and "Traceback" not in err and out == ""
