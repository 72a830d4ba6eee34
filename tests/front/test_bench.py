"""`patterncc bench`: faults of peers are found and cost one line; the command line for real."""

import dataclasses
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from patterncc.autotune.worker import Worker
from patterncc.bench import chart, race
from patterncc.bench.document import document, is_sound
from patterncc.bench.journal import Journal, Terms
from patterncc.bench.machine import Machine
from patterncc.bench.peers import OWN, PEERS, peers_named
from patterncc.bench.readings import Judgement, Reading, Round
from patterncc.bench.report import Options, Progress, Report, Result
from patterncc.bench.request import PHASES, Request
from patterncc.bench.standing import MANY, advantage, standing_of
from patterncc.bench.suites import SUITES, Shape, Subject, parse_shape, request_of
from patterncc.bench.unfused import unfused_signs
from patterncc.commands import bench_text
from patterncc.dsl.errors import ConfigError
from tests.front import fake_peers
from tests.front.conftest import Run

SHAPE = Shape(1, 2, 2, 64, 16)
TIMEOUT = 15.0


def request(text: str = "causal", shape: Shape = SHAPE) -> Request:
    return request_of(Subject(text, text), shape, "float32", "cpu", 0)


@pytest.fixture(scope="module")
def fakes() -> Iterator[Report]:
    """A run with every fault at once."""
    options = Options(("forward", "backward", "both"), rounds=3, timeout=TIMEOUT, jobs=4)
    peers = [peers_named(OWN)[0], *map(fake_peers.spec, fake_peers.KINDS)]
    said: list[Progress] = []
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
def test_faults(fakes: Report, kind: str, state: str, reason: str) -> None:
    (result,) = fakes.results
    found = result.readings[kind]
    assert found.state == state, found.reason
    assert reason in found.reason if reason else found.reason == ""
    for phase in result.phases:
        timed = state == "timed" and phase in found.phases
        assert (found.median(phase) is not None) == timed


@pytest.mark.slow
def test_what_was_timed(fakes: Report) -> None:
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
    assert is_sound(Report(fakes.machine, "cpu", "", {}, fakes.options, [Result(
        result.request, own, result.phases)]))  # fmt: skip


@pytest.mark.slow
def test_report_of_faults(fakes: Report, capsys: pytest.CaptureFixture[str]) -> None:
    bench_text.print_report(fakes)
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
def test_interrupted_and_resumed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after the first request, while the second gets ready; the next run goes on there."""
    real = Journal.keep

    def keep(self: Journal, *arguments: Any) -> None:
        real(self, *arguments)
        raise KeyboardInterrupt

    journal = tmp_path / "results.jsonl"
    command = (
        "bench", "causal", "window(9)", "--len", "64", "--heads", "2", "--head-dim", "16",
        "--peers", "patterncc", "--repeats", "1", "--device", "cpu", "--jobs", "1", "--timeout",
        "400", "-o", str(tmp_path / "found.json"), "--resume", str(journal),
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "keep", keep)
        begin = time.monotonic()
        found = run(*command)
        assert found.code == 130
        assert time.monotonic() - begin < 200
    assert "causal  B1 H2 S64 D16" in found.out
    first = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert first["interrupted"] and len(first["results"]) == 1
    assert len(journal.read_text(encoding="utf-8").splitlines()) == 1

    found = run(*command)
    assert found.code == 0, found.err
    second = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [one["text"] for one in second["results"]] == ["k <= q", "0 <= q - k < 9"]
    assert not second["interrupted"] and second["left"] == []
    kept, old = second["results"][0], first["results"][0]
    for result in (kept, old):  # the rate of a matrix product is of each run
        result.pop("ceiling")
        for peer in result["peers"].values():
            for phase in peer["phases"].values():
                phase.pop("of_ceiling")
    assert kept == old
    assert len(journal.read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.slow
def test_what_there_is_no_time_for_is_named(run: Run) -> None:
    found = run(
        "bench", "--suite", "library", "--only", "causal,strided", "--len", "64", "--heads", "2",
        "--head-dim", "16", "--peers", "patterncc", "--device", "cpu", "--within", "0", "--json",
    )  # fmt: skip
    assert found.code == 1
    assert found.json["results"] == []
    assert found.json["left"] == ["causal", "strided"]
    assert found.json["options"]["phases"] == ["forward", "backward"]


@pytest.mark.slow
def test_others_are_paused_while_one_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of another request runs between the first and the last round of one."""
    said: list[tuple[str, str]] = []

    real_pause, real_proceed = Worker.pause, Worker.proceed

    def pause(self: Worker) -> None:
        real_pause(self)
        said.append(("pause", state(self)))

    def proceed(self: Worker) -> None:
        said.append(("before", state(self)))
        real_proceed(self)

    def state(worker: Worker) -> str:
        process = worker._process
        if process is None:
            return "none"
        status = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8")
        return status.rpartition(")")[2].split()[0]

    monkeypatch.setattr(Worker, "pause", pause)
    monkeypatch.setattr(Worker, "proceed", proceed)
    options = Options(("forward",), rounds=2, timeout=TIMEOUT * 4, jobs=2)
    requests = [request(), request("window(9)")]
    report = race.run(requests, peers_named(OWN)[:1], "cpu", options)
    assert [result.readings[OWN].state for result in report.results] == ["timed", "timed"]
    assert [what for what, _ in said] == ["pause", "before"] * 2
    assert {found for what, found in said if what == "before"} <= {"T", "none"}
    assert "T" in {found for _, found in said}


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
        (("--suite", "design", "--only", "nothing"), "--only has 'nothing', not of this suite"),
        (("causal", "--only", "causal"), "--only is for --suite"),
        (("causal", "--resume", __file__), "has a line that is no result"),
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
    found = advantage(Result(request(), readings, ("forward",)), "forward")
    assert found == (1.5, "fast")
    assert advantage(Result(request(), readings, ("both",)), "both") is None


