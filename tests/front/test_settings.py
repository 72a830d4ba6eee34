"""The environment variables."""

from pathlib import Path

import pytest

from patterncc.dsl.errors import ConfigError
from patterncc.settings import VARIABLES, Settings, settings

ROOT = Path(__file__).resolve().parents[2]


def test_defaults() -> None:
    default = Settings.read({})
    assert default.cache_dir.is_absolute()
    assert default.cache_dir.name == "patterncc"
    assert default.verify is False


def test_an_empty_value_counts_as_none() -> None:
    empty = dict.fromkeys((variable.name for variable in VARIABLES), "")
    assert Settings.read(empty) == Settings.read({})


def test_cache_folder() -> None:
    assert Settings.read({"PATTERNCC_CACHE_DIR": "/a/b"}).cache_dir == Path("/a/b")
    assert Settings.read({"PATTERNCC_CACHE_DIR": "~/c"}).cache_dir == Path.home() / "c"
    assert Settings.read({"PATTERNCC_CACHE_DIR": "d"}).cache_dir == Path.cwd() / "d"


@pytest.mark.parametrize(
    ("value", "state"), [("1", True), ("ON", True), ("0", False), ("no", False)]
)
def test_switch(value: str, state: bool) -> None:
    assert Settings.read({"PATTERNCC_VERIFY": value}).verify is state


def test_a_wrong_switch_is_named() -> None:
    with pytest.raises(ConfigError, match="PATTERNCC_VERIFY is set to 'maybe'; legal: 0,"):
        Settings.read({"PATTERNCC_VERIFY": "maybe"})


def test_the_process_reads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings()
    monkeypatch.setenv("PATTERNCC_CACHE_DIR", "/elsewhere")
    assert settings() is before


def test_every_variable_that_is_read_is_listed() -> None:
    text = (ROOT / "patterncc" / "settings.py").read_text(encoding="utf-8")
    listed = {variable.name for variable in VARIABLES}
    read = {word.strip("\"'") for word in text.replace("(", " ").replace(",", " ").split()}
    assert {word for word in read if word.startswith("PATTERNCC_")} == listed
