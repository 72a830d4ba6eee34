"""`patterncc diff` and `patterncc.diff`: what they print and return, exit codes, errors."""

import json
from pathlib import Path

import pytest

import patterncc
from patterncc import cli
from patterncc.dsl.errors import ConfigError


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(["diff", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_equal(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "chunked", "q // 8 == k // 8", "-p", "n=8")
    assert code == cli.OK
    assert "A and B are equal\n  for all lengths and offsets\n" in out


def test_not_equal(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "window(4)", "window(6)")
    assert code == cli.FAILED
    assert "A is within B" in out and "only B allows  q = 4, k = 0" in out
    assert "kv_len = 5" in out and "only A" not in out


@pytest.mark.parametrize(
    ("expected", "code"), [("within", 0), ("contains", 1), ("equal", 1), ("disjoint", 1)]
)
def test_expectations(capsys: pytest.CaptureFixture[str], expected: str, code: int) -> None:
    assert run(capsys, "window(4)", "window(6)", "--expect", expected)[0] == code


def test_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    both = ("streaming", "causal and (window(4096) or sinks(4))")
    code, out, _ = run(capsys, *both)
    assert code == cli.FAILED and "With the defaults: A and B are equal" in out
    assert run(capsys, *both, "--defaults")[0] == cli.OK
    bound = run(capsys, *both, "-p", "sinks=4", "-p", "window=4096", "--defaults")
    assert bound[0] == cli.OK


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "streaming", "tri_shape", "--json", "--expect", "within")
    document = json.loads(out)
    assert code == cli.OK and document["ok"] and document["relation"] == "within"
    assert document["left_only"] is None
    assert document["right_only"]["values"]["window"] == 4096
    assert document["at_defaults"]["relation"] == "different"
    assert document["symbols"] == ["last", "sinks", "window"]


def test_files_and_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "two.pat"
    path.write_text("pattern near(n = 4): window(n)\npattern far(n = 8): window(n)\n", "utf-8")
    assert run(capsys, str(path), str(path), "--defaults")[0] == cli.OK
    code, out, _ = run(
        capsys, str(path), str(path), "--name", "near", "--other-name", "far", "--defaults"
    )
    assert code == cli.FAILED and "A  near" in out and "B  far" in out
    assert run(capsys, str(path), str(path), "--name", "nera")[0] == cli.FAILED


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["causal"], cli.USAGE, "B"),
        (["causal", "full", "-p", "n=3"], cli.USAGE, "neither pattern has a parameter `n`"),
        (["window", "full", "-p", "m=3"], cli.USAGE, "legal: n"),
        (["s2", "full", "--heads", "8", "--kv-heads", "3"], cli.USAGE, "multiple of kv_heads"),
        (["s2", "full", "--heads", "0"], cli.USAGE, "1 or more"),
        (["causal", "full", "--expect", "maybe"], cli.USAGE, "invalid choice"),
        (["casual", "full"], cli.FAILED, "did you mean `causal`?"),
        (["causal", "ful"], cli.FAILED, "did you mean `full`?"),
        (["causal", "document"], cli.FAILED, "`doc["),
        (["causal", "no/such/file.pat"], cli.USAGE, "no/such/file.pat"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str
) -> None:
    found, out, err = run(capsys, *argv)
    assert found == code and message in err and "Traceback" not in err
    assert out == ""


def test_python() -> None:
    comparison = patterncc.diff("window(4)", patterncc.compile("window(6)"))
    assert isinstance(comparison, patterncc.Comparison)
    assert comparison.within and not comparison.contains and not comparison.equal
    assert patterncc.diff("s2", "causal", heads=8, group=64).relation == "within"
    assert patterncc.diff(
        patterncc.compile("streaming").pattern, "streaming", sinks=3, defaults=True
    ).equal
    with pytest.raises(ConfigError, match="neither pattern has a parameter `windw`"):
        patterncc.diff("streaming", "causal", windw=3)
