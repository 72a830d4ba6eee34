"""Planted bad configs: each costs one trial, says why, and the next one works."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from patterncc.autotune.measurement import Measurement
from patterncc.autotune.worker import Maker, Worker
from patterncc.dsl.errors import ConfigError, TuningError
from tests.autotune import planted
from tests.autotune.planted import config

ROOT = Path(__file__).resolve().parents[2]
MODULE = "tests.autotune.planted"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker(Maker(MODULE, "make", (str(tmp_path / "notes"),)), limit=1.5) as worker:
        yield worker


def works(worker: Worker) -> bool:
    return worker.measure(config(planted.GOOD)) == Measurement("timed", (1e-3, 2e-3, 3e-3))


def test_good(worker: Worker) -> None:
    assert works(worker)
    assert worker.measure(config(planted.GOOD)).median == 2e-3
    assert worker.starts == 1
    assert [found.state for found in worker.race([config(0), config(planted.WRONG)])] == [
        "timed",
        "wrong",
    ]


@pytest.mark.parametrize(
    ("what", "state", "reason", "starts"),
    [
        (planted.EXITS, "crashed", "it ended with exit code 7: no more paper", 2),
        (planted.SEGFAULTS, "crashed", "it died of SIGSEGV", 2),
        (planted.HANGS, "hung", "no answer within 1.5 s", 2),
        (planted.STUCK_IN_C, "hung", "no answer within 1.5 s", 2),
        (planted.NO_MEMORY, "out of memory", "MemoryError: of 3 TiB", 2),
        (planted.RAISES, "refused", "ConfigError: tiles of this shape cannot be", 1),
        (planted.SPOILS, "refused", "RuntimeError: CUDA error: an illegal memory access", 2),
        (planted.WRONG, "wrong", "12 times what is allowed", 1),
    ],
)
def test_bad(worker: Worker, what: int, state: str, reason: str, starts: int) -> None:
    found = worker.measure(config(what))
    assert (found.state, found.seconds, found.median) == (state, (), float("inf"))
    assert reason in found.reason
    assert works(worker)
    assert worker.starts == starts


def test_what_a_hung_child_started_is_ended(worker: Worker, tmp_path: Path) -> None:
    assert worker.measure(config(planted.FORKS)).state == "hung"
    grandchild = int((tmp_path / "notes").read_text())
    assert ended(grandchild)
    assert works(worker)


def test_a_measurer_that_cannot_be_made() -> None:
    with (
        Worker(Maker(MODULE, "make_nothing")) as worker,
        pytest.raises(ConfigError, match="there is no such device"),
    ):
        worker.measure(config(0))
    with (
        Worker(Maker(MODULE, "make_a_crash")) as worker,
        pytest.raises(TuningError, match="crashed before its first trial: it ended with exit"),
    ):
        worker.measure(config(0))
    with (
        Worker(Maker(MODULE, "no_such_function")) as worker,
        pytest.raises(TuningError, match="has no attribute 'no_such_function'"),
    ):
        worker.measure(config(0))


def test_a_race_that_dies(worker: Worker) -> None:
    with pytest.raises(TuningError, match="process crashed in race: it ended with exit code 7"):
        worker.race([config(planted.GOOD), config(planted.EXITS)])


def test_other_questions(worker: Worker) -> None:
    assert worker.ask("add", 2, 3) == 5
    with pytest.raises(TuningError, match=r"add failed: TypeError: unsupported operand"):
        worker.ask("add", 2, "x")
    with pytest.raises(TuningError, match=r"process hung in sleep: no answer within 1\.5 s"):
        worker.ask("sleep", 30)
    assert works(worker)


def test_children_do_not_outlive_their_parent() -> None:
    code = (
        "import os, sys, time\n"
        "from patterncc.autotune.worker import Maker, Worker\n"
        "from tests.autotune.planted import config\n"
        f"worker = Worker(Maker({MODULE!r}, 'make', ('',)), limit=1000)\n"
        "worker.measure(config(0))\n"
        "print(worker._process.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert ended(child)


def ended(process: int) -> bool:
    """Whether a process is gone, or soon is."""
    for _ in range(100):
        try:
            os.kill(process, 0)
            state = Path(f"/proc/{process}/stat")
            if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_an_interrupted_question_leaves_no_answer(worker: Worker) -> None:
    """Ctrl-C while a config is measured: what the child says of it later answers nothing else."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    assert works(worker)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            worker.ask("sleep", 0.6)
    finally:
        signal.signal(signal.SIGALRM, before)
    time.sleep(0.6)
    assert worker.ask("add", 2, 3) == 5
    assert worker.starts == 2


def test_a_set_up_outlives_the_child(worker: Worker) -> None:
    worker.set_up("spoil", 0)
    assert works(worker)
    assert worker.measure(config(planted.EXITS)).state == "crashed"
    assert worker.ask("spoils") == 1  # of the second child
    with pytest.raises(TuningError, match="in spoil"):
        worker.set_up("spoil", 1)
    assert worker.ask("spoils") == 0  # what failed sets nothing up