def test_standing_of_many() -> None:
    requests = [request(f"window({size})") for size in (3, 5, 9)]
    readings = [
        {OWN: timed(1.0), "flex": timed(1.3)},
        {OWN: timed(1.0), "flex": timed(0.5), "slow": timed(4.0)},
        {OWN: timed(1.0), "flex": Reading("cannot")},
    ]
    results = [
        Result(one, found, ("forward",)) for one, found in zip(requests, readings, strict=True)
    ]
    options = Options(("forward", "backward"), aims={"forward": 1.2})
    report = Report(Machine("a machine", {}, ""), "cpu", "", {"float32": [1e9]}, options, results)
    standing = standing_of(report, "forward")
    assert standing is not None and standing_of(report, "backward") is None
    assert list(standing.factors.values()) == [0.5, 1.3]
    assert standing.without == ("window(9), B1 H2 S64 D16",)
    assert (standing.at_least(1.0), standing.reached) == (1, 1)
    assert math.isclose(standing.mean**2, 0.5 * 1.3) and math.isclose(standing.median, 0.9)
    assert document(report)["standings"]["forward"]["reached"] == 1
    aimless = dataclasses.replace(report, options=Options(("forward",)))
    assert standing_of(aimless, "forward") == dataclasses.replace(standing, aim=None)


@pytest.mark.slow
def test_many_are_a_ranking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for size in range(2, MANY + 3):
        readings = {OWN: timed(1.0), "flex": timed(size / 8)}
        results.append(Result(request(f"window({size})"), readings, ("forward",)))
    readings = {OWN: timed(1.0), "flex": Reading("refused", "no kernel")}
    results.append(Result(request("causal"), readings, ("forward",)))
    options = Options(("forward",), aims={"forward": 1.4}, within=9.0)
    machine = Machine("a machine", {}, "")
    ceilings = {"float32": [1e9]}
    report = Report(machine, "cpu", "now", ceilings, options, results, left=("nsa", "moba"))
    bench_text.print_report(report)
    out = capsys.readouterr().out
    assert "causal: flex: refused: no kernel" in out
    assert "not begun within 9 s: nsa, moba" in out
    assert f"forward: {MANY + 1 - 6} of {MANY + 1} at least as fast" in out
    assert out.index("window(2), ") < out.index("window(3), ") < out.index("causal, ")
    chart.plot_report(report, str(tmp_path / "ratios.svg"))
    picture = (tmp_path / "ratios.svg").read_text(encoding="utf-8")
    assert "<svg" in picture and f"of {MANY + 1} reach 1.4" in picture


def timed(seconds: float) -> Reading:
    """A reading of the forward."""
    found = Reading("ready", phases=("forward",), mask_seconds=1e-3, mask_bytes=1)
    return found.timed("forward", Round((seconds,), (seconds,)))


def test_a_journal_knows_what_was_measured_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "results.jsonl")
    peers, machine = peers_named("flex"), Machine("a machine", {"torch": "2"}, "")
    options = Options(("forward",), rounds=7)
    asked = request()
    terms = Terms.of(asked, peers, options, machine)
    judgement = Judgement({"output": math.inf}, 3)
    wrong = Reading("wrong", "so", judgement=judgement, peak_bytes={"forward": 5})
    result = Result(asked, {OWN: timed(2.0), "flex": wrong}, ("forward",), "then")
    journal.keep(terms, result)
    journal = Journal(tmp_path / "results.jsonl")
    found = journal.found(terms, request())
    assert found is not None
    assert (found.readings, found.phases, found.ended) == (result.readings, ("forward",), "then")
    others = [
        Terms.of(request("window(9)"), peers, options, machine),
        Terms.of(asked, peers_named("fa4"), options, machine),
        Terms.of(asked, peers, Options(("backward",), rounds=7), machine),
        Terms.of(asked, peers, Options(("forward",), rounds=8), machine),
        Terms.of(asked, peers, options, Machine("a machine", {"torch": "3"}, "")),
    ]
    assert all(journal.found(other, asked) is None for other in others)
    with monkeypatch.context() as patch:
        patch.setattr("patterncc.bench.journal.code_digest", lambda: "of other code")
        assert journal.found(Terms.of(asked, peers, options, machine), asked) is None
    hung = Result(asked, {OWN: timed(2.0), "flex": Reading("hung", "no answer")}, ("forward",))
    journal.keep(terms, hung)
    assert Journal(tmp_path / "results.jsonl").found(terms, asked) is None


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
    options = Options(PHASES, rounds=7)
    report = Report(machine, "cpu", "now", {"float32": [1e9, 3e9]}, options, [])
    assert document(report)["options"] == {"phases": PHASES, "rounds": 7}
    assert document(report)["machine"]["versions"] == {"torch": "2"}
    assert math.isclose(Options(PHASES).rounds_on("cuda:0"), 10)
