"""`patterncc bench`: faults of peers are found and cost one line; the command line for real."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from patterncc.bench import race
from patterncc.bench.document import advantage, document, is_sound
from patterncc.bench.machine import Machine
from patterncc.bench.peers import OWN, PEERS, peers_named
from patterncc.bench.readings import Reading, Round
from patterncc.bench.request import PHASES, Request
from patterncc.bench.suites import SUITES, Shape, Subject, parse_shape, request_of
from patterncc.bench.unfused import unfused_signs
from patterncc.commands import bench
from patterncc.dsl.errors import ConfigError
from tests.front import fake_peers
from tests.front.conftest import Run

SHAPE = Shape(1, 2, 2, 64, 16)
TIMEOUT = 15.0


def request(text: str = "causal", shape: Shape = SHAPE) -> Request:
    return request_of(Subject(text, text), shape, "float32", "cpu", 0)


@pytest.fixture(scope="module")
def fakes() -> Iterator[race.Report]:
    """A run with every fault at once."""
    options = race.Options(("forward", "backward", "both"), rounds=3, timeout=TIMEOUT, jobs=4)
    peers = [peers_named(OWN)[0], *map(fake_peers.spec, fake_peers.KINDS)]
    said: list[race.Progress] = []
    begin = time.monotonic()
    report = race.run([request()], peers, "cpu", options, said.append)
    assert time.monotonic() - begin < 10 * TIMEOUT
    assert said[-1].done == said[-1].total == len(peers)
    yield report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "state", "reason"),
    [
        (OWN, "timed", ""),
        ("good", "timed", ""),
        ("no-backward", "timed", ""),
        ("absent", "absent", "it is not installed"),
        ("cannot", "cannot", "it knows another mask"),
        ("raises", "refused", "RuntimeError: no kernel for"),
        ("wrong", "wrong", "its output is "),
        ("wrong-gradient", "wrong", "its grad_"),
        ("unwritten", "wrong", "its output is inf times"),
        ("drifts", "wrong", "after the timed calls its output is "),
        ("unfused", "unfused", "aten::"),
        ("exits", "crashed", "it ended with exit code 7: no more paper"),
        ("exits-later", "crashed", "process crashed in time: it ended with exit code 7"),
        ("hangs", "hung", f"no answer within {TIMEOUT:g} s"),
    ],
)
def test_faults(fakes: race.Report, kind: str, state: str, reason: str) -> None:
    (result,) = fakes.results
    found = result.readings[kind]
    assert found.state == state, found.reason
    assert reason in found.reason if reason else found.reason == ""
    for phase in result.phases:
        timed = state == "timed" and phase in found.phases
        assert (found.median(phase) is not None) == timed


@pytest.mark.slow
def test_what_was_timed(fakes: race.Report) -> None:
    (result,) = fakes.results
    good, half = result.readings["good"], result.readings["no-backward"]
    assert good.phases == result.phases and half.phases == ("forward",)
    assert half.note == "a fake; no backward: RuntimeError: no kernel for"
    assert good.judgement is not None and half.judgement is not None
    assert set(good.judgement.errors) == {"output", "grad_query", "grad_key", "grad_value"}
    assert set(half.judgement.errors) == {"output"}
    assert 0 < good.judgement.worst[1] <= 1
    assert good.mask_bytes == 64 * 64 and good.mask_seconds is not None
    assert all(len(good.seconds[phase]) >= 3 for phase in result.phases)
    assert not is_sound(fakes)  # a peer was wrong
    own = {OWN: result.readings[OWN], "good": good}
    assert is_sound(race.Report(fakes.machine, "cpu", "", {}, fakes.options, [race.Result(
        result.request, own, result.phases)]))  # fmt: skip


@pytest.mark.slow
def test_report_of_faults(fakes: race.Report, capsys: pytest.CaptureFixture[str]) -> None:
    bench.print_report(fakes)
    out = capsys.readouterr().out
    assert "not here: absent: it is not installed" in out
    assert "cannot: cannot: it knows another mask" in out
    assert "unfused: unfused: it does not run as one kernel: aten::" in out
    assert "good: a fake" in out
    found = json.loads(json.dumps(document(fakes), allow_nan=False))
    (result,) = found["results"]
    assert result["pairs"] == 2 * 64 * 65 // 2
    assert result["flops"] == {
        "forward": 4 * result["pairs"] * 16,
        "backward": 10 * result["pairs"] * 16,
        "both": 14 * result["pairs"] * 16,
    }
    assert result["peers"]["wrong"]["phases"] == {}
    assert result["peers"]["unwritten"]["errors"]["output"] == "infinite"
    good = result["peers"]["good"]["phases"]["forward"]
    assert good["flops"] == pytest.approx(result["flops"]["forward"] / good["seconds"])
    assert 0 < good["least"] <= good["seconds"] and good["host_seconds"] > 0
    assert good["of_ceiling"] == pytest.approx(good["flops"] / result["ceiling"])
    assert {result["advantage"][phase]["over"] for phase in ("backward", "both")} == {"good"}


@pytest.mark.slow
def test_command_line(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "bars.svg"
    found = run(
        "bench", "causal and window(20)", "--len", "64", "--heads", "4", "--kv-heads", "2",
        "--head-dim", "16", "--batch", "2", "--peers", "sdpa-dense-mask", "--phases",
        "both,forward", "--repeats", "2", "--device", "cpu", "--json", "--plot", str(picture),
        "-o", str(tmp_path / "found.json"),
    )  # fmt: skip
    assert found.code == 0, found.err
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8")) == found.json
    (first,) = found.json["results"]
    assert first["call"]["q_len"] == first["call"]["kv_len"] == 64
    assert first["call"]["kv_heads"] == 2 and first["call"]["batch"] == 2
    assert first["density"] == pytest.approx((20 * 21 / 2 + 44 * 20) / 64**2)
    assert list(first["peers"]) == [OWN, "sdpa-dense-mask"]
    for peer in first["peers"].values():
        assert peer["state"] == "timed" and list(peer["phases"]) == ["forward", "both"]
    assert len(found.json["ceilings"]["float32"]) == 2
    assert "<svg" in picture.read_text(encoding="utf-8")


@pytest.mark.slow
def test_interrupted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C while the second request gets ready, though one of its processes hangs."""
    real = race._run_group
    groups = 0

    def group(requests: Any, peers: Any, *rest: Any) -> Any:
        nonlocal groups
        groups += 1
        hangs = (*peers, fake_peers.spec("hangs")) if groups == 2 else peers
        missing, options, steps = rest
        missing = {**missing, "hangs": ""}
        if groups == 2:
            monkeypatch.setattr(steps, "done", interrupt)
        yield from real(requests, hangs, missing, options, steps)

    def interrupt(stage: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(race, "_run_group", group)
    begin = time.monotonic()
    found = run(
        "bench", "causal", "window(9)", "--len", "64", "--heads", "2", "--head-dim", "16",
        "--peers", "patterncc", "--repeats", "1", "--device", "cpu", "--jobs", "1", "--timeout",
        "400", "-o", str(tmp_path / "found.json"),
    )  # fmt: skip
    assert found.code == 130 and groups == 2
    assert time.monotonic() - begin < 200
    assert "causal  B1 H2 S64 D16" in found.out
    document = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert document["interrupted"] and len(document["results"]) == 1


@pytest.mark.slow
def test_lists_peers(run: Run) -> None:
    found = run("bench", "--list-peers", "--device", "cpu", "--json")
    assert found.code == 0
    missing = {peer["name"]: peer["missing"] for peer in found.json}
    assert list(missing) == [peer.name for peer in PEERS]
    assert missing[OWN] == missing["sdpa-dense-mask"] == missing["flex"] == ""
    assert "NVIDIA" in missing["fa4"] and "CPU" in missing["sdpa-cudnn"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "bench takes patterns, or --suite NAME"),
        (("causal", "--suite", "design"), "bench takes patterns, or --suite NAME"),
        (("--suite", "nothing"), "--suite is 'nothing'"),
        (("causal", "--peers", "fa5"), "--peers has 'fa5', which is no peer"),
        (("causal", "--phases", "decode"), "--phases has 'decode'"),
        (("causal", "--shapes", "1x16"), "--shapes has '1x16'"),
        (("causal", "--heads", "3", "--kv-heads", "2"), "must be a multiple of kv_heads"),
        (("causal", "--plot", "x.txt"), "--plot x.txt has no suffix of a picture"),
    ],
)
def test_wrong_usage(run: Run, argv: tuple[str, ...], message: str) -> None:
    found = run("bench", *argv, "--device", "cpu")
    assert found.code == 2
    assert message in found.err


