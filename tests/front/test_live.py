"""`patterncc live`, `live_keys` and the section of `explain`: numbers, words, exit codes."""

import json

import pytest
import torch

import patterncc
from patterncc import cli, live
from patterncc.dsl import load
from patterncc.dsl.errors import ArgumentError, UnsupportedError
from patterncc.live_text import live_text


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(["live", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_live_keys_are_what_later_rows_read() -> None:
    attn = patterncc.compile("ladder", recent=40, rung=8, period=4)
    mask = attn.mask(400, layer=2)
    for t in (0, 5, 100, 300):
        keys = attn.live_keys(t, layer=2)
        assert keys.dtype == torch.bool and keys.shape == (t + 1,)
        assert torch.equal(keys, mask[t:, : t + 1].any(0))
    assert attn.live_keys(300, recent=8).sum() < attn.live_keys(300).sum()


def test_heads_and_lengths() -> None:
    attn = patterncc.compile("s2", group=64)
    first = attn.live_keys(70, head=0, heads=4)
    assert first.sum() == 7 and attn.live_keys(70, head=3, heads=4).sum() == 39
    assert patterncc.compile("block_diffusion").live_keys(30, kv_len=64)[:16].sum() == 0


def test_text() -> None:
    attn = patterncc.compile("streaming")
    assert attn.live_text() == "k < 4, or k ≥ t − 4095"
    assert attn.live_text(sinks=8, window=16) == "k < 8, or k ≥ t − 15"
    assert patterncc.compile("causal").live_text() == "every key"
    assert patterncc.compile("k < 0").live_text() == "no key"
    ladder = patterncc.compile("ladder", sinks=64)
    assert ladder.live_text() == "k < 64, or (layer + ⌊k / 128⌋) mod 8 < 1, or k ≥ t − 1023"
    assert patterncc.compile("pattern f(n): window(n)").live_text() == "k ≥ t − n + 1"


def test_errors_of_the_call() -> None:
    attn = patterncc.compile("s2")
    with pytest.raises(ArgumentError, match="`t` is -1"):
        attn.live_keys(-1)
    with pytest.raises(ArgumentError, match="`heads` was not given"):
        attn.live_keys(5)
    with pytest.raises(ArgumentError, match="`kv_len` is 5"):
        attn.live_keys(5, heads=2, kv_len=5)
    with pytest.raises(ArgumentError, match="`windw` is not a parameter"):
        patterncc.compile("streaming").live_text(windw=3)
    with pytest.raises(UnsupportedError, match=r"`doc\["):
        patterncc.compile("document").live_text()


def test_pages() -> None:
    report = live.report(
        load("streaming", sinks=4, window=20),
        {"heads": 1, "kv_heads": 1, "layers": 1},
        [3, 100],
        page_size=16,
    )
    (group,) = report.groups
    assert [(c.t, c.keys, c.pages, c.all_pages) for c in group.counts] == [
        (3, 4, 1, 1),
        (100, 24, 3, 7),  # keys 0..3 and 81..100: pages 0, 5 and 6
    ]
    assert group.bound is not None and group.bound.keys == 24


def test_heads_that_share_keep_what_either_reads() -> None:
    sizes = {"heads": 4, "kv_heads": 2, "layers": 1}
    text = "if head == 0 then window(8) else window(2)"
    report = live.report(load(text), sizes, [50])
    assert {group.members: group.counts[0].keys for group in report.groups} == {
        ((0, 0),): 8,
        ((0, 1),): 2,
    }


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "streaming", "--at", "63,64K", "-p", "window=64")
    assert code == cli.OK
    assert "  k < 4, or k ≥ t − 63\n" in out
    assert "never more than 68 from t = 127 on" in out
    code, out, _ = run(capsys, "ladder", "--layer", "0,8,3", "--at", "8191")
    assert "layers 0, 8; every key/value head" in out and "grows for ever" in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "streaming", "--at", "9999", "--layers", "1", "--json")
    document = json.loads(out)
    assert code == cli.OK and document["live"] == "k < 4, or k ≥ t − 4095"
    (group,) = document["groups"]
    assert group["bound"] == {"keys": 4100, "since": 8191}
    assert group["counts"] == [{"t": 9999, "keys": 4100, "pages": 257, "all_pages": 625}]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["casual"], cli.FAILED, "did you mean `causal`?"),
        (["document"], cli.FAILED, "`doc["),
        (["causal", "--at", "many"], cli.USAGE, "no integer"),
        (["causal", "--at", "-1"], cli.USAGE, "time -1"),
        (["causal", "--at", "32M"], cli.USAGE, "is not in 0"),
        (["causal", "--at", "64", "--kv-len", "64"], cli.USAGE, "time 64"),
        (["causal", "--layer", "12"], cli.USAGE, "--layer 12: there are 12"),
        (["causal", "--kv-head", "3", "--kv-heads", "2"], cli.USAGE, "there are 2"),
        (["causal", "--page-size", "0"], cli.USAGE, "must be 1 or more"),
        (["prefix"], cli.USAGE, "`n`"),
    ],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, message: str
) -> None:
    found, out, err = run(capsys, *argv)
    assert found == code and message in err and "Traceback" not in err and out == ""


def test_explain_has_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    text = patterncc.compile("streaming").explain(q_len=8192)
    assert "keys that a cache keeps at time t, for queries at t or later" in text
    assert "4,100 of 8,192 keys at t = 8,191, in 257 of 512 pages of 16" in text
    assert cli.main(["explain", "s2", "--q-len", "256", "--heads", "2", "--json"]) == cli.OK
    document = json.loads(capsys.readouterr().out)
    assert len(document["live"]["groups"]) == 2 or document["live"]["form"]


def test_text_of_odd_forms() -> None:
    assert live_text(load("k == 3 or k > 2 * q").body).startswith("k = 3, or ")
