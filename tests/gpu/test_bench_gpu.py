"""`patterncc bench` on a GPU: the peers that torch brings, timed by events."""

import pytest

from patterncc.bench import race
from patterncc.bench.document import document, is_sound
from patterncc.bench.peers import OWN, peers_named
from patterncc.bench.report import Options
from patterncc.bench.suites import SUITES, Shape, Subject, request_of

pytestmark = pytest.mark.gpu
DEVICE = "cuda:0"


def test_peers_of_torch() -> None:
    shape = Shape(1, 4, 4, 1024, 64)
    subjects = [Subject("causal", "causal"), *SUITES["packed"].patterns]
    requests = [request_of(subject, shape, "bfloat16", DEVICE, 0) for subject in subjects]
    options = Options(("forward", "backward", "both", "fresh"), rounds=2, jobs=8)
    peers = peers_named("flex,sdpa-flash,sdpa-dense-mask")
    report = race.run(requests, peers, DEVICE, options)
    causal, packed = report.results
    for name, reading in causal.readings.items():
        assert reading.state == "timed", (name, reading.reason)
    assert packed.readings["sdpa-flash"].state == "cannot"
    assert is_sound(report)
    for result, phases in ((causal, ("forward", "backward", "both")), (packed, options.phases)):
        for name in (OWN, "flex"):
            reading = result.readings[name]
            assert reading.phases == phases
            assert set(reading.peak_bytes) == set(phases)
            assert reading.peak_bytes["both"] >= 3 * 1024 * 4 * 64 * 2
            assert all(0 < second < 1 for phase in phases for second in reading.seconds[phase])
    found = document(report)
    assert found["machine"]["versions"]["torch"] and len(found["ceilings"]["bfloat16"]) >= 2
    flex = found["results"][1]["peers"]["flex"]
    assert flex["mask_bytes"] > 0 and flex["phases"]["forward"]["host_seconds"] > 0
