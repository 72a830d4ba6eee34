"""`patterncc shard` and `Attention.shard_plan`: what they print and return, exit codes, errors."""

import json

import pytest

import patterncc
from patterncc import cli
from patterncc.codegen.facts.runs import Run
from patterncc.dsl.errors import ArgumentError, ConfigError
from patterncc.shard_text import runs_text


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(["shard", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_python() -> None:
    plan = patterncc.compile("streaming").shard_plan(4, 4096, window=512, heads=8, kv_heads=2)
    (group,) = plan.groups
    assert group.kind == "halo+broadcast" and group.members == ((0, 0), (0, 1))
    third = group.ranks[2]
    assert [(t.source, t.runs) for t in third.transfers] == [
        (0, (Run(0, 4, 1, 4),)),
        (1, (Run(1537, 511, 1, 511),)),
    ]
    assert plan.received_bytes[2] == 2 * 515 * 512
    with pytest.raises(ArgumentError, match="`windw`"):
        patterncc.compile("streaming").shard_plan(4, 4096, windw=3)
    with pytest.raises(ConfigError, match="ranks is 0"):
        patterncc.compile("streaming").shard_plan(0, 4096)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "streaming", "--ranks", "4", "--q-len", "64K", "--layers", "2")
    assert code == cli.OK
    assert "65,536 tokens on 4 ranks, contiguous shards of 16,384" in out
    assert "rank reads keys  k < 4, or 16384 · rank − 4095 ≤ k ≤ 16384 · rank + 16383" in out
    assert "0: 0–3; 1: 28,673–32,767" in out
    for placement in ("contiguous", "zigzag", "striped"):
        assert f"\n{placement} " in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("ladder", "--ranks", "2", "--q-len", "4096", "--heads", "1", "--json")
    code, out, _ = run(capsys, *argv, "--placement", "zigzag")
    document = json.loads(out)
    assert code == cli.OK and document["shards"]["placement"] == "zigzag"
    assert len(document["received_bytes"]) == 2
    members = [tuple(member) for group in document["groups"] for member in group["members"]]
    assert sorted(members) == [(layer, 0) for layer in range(12)]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["causal"], cli.USAGE, "--ranks"),
        (["causal", "--ranks", "0"], cli.USAGE, "must be 1 or more"),
        (["causal", "--ranks", "2", "--placement", "odd"], cli.USAGE, "invalid choice"),
        (["causal", "--ranks", "2", "--layer", "12"], cli.USAGE, "there are 12"),
        (["causal", "--ranks", "1024", "--q-len", "1M"], cli.USAGE, "more than can be planned"),
        (["document", "--ranks", "2"], cli.FAILED, "`doc["),
        (["casual", "--ranks", "2"], cli.FAILED, "did you mean `causal`?"),
        (["prefix", "--ranks", "2"], cli.USAGE, "`n`"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str
) -> None:
    found, out, err = run(capsys, *argv)
    assert found == code and message in err and "Traceback" not in err and out == ""


def test_runs_in_words() -> None:
    runs = (Run(0, 4, 1, 4), Run(128, 128, 9, 1024), Run(9990, 1, 1, 1), Run(9999, 1, 1, 1))
    assert runs_text(runs) == "0–3, 128–255 every 1,024 to 8,447, 9,990, …"
