"""The documentation: what it shows of the command line is what the command line prints."""

import io
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from patterncc import cli
from patterncc.settings import settings

ROOT = Path(__file__).resolve().parents[2]
FILES = (ROOT / "docs" / "cli.md", ROOT / "docs" / "facts.md", ROOT / "README.md")

# A block whose first line is a command; `<!-- output varies -->` before it says not to compare.
BLOCK = re.compile(
    r"(?P<varies><!-- output varies -->\n)?```console\n\$ patterncc (?P<command>.*)\n"
    r"(?P<output>(?:.*\n)*?)```\n"
)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """What a command prints, both streams, in this process."""
    monkeypatch.chdir(ROOT)
    for name, value in (("NO_COLOR", "1"), ("COLUMNS", "80"), ("PATTERNCC_CACHE_DIR", "")):
        monkeypatch.setenv(name, value)
    settings.cache_clear()

    def run(command: str) -> str:
        stream = io.StringIO()
        with redirect_stdout(stream), redirect_stderr(stream):
            cli.main(shlex.split(command))
        return "".join(line.rstrip() + "\n" for line in stream.getvalue().splitlines())

    yield run
    settings.cache_clear()


def blocks() -> list[tuple[Path, re.Match[str]]]:
    return [
        (path, block)
        for path in FILES
        for block in BLOCK.finditer(path.read_text(encoding="utf-8"))
        if not block["varies"]
    ]


@pytest.mark.parametrize(
    ("path", "command"), [(path, block["command"]) for path, block in blocks()]
)
def test_shown_output_is_real(
    path: Path, command: str, request: pytest.FixtureRequest, printed: Callable[[str], str]
) -> None:
    text = path.read_text(encoding="utf-8")
    (block,) = (found for found in BLOCK.finditer(text) if found["command"] == command)
    output = printed(command)
    if request.config.getoption("--update-golden"):
        start, end = block.span("output")
        path.write_text(text[:start] + output + text[end:], encoding="utf-8")
        return
    assert block["output"] == output


def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall("```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    exec(code, {})
    assert "query tile i visits key tiles j" in capsys.readouterr().out
    assert (tmp_path / "mask.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("path", [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_design_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    folders = "dsl|codegen|autotune|patterncc|docs|tests|benchmarks"
    named = re.findall(rf"\b(?:{folders})/[\w/]*(?:\.\w+)?", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists() and "NAME" not in name] == []


def test_the_index_of_docs_is_complete() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    names = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\((\w+\.md)\)", index)) == names