def test_shapes() -> None:
    assert parse_shape("1x16x16384x128") == Shape(1, 16, 16, 16384, 128)
    assert parse_shape("4x32:8x32Kx64") == Shape(4, 32, 8, 32768, 64)
    with pytest.raises(ConfigError, match="legal: 1x16x16384x128"):
        parse_shape("1x16xx128")


@pytest.mark.parametrize("name", SUITES)
def test_suites_are_requests(name: str) -> None:
    suite = SUITES[name]
    for subject in suite.patterns:
        found = request_of(subject, Shape(1, 4, 2, 512, 16), "float32", "cpu", 0)
        assert found.pairs > 0, subject.name
        assert found.packed == ("segments" in found.call.pattern.text)


def test_packed_documents_fill_the_text() -> None:
    (subject,) = SUITES["packed"].patterns
    for length in (64, 65, 1000, 16384):
        bounds = subject.tables(length)["doc"]
        assert len(bounds) == 65 and bounds[0] == 0 and bounds[-1] == length
        lengths = bounds[1:] - bounds[:-1]
        assert lengths.min() >= 1
        found = request_of(subject, Shape(1, 1, 1, length, 16), "float32", "cpu", 0)
        assert found.pairs == int((lengths * (lengths + 1) // 2).sum())


def test_advantage_is_over_the_fastest_peer() -> None:
    def reading(seconds: float) -> Reading:
        return Reading("ready").timed(
            "forward", Round((seconds, 9.0, seconds / 2), (1.0, 2.0, 3.0))
        )

    readings = {OWN: reading(2.0), "slow": reading(8.0), "fast": reading(3.0)}
    readings["wrong"] = Reading("wrong", seconds={"forward": (0.1,)})
    found = advantage(race.Result(request(), readings, ("forward",)), "forward")
    assert found == (1.5, "fast")
    assert advantage(race.Result(request(), readings, ("both",)), "both") is None


def test_who_is_asked() -> None:
    assert peers_named(None) == PEERS
    assert [peer.name for peer in peers_named("fa4,flex,fa4")] == [OWN, "fa4", "flex"]


def test_eager_flex_attention_is_unfused() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    query = torch.randn(1, 2, 64, 16)
    signs = unfused_signs(lambda: flex_attention(query, query, query))
    assert "its own warning" in signs and any(sign.startswith("aten::") for sign in signs)
    assert unfused_signs(lambda: fake_peers._unfused(request(), query, query, query))
    attend = torch.nn.functional.scaled_dot_product_attention
    assert unfused_signs(lambda: attend(query, query, query, is_causal=True)) == ()


def test_machine_is_written_down() -> None:
    machine = Machine("a machine", {"torch": "2"}, "")
    options = race.Options(PHASES, rounds=7)
    report = race.Report(machine, "cpu", "now", {"float32": [1e9, 3e9]}, options, [])
    assert document(report)["options"] == {"phases": PHASES, "rounds": 7}
    assert document(report)["machine"]["versions"] == {"torch": "2"}
    assert math.isclose(race.Options(PHASES).rounds_on("cuda:0"), 10)
