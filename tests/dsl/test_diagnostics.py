"""Every code: a golden text with what it gets, and an entry in docs/errors.md with an example."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from patterncc.dsl import diagnose, load
from patterncc.dsl.codes import CODES, error_for
from patterncc.dsl.errors import PatternError

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "errors"
DOCS = ROOT / "docs" / "errors.md"


@pytest.mark.parametrize("code", CODES)
def test_golden(code: str, golden: Callable[[Path, str], None]) -> None:
    path = GOLDEN / f"{code}.pat"
    checked = diagnose(path.read_text(encoding="utf-8"), file=path.name)
    found = (*checked.errors, *checked.warnings)
    assert code in {mistake.code for mistake in found}
    golden(path.with_suffix(".txt"), "\n\n".join(map(str, found)) + "\n")
    if checked.errors:
        with pytest.raises(CODES[code] if len(checked.errors) == 1 else PatternError):
            load(path.read_text(encoding="utf-8"))


def test_every_golden_file_has_a_code() -> None:
    names = {path.name for path in GOLDEN.iterdir()}
    assert names == {f"{code}{suffix}" for code in CODES for suffix in (".pat", ".txt")}


def test_every_code_in_the_sources_is_known_and_the_other_way_round() -> None:
    """A code is the first argument of one of the few functions that report."""
    reporting = {"add", "fail", "give_up", "report", "Diagnostic"}
    used = set()
    for path in (ROOT / "dsl").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr=name) | ast.Name(id=name),
                    args=[ast.Constant(value=str(code)), _, *_],
                ) if name in reporting:
                    used.add(code)
                case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=str(code))):
                    used.add(code)
    assert used == set(CODES)


def sections() -> dict[str, str]:
    """The entries of docs/errors.md by their headings."""
    parts = re.split(r"^### `(.+)`$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_docs_have_an_entry_for_every_code() -> None:
    assert sorted(sections()) == sorted(CODES)


@pytest.mark.parametrize("code", CODES)
def test_docs_show_what_gets_the_code(code: str) -> None:
    wrong, right = re.findall(r"```pat\n(.*?)```", sections()[code], flags=re.DOTALL)
    checked = diagnose(wrong)
    assert [mistake.code for mistake in (*checked.errors, *checked.warnings)] == [code]
    checked = diagnose(right)
    assert checked.errors == checked.warnings == ()


def test_exceptions() -> None:
    (syntax,) = diagnose("k <").errors
    (name,) = diagnose("casual").errors
    assert type(error_for((syntax, syntax))) is CODES["syntax"]
    assert type(error_for((syntax, name))) is PatternError
    assert error_for((syntax, name)).diagnostics == (syntax, name)
