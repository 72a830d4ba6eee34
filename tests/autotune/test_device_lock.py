"""One measurement at a time on a device, and nobody waits for ever."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from patterncc.autotune.device_lock import device_lock

INSIDE = (
    "import sys, time; from pathlib import Path;"
    "from patterncc.autotune.device_lock import device_lock\n"
    "with device_lock(Path(sys.argv[1])) as alone:\n"
    "    print('inside' if alone else 'beside', flush=True); time.sleep(float(sys.argv[2]))"
)


def enter(path: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that is inside."""
    process = subprocess.Popen(
        [sys.executable, "-c", INSIDE, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    return process


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "cpu.lock"


def test_waits_until_the_other_is_out(path: Path) -> None:
    other = enter(path, 0.5)
    with device_lock(path) as alone:
        assert alone
        assert other.wait(5) == 0  # it was on its way out, at the least
    with device_lock(path) as alone:
        assert alone


def test_who_waited_in_vain_goes_on(path: Path) -> None:
    other = enter(path, 60)
    start = time.monotonic()
    with device_lock(path, patience=0.1) as alone:
        assert not alone
    assert time.monotonic() - start < 5
    other.kill()  # and the lock ends with it
    other.wait()
    with device_lock(path) as alone:
        assert alone


def test_a_device_has_its_own(path: Path) -> None:
    with device_lock(path), device_lock(path.with_name("other.lock"), patience=0.0) as alone:
        assert alone


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with device_lock(tmp_path / "file" / "cpu.lock") as alone:
        assert not alone


def test_errors_inside_come_out(path: Path) -> None:
    with pytest.raises(RuntimeError, match="of the measurement"), device_lock(path):
        raise RuntimeError("of the measurement")
    with device_lock(path, patience=0.0) as alone:
        assert alone
